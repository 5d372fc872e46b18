"""The command line: parses, calls the library, prints. Slow imports load when a command runs."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

from vitlens import __version__
from vitlens.cli import atlas, demo, explain, faithfulness, info, lab, saes
from vitlens.cli.options import HelpFormatter
from vitlens.errors import VitlensError
from vitlens.io import check_folder

#: Modules with an `add_to`, in the order of the help.
COMMANDS = (demo, lab, explain, faithfulness, atlas, saes, info)

_DESCRIPTION = """\
From an image to a faithful circuit: why a Vision Transformer saw what it saw.

The model "everyday" comes with the package and needs no network. Any other Vision
Transformer of timm also works, with its own sparse autoencoders (SAEs).
"""
_EXAMPLES = """\
examples:
  vitlens demo
  vitlens lab
  vitlens explain cat.jpg --target bird
  vitlens faithfulness photos/ --limit 50
  vitlens atlas photos/ --out atlas/
  vitlens train-saes photos/ --model vit_base_patch16_224 --out saes/
  vitlens explain cat.jpg --model vit_base_patch16_224 --saes saes/

`vitlens COMMAND --help` lists the options of a command.
"""

_INTERRUPTED = 130  # as shells report Ctrl-C
_FAILED = 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="vitlens",
        usage="vitlens [--help] [--version] COMMAND [OPTIONS]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"vitlens {__version__}")
    commands = root.add_subparsers(
        title="commands", metavar="COMMAND [OPTIONS]", prog="vitlens", required=True
    )
    for command in COMMANDS:
        command.add_to(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        0 on success, 2 after an error that vitlens can explain, 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or file with another encoding than UTF-8 gets "?" for an arrow, not a crash.
        sys.stdout.reconfigure(errors="replace")
    arguments = parser().parse_args(argv)
    # torch's forward mode compiles its own rules with it, and then warns about it.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
    try:
        if "out" in arguments:
            check_folder(arguments.out)
        arguments.run(arguments)
        sys.stdout.flush()
    except VitlensError as error:
        print(f"vitlens: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt as interrupt:
        print(f"\nvitlens: stopped. {interrupt}".rstrip(), file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # the reader is gone, as with `| head`
            print(f"vitlens: {error}", file=sys.stderr)
        _finish_printing()
        return _FAILED
    return 0


def _finish_printing() -> None:
    """Write out what was printed; if that fails, Python must not try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

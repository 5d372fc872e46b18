"""The command line: parses, calls the library, prints. Commands import what is slow when run."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

import vitlens
from vitlens.cli import atlas, demo, explain, faithfulness, info, lab, train_saes, tune_saes
from vitlens.cli.options import HelpFormatter
from vitlens.errors import VitlensError
from vitlens.io import check_folder

#: In the order of the help. A new command is a module with `add_to`, and its name here.
COMMANDS = (demo, lab, explain, faithfulness, atlas, train_saes, tune_saes, info)

_DESCRIPTION = """\
From an image to a faithful circuit: why a Vision Transformer saw what it saw.

The model "everyday" is part of the package and needs no network. Any other
Vision Transformer of timm works too, with sparse autoencoders (SAEs) of its own.
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

`vitlens COMMAND --help` tells all options of a command.
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
    root.add_argument("--version", action="version", version=f"vitlens {vitlens.__version__}")
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
        Arguments, without the program's name; by default the process's own.

    Returns
    -------
    int
        0, or 2 after an error that vitlens can explain, or 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or file of another encoding than UTF-8 gets "?" for an arrow, not a crash.
        sys.stdout.reconfigure(errors="replace")
    arguments = parser().parse_args(argv)
    # torch's forward mode compiles its own rules this way, and warns of itself.
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
        if not isinstance(error, BrokenPipeError):  # the reader went away, as `| head` does
            print(f"vitlens: {error}", file=sys.stderr)
        _finish_printing()
        return _FAILED
    return 0


def _finish_printing() -> None:
    """Write out what was printed; where that cannot be, Python must not try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

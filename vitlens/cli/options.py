"""Options shared by several commands."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vitlens.errors import ImageError, VitlensError

if TYPE_CHECKING:
    from vitlens.lens import Lens

#: What `add_subparsers` returns; argparse gives it no public name.
Commands: TypeAlias = Any

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64")
# Repeated here because importing them from the library would make `--help` wait for torch.
ENGINES = ("closed_form", "jvp", "vjp")
GRADIENTS = ("libragrad", "plain")
ERROR_GRADIENTS = ("leaf", "through")
ERROR_NODES = ("clean", "free", "baseline", "zero")
SELECT = ("eliminate", "path", "walk")
EDGES = ("patched", "gradient")
DEFAULT_FLOOR = 3
BASELINE_KINDS = ("median", "mean", "reference")

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class HelpFormatter(argparse.HelpFormatter):
    """Fits paragraphs to the terminal, keeps examples as they are, widens the option column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip().split("\n\n")
        return "\n\n".join(
            part if "\n  " in part else textwrap.fill(part, width, break_on_hyphens=False)
            for part in parts
        )


def add_command(
    commands: Commands, name: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command with its one-line summary, its description and its examples."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=HelpFormatter,
    )
    return command


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add options for the model, its SAEs and baselines, and where to run them."""
    group = command.add_argument_group("model")
    group.add_argument(
        "--model",
        default="everyday",
        metavar="NAME",
        help='"everyday" (comes with vitlens, the default), the name of a timm model, or'
        ' "local-dir:FOLDER" for a model that timm saved',
    )
    group.add_argument(
        "--saes",
        metavar="FOLDER",
        help="SAEs of the model: a folder or a name on the Hugging Face hub (default: those that"
        ' come with "everyday", or those published for the timm model)',
    )
    group.add_argument(
        "--baselines",
        metavar="PATH",
        type=Path,
        help="values that replaced features are set to: a file written by Baselines.save, or a"
        " folder of images to fit them on (default: the baselines that come with the SAEs"
        " of a bundle, otherwise zero)",
    )
    group.add_argument(
        "--baseline-kind",
        choices=BASELINE_KINDS,
        default="median",
        help="with a folder for --baselines: take the median over its images (default), the mean,"
        " or the images themselves as references, each in turn",
    )
    group.add_argument(
        "--class-names",
        metavar="FILE",
        type=Path,
        help="text file with the class names of a timm model, one per line",
    )
    add_machine_options(command)


def add_machine_options(command: argparse.ArgumentParser) -> None:
    """Add options for the device and the precision."""
    group = command.add_argument_group("machine")
    group.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="default: CUDA if available, otherwise the CPU",
    )
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")


def device_and_dtype(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the chosen device and dtype, as keyword arguments.

    Raises
    ------
    VitlensError
        If CUDA is requested and there is none.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if arguments.device == "cuda" and not has_cuda:
        raise VitlensError("No CUDA device was found. Omit --device, or use --device cpu.")
    use_cuda = has_cuda and arguments.device != "cpu"
    return {"device": "cuda" if use_cuda else "cpu", "dtype": getattr(torch, arguments.dtype)}


def load_lens(arguments: argparse.Namespace) -> Lens:
    """Load the lens that the options of `add_model_options` describe.

    Raises
    ------
    VitlensError
        If an option does not fit the model, or something cannot be loaded.
    """
    from vitlens.bundle import bundles, load

    if arguments.model in bundles() and arguments.class_names:
        raise VitlensError(
            f"{arguments.model!r} has its own class names; --class-names needs a timm model."
        )
    sample = images_in([arguments.baselines]) if _is_folder(arguments.baselines) else None
    lens = load(
        arguments.model,
        saes=arguments.saes,
        baselines=arguments.baselines if sample is None else None,
        class_names=None if arguments.class_names is None else _lines(arguments.class_names),
        **device_and_dtype(arguments),
    )
    if sample is not None and arguments.baseline_kind == "reference":
        lens.baselines = lens.reference_baselines(sample)
    elif sample is not None:
        lens.fit_baselines(sample, kind=arguments.baseline_kind)
    return lens


def add_attribution_options(command: argparse.ArgumentParser) -> None:
    """Add options for how importances are computed."""
    group = command.add_argument_group("importances")
    group.add_argument(
        "--gradient",
        choices=GRADIENTS,
        default="libragrad",
        help="libragrad (default), or the model's plain gradient",
    )
    group.add_argument(
        "--error-gradients",
        choices=ERROR_GRADIENTS,
        default="leaf",
        help="whether gradients stop at error nodes (leaf, the default) or flow through them",
    )
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="closed_form",
        help="closed_form (default) is by far the fastest; jvp and vjp work with any kind of block",
    )


def add_circuit_options(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add options for which nodes and edges a circuit has, and return their group."""
    group = command.add_argument_group("circuit")
    group.add_argument(
        "--select",
        choices=SELECT,
        default="eliminate",
        help="eliminate (default): few nodes that carry the answer; path: one ranking by"
        " path-integrated importance; walk: the paper's walk over edges",
    )
    group.add_argument(
        "--edges",
        choices=EDGES,
        help="patched: how far the target falls when the edge is cut; gradient: the paper's"
        " importances (default: gradient with --select walk, else patched)",
    )
    group.add_argument(
        "--error-nodes",
        choices=ERROR_NODES,
        default="clean",
        help="values of the error nodes when nodes are selected and their part is measured"
        " (default: clean)",
    )
    rule = group.add_mutually_exclusive_group()
    rule.add_argument(
        "--nodes-per-layer",
        type=positive,
        metavar="N",
        help="number of nodes to keep per layer (default: 8)",
    )
    rule.add_argument(
        "--nodes",
        type=positive,
        metavar="N",
        help="instead: number of nodes of all layers together; not with --select walk",
    )
    rule.add_argument(
        "--share",
        type=float,
        metavar="X",
        help="instead: share of each layer's nodes to keep, 0 to 1",
    )
    rule.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="instead, with --select walk: keep the fewest nodes that reach this share of a layer's"
        " importance, 0 to 1",
    )
    group.add_argument(
        "--floor",
        type=positive,
        default=DEFAULT_FLOOR,
        metavar="N",
        help="with --nodes: least number of nodes per layer (default: %(default)s)",
    )
    return group


def circuit_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_circuit_options` added, as keyword arguments of `Lens.circuit`."""
    names = (
        "select",
        "nodes_per_layer",
        "share",
        "threshold",
        "nodes",
        "floor",
        "error_nodes",
        "edges",
    )
    return {name: getattr(arguments, name) for name in names}


def target_of(text: str) -> int | str:
    """Return a class index, or a class name."""
    try:
        return int(text)
    except ValueError:
        return text


def images_in(paths: Iterable[Path], limit: int | None = None) -> list[Path]:
    """Return the image files at these paths; folders are searched recursively, in sorted order.

    Raises
    ------
    ImageError
        If a path does not exist, or a folder contains no image.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise ImageError(f"There is no file or folder {path}.")
            found.append(path)
            continue
        inside = [file for file in sorted(path.rglob("*")) if _is_image(file)]
        if not inside:
            kinds = " ".join(sorted(_IMAGE_SUFFIXES))
            raise ImageError(f"The folder {path} contains no image ({kinds}).")
        found += inside
    return found[:limit]


def layers_of(text: str) -> tuple[int, ...]:
    """Return block numbers such as 2,5,9, for argparse."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdigit() for number in numbers):
        raise argparse.ArgumentTypeError(f"must be block numbers such as 2,5,9, not {text}")
    return tuple(map(int, numbers))


def positive(text: str) -> int:
    """Return a whole number above 0, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text}")
    return value


def positive_number(text: str) -> float:
    """Return a finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in _IMAGE_SUFFIXES


def _is_folder(path: Path | None) -> bool:
    return path is not None and path.is_dir()


def _lines(path: Path) -> list[str]:
    try:
        # Editors may write a byte order mark first, and empty lines last.
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VitlensError(f"The class names in {path} could not be read: {error}.") from error

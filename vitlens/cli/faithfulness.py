"""``vitlens faithfulness``: insertion and deletion curves over images."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitlens.cli.options import (
    ENGINES,
    ERROR_NODES,
    Commands,
    add_command,
    add_model_options,
    images_in,
    load_lens,
    positive,
    target_of,
)
from vitlens.cli.report import count, write_curves, written
from vitlens.errors import VitlensError

if TYPE_CHECKING:
    from vitlens.lens import Lens

_TEXT = """\
Measure how faithful circuits are: keep only the top features of every layer
(insertion), or remove them (deletion), and measure how much of the output is left.
The command prints a table with 95 % confidence intervals over images, and writes the
curves as a figure and as a file for vitlens.Curves.load.

Subfolders named after the model's classes give labels; misclassified images are then
left out. An interrupted run continues when the same command is run again.
"""
_EXAMPLES = """\
  vitlens faithfulness
  vitlens faithfulness photos/ --limit 100 --methods rrm,cla,node,random
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands, "faithfulness", "measure how faithful circuits are", _TEXT, _EXAMPLES
    )
    command.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="image files and folders of images (default: the model's sample images)",
    )
    command.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="use only N images, chosen at random, the same ones every time",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("vitlens-faithfulness"),
        metavar="FOLDER",
        help="folder for curves.png and curves.safetensors (default: vitlens-faithfulness)",
    )
    group = command.add_argument_group("curves")
    group.add_argument(
        "--methods",
        default="rrm,cla,random",
        metavar="A,B,…",
        help="methods to compare: rrm, path, eliminate, learned, cla, node, plain, activation,"
        " random (default: rrm,cla,random)",
    )
    group.add_argument(
        "--target",
        type=target_of,
        metavar="CLASS",
        help="class to explain, by name or index (default: the predicted class of each image)",
    )
    group.add_argument(
        "--error-nodes",
        choices=ERROR_NODES,
        default="clean",
        help="values of the error nodes: those of the unchanged model (clean, the default), those"
        " of the running stream (free), their baseline, or zero",
    )
    group.add_argument(
        "--engine", choices=ENGINES, default="closed_form", help="default: closed_form"
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        default=16,
        metavar="N",
        help="number of replaced runs at once (default: 16)",
    )
    add_model_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from vitlens.circuits.faithfulness import estimate, resolve_methods

    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    resolve_methods(methods)  # an unknown name fails before anything is loaded
    paths = images_in(arguments.images)
    lens = load_lens(arguments)
    paths, labels = _labelled(lens, paths, arguments.limit)
    settings = {
        "methods": methods,
        "error_nodes": arguments.error_nodes,
        "engine": arguments.engine,
        "batch_size": arguments.batch_size,
    }
    cost = estimate(lens.replacement, lens.tensor(paths[0]), len(paths), **settings)
    print(f"{count(len(paths), 'image')}: {cost}", flush=True)
    out = arguments.out / "curves.safetensors"
    try:
        curves = lens.faithfulness(
            paths, labels=labels, target=arguments.target, out=out, **settings
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("The same command continues with the remaining images.") from None
    figure = write_curves(curves, arguments.out / "curves.png")
    print(f"\n{curves}\n\n{written([figure, out])}")


def _labelled(
    lens: Lens, paths: Sequence[Path], limit: int | None
) -> tuple[list[Path], list[str] | None]:
    """Return the images to measure, and their classes where all are known."""
    given = [(path, path.parent.name) for path in paths]
    if not paths:
        samples = [sample for sample in lens.samples if sample.label] or lens.samples
        given = [(sample.path, sample.label) for sample in samples]
        if not given:
            raise VitlensError(
                "This model has no sample images. Give image files or a folder of images."
            )
    if limit is not None and limit < len(given):
        given = random.Random(0).sample(given, limit)
    known = lens.class_names or ()
    labels = [label for _, label in given]
    return [path for path, _ in given], labels if all(n in known for n in labels) else None

"""``vitlens explain``: the circuit behind a model's answer on one image."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitlens.cli.options import (
    Commands,
    add_attribution_options,
    add_circuit_options,
    add_command,
    add_model_options,
    circuit_options,
    images_in,
    load_lens,
    positive,
    target_of,
)
from vitlens.cli.report import indented, prediction, write_circuit, written

_TEXT = """\
Find the circuit behind a model's answer on an image. The command prints it as a
table, with the part of the answer that it carries alone, and writes it as a
figure (PNG and SVG) and as a file for vitlens.Circuit.load. With images of other
classes it says whether the circuit gives this answer for any image.
"""
_EXAMPLES = """\
  vitlens explain photo.jpg
  vitlens explain photo.jpg --target bird --nodes-per-layer 5 --out why-bird
  vitlens explain photo.jpg --nodes 120 --floor 4
  vitlens explain photo.jpg --others photos/
  vitlens explain photo.jpg --model vit_base_patch16_224 --saes saes/ --target 281
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "explain", "explain an image", _TEXT, _EXAMPLES)
    command.add_argument("image", type=Path, metavar="IMAGE", help="an image file")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("vitlens-explain"),
        metavar="FOLDER",
        help="folder for the figures and the circuit file (default: vitlens-explain)",
    )
    command.add_argument(
        "--others",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="images or folders of images to measure how specific the circuit is: those that the"
        " model assigns to other classes than the explained one",
    )
    group = add_circuit_options(command)
    group.add_argument(
        "--target",
        type=target_of,
        metavar="CLASS",
        help="class to explain, by name or index (default: the predicted class)",
    )
    group.add_argument(
        "--top-edges",
        type=positive,
        metavar="N",
        help="number of edges to draw between two layers (default: three per node)",
    )
    add_attribution_options(command)
    add_model_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    others = images_in(arguments.others) if arguments.others else []
    lens = load_lens(arguments)
    print(prediction(lens.predict(arguments.image)))
    circuit = lens.circuit(
        arguments.image,
        target=arguments.target,
        **circuit_options(arguments),
        gradient=arguments.gradient,
        error_gradients=arguments.error_gradients,
        engine=arguments.engine,
        progress=True,
    )
    print(f"\n{indented(str(circuit))}\n")
    if others:
        found = lens.specificity(
            circuit, arguments.image, others, error_nodes=arguments.error_nodes
        )
        print(f"Specificity:\n{indented(str(found))}\n")
    print(written(write_circuit(circuit, arguments.out, top_edges=arguments.top_edges)))

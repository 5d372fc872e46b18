"""``vitlens explain``: the circuit behind a model's answer on one image."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitlens.cli.options import (
    Commands,
    add_attribution_options,
    add_command,
    add_model_options,
    load_lens,
    positive,
    target_of,
)
from vitlens.cli.report import indented, prediction, write_circuit, written

_TEXT = """\
Find the circuit behind a model's answer on an image; print it as a table, and
write it as a picture (PNG and SVG) and as a file that vitlens.Circuit.load opens.
"""
_EXAMPLES = """\
  vitlens explain photo.jpg
  vitlens explain photo.jpg --target bird --nodes-per-layer 5 --out why-bird
  vitlens explain photo.jpg --model vit_base_patch16_224 --saes saes/ --target 281
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "explain", "explain an image of yours", _TEXT, _EXAMPLES)
    command.add_argument("image", type=Path, metavar="IMAGE", help="an image file")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("vitlens-explain"),
        metavar="FOLDER",
        help="for the pictures and the circuit's file (default: vitlens-explain)",
    )
    group = command.add_argument_group("circuit")
    group.add_argument(
        "--target",
        type=target_of,
        metavar="CLASS",
        help="class to explain, by name or index (default: the predicted one)",
    )
    rule = group.add_mutually_exclusive_group()
    rule.add_argument(
        "--nodes-per-layer", type=positive, metavar="N", help="nodes to keep a layer (default: 8)"
    )
    rule.add_argument(
        "--share", type=float, metavar="X", help="or: this share of a layer's nodes, 0 to 1"
    )
    rule.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="or: the fewest nodes with this share of a layer's importance, 0 to 1",
    )
    group.add_argument(
        "--top-edges",
        type=positive,
        metavar="N",
        help="edges to draw between two layers (default: three a node)",
    )
    add_attribution_options(command)
    add_model_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    lens = load_lens(arguments)
    print(prediction(lens.predict(arguments.image)))
    circuit = lens.circuit(
        arguments.image,
        target=arguments.target,
        nodes_per_layer=arguments.nodes_per_layer,
        share=arguments.share,
        threshold=arguments.threshold,
        gradient=arguments.gradient,
        errors=arguments.errors,
        engine=arguments.engine,
        progress=True,
    )
    print(f"\n{indented(str(circuit))}\n")
    print(written(write_circuit(circuit, arguments.out, top_edges=arguments.top_edges)))

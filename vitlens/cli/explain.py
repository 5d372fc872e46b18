"""``vitlens explain``: the circuit behind a model's answer on one image."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitlens.cli.options import (
    DEFAULT_FLOOR,
    EDGES,
    ERROR_NODES,
    SELECT,
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
Find the circuit behind a model's answer on an image. The command prints it as a
table, with the part of the answer that it carries alone, and writes it as a
figure (PNG and SVG) and as a file for vitlens.Circuit.load.
"""
_EXAMPLES = """\
  vitlens explain photo.jpg
  vitlens explain photo.jpg --target bird --nodes-per-layer 5 --out why-bird
  vitlens explain photo.jpg --nodes 120 --floor 4
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
    group = command.add_argument_group("circuit")
    group.add_argument(
        "--target",
        type=target_of,
        metavar="CLASS",
        help="class to explain, by name or index (default: the predicted class)",
    )
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
    lens = load_lens(arguments)
    print(prediction(lens.predict(arguments.image)))
    circuit = lens.circuit(
        arguments.image,
        target=arguments.target,
        select=arguments.select,
        nodes_per_layer=arguments.nodes_per_layer,
        share=arguments.share,
        threshold=arguments.threshold,
        nodes=arguments.nodes,
        floor=arguments.floor,
        error_nodes=arguments.error_nodes,
        edges=arguments.edges,
        gradient=arguments.gradient,
        error_gradients=arguments.error_gradients,
        engine=arguments.engine,
        progress=True,
    )
    print(f"\n{indented(str(circuit))}\n")
    print(written(write_circuit(circuit, arguments.out, top_edges=arguments.top_edges)))

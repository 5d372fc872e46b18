"""``vitlens demo``: explain a sample image, offline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitlens.cli.options import Commands, add_circuit_options, add_command, circuit_options
from vitlens.cli.report import Stopwatch, indented, prediction, write_circuit, write_curves, written
from vitlens.errors import VitlensError, near_matches
from vitlens.tables import text_table

if TYPE_CHECKING:
    from vitlens.circuits.curves import Curves, Direction
    from vitlens.lens import Lens, Sample

_SHARES = (0.02, 0.2)
_WAYS: tuple[Direction, ...] = ("insertion", "deletion")

_TEXT = """\
Explain a sample image with the bundled model "everyday"; no network is needed.

The command prints the prediction, the circuit behind it and what it carries,
whether it gives this answer for any image, how much of the output features carry
compared with features chosen by Cross-Layer Attribution (CLA) and at random, and
how long each part took.
"""
_EXAMPLES = """\
  vitlens demo
  vitlens demo --out somewhere/else
  vitlens demo --select walk --nodes-per-layer 16
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "demo", "explain a sample image", _TEXT, _EXAMPLES)
    command.add_argument(
        "--out",
        type=Path,
        default=Path("vitlens-demo"),
        metavar="FOLDER",
        help="folder for the figures and the circuit file (default: vitlens-demo)",
    )
    command.add_argument(
        "--sample",
        metavar="NAME",
        help="name of the sample image; `vitlens info` lists them (default: the first)",
    )
    add_circuit_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    watch = Stopwatch()
    with watch.part("loading the libraries"):
        import vitlens.plots  # noqa: F401  # slow; timed separately here
        from vitlens.bundle import load
    with watch.part("loading the model and its SAEs"):
        lens = load("everyday")
    sample = _sample(lens, arguments.sample)
    print(f"Image: {sample.path.name}\n{indented(sample.credit)}")
    with watch.part("prediction"):
        ranking = lens.predict(sample.path)
    print(prediction(ranking))

    with watch.part("circuit: importances of all nodes and edges"):
        circuit = lens.circuit(sample.path, **circuit_options(arguments), progress=True)
    print(f"\nCircuit:\n{indented(str(circuit))}")

    others = [other for other in lens.samples if other.label not in ("", circuit.target)]
    if others:
        with watch.part("specificity"):
            found = lens.specificity(
                circuit,
                sample.path,
                [other.path for other in others],
                labels=[other.label for other in others],
                error_nodes=arguments.error_nodes,
            )
        print(f"\nOn the other samples:\n{indented(str(found))}")

    with watch.part("insertion and deletion curves"):
        curves = lens.faithfulness([sample.path], methods=("rrm", "eliminate", "cla", "random"))
    print(f"\nHow much of the output the features carry on this image:\n{_scores(curves)}")

    with watch.part("figures and files"):
        paths = write_circuit(circuit, arguments.out)
        paths.append(write_curves(curves, arguments.out / "curves.png"))
    print(f"\n{watch}\n\n{written(paths)}")


def _sample(lens: Lens, name: str | None) -> Sample:
    if not lens.samples:
        raise VitlensError("The sample images are missing. Reinstall vitlens.")
    if name is None:
        return lens.samples[0]
    by_name = {sample.path.stem: sample for sample in lens.samples}
    stem = Path(name).stem
    if stem not in by_name:
        raise VitlensError(
            f"There is no sample {name!r}.{near_matches(stem, by_name)} "
            f"Samples: {', '.join(by_name)}."
        )
    return by_name[stem]


def _scores(curves: Curves) -> str:
    """Areas under the curves of one image, and the output left at some shares of features."""
    rows = []
    for method in curves.methods:
        kept = curves.band("insertion", method).mean
        numbers = [curves.area(way, method).value for way in _WAYS]
        numbers += [float(kept[curves.q.index(share)]) for share in _SHARES]
        rows.append([method, *(f"{number:.3f}" for number in numbers)])
    shares = [f"{share:.0%} kept" for share in _SHARES]
    table = text_table(["method", "insertion ↑", "deletion ↓", *shares], rows)
    return indented(
        f"{table}\n"
        "The first two columns are areas under the curves. The others are the output that is\n"
        "left when every layer keeps the same number of features: this share of the largest\n"
        "layer's. 1 is the output of the full model, 0 that of the model without its features."
    )

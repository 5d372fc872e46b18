"""The published faithfulness table: insertion and deletion on unseen composites.

    python -m recipes.everyday.faithfulness

Every image is a photographic cut-out of the test split on a photograph of the test split (see
`images.test_composites`); only those the model classifies correctly count. The run takes about an
hour on two cores, can be interrupted, and goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import vitlens
from recipes.everyday.images import normalise, test_composites
from vitlens.circuits.methods import METHODS
from vitlens.plots import curves_figure, save_figure

OUT = Path("build/everyday/faithfulness")


def main() -> None:
    """Measure the curves, print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=240, help="composites to try (%(default)s)")
    parser.add_argument("--errors", default="clean", choices=("clean", "free", "baseline"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    lens = vitlens.load("everyday")
    made = test_composites(args.images, seed=1)
    curves = lens.faithfulness(
        list(normalise(made.pixels)),
        methods=args.methods,
        labels=made.labels.tolist(),
        errors=args.errors,
        out=args.out / f"curves-{args.errors}.safetensors",
    )
    print(curves)
    print(curves.table())
    save_figure(curves_figure(curves), args.out / f"curves-{args.errors}.png")


if __name__ == "__main__":
    main()

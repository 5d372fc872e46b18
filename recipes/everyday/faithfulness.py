"""The published faithfulness table: insertion and deletion on unseen composites.

    python -m recipes.everyday.faithfulness

Every image is a photographic cut-out of the test split on a photograph of the test split (see
`images.test_composites`); only images that the model classifies correctly count. Missing public
images are downloaded. The run takes about 20 seconds per image on two cores; after an interruption
it resumes.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

import vitlens
from recipes.everyday.fetch import fetch
from recipes.everyday.images import normalise, test_composites
from vitlens.circuits.curves import Metric
from vitlens.circuits.faithfulness import METHODS
from vitlens.method.replacement import ErrorNodes
from vitlens.plots import curves_figure, save_figure

OUT = Path("build/everyday/faithfulness")
PUBLISHED = ("rrm", "cla", "node", "plain", "activation", "random")


def main() -> None:
    """Measure the curves, print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=240, help="composites to try (%(default)s)")
    parser.add_argument("--error-nodes", default="clean", choices=get_args(ErrorNodes))
    parser.add_argument("--baselines", default="median", choices=("median", "mean"))
    parser.add_argument("--methods", nargs="+", default=list(PUBLISHED), choices=list(METHODS))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    fetch()
    with ProcessPoolExecutor(args.jobs) as pool:
        parts = list(pool.map(partial(_measure, args), range(args.jobs)))
    curves = _merged(parts)
    name = f"curves-{args.baselines}-{args.error_nodes}-{args.images}"
    curves.save(args.out / f"{name}.safetensors")
    save_figure(curves_figure(curves), args.out / f"{name}.png")
    print(curves)


def _measure(args: argparse.Namespace, job: int) -> vitlens.Curves:
    """Measure every `jobs`-th image."""
    torch.set_num_threads(1)
    made = test_composites(args.images, seed=1)
    chosen = slice(job, None, args.jobs)
    protocol = f"{args.baselines}-{args.error_nodes}-{args.images}"
    return vitlens.load("everyday", baselines=args.baselines).faithfulness(
        list(normalise(made.pixels[chosen])),
        methods=args.methods,
        labels=made.labels[chosen].tolist(),
        error_nodes=args.error_nodes,
        seed=job,
        out=args.out / f"part-{protocol}-{job}-of-{args.jobs}.safetensors",
    )


def _merged(parts: list[vitlens.Curves]) -> vitlens.Curves:
    """Merge the parts; image `i` of part `p` is image ``i * jobs + p`` of the whole."""

    def join(name: str, axis: int) -> dict[Metric, Tensor]:
        measured = [getattr(part, name) for part in parts]
        return {key: torch.cat([m[key] for m in measured], axis) for key in measured[0]}

    return replace(
        parts[0],
        insertion=join("insertion", 1),
        deletion=join("deletion", 1),
        untouched=join("untouched", 0),
        images=tuple(i * len(parts) + job for job, part in enumerate(parts) for i in part.images),
        n_given=sum(part.n_given for part in parts),
    )


if __name__ == "__main__":
    main()

"""Edges of pruned circuits, cut one by one: predicted against measured change.

    python -m recipes.everyday.verify

On composites of the test split (see `images.test_composites`) that the model classifies correctly,
random edges of the circuit with 8 nodes per layer are cut (see `vitlens.circuits.verify`), for the
circuit of LibraGrad and for that of plain gradients; the control is random edges between active
features of the same layers. Missing public images are downloaded. The run takes about half a minute
per image and core; after an interruption it resumes. `--so-far` reports the results so far.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vitlens
from recipes.everyday.fetch import fetch
from recipes.everyday.images import normalise, test_composites
from vitlens.circuits.circuit import ERROR, TARGET
from vitlens.circuits.curves import Array, Estimate, interval, resamples
from vitlens.circuits.prune import walk
from vitlens.circuits.verify import (
    Link,
    Verification,
    measure_edges,
    predict_edges,
    random_edges,
    rank_correlation,
)
from vitlens.io import read_json, write_json
from vitlens.method.engines import EdgeColumns
from vitlens.method.importance import (
    ErrorGradients,
    Importances,
    node_importances,
    resolve_target,
)
from vitlens.method.libragrad import Gradient
from vitlens.method.replacement import Active, ErrorNodes
from vitlens.plots import save_figure, verification_figure

OUT = Path("build/everyday/verify")
FIGURE = Path("docs/verify.png")
_TRIED = 1.3  # composites per image, as some are misclassified


class Row(NamedTuple):
    """One line of the table: prediction, edges and measurement that are compared."""

    gradient: Gradient
    error_gradients: ErrorGradients
    edges: str  # of a circuit, "libragrad" or "plain"; or "random"
    error_nodes: ErrorNodes
    active: Active
    name: str


ROWS = (
    Row("libragrad", "leaf", "libragrad", "clean", "clean", "LibraGrad"),
    Row("plain", "leaf", "plain", "clean", "clean", "plain gradients"),
    Row("libragrad", "leaf", "random", "clean", "clean", "random edges, LibraGrad"),
    Row("plain", "leaf", "random", "clean", "clean", "random edges, plain gradients"),
    Row("plain", "leaf", "libragrad", "clean", "clean", "LibraGrad's edges, plain gradients"),
    Row("libragrad", "leaf", "libragrad", "clean", "running", "LibraGrad, top k chosen again"),
    Row("libragrad", "through", "libragrad", "free", "clean", "LibraGrad, error nodes free"),
    Row("plain", "through", "plain", "free", "clean", "plain gradients, error nodes free"),
)


@dataclass(frozen=True)
class Run:
    """Settings of a run, and its files."""

    images: int
    edges: int
    nodes: int
    jobs: int
    out: Path

    def file(self, job: int) -> Path:
        name = f"{self.images}-images-{self.edges}-edges-{self.nodes}-nodes"
        return self.out / name / f"part-{job}-of-{self.jobs}.json"


def main() -> None:
    """Measure, print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50, help="images (%(default)s)")
    parser.add_argument("--edges", type=int, default=20, help="edges per image (%(default)s)")
    parser.add_argument("--nodes", type=int, default=8, help="nodes per layer (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--so-far", action="store_true", help="report without measuring more")
    given = vars(parser.parse_args())
    so_far = given.pop("so_far")
    run = Run(**given)

    if so_far:
        files = [run.file(job) for job in range(run.jobs)]
        parts = [read_json(file) for file in files if file.exists()]
    else:
        fetch()
        with ProcessPoolExecutor(run.jobs) as pool:
            parts = list(pool.map(partial(_measure, run), range(run.jobs)))
    found = [image for part in parts for image in part]
    print(_table(found))
    panels = {row.name: _pooled(found, row) for row in ROWS[:3]}
    notes = {row.name: f"rank correlation {_over_images(found, row)[0]}" for row in ROWS[:3]}
    title = f"{len(found)} images, error nodes clean; rank correlations are means over images"
    save_figure(verification_figure(panels, notes=notes, title=title), FIGURE)


def _measure(run: Run, job: int) -> list[dict[str, Any]]:
    """Measure every `jobs`-th of the correctly classified images."""
    torch.set_num_threads(1)
    lens = vitlens.load("everyday")
    made = test_composites(round(_TRIED * run.images) + 1, seed=1)
    pixels = normalise(made.pixels)
    right = [
        i
        for i, x in enumerate(pixels)
        if int(lens.vision.logits(x[None]).argmax()) == made.labels[i]
    ]
    mine = right[: run.images][job :: run.jobs]
    file = run.file(job)
    done: list[dict[str, Any]] = read_json(file) if file.exists() else []
    for i in mine[len(done) :]:
        done.append({"image": i, "rows": _one(lens, pixels[i], run, seed=i)})
        write_json(file, done)
        ranks = ", ".join(f"{_over_images(done, row)[0].value:.2f}" for row in ROWS)
        print(f"{len(done)} of {len(mine)}: {ranks}", flush=True)
    return done


def _one(lens: vitlens.Lens, x: Tensor, run: Run, *, seed: int) -> list[dict[str, Any]]:
    """Measure one image: edges, predicted and measured changes for each row."""
    trace = lens.trace(x)
    target = resolve_target(None, trace.logits, lens.class_names)
    model = lens.replacement

    @cache
    def nodes(gradient: Gradient, error_gradients: ErrorGradients) -> Importances:
        return node_importances(
            model, trace, target, gradient=gradient, error_gradients=error_gradients
        )

    @cache
    def chosen(gradient: Gradient) -> tuple[list[Link], tuple[Link, ...]]:
        importances = nodes(gradient, "leaf")
        return _edges(importances, EdgeColumns(model, trace, importances), run, seed)

    every, some = chosen("libragrad")
    links = {"libragrad": some, "plain": chosen("plain")[1]}
    links["random"] = random_edges(trace, some, known=every, seed=seed)

    @cache
    def measured(edges: str, error_nodes: ErrorNodes, active: Active) -> list[float]:
        found = measure_edges(
            model, trace, target, links[edges], error_nodes=error_nodes, active=active
        )
        return found.tolist()

    return [
        {
            "edges": links[row.edges],
            "predicted": predict_edges(
                model, trace, nodes(row.gradient, row.error_gradients), links[row.edges]
            ).tolist(),
            "measured": measured(row.edges, row.error_nodes, row.active),
        }
        for row in ROWS
    ]


def _edges(
    nodes: Importances, columns: EdgeColumns, run: Run, seed: int
) -> tuple[list[Link], tuple[Link, ...]]:
    """All edges of the pruned circuit, and a random sample of them."""
    sizes = [len(scores) - 1 for scores in nodes.nodes]
    kept = [
        [ERROR if i == size else i for i in indices.tolist()]
        for size, indices in zip(sizes, walk(nodes.nodes, columns, count=run.nodes), strict=True)
    ]
    layers = nodes.layers
    every: list[Link] = [((layers[-1], f), (layers[-1] + 1, TARGET)) for f in kept[-1]]
    for (layer, here), (next_layer, following) in pairwise(zip(layers, kept, strict=True)):
        every += [((layer, f), (next_layer, g)) for f in here for g in following if g != ERROR]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    return every, tuple(every[i] for i in sorted(order[: run.edges].tolist()))


def _over_images(found: Sequence[dict[str, Any]], row: Row) -> tuple[Estimate, ...]:
    """Means over images of the rank correlation, sign agreement and mean size, with intervals."""
    rows = []
    for image in found:
        p, m = _sides(image, row)
        rows.append(
            (float(rank_correlation(p, m)), (np.sign(p) == np.sign(m)).mean(), abs(m).mean())
        )
    values = np.array(rows)
    drawn = resamples(len(found)) @ values
    return tuple(interval(values[:, i].mean(), drawn[:, i], len(found)) for i in range(3))


def _sides(image: dict[str, Any], row: Row) -> tuple[Array, Array]:
    part = image["rows"][ROWS.index(row)]
    return np.array(part["predicted"]), np.array(part["measured"])


def _pooled(found: Sequence[dict[str, Any]], row: Row) -> Verification:
    parts = [image["rows"][ROWS.index(row)] for image in found]
    edges = tuple(((a[0], a[1]), (b[0], b[1])) for part in parts for a, b in part["edges"])
    predicted, measured = (
        torch.tensor([v for part in parts for v in part[side]], dtype=torch.float64)
        for side in ("predicted", "measured")
    )
    settings = {"error_nodes": row.error_nodes}
    return Verification(edges, predicted, measured, len(edges), "the predicted class", settings)


def _table(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{len(found)} images",
        "",
        "| edges and prediction | rank correlation | same sign | mean measured change |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in ROWS:
        rank, same, size = _over_images(found, row)
        lines.append(f"| {row.name} | {rank} | {same} | {size.value:.2g} |")
    for row in (ROWS[0], ROWS[4]):
        pooled = _pooled(found, row)
        ranks = ", ".join(
            f"{layer}: {rank:.2f}" for layer, (_, rank, _) in pooled.by_layer().items()
        )
        lines += ["", f"{row.name}, edges of all images together, by layer: {ranks}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Edges of pruned circuits, cut one by one: predicted against measured change.

    python -m recipes.everyday.verify

On composites of the test split (see `images.test_composites`) that the model classifies correctly,
random edges of circuits with 8 nodes per layer are cut (see `vitlens.circuits.verify`): of the
default circuit, and of the paper's walk over LibraGrad edges; the control is random edges between
active features of the same layers. Each is measured under both protocols, and predicted by patched
edges, LibraGrad and plain gradients. Twice the effect of half a cut shows how far a measurement
agrees with itself. Missing public images are downloaded. The run takes about a minute per image and
core; after an interruption it resumes. `--so-far` reports the results so far.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vitlens
from recipes.everyday.fetch import fetch
from recipes.everyday.images import normalise, test_composites
from vitlens.circuits.circuit import Circuit
from vitlens.circuits.curves import Array, Estimate, interval, resamples
from vitlens.circuits.verify import (
    Link,
    Verification,
    measure_edges,
    predict_edges,
    predict_patched,
    random_edges,
    rank_correlation,
    sign_agreement,
    within_two,
)
from vitlens.io import read_json, write_json
from vitlens.method.importance import ErrorGradients, Target, node_importances, resolve_target
from vitlens.method.patching import HeldClean
from vitlens.method.replacement import Active, ErrorNodes, ReplacementModel, Trace
from vitlens.plots import save_figure, verification_figure

OUT = Path("build/everyday/verify")
FIGURE = Path("docs/verify.png")
_TRIED = 1.3  # composites per image, as some are misclassified


class Row(NamedTuple):
    """One line of the table: prediction, edges and measurement that are compared."""

    prediction: str  # "patched", "libragrad", "plain", or "half": twice the effect of half the cut
    edges: str  # of the default "circuit", of the paper's "walk", or "random"
    error_nodes: HeldClean
    active: Active

    @property
    def name(self) -> str:
        """The row's title."""
        return f"{_PREDICTIONS[self.prediction]}, {_EDGES[self.edges]}"

    @property
    def protocol(self) -> str:
        """What the measurement does."""
        held = "error nodes held" if self.error_nodes == "clean" else "error nodes free"
        return f"{held}, {'top k held' if self.active == 'clean' else 'top k chosen again'}"


_PREDICTIONS = {
    "patched": "patched edges",
    "libragrad": "LibraGrad",
    "plain": "plain gradients",
    "half": "twice half the cut",
}
_EDGES = {"circuit": "edges of the circuit", "walk": "edges of the walk", "random": "random edges"}
_ACTIVE: tuple[Active, ...] = ("clean", "running")

_HELD = [(p, edges) for edges in ("circuit", "random") for p in _PREDICTIONS] + [
    (p, "walk") for p in ("patched", "libragrad", "plain")
]
_FREE = [(p, "circuit") for p in ("patched", "libragrad", "plain")]

ROWS = (
    *(Row(*one, "clean", active) for active in _ACTIVE for one in _HELD),
    *(Row(*one, "free", active) for active in _ACTIVE for one in _FREE),
)
_DRAWN = (
    Row("patched", "circuit", "clean", "clean"),
    Row("libragrad", "circuit", "clean", "clean"),
    Row("patched", "circuit", "clean", "running"),
)


@dataclass(frozen=True)
class Run:
    """Settings of a run, and its files."""

    images: int
    edges: int
    nodes: int
    jobs: int
    baselines: str
    out: Path
    figure: Path

    def file(self, job: int) -> Path:
        name = f"{self.images}-images-{self.edges}-edges-{self.nodes}-nodes-{self.baselines}"
        return self.out / name / f"part-{job}-of-{self.jobs}.json"


def main() -> None:
    """Measure, print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50, help="images (%(default)s)")
    parser.add_argument("--edges", type=int, default=20, help="edges per image (%(default)s)")
    parser.add_argument("--nodes", type=int, default=8, help="nodes per layer (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread (%(default)s)")
    parser.add_argument("--baselines", choices=("mean", "median"), default="mean")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--figure", type=Path, default=FIGURE)
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
    if not found:
        raise SystemExit("Nothing has been measured yet with these options.")
    print(_table(found))
    titles = ("patched edges", "LibraGrad", "patched edges, top k chosen again")
    panels = {name: _pooled(found, row) for name, row in zip(titles, _DRAWN, strict=True)}
    notes = {
        name: f"rank correlation {_over_images(found, row)[0]}"
        for name, row in zip(panels, _DRAWN, strict=True)
    }
    title = f"{len(found)} images, error nodes held; rank correlations are means over images"
    save_figure(verification_figure(panels, notes=notes, title=title), run.figure)


def _measure(run: Run, job: int) -> list[dict[str, Any]]:
    """Measure every `jobs`-th of the correctly classified images."""
    torch.set_num_threads(1)
    lens = vitlens.load("everyday", baselines=run.baselines)
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
    known = lens.replacement, trace, resolve_target(None, trace.logits, lens.class_names)
    made = {
        "circuit": lens.circuit(x, nodes_per_layer=run.nodes),
        "walk": lens.circuit(x, nodes_per_layer=run.nodes, select="walk"),
    }
    links: dict[str, tuple[Link, ...]] = {}
    for name, circuit in made.items():
        every = [(edge.source, edge.target) for edge in circuit.edges]
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
        links[name] = tuple(every[i] for i in sorted(order[: run.edges].tolist()))
    every = [(edge.source, edge.target) for edge in made["circuit"].edges]
    links["random"] = random_edges(trace, links["circuit"], known=every, seed=seed)

    def predict(row: Row) -> list[float]:
        edges = links[row.edges]
        if row.prediction == "half":
            half = measure_edges(
                *known, edges, error_nodes=row.error_nodes, active=row.active, part=0.5
            )
            return (2 * half).tolist()
        return predict_held(row.prediction, row.edges, row.error_nodes)

    @cache
    def predict_held(prediction: Any, name: str, error_nodes: HeldClean) -> list[float]:
        """The same for both protocols: nothing is known of places among the top k."""
        if prediction == "patched" and name == "random":
            return predict_patched(*known, links[name], error_nodes=error_nodes).tolist()
        if prediction == "patched":
            patched = _patched(known, made[name], error_nodes)
            return [patched[edge] for edge in links[name]]
        errors: ErrorGradients = "leaf" if error_nodes == "clean" else "through"
        nodes = node_importances(*known, gradient=prediction, error_gradients=errors)
        return predict_edges(known[0], trace, nodes, links[name]).tolist()

    @cache
    def measured(edges: str, error_nodes: ErrorNodes, active: Active) -> list[float]:
        found = measure_edges(*known, links[edges], error_nodes=error_nodes, active=active)
        return found.tolist()

    return [
        {
            "edges": links[row.edges],
            "predicted": predict(row),
            "measured": measured(row.edges, row.error_nodes, row.active),
        }
        for row in ROWS
    ]


def _patched(
    known: tuple[ReplacementModel, Trace, Target], circuit: Circuit, error_nodes: HeldClean
) -> dict[Link, float]:
    """Patched edges of a whole circuit, as the diagram shows them."""
    edges = [(edge.source, edge.target) for edge in circuit.edges]
    return dict(
        zip(
            edges,
            predict_patched(*known, edges, error_nodes=error_nodes).tolist(),
            strict=True,
        )
    )


def _over_images(found: Sequence[dict[str, Any]], row: Row) -> tuple[Estimate, ...]:
    """Rank correlation, sign, slope, factor of two, mean size: over images, with intervals.

    The slope is that of the edges of all images together, the others are means over images.
    """
    rows = []
    for image in found:
        p, m = _sides(image, row)
        rows.append(
            (
                float(rank_correlation(p, m)),
                float(sign_agreement(p, m)),
                float(within_two(p, m)),
                abs(m).mean(),
                (p * m).sum(),
                (p * p).sum(),
            )
        )
    values = np.array(rows)
    drawn = resamples(len(found)) @ values
    mean = values.mean(0)
    means = [interval(mean[i], drawn[:, i], len(found)) for i in range(4)]
    slope = interval(mean[4] / mean[5], drawn[:, 4] / drawn[:, 5], len(found))
    return means[0], means[1], slope, means[2], means[3]


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
    lines = [f"{len(found)} images, {len(found[0]['rows'][0]['edges'])} edges each"]
    for protocol in dict.fromkeys(row.protocol for row in ROWS):
        lines += [
            "",
            f"| {protocol} | rank correlation | same sign | slope | within a factor of 2 | size |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in ROWS:
            if row.protocol == protocol:
                *estimates, size = _over_images(found, row)
                cells = " | ".join(map(str, estimates))
                lines.append(f"| {row.name} | {cells} | {size.value:.2g} |")
    lines += ["", "Slope (and rank correlation) by layer, edges of all images together:"]
    for row in ROWS:
        if row.edges == "circuit" and row.prediction != "half":
            layers = ", ".join(
                f"{layer}: {one.slope.value:.2f} ({one.rank_correlation.value:.2f})"
                for layer, one in _pooled(found, row).by_layer().items()
            )
            lines.append(f"- {row.name}, {row.protocol}: {layers}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

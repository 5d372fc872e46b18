"""Small results to draw, and one call of every figure function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.builders import CLASSES, tiny_image, tiny_lens
from vitlens import plots
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.evolution import Course, Evolution
from vitlens.atlas.tuning import N_CURVES, Tuning
from vitlens.circuits.circuit import ERROR, TARGET, Circuit, Edge, Node
from vitlens.circuits.curves import METRICS, Curves
from vitlens.circuits.verify import Verification
from vitlens.debias.report import GroupReport, TradeOff


def circuit(
    layers: int | tuple[int, ...] = 3,
    nodes: int = 2,
    *,
    prefix: tuple[str, ...] = ("CLS",),
    grid: tuple[int, int] = (4, 4),
    image: bool = True,
    **changes: Any,
) -> Circuit:
    """A circuit of random edges; the last node is an error node."""
    generator = torch.Generator().manual_seed(0)
    blocks = tuple(range(layers)) if isinstance(layers, int) else layers
    made = [Node(layer, f, 1.0, 0.4, 1.0) for layer in blocks for f in range(nodes)]
    made[-1] = Node(blocks[-1], ERROR, -0.2, -0.1, -0.2)
    edges = [
        Edge(a.key, b.key, weight, weight / 10)
        for a, b in product(made, made)
        if (a.layer, b.layer) in pairwise(blocks) and b.feature != ERROR
        for weight in [float(torch.randn((), generator=generator))]
    ]
    edges += [Edge(n.key, (blocks[-1] + 1, TARGET), n.importance, n.share) for n in made[-nodes:]]
    settings: dict[str, Any] = {
        "nodes": tuple(made),
        "edges": tuple(edges),
        "layers": blocks,
        "heatmaps": torch.randn(len(made), len(prefix) + grid[0] * grid[1], generator=generator),
        "grid": grid,
        "prefix_names": prefix,
        "target": "mammal",
        "target_index": 3,
        "target_value": -4.25,
        "prediction": ("mammal", 0.931),
        "image": torch.full((32, 32, 3), 200, dtype=torch.uint8) if image else None,
    }
    return Circuit(**settings | changes)


def curves(
    n_images: int = 5,
    *,
    methods: tuple[str, ...] = ("rrm", "cla", "mine"),
    full: float = 4.0,
    q: tuple[float, ...] = (0.0, 0.02, 0.1, 1.0),
) -> Curves:
    """Curves that are powers of the share of features, in the order of the methods."""
    share = torch.tensor(q)
    scale = torch.linspace(0.9, 1.1, n_images)[:, None]
    insertion = torch.stack([scale * full * share**power for power in range(1, len(methods) + 1)])
    return Curves(
        methods=methods,
        q=q,
        counts=tuple(round(100 * x) for x in q),
        insertion={m: insertion.double() for m in METRICS},
        deletion={m: insertion.flip(-1).double() for m in METRICS},
        untouched={m: insertion[0, :, -1].double() for m in METRICS},
        images=tuple(range(n_images)),
        n_given=n_images,
        error_nodes="clean",
        target="predicted class",
    )


def report(name: str = "group a") -> GroupReport:
    """Accuracies of two groups."""
    return GroupReport("removed", (name, "b"), ("c",), torch.tensor([3.0, 4]), torch.full((2,), 5))


def course() -> Course:
    """One layer, one score."""
    return Course((1,), (1,), {"frequency": ((0.1, 0.2, 0.3),)}, {}, {})


def verification(target: str = "mammal") -> Verification:
    """Three edges."""
    return Verification((((0, 1), (1, 1)),) * 3, torch.ones(3), torch.arange(3.0), 3, target)


def feature_parts(**changes: Any) -> dict[str, Any]:
    """Arguments of `feature_figure` for an image of 2 x 2 patches and 3 classes."""
    return {
        "activation": torch.tensor([0.0, 1.0, 2.0, 0.0, 0.5]),
        "importance": torch.tensor([0.1, -1.0, 0.5, 0.0, 0.0]),
        "effects": torch.tensor([0.3, -0.5, 0.2]),
        "grid": (2, 2),
        "prefix_names": ("CLS",),
        "class_names": ("bird", "costs $5", "fruit"),
        **changes,
    }


def tiny_atlas() -> Atlas:
    """An atlas of ten noise images, with stored images and stimuli."""
    lens = tiny_lens()
    images = [lens.transform.to_pil(tiny_image(seed)) for seed in range(10)]
    labels = [CLASSES[seed % 5] for seed in range(10)]
    return Atlas.build(
        lens,
        images,
        labels=labels,
        n_top=3,
        n_sampled=3,
        thumbnails=24,
        layout=False,
        progress=False,
    )


def every_figure(atlas: Atlas) -> Iterator[tuple[str, Callable[..., Figure], str]]:
    """Name, call and argument ("ax" or "figure") of each figure function, with titles."""
    trade_off = TradeOff((report(), replace(report(), n_features=2)))
    tuning = Tuning.of(torch.rand(N_CURVES, generator=torch.Generator().manual_seed(0)), {})
    table = np.array([[2.0, -1.0], [3.0, 1.0], [2.0, 1.0], [4, 1]], np.float32)
    pixels = torch.full((8, 8, 3), 90, dtype=torch.uint8)
    heat = torch.tensor([[0.5, -1.0], [0.25, 0.0]])
    calls: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
        "circuit_figure": ("ax", (circuit(),), {}),
        "curves_figure": ("figure", (curves(),), {}),
        "evolution_figure": (
            "figure",
            (Evolution((0,), course(), {"frequency": (0.25,)}, {"untrained": course()}),),
            {"title": "t"},
        ),
        "feature_figure": ("figure", (pixels,), feature_parts(title="t")),
        "feature_sheet": ("figure", (atlas, [(2, 5)]), {"n_images": 1, "title": "t"}),
        "features_figure": (
            "ax", (table,),
            {"names": ["7", "9"], "labels": ["", "eye"], "positive": 4.0, "title": "t"},
        ),
        "groups_figure": ("figure", (report(), report()), {"curve": trade_off}),
        "heatmap_figure": (
            "ax", (pixels, heat), {"prefix": [0.5], "prefix_names": ["CLS"], "title": "t"},
        ),
        "heatmaps_figure": (
            "figure", ([pixels, None], [heat, heat]), {"title": "t", "titles": ["a", "b"]},
        ),
        "map_figure": ("ax", (np.eye(2), ["none", "hue"]), {"name": "kind", "title": "t"}),
        "table_figure": ("ax", (["feature", "name"], [["1", "eye"]]), {"title": "t"}),
        "text_figure": ("ax", ("Nothing was computed yet.",), {}),
        "tuning_figure": ("figure", (tuning,), {"title": "t"}),
        "verification_figure": ("figure", (verification(),), {}),
    }  # fmt: skip
    for name, (place, arguments, options) in calls.items():
        yield name, partial(getattr(plots, name), *arguments, **options), place


def texts(artist: Artist) -> set[str]:
    """All text that is drawn, legends and tick labels included."""
    return {text.get_text() for text in artist.findobj(Text)}

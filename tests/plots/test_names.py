"""Names are drawn to the letter, whatever matplotlib would take them for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.plots.test_plots import circuit, curves
from vitlens.atlas.evolution import Course, Evolution
from vitlens.atlas.tuning import N_CURVES, Tuning
from vitlens.circuits.verify import Verification
from vitlens.debias.report import GroupReport
from vitlens.plots import (
    circuit_figure,
    curves_figure,
    evolution_figure,
    feature_figure,
    features_figure,
    groups_figure,
    heatmap_figure,
    heatmaps_figure,
    map_figure,
    save_figure,
    table_figure,
    tuning_figure,
    verification_figure,
    words_figure,
)

NAME = r"$a_b_c$"  # no formula, and so an error where it is taken for one


def report(name: str) -> GroupReport:
    return GroupReport("removed", (name, "b"), ("c",), torch.tensor([3.0, 4]), torch.full((2,), 5))


def course() -> Course:
    return Course((1,), (1,), {"frequency": ((0.1, 0.2, 0.3),)}, {}, {})


FIGURES: dict[str, Callable[[str], Figure]] = {
    "heatmap title": lambda name: heatmap_figure(None, torch.ones(2, 2), title=name),
    "heatmap label": lambda name: heatmap_figure(None, torch.ones(2, 2), label=name),
    "heatmap token": lambda name: heatmap_figure(
        None, torch.ones(2, 2), prefix=[1.0], prefix_names=[name]
    ),
    "heatmaps titles": lambda name: heatmaps_figure(
        [None] * 2, torch.ones(2, 2, 2), title=name, titles=["a", name]
    ),
    "group": lambda name: groups_figure(report("a"), report(name)),
    "groups title": lambda name: groups_figure(report("a"), report("a"), title=name),
    "map title": lambda name: map_figure(np.eye(2), [1.0, 2.0], name="x", title=name),
    "map value": lambda name: map_figure(np.eye(2), [1.0, 2.0], name=name),
    "map kind": lambda name: map_figure(np.eye(2), ["none", name], name="x"),
    "feature": lambda name: feature_figure(
        None,
        activation=torch.ones(5),
        importance=torch.ones(5),
        effects=torch.ones(1),
        grid=(2, 2),
        prefix_names=[name],
        class_names=[name],
        title=name,
        subtitle=name,
    ),
    "features": lambda name: features_figure(
        np.ones((4, 1), np.float32), names=["1"], labels=[name], positive=1.0, title=name
    ),
    "circuit": lambda name: circuit_figure(circuit(target=name)),
    "curves": lambda name: curves_figure(curves(methods=("rrm", name)), title=name),
    "verification": lambda name: verification_figure(
        {name: Verification((((0, 1), (1, 1)),) * 3, torch.ones(3), torch.ones(3), 3, name)}
    ),
    "evolution": lambda name: evolution_figure(
        Evolution((0,), course(), {}, {name: course()}), title=name
    ),
    "table": lambda name: table_figure([name], [[name]], title=name),
    "tuning": lambda name: tuning_figure(Tuning.of(torch.rand(N_CURVES), {}), title=name),
    "words": lambda name: words_figure(name),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_names_are_drawn_to_the_letter(figure: str, tmp_path: Path) -> None:
    drawn = []
    for name in (NAME, "plain"):
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # words as words, not as outlines
            save_figure(FIGURES[figure](name), tmp_path / "figure.svg")
        drawn.append((tmp_path / "figure.svg").read_text().count(name))
    assert drawn[0] == drawn[1] > 0


def test_a_long_name_without_spaces_is_cut_in_the_heading() -> None:
    figure = circuit_figure(replace(circuit(), target="象" * 200))
    (heading,) = [t.get_text() for t in figure.findobj(Text) if "What led to" in t.get_text()]
    assert heading.startswith("What led to “象象") and heading.endswith("象…”")
    assert len(heading) < 150

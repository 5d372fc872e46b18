"""Figures of all features of an atlas: evolution and map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.plots.figures import texts
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.evolution import Course, Evolution, evolution
from vitlens.errors import FeatureError
from vitlens.plots import evolution_figure, map_figure, save_figure


def test_an_evolution_has_a_panel_per_score(atlas: Atlas, tmp_path: Path) -> None:
    found = atlas.evolution()
    both = found.with_control("untrained", found).with_control("another", found)
    figure = evolution_figure(both, title="costs $5")
    assert {"extent", "position", "curve features", "untrained", "another"} <= texts(figure)
    save_figure(figure, tmp_path / "evolution.png", dpi=60)


def test_the_lines_are_the_medians(atlas: Atlas) -> None:
    figure = evolution_figure(atlas.evolution())
    panel = next(axes for axes in figure.axes if axes.get_title() == "extent")
    medians = [
        float(scores["extent"][scores.live].double().quantile(0.5))
        for scores in (atlas.scores(layer) for layer in range(3))
    ]
    assert panel.lines[-1].get_ydata() == pytest.approx(medians, rel=1e-3)


def test_without_stimuli_there_are_fewer_panels(atlas: Atlas) -> None:
    few = [atlas.scores(layer) for layer in range(3)]
    figure = evolution_figure(
        evolution([type(s)(s.layer, {"frequency": s["frequency"]}) for s in few])
    )
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["frequency"]
    nothing = Evolution((0,), Course((1,), (1,), {}, {}, {}), {})
    with pytest.raises(FeatureError):
        evolution_figure(nothing)


def test_a_map_names_kinds_and_circles_the_chosen() -> None:
    figure = map_figure(
        np.eye(3)[:, :2], ["none", "hue", "class"], name="kind", chosen=np.array([1, 0, 0], bool)
    )
    assert {"hue", "class", "none above chance"} <= texts(figure)
    assert len(figure.axes[0].collections) == 4
    with pytest.raises(FeatureError, match="2 values do not match 3 points"):
        map_figure(np.eye(3)[:, :2], [1.0, 2.0], name="x")  # type: ignore[arg-type]

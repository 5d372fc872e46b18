"""Figures of one feature and of a list of features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vitlens.errors import FeatureError
from vitlens.plots import feature_figure, features_figure, save_figure

NAMES = ("bird", "costs $5", "fruit")


def parts(**changes: Any) -> dict[str, Any]:
    return {
        "activation": torch.tensor([0.0, 1.0, 2.0, 0.0, 0.5]),
        "importance": torch.tensor([0.1, -1.0, 0.5, 0.0, 0.0]),
        "effects": torch.tensor([0.3, -0.5, 0.2]),
        "grid": (2, 2),
        "prefix_names": ("CLS",),
        "class_names": NAMES,
        **changes,
    }


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]


def test_a_feature_says_what_it_pushes(tmp_path: Path) -> None:
    picture = torch.zeros(8, 8, 3, dtype=torch.uint8)
    figure = feature_figure(picture, **parts(), title="Layer 1, feature 2: $x")
    assert {"active on 3 of 5 tokens", "CLS", "activation, up to 2"} <= set(words(figure))
    effects = figure.axes[3]
    assert [label.get_text() for label in effects.get_yticklabels()] == [
        "bird",
        "fruit",
        r"costs \$5",
    ]
    assert [round(bar.get_width(), 3) for bar in effects.patches] == [0.3, 0.2, -0.5]
    save_figure(figure, tmp_path / "feature.svg")


def test_a_silent_feature_is_drawn() -> None:
    nothing = parts(activation=torch.zeros(5), importance=torch.zeros(5), effects=torch.zeros(3))
    figure = feature_figure(None, **nothing)
    assert "active on 0 of 5 tokens" in words(figure)


@pytest.mark.parametrize(
    "change", [{"activation": torch.zeros(4)}, {"grid": (3, 2)}, {"class_names": NAMES[:2]}]
)
def test_numbers_must_fit(change: dict[str, Any]) -> None:
    with pytest.raises(FeatureError):
        feature_figure(None, **parts(**change))


def test_a_list_has_a_row_a_feature(tmp_path: Path) -> None:
    table = np.array([[2.0, -1.0], [3.0, 1.0], [2.0, 1.0], [4, 1]], np.float32)
    figure = features_figure(table, names=["7", "9"], labels=["", "$eye"], positive=4.0, title="t")
    assert {"7", "9", r"\$eye", "50.0%", "−25.0%"} <= set(words(figure))
    save_figure(figure, tmp_path / "list.png")
    small = features_figure(table * 1e-4, names=["7", "9"], labels=["", ""], positive=4.0)
    assert {"<0.1%", ">−0.1%"} <= set(words(small))
    features_figure(table[:, :0], names=[], labels=[], positive=0.0)

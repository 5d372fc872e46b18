"""Figures of single features: on an image, on stimuli, in a contact sheet."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from tests.builders import tiny_image, tiny_lens
from tests.plots.figures import feature_parts, texts
from vitlens.atlas import stimuli, tuning
from vitlens.atlas.atlas import Atlas
from vitlens.errors import FeatureError
from vitlens.plots import feature_figure, feature_sheet, save_figure, tuning_figure


def test_a_feature_shows_its_effects_on_the_logits(tmp_path: Path) -> None:
    image = torch.zeros(8, 8, 3, dtype=torch.uint8)
    figure = feature_figure(image, **feature_parts(), title="Layer 1, feature 2: $x")
    assert {"active on 3 of 5 tokens", "CLS", "activation, strongest 2"} <= texts(figure)
    effects = figure.axes[3]
    assert [label.get_text() for label in effects.get_yticklabels()] == [
        "bird",
        "fruit",
        r"costs \$5",
    ]
    assert [round(bar.get_width(), 3) for bar in effects.patches] == [0.3, 0.2, -0.5]
    save_figure(figure, tmp_path / "feature.svg")


def test_a_silent_feature_is_drawn() -> None:
    nothing = feature_parts(
        activation=torch.zeros(5), importance=torch.zeros(5), effects=torch.zeros(3)
    )
    figure = feature_figure(None, **nothing)
    assert "active on 0 of 5 tokens" in texts(figure)


@pytest.mark.parametrize(
    "change", [{"activation": torch.zeros(4)}, {"grid": (3, 2)}, {"class_names": ("a", "b")}]
)
def test_sizes_must_match(change: dict[str, Any]) -> None:
    with pytest.raises(FeatureError):
        feature_figure(None, **feature_parts(**change))


def test_tuning_is_drawn_with_its_indices(tmp_path: Path) -> None:
    row = torch.rand(tuning.N_CURVES, generator=torch.Generator().manual_seed(0))
    figure = tuning_figure(tuning.Tuning.of(row, {"hue": 0.25, "direction": 0.5}), title="a $ b")
    assert {"hue 0.25", "direction 0.50", "orientation", *stimuli.TEXTURES} <= texts(figure)
    save_figure(figure, tmp_path / "tuning.svg")
    save_figure(tuning_figure(tuning.Tuning.of(0 * row)), tmp_path / "silent.png", dpi=60)


def test_every_line_is_named_and_only_the_blank_is_dotted() -> None:
    figure = tuning_figure(tuning.Tuning.of(torch.rand(tuning.N_CURVES), {}))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert [name for name, line in lines.items() if line.get_linestyle() == ":"] == ["blank"]
    patterns = {str(line._dash_pattern) for line in lines.values()}
    assert len(patterns) == len(lines) == 5


def test_a_sheet_without_stimuli_heads_no_tuning() -> None:
    lens = tiny_lens()
    images = [lens.transform.to_pil(tiny_image(seed)) for seed in range(6)]
    few = Atlas.build(lens, images, n_top=2, stimuli=False, layout=False, progress=False)
    figure = feature_sheet(few, [(2, 5)], n_images=2)
    assert "by position" in texts(figure)
    assert not figure.legends and "hues; below: textures" not in texts(figure)


@pytest.mark.parametrize("n_images", [1, 4, 6])
def test_the_texts_of_a_sheet_do_not_touch(atlas: Atlas, n_images: int) -> None:
    figure = feature_sheet(atlas, [(2, 5), (1, 3)], n_images=n_images, title="a title")
    FigureCanvasAgg(figure).draw()
    boxes = {
        text: text.get_window_extent()
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip()
    }
    for one, other in combinations(boxes, 2):
        # A text's box is some pixels higher than its letters.
        apart = not boxes[one].padded(-1.5).overlaps(boxes[other].padded(-1.5))
        assert apart, (one.get_text(), other.get_text())
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes.values())


def test_a_sheet_has_a_row_per_feature(atlas: Atlas, tmp_path: Path) -> None:
    dead = int(atlas.scores(0).live.double().argmin())
    nodes = [(0, dead), (2, 5)]
    figure = feature_sheet(atlas, nodes, n_images=3, title="two")
    assert {f"0/{dead}", "2/5", "two"} <= texts(figure)
    drawn = [text.get_text() for text in figure.texts]
    assert [drawn.count(heading) for heading in ("top images", "by position", "scores")] == [1] * 3
    (legend,) = figure.legends
    lines = ["edges", "fine gratings", "middle gratings", "coarse gratings", "blank"]
    assert [text.get_text() for text in legend.get_texts()] == lines
    save_figure(figure, tmp_path / "sheet.png", dpi=60)
    with pytest.raises(FeatureError):
        feature_sheet(atlas, [])
    with pytest.raises(FeatureError):
        feature_sheet(atlas, [(0, 99)])

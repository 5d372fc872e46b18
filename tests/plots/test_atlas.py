"""Figures of an atlas: evolution, tuning, a sheet of features."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.tiny import CLASSES, tiny_image, tiny_lens
from vitlens.atlas import stimuli, tuning
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.evolution import Course, Evolution, evolution
from vitlens.errors import FeatureError
from vitlens.plots import save_figure
from vitlens.plots.atlas import feature_sheet
from vitlens.plots.evolution import evolution_figure
from vitlens.plots.tuning import tuning_figure


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    lens = tiny_lens()
    images = [lens.transform.to_pil(tiny_image(seed)) for seed in range(10)]
    labels = [CLASSES[seed % 5] for seed in range(10)]
    return Atlas.build(
        lens, images, labels=labels, n_top=3, n_sampled=3, thumbnails=24, layout=False, progress=False
    )


def words(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))}


def test_an_evolution_has_a_panel_a_score(atlas: Atlas, tmp_path: Path) -> None:
    found = atlas.evolution()
    both = found.with_control("untrained", found).with_control("another", found)
    figure = evolution_figure(both, title="costs $5")
    assert {"extent", "position", "curve features", "untrained", "another"} <= words(figure)
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


def test_tuning_is_drawn_with_its_indices(tmp_path: Path) -> None:
    row = torch.rand(tuning.N_CURVES, generator=torch.Generator().manual_seed(0))
    figure = tuning_figure(tuning.Tuning.of(row, {"hue": 0.25, "direction": 0.5}), title="a $ b")
    assert {"hue 0.25", "direction 0.50", "orientation", *stimuli.TEXTURES} <= words(figure)
    save_figure(figure, tmp_path / "tuning.svg")
    save_figure(tuning_figure(tuning.Tuning.of(0 * row)), tmp_path / "silent.png", dpi=60)


def test_a_line_says_what_it_is_and_only_the_blank_is_dotted() -> None:
    figure = tuning_figure(tuning.Tuning.of(torch.rand(tuning.N_CURVES), {}))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert [name for name, line in lines.items() if line.get_linestyle() == ":"] == ["blank"]
    patterns = {str(line._dash_pattern) for line in lines.values()}
    assert len(patterns) == len(lines) == 5


def test_a_sheet_without_stimuli_heads_no_tuning() -> None:
    lens = tiny_lens()
    images = [lens.transform.to_pil(tiny_image(seed)) for seed in range(6)]
    few = Atlas.build(lens, images, n_top=2, stimuli=False, layout=False, progress=False)
    figure = feature_sheet(few, [(2, 5)], n_pictures=2)
    assert "by place" in words(figure)
    assert not figure.legends and "hues; below, textures" not in words(figure)


@pytest.mark.parametrize("n_pictures", [1, 4, 6])
def test_the_words_of_a_sheet_do_not_touch(atlas: Atlas, n_pictures: int) -> None:
    figure = feature_sheet(atlas, [(2, 5), (1, 3)], n_pictures=n_pictures, title="a title")
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


def test_a_sheet_has_a_row_a_feature(atlas: Atlas, tmp_path: Path) -> None:
    dead = int(atlas.scores(0).live.double().argmin())
    nodes = [(0, dead), (2, 5)]
    figure = feature_sheet(atlas, nodes, n_pictures=3, title="two")
    assert {f"0/{dead}", "2/5", "two"} <= words(figure)
    drawn = [text.get_text() for text in figure.texts]
    assert [drawn.count(heading) for heading in ("top pictures", "by place", "scores")] == [1] * 3
    (legend,) = figure.legends
    lines = ["edges", "fine gratings", "middle gratings", "coarse gratings", "blank"]
    assert [text.get_text() for text in legend.get_texts()] == lines
    save_figure(figure, tmp_path / "sheet.png", dpi=60)
    with pytest.raises(FeatureError):
        feature_sheet(atlas, [])
    with pytest.raises(FeatureError):
        feature_sheet(atlas, [(0, 99)])

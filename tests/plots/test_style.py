"""Every figure is readable in any style, fits into given axes, and writes names to the letter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from tests.plots.figures import (
    circuit,
    course,
    curves,
    every_figure,
    feature_parts,
    report,
    verification,
)
from vitlens import plots
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.evolution import Evolution
from vitlens.atlas.tuning import N_CURVES, Tuning
from vitlens.errors import VitlensError
from vitlens.plots import circuit_figure, save_figure

NAMES = sorted(name for name in plots.__all__ if name != "save_figure")
#: Settings that would hide text, turn images over, or change every size.
ODD = {
    "axes.grid": True,
    "axes.spines.left": False,
    "axes.titlecolor": "white",
    "figure.autolayout": True,
    "figure.facecolor": "black",
    "font.size": 40,
    "font.weight": "bold",
    "image.origin": "lower",
    "lines.linewidth": 15,
    "savefig.facecolor": "black",
    "savefig.transparent": True,
    "xtick.labelbottom": False,
    "ytick.labelcolor": "white",
}
STYLES: dict[str, Any] = {"dark": "dark_background", "ggplot": "ggplot", "odd": ODD}
READABLE = 3.0  # contrast of large text and graphics (WCAG 2)


@pytest.fixture(scope="module")
def figures(atlas: Atlas) -> dict[str, tuple[Callable[..., Figure], str]]:
    return {name: (draw, place) for name, draw, place in every_figure(atlas)}


def pixels(figure: Figure) -> np.ndarray:
    figure.set_dpi(40)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def luminance(colour: object) -> float:
    linear = np.array(to_rgb(colour)) ** 2.2  # type: ignore[arg-type]
    return float(linear @ (0.2126, 0.7152, 0.0722))


def unreadable(figure: Figure, among: list[Text]) -> list[str]:
    """Visible text whose colour has too little contrast with the figure's background."""
    ground = luminance(figure.get_facecolor())
    found = []
    for text in among:
        if not text.get_visible() or not text.get_text().strip():
            continue
        values = sorted((luminance(text.get_color()), ground))
        if (values[1] + 0.05) / (values[0] + 0.05) < READABLE:
            found.append(f"{text.get_text()!r} in {text.get_color()}")
    return found


def test_every_figure_function_is_tested_here(
    figures: dict[str, tuple[Callable[..., Figure], str]],
) -> None:
    assert sorted(figures) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_new_figure_is_the_same_in_any_style(
    name: str, figures: dict[str, tuple[Callable[..., Figure], str]], tmp_path: Path
) -> None:
    draw, _ = figures[name]
    expected = pixels(draw())
    save_figure(draw(), tmp_path / "default.png", dpi=30)
    for style in STYLES.values():
        with matplotlib.style.context(style):
            assert (pixels(draw()) == expected).all()
    with matplotlib.style.context(ODD):
        save_figure(draw(), tmp_path / "saved.png", dpi=30)
        draw().savefig(tmp_path / "by_user.png", dpi=30)
    saved = (tmp_path / "saved.png").read_bytes()
    assert saved == (tmp_path / "default.png").read_bytes()
    assert (imread(tmp_path / "by_user.png") == imread(tmp_path / "saved.png")).all()


@pytest.mark.parametrize("name", NAMES)
def test_given_axes_are_drawn_in_readably_and_all_else_stays(
    name: str, figures: dict[str, tuple[Callable[..., Figure], str]]
) -> None:
    draw, place = figures[name]
    for style in ("default", STYLES["dark"], STYLES["odd"]):
        with matplotlib.style.context(style):
            mine = Figure(figsize=(16, 8), layout="none")
            parts = mine.subfigures(1, 2, width_ratios=(1, 3))
            other = parts[0].subplots()
            (line,) = other.plot([0, 1], [1, 0])
            other.set_title("mine")
            mine.suptitle("of mine")
            before = state(other), tuple(mine.get_size_inches()), mine.get_facecolor()
            given = {place: parts[1].subplots() if place == "ax" else parts[1]}
            assert draw(**given) is mine
            pixels(mine)
            assert (state(other), tuple(mine.get_size_inches()), mine.get_facecolor()) == before
            assert other.lines[0] is line and mine.get_suptitle() == "of mine"
            drawn = parts[1].findobj(Text)
            assert any(text.get_text() for text in drawn)
            assert unreadable(mine, drawn) == []


def state(axes: Axes) -> tuple[object, ...]:
    return (
        axes.get_title(), axes.get_xlim(), axes.get_ylim(), axes.get_facecolor(),
        axes.xaxis.label.get_color(), axes.xaxis.get_tick_params(), len(axes.get_children()),
    )  # fmt: skip


def test_an_own_heading_of_a_given_figure_stays() -> None:
    mine = Figure()
    mine.suptitle("mine")
    plots.curves_figure(curves(), figure=mine)
    assert mine.get_suptitle() == "mine"
    plots.curves_figure(curves(), figure=mine, title="another")
    assert mine.get_suptitle() == "another"


def test_fonts_and_formats_stay_the_users(tmp_path: Path) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "monospace"}):
        figure = plots.text_figure("words")
        save_figure(figure, tmp_path / "figure.svg")
        assert figure.axes[0].texts[0].get_fontfamily() == ["monospace"]
    assert ">words<" in (tmp_path / "figure.svg").read_text()


NAME = r"$a_b_c$"  # not a formula, and an error where it is taken for one
NAMED: dict[str, Callable[[str], Figure]] = {
    "heatmap title": lambda name: plots.heatmap_figure(None, torch.ones(2, 2), title=name),
    "heatmap label": lambda name: plots.heatmap_figure(None, torch.ones(2, 2), label=name),
    "heatmap token": lambda name: plots.heatmap_figure(
        None, torch.ones(2, 2), prefix=[1.0], prefix_names=[name]
    ),
    "heatmaps titles": lambda name: plots.heatmaps_figure(
        [None] * 2, torch.ones(2, 2, 2), title=name, titles=["a", name]
    ),
    "group": lambda name: plots.groups_figure(report("a"), report(name)),
    "groups title": lambda name: plots.groups_figure(report("a"), report("a"), title=name),
    "map title": lambda name: plots.map_figure(np.eye(2), [1.0, 2.0], name="x", title=name),
    "map value": lambda name: plots.map_figure(np.eye(2), [1.0, 2.0], name=name),
    "map kind": lambda name: plots.map_figure(np.eye(2), ["none", name], name="x"),
    "feature": lambda name: plots.feature_figure(
        None,
        **feature_parts(
            effects=torch.ones(1),
            prefix_names=[name],
            class_names=[name],
            title=name,
            subtitle=name,
        ),
    ),
    "features": lambda name: plots.features_figure(
        np.ones((4, 1), np.float32), names=["1"], labels=[name], positive=1.0, title=name
    ),
    "circuit": lambda name: circuit_figure(circuit(target=name)),
    "curves": lambda name: plots.curves_figure(curves(methods=("rrm", name)), title=name),
    "verification": lambda name: plots.verification_figure({name: verification(name)}),
    "evolution": lambda name: plots.evolution_figure(
        Evolution((0,), course(), {}, {name: course()}), title=name
    ),
    "table": lambda name: plots.table_figure([name], [[name]], title=name),
    "tuning": lambda name: plots.tuning_figure(Tuning.of(torch.rand(N_CURVES), {}), title=name),
    "text": lambda name: plots.text_figure(name),
}


@pytest.mark.parametrize("figure", NAMED)
def test_names_are_drawn_to_the_letter(figure: str, tmp_path: Path) -> None:
    drawn = []
    for name in (NAME, "plain"):
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text, not as outlines
            save_figure(NAMED[figure](name), tmp_path / "figure.svg")
        drawn.append((tmp_path / "figure.svg").read_text().count(name))
    assert drawn[0] == drawn[1] > 0


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_are_written_and_always_the_same(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        save_figure(
            circuit_figure(circuit(layers=1, nodes=1)), tmp_path / f"{name}{suffix}", dpi=40
        )
    first = (tmp_path / f"one{suffix}").read_bytes()
    assert first and first == (tmp_path / f"two{suffix}").read_bytes()


def test_an_unknown_suffix_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(VitlensError, match=r"\.png, \.svg, \.pdf"):
        save_figure(circuit_figure(circuit(layers=1, nodes=1)), tmp_path / "circuit.jpeg")
    assert not list(tmp_path.iterdir())


def test_plots_do_not_import_pyplot() -> None:
    code = "import sys, vitlens.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

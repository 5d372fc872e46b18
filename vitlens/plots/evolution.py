"""How the scores of an atlas move through the layers, beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vitlens.atlas.evolution import Course, Evolution
from vitlens.atlas.scores import KINDS
from vitlens.errors import FeatureError
from vitlens.plots.page import QUIET, literal

#: Scores that the upper panels show, where they were measured.
ACTIVITY = (
    "frequency", "image_frequency", "extent", "selectivity", "monosemanticity", "trust"
)  # fmt: skip

_COLUMNS = 6


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    dash: str


# Okabe and Ito's colours, and markers and dashes for those who cannot tell them apart.
_ATLAS = _Style("#0072B2", "o", "-")
_CONTROLS = {"shuffled": _Style("#7F7F7F", "X", ":"), "untrained": _Style("#D55E00", "s", "--")}
_OTHERS = (_Style("#009E73", "^", "-."), _Style("#CC79A7", "D", (0, (1, 1))))  # type: ignore[arg-type]


def evolution_figure(evolution: Evolution, *, title: str = "", width: float = 13.0) -> Figure:
    """Draw medians and quartiles of the scores by layer, and how many features pass chance.

    Parameters
    ----------
    evolution
        Of an atlas, with its controls.
    title
        Above the figure.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot. A line is the median of the layer's live features, a band goes from
        the first quartile to the third; the short black lines are the layer's chance level. The
        last row has the share of features of each kind, whose scores are above this level.

    Raises
    ------
    FeatureError
        If there is nothing to draw.
    """
    course = evolution.course
    activity = [name for name in ACTIVITY if name in course.quartiles]
    kinds = [kind for kind in KINDS if kind in course.kinds]
    rows = [row for row in (activity, kinds, kinds) if row]
    if not rows:
        raise FeatureError("This evolution holds no score that the figure shows.")
    figure = Figure(figsize=(width, 0.5 + 2.15 * len(rows)), facecolor="white")
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
    panels = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for axes in panels.ravel():
        axes.set_visible(False)
    styles = _styles(tuple(evolution.controls))
    for axes, name in zip(panels[0], activity, strict=False):
        _draw_score(axes, evolution, name, styles)
    for number, kind in enumerate(kinds):
        _draw_score(panels[-2, number], evolution, KINDS[kind][0], styles)
        _draw_shares(panels[-1, number], evolution, kind, styles)
    for number, axes in enumerate(panels.ravel()):
        if axes.get_visible() and number // _COLUMNS == len(rows) - 1:
            axes.set_xlabel("layer", fontsize=8)
    for row, words in enumerate(("score", "score", "share of features")[-len(rows) :]):
        panels[row, 0].set_ylabel(words, fontsize=8)
    _draw_legend(figure, evolution, styles)
    figure.suptitle(literal(title), fontsize=11, x=0.01, ha="left")
    return figure


def _styles(controls: Sequence[str]) -> dict[str, _Style]:
    spare = iter(_OTHERS * len(controls))
    return {name: _CONTROLS.get(name) or next(spare) for name in controls}


def _draw_score(axes: Axes, evolution: Evolution, name: str, styles: dict[str, _Style]) -> None:
    layers = np.array(evolution.layers)
    for control, style in styles.items():
        course = evolution.controls[control]
        if name in course.quartiles:
            _draw_course(axes, layers, course, name, style, opacity=0.1)
    _draw_course(axes, layers, evolution.course, name, _ATLAS, opacity=0.22)
    if name in evolution.chance:
        level = np.array(evolution.chance[name])
        axes.hlines(level, layers - 0.35, layers + 0.35, color="black", lw=1.0, zorder=4)
    _frame(axes, name.replace("_", " "), layers)


def _draw_course(
    axes: Axes, layers: np.ndarray, course: Course, name: str, style: _Style, *, opacity: float
) -> None:
    low, middle, high = np.array(course.quartiles[name]).T
    axes.fill_between(layers, low, high, color=style.colour, alpha=opacity, lw=0)
    _line(axes, layers, middle, style)


def _draw_shares(axes: Axes, evolution: Evolution, kind: str, styles: dict[str, _Style]) -> None:
    layers = np.array(evolution.layers)
    for control, style in styles.items():
        shares = evolution.controls[control].kinds
        if kind in shares:
            _line(axes, layers, np.array(shares[kind]), style)
    _line(axes, layers, np.array(evolution.course.kinds[kind]), _ATLAS)
    _frame(axes, f"{kind} features", layers)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _line(axes: Axes, layers: np.ndarray, values: np.ndarray, style: _Style) -> None:
    axes.plot(
        layers,
        values,
        color=style.colour,
        marker=style.marker,
        ls=style.dash,
        lw=1.4,
        ms=3.5,
        clip_on=False,
        zorder=3,
    )


def _frame(axes: Axes, name: str, layers: np.ndarray) -> None:
    axes.set_visible(True)
    axes.set_title(name, fontsize=9)
    axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7)
    axes.grid(color="#E3E3E3", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_legend(figure: Figure, evolution: Evolution, styles: dict[str, _Style]) -> None:
    drawn = {"atlas (median, quartiles)": _ATLAS, **styles}
    handles: list[Line2D | Patch] = [
        Line2D(
            [], [], color=s.colour, marker=s.marker, ls=s.dash, lw=1.4, ms=4, label=literal(name)
        )
        for name, s in drawn.items()
    ]
    if evolution.chance:
        level = Line2D([], [], color="black", lw=1.0, label="99 % level of the shuffled features")
        handles.append(level)
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), fontsize=8.5, frameon=False,
        labelcolor=QUIET,
    )  # fmt: skip

"""All features of an atlas: their scores by layer, next to the controls, and their map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from vitlens.atlas.evolution import Course, Evolution
from vitlens.atlas.scores import KINDS
from vitlens.errors import FeatureError
from vitlens.plots.style import (
    BLUE,
    GREEN,
    GREY,
    PINK,
    VERMILION,
    AnyFigure,
    axes_for,
    literal,
    new_figure,
    root_of,
    set_heading,
    styled,
    theme_of,
)

#: Scores of the upper panels, where they were measured.
ACTIVITY = (
    "frequency", "image_frequency", "extent", "selectivity", "monosemanticity", "trust"
)  # fmt: skip

_COLUMNS = 6


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]


# Markers and dashes differ too, for those who cannot tell the colours apart.
_ATLAS = _Style(BLUE, "o", "-")
_CONTROLS = {"shuffled": _Style(GREY, "X", ":"), "untrained": _Style(VERMILION, "s", "--")}
_OTHERS = (_Style(GREEN, "^", "-."), _Style(PINK, "D", (0, (1, 1))))

# Of the map's kinds: Okabe and Ito's colours, the pale ones darker, as in the widget.
_KIND_COLOURS = {
    "position": "#0072b2",
    "class": "#d55e00",
    "orientation": "#009e73",
    "curve": "#b85d92",
    "hue": "#c08300",
    "texture": "#4a4aa8",
}
_NO_KIND = "#b4b9bf"


@styled
def evolution_figure(
    evolution: Evolution,
    *,
    title: str = "",
    width: float = 13.0,
    figure: AnyFigure | None = None,
) -> Figure:
    """Draw medians and quartiles of the scores by layer, and how many features exceed chance.

    Parameters
    ----------
    evolution
        Evolution of an atlas, with its controls; from `Atlas.evolution`.
    title
        Title above the figure.
    width
        Width of a new figure, in inches.
    figure
        Figure or subfigure to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        A line is the median of the layer's live features, a band goes from the first quartile to
        the third; the short dark lines are the layer's chance level. The last row is the share
        of features of each kind, those with scores above this level.

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
        raise FeatureError("This evolution has none of the scores that the figure shows.")
    if figure is None:
        figure = new_figure(width, 0.5 + 2.15 * len(rows))
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
    set_heading(figure, title, left=True)
    return root_of(figure)


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
        axes.hlines(level, layers - 0.35, layers + 0.35, color=theme_of(axes).ink, lw=1.0, zorder=4)
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
    few = len(layers) <= 6
    axes.xaxis.set_major_locator(
        FixedLocator(layers.tolist()) if few else MaxNLocator(6, integer=True)
    )
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7)
    axes.grid(color=theme_of(axes).faint, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_legend(figure: AnyFigure, evolution: Evolution, styles: dict[str, _Style]) -> None:
    drawn = {"atlas (median, quartiles)": _ATLAS, **styles}
    handles = [
        Line2D(
            [], [], color=s.colour, marker=s.marker, ls=s.dash, lw=1.4, ms=4, label=literal(name)
        )
        for name, s in drawn.items()
    ]
    if evolution.chance:
        label, ink = "99% level of shuffled features", theme_of(figure).ink
        handles.append(Line2D([], [], color=ink, lw=1.0, label=label))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8.5, frameon=False
    )  # fmt: skip


@styled
def map_figure(
    points: Float[NDArray[np.float32], "N 2"],
    values: Float[NDArray[np.float32], " N"] | Sequence[str],
    *,
    name: str,
    chosen: Bool[NDArray[np.bool_], " N"] | None = None,
    logarithmic: bool = False,
    title: str = "",
    width: float = 6.5,
    ax: Axes | None = None,
) -> Figure:
    """Draw features as points, coloured by a value or by a kind.

    Parameters
    ----------
    points
        Their coordinates, [N, 2]; see `Atlas.layout`.
    values
        One number per feature, [N], NaN for none; or the name of its kind.
    name
        Name of the values.
    chosen
        Features to circle, [N].
    logarithmic
        Whether colours follow the logarithm; values of 0 are grey then.
    title
        Title above the map.
    width
        Width of a new figure, in inches.
    ax
        Axes to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure is unknown to pyplot.

    Raises
    ------
    FeatureError
        When the numbers of values and points differ.
    """
    if len(points) != len(values):
        raise FeatureError(f"{len(values)} values do not match {len(points)} points.")
    axes = axes_for(ax, width, 0.8 * width, bare=True)
    axes.set_aspect("equal")
    axes.set_title(literal(title), fontsize=10, loc="left", color=theme_of(axes).ink)
    x, y = np.asarray(points, dtype=float).T
    size = 6.0 if len(points) < 20_000 else 2.0
    if values is not None and isinstance(values[0] if len(values) else "", str):
        kinds = np.asarray(values)
        for kind in ("none", *sorted(set(kinds.tolist()) - {"none"})):
            some = kinds == kind
            words = "none above chance" if kind == "none" else kind
            axes.scatter(
                x[some],
                y[some],
                s=size,
                c=_KIND_COLOURS.get(kind, _NO_KIND),
                lw=0,
                label=literal(words),
            )
        axes.legend(
            fontsize=7, markerscale=2, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
        )
    else:
        numbers = np.asarray(values, dtype=float)
        known = np.isfinite(numbers) & ((numbers > 0) | (not logarithmic))
        axes.scatter(x[~known], y[~known], s=size, c=_NO_KIND, lw=0)
        shade = np.log10(numbers[known]) if logarithmic else numbers[known]
        drawn = axes.scatter(x[known], y[known], s=size, c=shade, cmap="viridis", lw=0)
        words = f"{name}, log10" if logarithmic else name
        axes.figure.colorbar(drawn, ax=axes, shrink=0.6, label=literal(words))
    if chosen is not None and chosen.any():
        axes.scatter(
            x[chosen],
            y[chosen],
            s=4 * size,
            facecolors="none",
            edgecolors=theme_of(axes).ink,
            lw=0.6,
        )
    return root_of(axes)

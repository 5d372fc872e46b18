"""Insertion and deletion curves, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vitlens.circuits.curves import Array, Axis, Band, Curves, Direction, Metric
from vitlens.errors import check_choice
from vitlens.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    AnyFigure,
    literal,
    new_figure,
    root_of,
    set_heading,
    styled,
    theme_of,
)


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str


# Each method keeps its colour, whatever it is shown next to.
_STYLES = {
    "rrm": _Style(BLUE, "o"),
    "cla": _Style(VERMILION, "s"),
    "node": _Style(GREEN, "^"),
    "plain": _Style(PINK, "D"),
    "activation": _Style(SKY, "v"),
    "random": _Style(GREY, "X"),
}
_OTHERS = (_Style(ORANGE, "P"), _Style("#8A5FBF", "*"), _Style("#8C510A", "<"))
_METRIC_NAMES = {
    "target": "target",
    "logit": "logit",
    "probability": "probability",
    "top1": "top-1 rate",
    "divergence": "divergence",
}


@styled
def curves_figure(
    curves: Curves,
    *,
    metric: Metric = "target",
    axis: Axis = "log",
    width: float = 10.5,
    title: str | None = None,
    figure: AnyFigure | None = None,
) -> Figure:
    """Draw the output when only some features are kept (left) or some are removed (right).

    Parameters
    ----------
    curves
        The measured curves.
    metric
        "target", "logit", "probability", "top1" or "divergence". A curve of "divergence" rises
        from the empty model's to that of the full model.
    axis
        How the share of features is drawn and weighted in the areas of the legend: "linear", or
        "log", where all steps of q are equally wide (see `Curves.area`).
    width
        Width of a new figure, in inches.
    title
        Title above both panels; by default the number of images, the target and the error nodes.
    figure
        Figure or subfigure to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        Each curve is the mean over images, the empty model being 0 and the full one 1, with its
        95% interval as a band; the legend gives the area under each. Where the full model is
        not above the empty one, the means are drawn as measured, and the axis label says so.

    Raises
    ------
    OptionError
        When `metric` or `axis` is unknown.
    """
    check_choice("metric", metric, get_args(Metric))
    check_choice("axis", axis, get_args(Axis))
    if figure is None:
        figure = new_figure(width, 0.52 * width)
    left, right = figure.subplots(1, 2, sharey=True)
    adjusted = not np.isnan(curves.band("insertion", curves.methods[0], metric).mean).any()
    styles = _styles(curves.methods)
    panels: tuple[tuple[Axes, Direction, str], ...] = (
        (left, "insertion", "Insertion: only the top features are kept (higher is better)"),
        (right, "deletion", "Deletion: the top features are removed (lower is better)"),
    )
    for axes, direction, heading in panels:
        for method in curves.methods:
            _draw(axes, curves, direction, method, metric, axis, styles[method], adjusted)
        axes.set_title(heading, fontsize=10)
        _share_axis(axes, curves.q, axis)
        axes.grid(color=theme_of(axes).faint, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            title=f"area under the curve as drawn ({axis} axis)" if adjusted else None,
            fontsize=8.5,
            title_fontsize=8.5,
            frameon=False,
            ncols=2 if len(curves.methods) > 3 else 1,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )
        if adjusted:
            for level in (0, 1):
                axes.axhline(level, color=theme_of(axes).quiet, lw=0.7, ls=":", zorder=1)
    name = _METRIC_NAMES[metric]
    left.set_ylabel(f"{name} (empty model 0, full model 1)" if adjusted else f"{name}, as measured")
    set_heading(figure, title, _heading(curves))
    return root_of(figure)


def _draw(
    axes: Axes,
    curves: Curves,
    direction: Direction,
    method: str,
    metric: Metric,
    axis: Axis,
    style: _Style,
    adjusted: bool,
) -> None:
    if adjusted:
        band = curves.band(direction, method, metric)
        area = str(curves.area(direction, method, metric=metric, axis=axis))
        label = f"{method}  {area.replace('-', '−')}"
    else:
        mean: Array = curves.mean(direction, method, metric)
        band, label = Band(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)), method
    axes.plot(
        curves.q,
        band.mean,
        color=style.colour,
        marker=style.marker,
        ms=4.5,
        lw=1.6,
        label=literal(label),
        clip_on=False,
    )
    if not np.isnan(band.low).all():
        axes.fill_between(curves.q, band.low, band.high, color=style.colour, alpha=0.15, lw=0)


def _share_axis(axes: Axes, q: Sequence[float], axis: Axis) -> None:
    if axis == "log":
        spots = np.linspace(0.0, 1.0, len(q))

        def place(share: Array) -> Array:
            return np.interp(share, q, spots)

        def share_at(spot: Array) -> Array:
            return np.interp(spot, spots, q)

        axes.set_xscale("function", functions=(place, share_at))
        ticks = [share for share in q if share > 0]
        many = len(ticks) > 6
        shown = [share for share in (0.001, 0.01, 0.1, 1.0) if share >= ticks[0]] if many else ticks
        axes.xaxis.set_major_locator(FixedLocator([0.0, *shown]))
        axes.xaxis.set_minor_locator(FixedLocator(ticks) if many else NullLocator())
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.set_xlabel("features per layer, as a share of the largest layer")


def _styles(methods: Sequence[str]) -> dict[str, _Style]:
    others = [method for method in methods if method not in _STYLES]
    spare = {method: _OTHERS[i % len(_OTHERS)] for i, method in enumerate(others)}
    return {method: _STYLES.get(method) or spare[method] for method in methods}


def _heading(curves: Curves) -> str:
    n = len(curves.images)
    intervals = ", 95% intervals over images" if n > 1 else ""
    images = f"{n} image{'s' * (n != 1)}"
    return f"{images}, target: {curves.target}, error nodes: {curves.error_nodes}{intervals}"

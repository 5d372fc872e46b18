"""Insertion and deletion curves, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vitlens.circuits.curves import Array, Axis, Band, Curves, Direction, Metric
from vitlens.plots.page import QUIET, literal


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str


# Okabe and Ito's palette; each method keeps its colour, whatever it is shown beside.
_STYLES = {
    "rrm": _Style("#0072B2", "o"),
    "cla": _Style("#D55E00", "s"),
    "node": _Style("#009E73", "^"),
    "plain": _Style("#CC79A7", "D"),
    "activation": _Style("#56B4E9", "v"),
    "random": _Style("#7F7F7F", "X"),
}
_OTHERS = (_Style("#E69F00", "P"), _Style("#000000", "*"), _Style("#8C510A", "<"))
_METRIC_NAMES = {
    "target": "target",
    "logit": "logit",
    "probability": "probability",
    "top1": "share still first",
}


def curves_figure(
    curves: Curves,
    *,
    metric: Metric = "target",
    axis: Axis = "log",
    width: float = 10.5,
    title: str | None = None,
) -> Figure:
    """Draw what is left of the output when features are kept (left) or taken away (right).

    Parameters
    ----------
    curves
        The measured curves.
    metric
        "target", "logit", "probability" or "top1".
    axis
        How the share of features is drawn, and counts in the areas of the legend: "linear", or
        "log", where every step of q is as wide as the next (see `Curves.area`).
    width
        Of the figure, in inches.
    title
        Above both panels; by default how many images, and what error nodes held.

    Returns
    -------
    matplotlib.figure.Figure
        Each curve is the mean over images, the empty model being 0 and the full one 1, with its
        95 % interval as a band; the legend gives the area under each. Where the full model is
        not above the empty one, the means are drawn as measured, and the axis says so.
    """
    figure = Figure(figsize=(width, 0.52 * width), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    adjusted = not np.isnan(curves.band("insertion", curves.methods[0], metric).mean).any()
    styles = _styles(curves.methods)
    panels: tuple[tuple[Axes, Direction, str], ...] = (
        (left, "insertion", "Insertion: only the top features kept (high is good)"),
        (right, "deletion", "Deletion: the top features taken away (low is good)"),
    )
    for axes, direction, heading in panels:
        for method in curves.methods:
            _draw(axes, curves, direction, method, metric, axis, styles[method], adjusted)
        axes.set_title(heading, fontsize=10)
        _share_axis(axes, curves.q, axis)
        axes.grid(color="#E3E3E3", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            title=f"area under the curve as drawn ({axis} share)" if adjusted else None,
            fontsize=8.5,
            title_fontsize=8.5,
            frameon=False,
            ncols=2 if len(curves.methods) > 3 else 1,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )
        if adjusted:
            for level in (0, 1):
                axes.axhline(level, color=QUIET, lw=0.7, ls=":", zorder=1)
    name = _METRIC_NAMES[metric]
    left.set_ylabel(f"{name} (empty model 0, full model 1)" if adjusted else f"{name}, as measured")
    figure.suptitle(literal(_heading(curves) if title is None else title), fontsize=11)
    return figure


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
    axes.set_xlabel("share of the largest layer's features, in every layer")


def _styles(methods: Sequence[str]) -> dict[str, _Style]:
    others = [method for method in methods if method not in _STYLES]
    spare = {method: _OTHERS[i % len(_OTHERS)] for i, method in enumerate(others)}
    return {method: _STYLES.get(method) or spare[method] for method in methods}


def _heading(curves: Curves) -> str:
    n = len(curves.images)
    return f"{n} image{'s' * (n != 1)}, target: {curves.target}, error nodes: {curves.error_nodes}" + (
        ", 95% intervals over images" if n > 1 else ""
    )

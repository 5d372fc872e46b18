"""Accuracy per group before and after, and as a function of the number of features."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitlens.debias.report import GroupReport, TradeOff, wilson
from vitlens.plots.style import (
    BLUE,
    GREY,
    VERMILION,
    AnyFigure,
    literal,
    new_figure,
    root_of,
    set_heading,
    styled,
    theme_of,
)

_GROUP, _WORST, _AVERAGE = BLUE, VERMILION, GREY


@styled
def groups_figure(
    before: GroupReport,
    after: GroupReport,
    *,
    curve: TradeOff | None = None,
    width: float = 10.5,
    title: str | None = None,
    figure: AnyFigure | None = None,
) -> Figure:
    """Draw accuracy per group as bars with 95% intervals (Wilson), and lines for before.

    Parameters
    ----------
    before, after
        Reports on the same groups.
    curve
        Drawn next to the bars, with the point of `after`.
    width
        Width of a new figure, in inches.
    title
        Title above the figure; by default how many features were removed.
    figure
        Figure or subfigure to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure is unknown to pyplot.
    """
    rows = len(after.group_names) + 1
    height = max(2.6, 1.3 + 0.42 * rows)
    if figure is None:
        figure = new_figure(width, height)
    axes = figure.subplots(1, 2 if curve else 1, squeeze=False)[0]
    _bars(axes[0], before, after)
    if curve is not None:
        _curve(axes[1], curve, after)
    n = after.n_features
    set_heading(figure, title, f"{n} feature{'' if n == 1 else 's'} removed")
    return root_of(figure)


def _bars(axes: Axes, before: GroupReport, after: GroupReport) -> None:
    numbers = [(float(report.right.sum()), float(report.count.sum())) for report in (after, before)]
    now = [numbers[0], *zip(after.right.tolist(), after.count.tolist(), strict=True)]
    was = [numbers[1], *zip(before.right.tolist(), before.count.tolist(), strict=True)]
    names = ["average", *after.group_names]
    worst, ink = after.worst_group, theme_of(axes).ink
    for row, (name, (right, count), (old_right, old_count)) in enumerate(
        zip(names, now, was, strict=True)
    ):
        if not count:
            continue
        colour = _AVERAGE if row == 0 else _WORST if name == worst else _GROUP
        axes.barh(row, right / count, 0.55, color=colour, alpha=0.85)
        axes.plot(wilson(right, count), [row, row], color=ink, lw=1.2, marker="|", ms=5)
        if old_count:
            axes.plot([old_right / old_count] * 2, [row - 0.4, row + 0.4], color=ink, lw=2)
        axes.text(1.02, row, f"{100 * right / count:.1f}", va="center", fontsize=9)
    shown = [f"{name} (worst)" if name == worst else name for name in names]
    axes.set_yticks(range(len(names)), [literal(name) for name in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{x:.0f}" for x in np.linspace(0, 100, 6)])
    axes.set_xlabel("accuracy in % (upright line: before)", fontsize=9)
    _plain(axes)


def _curve(axes: Axes, curve: TradeOff, after: GroupReport) -> None:
    n = curve.n_features.numpy()
    for values, name, colour, line, marker, point in (
        (curve.average, "average", _AVERAGE, "--", "o", after.average),
        (curve.worst, "worst group", _WORST, "-", "s", after.worst),
    ):
        axes.plot(n, 100 * values.numpy(), line, color=colour, marker=marker, ms=4, label=name)
        axes.plot(
            after.n_features,
            100 * point,
            "D",
            ms=9,
            mfc="none",
            mec=theme_of(axes).ink,
            mew=1.6,
            clip_on=False,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("features removed (diamonds: the current choice)", fontsize=9)
    axes.set_ylabel("accuracy in %", fontsize=9)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(theme_of(axes).quiet)

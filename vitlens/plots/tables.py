"""Tables and text as figures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from vitlens.plots.style import (
    NEGATIVE,
    POSITIVE,
    axes_for,
    literal,
    new_figure,
    root_of,
    styled,
    theme_of,
)

_LONGEST = 22  # characters of a cell
_LINE = 80  # characters of a line of text
_HEADINGS = ("feature", "name", "importance", "max", "mean", "tokens")
_COLUMNS = (0.0, 0.12, 0.42, 0.76, 0.87, 1.0)  # as parts of the table's width


@styled
def table_figure(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    width: float = 9.0,
    ax: Axes | None = None,
) -> Figure:
    """Draw a table.

    Parameters
    ----------
    head
        Names of the columns.
    rows
        Text of each cell, by row and column.
    title
        Title above the table.
    width
        Width of a new figure, in inches.
    ax
        Axes to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure is unknown to pyplot.
    """
    axes = _table_axes(ax, width, len(rows), title)
    for line, texts in enumerate((head, *rows)):
        for column, text in enumerate(texts):
            axes.text(
                column / len(head),
                line,
                literal(text[:_LONGEST]),
                fontsize=8,
                weight="normal" if line else "bold",
                va="center",
            )
    return root_of(axes)


@styled
def features_figure(
    table: Float[NDArray[np.float32], "4 n"],
    *,
    names: Sequence[str],
    labels: Sequence[str],
    positive: float,
    title: str = "",
    width: float = 7.0,
    ax: Axes | None = None,
) -> Figure:
    """Draw a table of features, with a bar for the importance of each.

    Parameters
    ----------
    table
        [4, n]: importance, largest and mean activation, and active tokens of n features.
    names, labels
        Number and label of each, "" for no label.
    positive
        The layer's total positive importance, to which shares refer.
    title
        Title above the table.
    width
        Width of a new figure, in inches.
    ax
        Axes to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure is unknown to pyplot.
    """
    n = len(names)
    axes = _table_axes(ax, width, n, title)
    for column, (x, text) in enumerate(zip(_COLUMNS, _HEADINGS, strict=True)):
        side = "left" if column < 3 else "right"
        axes.text(x, 0, text, fontsize=8, weight="bold", ha=side, va="center")
    importance = table[0].astype(float)
    widest = float(np.abs(importance).max(initial=0.0)) or 1.0
    for row in range(n):
        share = importance[row] / positive if positive > 0 else 0.0
        cells = (names[row], labels[row][:32], _percent(share))
        numbers = (*(f"{value:.3g}" for value in table[1:3, row]), f"{table[3, row]:.0f}")
        for column, (x, text) in enumerate(zip(_COLUMNS, (*cells, *numbers), strict=True)):
            right = column >= 2
            axes.text(
                x + 0.07 if column == 2 else x,
                row + 1,
                literal(text),
                fontsize=8,
                ha="right" if right else "left",
                va="center",
            )
        bar = abs(importance[row]) / widest * 0.16
        colour = NEGATIVE if importance[row] < 0 else POSITIVE
        axes.add_patch(Rectangle((_COLUMNS[2] + 0.085, row + 0.72), bar, 0.56, fc=colour, lw=0))
    return root_of(axes)


def _percent(share: float) -> str:
    if 0 < abs(share) < 0.0005:
        return "<0.1%" if share > 0 else ">−0.1%"
    return f"{share:.1%}".replace("-", "−")


@styled
def text_figure(text: str, *, width: float = 6.0, ax: Axes | None = None) -> Figure:
    """Write text where a figure would be, to say what cannot be drawn and why.

    Parameters
    ----------
    text
        The text to write.
    width
        Width of a new figure, in inches.
    ax
        Axes to write in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure is unknown to pyplot.
    """
    lines = textwrap.wrap(text, _LINE)
    axes = axes_for(ax, width, 0.4 + 0.2 * len(lines), bare=True, constrained=False)
    axes.text(
        0.5, 0.5, literal("\n".join(lines)), ha="center", va="center", fontsize=9,
        transform=axes.transAxes,
    )  # fmt: skip
    return root_of(axes)


def _table_axes(ax: Axes | None, width: float, n_rows: int, title: str) -> Axes:
    """Axes for a heading at y = 0 and rows below it, x from 0 to 1."""
    if ax is None:
        height = 0.24 * (n_rows + 1) + 0.5
        figure = new_figure(width, height, constrained=False)
        ax = figure.add_axes((0.02, 0.1 / height, 0.96, 1 - 0.45 / height))
    ax = axes_for(ax, width, 0.0, bare=True)
    ax.set(xlim=(0, 1), ylim=(n_rows + 0.7, -0.7))
    ax.set_title(literal(title), fontsize=10, loc="left", color=theme_of(ax).ink)
    return ax

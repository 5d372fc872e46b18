"""A table of features as a figure."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from vitlens.plots.page import INK, literal

_LONGEST = 22  # characters of a cell


def table_figure(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", width: float = 9.0
) -> Figure:
    """Draw a table.

    Parameters
    ----------
    head
        Names of the columns.
    rows
        Texts by row and column.
    title
        Above the table.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot.
    """
    height = 0.24 * (len(rows) + 1) + 0.5
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.02, 0.1 / height, 0.96, 1 - 0.45 / height))
    axes.set(xlim=(0, 1), ylim=(len(rows) + 0.7, -0.7))
    axes.set_axis_off()
    axes.set_title(literal(title), fontsize=10, loc="left")
    for line, texts in enumerate((head, *rows)):
        for place, text in enumerate(texts):
            axes.text(
                place / len(head),
                line,
                literal(text[:_LONGEST]),
                fontsize=8,
                weight="normal" if line else "bold",
                va="center",
                color=INK,
            )
    return figure

"""Words where a figure would be."""

import textwrap

from matplotlib.figure import Figure

from vitlens.plots.page import INK, literal

_LINE = 80  # characters


def words_figure(words: str, *, width: float = 6.0) -> Figure:
    """Draw words, for what cannot be drawn and why.

    Parameters
    ----------
    words
        What to say.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot.
    """
    lines = textwrap.wrap(words, _LINE)
    figure = Figure(figsize=(width, 0.4 + 0.2 * len(lines)), facecolor="white")
    figure.text(
        0.5, 0.5, literal("\n".join(lines)), ha="center", va="center", fontsize=9, color=INK
    )
    return figure

"""A feature over many images, and a table of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from vitlens.plots.heat import POSITIVE, heat_on_picture
from vitlens.plots.page import INK, QUIET

_PIXELS = 224
_COLUMNS = 8


def profile_figure(
    pictures: Sequence[UInt8[NDArray[np.uint8], "H W 3"] | None],
    heats: Sequence[Float[NDArray[np.float64], "rows columns"] | None],
    *,
    words: Sequence[str],
    scores: Mapping[str, tuple[float, float | None]],
    title: str = "",
    subtitle: str = "",
    width: float = 10.0,
) -> Figure:
    """Draw a feature's images with where it is active, and its scores beside chance.

    Parameters
    ----------
    pictures
        The images, [H, W, 3] each; None leaves a plain ground.
    heats
        Activation by patch, [rows, columns] each, all on one scale; None shows the picture alone.
    words
        Below each image.
    scores
        By name the score and the level that chance reaches, None where it was not measured.
    title, subtitle
        Above the figure.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot.
    """
    rows = -(-len(pictures) // _COLUMNS)
    low = 0.22 * len(scores) + 0.5
    high = rows * (width / _COLUMNS + 0.25)
    figure = Figure(figsize=(width, 0.6 + high + low), facecolor="white", layout="constrained")
    halves = figure.subfigures(2, 1, squeeze=False, height_ratios=(max(high, 0.1), low))
    above, below = halves[:, 0]
    limit = max((float(np.nanmax(heat)) for heat in heats if heat is not None), default=1.0) or 1.0
    if rows:
        cells = above.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axes in cells:
            axes.set_axis_off()
        for axes, picture, heat, text in zip(cells, pictures, heats, words, strict=False):
            axes.imshow(_shown(picture, heat, limit), interpolation="none")
            axes.set_title(text.replace("$", r"\$"), fontsize=7, y=-0.16, color=INK)
    _draw_scores(below.subplots(), scores)
    heading = "\n".join(line for line in (title, subtitle) if line)
    figure.suptitle(heading.replace("$", r"\$"), fontsize=11, x=0.01, ha="left")
    return figure


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
    """
    height = 0.24 * (len(rows) + 1) + 0.5
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.02, 0.1 / height, 0.96, 1 - 0.45 / height))
    axes.set(xlim=(0, 1), ylim=(len(rows) + 0.7, -0.7))
    axes.set_axis_off()
    axes.set_title(title.replace("$", r"\$"), fontsize=10, loc="left")
    for line, texts in enumerate((head, *rows)):
        for place, text in enumerate(texts):
            weight = "normal" if line else "bold"
            axes.text(
                place / len(head),
                line,
                text[:22].replace("$", r"\$"),
                fontsize=8,
                weight=weight,
                va="center",
                color=INK,
            )
    return figure


def _shown(
    picture: UInt8[NDArray[np.uint8], "H W 3"] | None,
    heat: Float[NDArray[np.float64], "rows columns"] | None,
    limit: float,
) -> UInt8[NDArray[np.uint8], "height width 3"]:
    size = (_PIXELS, _PIXELS)
    if heat is not None and not np.isnan(heat).any():
        return heat_on_picture(picture, heat / limit, size=size)
    if picture is None:
        return np.full((*size, 3), 235, np.uint8)
    return np.asarray(Image.fromarray(picture).resize(size))


def _draw_scores(axes: Axes, scores: Mapping[str, tuple[float, float | None]]) -> None:
    places = np.arange(len(scores))
    values = np.nan_to_num([value for value, _ in scores.values()])
    axes.barh(places, values, color=POSITIVE, height=0.6)
    for place, (value, chance) in enumerate(scores.values()):
        words = "not measured" if np.isnan(value) else f"{value:.2f}"
        if chance is not None:
            axes.plot([chance, chance], [place - 0.42, place + 0.42], color=INK, lw=1.5)
            words += f" (chance {chance:.2f})"
        axes.text(1.02, place, words.replace("-", "−"), fontsize=7, va="center", color=QUIET)
    axes.set_yticks(places, [name.replace("_", " ") for name in scores], fontsize=7)
    axes.set_xlim(min(0.0, float(values.min(initial=0.0))), 1)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("score; the mark is the 99% level of chance", fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)

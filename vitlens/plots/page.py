"""A page to draw on: one set of axes in inches, with text and lines that scale with it."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

Colour: TypeAlias = str | tuple[float, ...]

INK = "#222222"
QUIET = "#666666"


class Page:
    """A white figure measured in inches from its lower left corner.

    Parameters
    ----------
    width, height
        In inches, before scaling.
    scale
        Everything, text and lines too, is drawn this many times as large.
    """

    def __init__(self, width: float, height: float, scale: float = 1.0) -> None:
        self.scale = scale
        self.figure = Figure(figsize=(width * scale, height * scale), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 8,
        align: str = "left",
        rise: str = "center",
        bold: bool = False,
        italic: bool = False,
        colour: str = INK,
        backed: bool = False,
    ) -> None:
        """Write words; `size` in points, `align` and `rise` as matplotlib's ha and va.

        Backed by the page's colour, words hide lines that pass behind them.
        """
        ground = self.figure.get_facecolor()
        backing = {"boxstyle": "square,pad=0.06", "fc": ground, "ec": "none"} if backed else None
        self.axes.text(
            x,
            y,
            literal(words),
            fontsize=size * self.scale,
            ha=align,
            va=rise,
            color=colour,
            weight="bold" if bold else "normal",
            style="italic" if italic else "normal",
            linespacing=1.25,
            bbox=backing,
            zorder=6,
        )

    def image(
        self, pixels: NDArray[np.uint8], x: float, y: float, width: float, height: float
    ) -> None:
        """Place pixels with their lower left corner at x, y."""
        extent = (x, x + width, y, y + height)
        self.axes.imshow(pixels, extent=extent, interpolation="none", aspect="auto", zorder=3)
        self.axes.set(
            xlim=(0, self.figure.get_figwidth() / self.scale),
            ylim=(0, self.figure.get_figheight() / self.scale),
        )

    def frame(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        colour: str = INK,
        line: float = 0.6,
        dashed: bool = False,
        hatched: bool = False,
    ) -> None:
        """Draw a rectangle's outline, and hatching in it."""
        if hatched:
            self.axes.add_patch(
                Rectangle(
                    (x, y), width, height, fill=False, hatch="///", lw=0, zorder=4, ec="#A5A5A5"
                )
            )
        style = (0, (2.5, 1.5)) if dashed else "solid"
        self.axes.add_patch(
            Rectangle(
                (x, y), width, height, fill=False, ec=colour, lw=line * self.scale, ls=style,
                zorder=5,
            )
        )  # fmt: skip

    def box(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Draw a filled rectangle with a thin outline."""
        self.axes.add_patch(
            Rectangle(
                (x, y), width, height, fc=colour, ec=QUIET, lw=0.5 * self.scale, zorder=5
            )
        )  # fmt: skip

    def card(self, x: float, y: float, width: float, height: float) -> None:
        """Draw a box with round corners, for words to stand in."""
        style = "round,pad=0,rounding_size=0.08"
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle=style, fc="white", ec=INK, lw=self.scale, zorder=3
            )
        )

    def curve(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        *,
        colour: str,
        width: float,
        dashed: bool = False,
        opacity: float = 0.75,
        order: float = 1.0,
    ) -> None:
        """Draw an S-shaped line that leaves and arrives level; `width` in points."""
        bend = 0.5 * (end[0] - start[0])
        points = [start, (start[0] + bend, start[1]), (end[0] - bend, end[1]), end]
        path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        # Dashes are multiples of the width: thin lines need longer ones to look dashed.
        long = max(2.0, 3.2 / width)
        self.axes.add_patch(
            PathPatch(
                path,
                fill=False,
                ec=colour,
                lw=width * self.scale,
                ls=(0, (long, 0.6 * long)) if dashed else "solid",
                alpha=opacity,
                capstyle="butt",
                zorder=order,
            )
        )


def literal(words: str) -> str:
    """Return words as matplotlib draws them to the letter: a $ would begin a formula."""
    return words.replace("$", r"\$")


def text_width(words: str, size: float) -> float:
    """Return the width of one line in inches, `size` in points."""
    width, _, _ = text_to_path.get_text_width_height_descent(
        words, FontProperties(size=size), ismath=False
    )
    return float(width) / 72


def flow(widths: Sequence[float], room: float, gap: float) -> list[list[int]]:
    """Break items into lines: which items, by number, go on each line of `room` inches."""
    lines: list[list[int]] = [[]]
    used = 0.0
    for item, width in enumerate(widths):
        if lines[-1] and used + gap + width > room:
            lines.append([])
            used = 0.0
        used += width + (gap if lines[-1] else 0.0)
        lines[-1].append(item)
    return lines

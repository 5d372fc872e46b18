"""A page to draw on: one set of axes in inches, with text and lines that scale with it."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from vitlens.plots.style import axes_for, literal, root_of, theme_of

Colour: TypeAlias = str | tuple[float, ...]


class Page:
    """Axes measured in inches from their lower left corner.

    Parameters
    ----------
    width, height
        Size in inches, before scaling.
    scale
        Everything, text and lines too, is drawn this many times as large.
    ax
        Axes to draw in; by default axes that fill a new figure. The page is scaled to fit into
        the given axes, whose size at this moment sets the size of the text.
    """

    def __init__(
        self, width: float, height: float, scale: float = 1.0, *, ax: Axes | None = None
    ) -> None:
        self.axes = axes_for(ax, width * scale, height * scale, bare=True, constrained=False)
        self.scale = scale
        if ax is not None:
            dpi = root_of(ax).dpi
            self.scale = min(ax.bbox.width / dpi / width, ax.bbox.height / dpi / height)
        self.theme = theme_of(self.axes)
        self._size = (width, height)
        self._limit()

    def _limit(self) -> None:
        self.axes.set(xlim=(0, self._size[0]), ylim=(0, self._size[1]), aspect="equal")

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
        colour: str | None = None,
        backed: bool = False,
    ) -> None:
        """Write text; `size` in points, `align` and `rise` as matplotlib's ha and va.

        The colour is the theme's ink by default. Text backed by the page's colour hides the lines
        that pass behind it.
        """
        ground = self.theme.page
        backing = {"boxstyle": "square,pad=0.06", "fc": ground, "ec": "none"} if backed else None
        self.axes.text(
            x,
            y,
            literal(words),
            fontsize=size * self.scale,
            ha=align,
            va=rise,
            color=colour or self.theme.ink,
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
        self._limit()

    def frame(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        colour: str | None = None,
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
                (x, y), width, height, fill=False, ec=colour or self.theme.ink,
                lw=line * self.scale, ls=style, zorder=5,
            )
        )  # fmt: skip

    def box(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Draw a filled rectangle with a thin outline."""
        self.axes.add_patch(
            Rectangle(
                (x, y), width, height, fc=colour, ec=self.theme.quiet, lw=0.5 * self.scale,
                zorder=5,
            )
        )  # fmt: skip

    def card(self, x: float, y: float, width: float, height: float) -> None:
        """Draw a box with round corners, to write in."""
        style = "round,pad=0,rounding_size=0.08"
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle=style, fc=self.theme.page, ec=self.theme.ink,
                lw=self.scale, zorder=3,
            )
        )  # fmt: skip

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

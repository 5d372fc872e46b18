"""The legend of a circuit's figure: what its lines, colours, frames and numbers mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vitlens.plots.heat import NEGATIVE, POSITIVE, colours
from vitlens.plots.page import QUIET, Page, flow, text_width

_SIZE = 10.0
_LINE = 0.33
_GAP = 0.34
_SPACE = 0.08
_SAMPLE = 0.9  # room for one sample of an edge's width

Draw = Callable[[Page, float, float], None]


@dataclass(frozen=True)
class Item:
    """A symbol `width` inches wide, drawn from (x, y) on, and its words."""

    width: float
    draw: Draw
    words: str

    @property
    def room(self) -> float:
        """Width with the words, in inches."""
        return self.width + (_SPACE if self.width else 0.0) + text_width(self.words, _SIZE)


def height(items: Sequence[Item], width: float) -> float:
    """Return how high the legend will be on a page `width` inches wide."""
    return _LINE * len(flow([item.room for item in items], width, _GAP))


def draw(page: Page, items: Sequence[Item], *, left: float, top: float, width: float) -> None:
    """Draw the items line by line, from the top."""
    for number, line in enumerate(flow([item.room for item in items], width, _GAP)):
        x, y = left, top - _LINE * (number + 0.5)
        for index in line:
            item = items[index]
            item.draw(page, x, y)
            start = x + item.width + (_SPACE if item.width else 0.0)
            page.text(start, y, item.words, size=_SIZE)
            x += item.room + _GAP


def circuit_items(
    *,
    widths: Sequence[tuple[float, float]],
    prefix_names: Sequence[str],
    has_error: bool,
    has_negative: bool,
    has_pinned: bool,
    drawn: tuple[int, int],
) -> list[Item]:
    """Return what a circuit's legend has to say.

    Parameters
    ----------
    widths
        Samples of edges: share of the layer's importance, and line width in points.
    prefix_names
        Tokens that are no patches.
    has_error, has_negative, has_pinned
        Whether there are error nodes, edges below zero, and pinned nodes.
    drawn
        How many edges are drawn, and how many there are.
    """
    items = [Item(0.4, _line(POSITIVE), "edge that adds to the target")]
    if has_negative:
        items.append(Item(0.4, _line(NEGATIVE, dashed=True), "edge that takes away from it"))
    if widths:
        words = "edge width: share of its layer's importance"
        items.append(Item(_SAMPLE * len(widths) - 0.15, _widths(widths), words))
    items.append(Item(1.35, _heat_scale, "importance by patch, relative to the node's strongest"))
    if prefix_names:
        items.append(Item(0.2, _square, f"the same for {_listed(prefix_names)}"))
    if has_error:
        items.append(Item(0.26, _error, "error node: what the SAE leaves out of the stream"))
    if has_pinned:
        items.append(Item(0.26, _pinned, "pinned node"))
    items.append(Item(0.82, _numbers, "feature number, and its share of its layer's importance"))
    if drawn[0] < drawn[1]:
        items.append(Item(0, _nothing, f"drawn: the strongest {drawn[0]} of {drawn[1]} edges"))
    return items


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"the {names[0]} token"
    return f"the {names[0]} token and, below it, {', '.join(names[1:])}"


def _line(colour: str, *, dashed: bool = False) -> Draw:
    def paint(page: Page, x: float, y: float) -> None:
        page.curve((x, y), (x + 0.4, y), colour=colour, width=2.2, dashed=dashed)

    return paint


def _widths(samples: Sequence[tuple[float, float]]) -> Draw:
    def paint(page: Page, x: float, y: float) -> None:
        for number, (share, width) in enumerate(samples):
            start = x + number * _SAMPLE
            page.curve((start, y), (start + 0.28, y), colour=QUIET, width=width)
            page.text(start + 0.34, y, f"{share:.2g}%", size=_SIZE)

    return paint


def _heat_scale(page: Page, x: float, y: float) -> None:
    ramp = colours()(np.linspace(0, 1, 101))[None, :, :3].repeat(2, axis=0)
    page.text(x + 0.42, y, "−100%", size=8, align="right")
    page.image((255 * ramp).astype(np.uint8), x + 0.46, y - 0.07, 0.5, 0.14)
    page.text(x + 1.0, y, "100%", size=8)


def _numbers(page: Page, x: float, y: float) -> None:
    page.text(x, y, "213", size=_SIZE)
    page.text(x + 0.78, y, "31%", size=_SIZE, bold=True, align="right")


def _square(page: Page, x: float, y: float) -> None:
    page.box(x, y - 0.09, 0.18, 0.18, colours()(0.85))


def _error(page: Page, x: float, y: float) -> None:
    page.frame(x, y - 0.1, 0.22, 0.2, dashed=True, hatched=True, line=1.0)


def _pinned(page: Page, x: float, y: float) -> None:
    page.frame(x, y - 0.1, 0.22, 0.2, line=2.4)


def _nothing(page: Page, x: float, y: float) -> None:
    pass

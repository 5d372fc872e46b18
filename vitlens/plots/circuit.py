"""A circuit as a picture: layers in columns, from the image to the target."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vitlens.circuits.circuit import ERROR, Circuit, Edge, Node
from vitlens.errors import FeatureError
from vitlens.plots import legend
from vitlens.plots.heat import NEGATIVE, POSITIVE, colours, heat_on_picture
from vitlens.plots.order import FeatureId, order_columns
from vitlens.plots.page import INK, QUIET, Page

# All lengths in inches, at the natural size.
_THUMB = 0.74
_ROW = 1.09  # from one node of a column to the next
_PITCH = (1.32, 2.4)  # from one layer to the next, at least and at most
_SPREAD = 0.3  # more room before the target, where many edges meet
_TOKEN = 0.17  # a square that stands for a prefix token
_PICTURE = 1.6
_TARGET = 1.4
_MARGIN = 0.22
_HEAD = 1.0
_PORTS = 0.4  # the part of a node's side that edges share
_PIXELS = 120  # of a thumbnail's side
_THICKEST, _THINNEST = 5.0, 0.35  # points
_EDGES_A_NODE = 3
_LABEL = 22  # characters


def circuit_figure(
    circuit: Circuit, *, width: float | None = None, top_edges: int | None = None
) -> Figure:
    """Draw a circuit.

    Layers are columns from the image, on the left, to the target. A node is a thumbnail: its
    importance by patch on the image (blue adds to the target, orange takes away), beside it a
    small square for each prefix token, below it its feature number and share, its label and, in
    brackets, its group; a pinned node has a thick frame. Within a column
    nodes are ordered so that edges cross little. Edges are blue and solid where they add to the
    target, orange and dashed where they take away; their width grows with the root of their
    share.

    Parameters
    ----------
    circuit
        The circuit.
    width
        Of the figure, in inches; its height and text scale with it. By default what the number
        of layers needs, with text of 8 points.
    top_edges
        How many edges to draw between two layers, the strongest ones; by default three for each
        node of the fuller layer. Those to the target are all drawn.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot. See `save_figure` to write it.

    Raises
    ------
    FeatureError
        When the circuit has no nodes, or an argument is not above 0.
    """
    if not circuit.nodes:
        raise FeatureError("This circuit has no nodes to draw.")
    for name, value in (("width", width), ("top_edges", top_edges)):
        if value is not None and value <= 0:
            raise FeatureError(f"{name} must be above 0, not {value}.")
    edges = strongest_edges(circuit, top_edges)
    plan = _Plan.of(circuit, edges)
    items = legend.circuit_items(
        widths=plan.width_samples(),
        prefix_names=circuit.prefix_names,
        has_error=any(node.feature == ERROR for node in circuit.nodes),
        has_negative=any(edge.weight < 0 for edge in edges),
        has_pinned=bool(circuit.pinned),
        drawn=(len(edges), len(circuit.edges)),
    )
    foot = legend.height(items, plan.width - 2 * _MARGIN) + 2 * _MARGIN
    natural = plan.width
    scale = 1.0 if width is None else width / natural
    page = Page(natural, foot + plan.body + _HEAD, scale)
    middle = foot + plan.body / 2

    _draw_heading(page, circuit, plan, foot)
    _draw_picture(page, circuit, middle)
    _draw_target(page, circuit, plan, middle)
    leaving, arriving = plan.ports(edges)
    for edge in sorted(edges, key=lambda edge: abs(edge.share)):
        _draw_edge(page, plan, edge, middle, (leaving[edge], arriving[edge]))
    for node in circuit.nodes:
        _draw_node(page, circuit, node, plan.place(node.key, middle))
    legend.draw(page, items, left=_MARGIN, top=foot - _MARGIN, width=natural - 2 * _MARGIN)
    return page.figure


def strongest_edges(circuit: Circuit, count: int | None = None) -> list[Edge]:
    """Return the strongest edges of each pair of layers, and all that lead to the target.

    Parameters
    ----------
    circuit
        The circuit.
    count
        How many between two layers; by default three for each node of the fuller layer.
    """
    sizes = [0] * circuit.n_layers
    for node in circuit.nodes:
        sizes[node.layer] += 1
    kept: list[Edge] = []
    for layer, group in groupby(circuit.edges, key=lambda edge: edge.source[0]):
        between = sorted(group, key=lambda edge: -abs(edge.weight))
        if layer < circuit.n_layers - 1:
            fuller = max(sizes[layer], sizes[layer + 1])
            between = between[: _EDGES_A_NODE * fuller if count is None else count]
        kept += between
    return kept


@dataclass(frozen=True)
class _Plan:
    """Where things go, in inches; heights count from the middle of the body."""

    columns: list[list[FeatureId]]
    heights: dict[FeatureId, float]
    pitch: float
    thickest: float  # largest share of an edge
    jut: float  # how far beyond a thumbnail edges begin
    target: FeatureId

    @classmethod
    def of(cls, circuit: Circuit, edges: Sequence[Edge]) -> "_Plan":
        by_layer: list[list[FeatureId]] = [[] for _ in range(circuit.n_layers)]
        for node in circuit.nodes:
            by_layer[node.layer].append(node.key)
        # Edges too weak to be drawn would only blur the order.
        columns = order_columns([*by_layer, [circuit.target_key]], edges)
        heights = {
            key: ((len(column) - 1) / 2 - place) * _ROW
            for column in columns
            for place, key in enumerate(column)
        }
        return cls(
            columns=columns[:-1],
            heights=heights,
            # Few layers stand further apart, so that the page is not narrower than its legend.
            pitch=min(_PITCH[1], max(_PITCH[0], 11.0 / circuit.n_layers)),
            thickest=max((abs(edge.share) for edge in edges), default=0.0),
            # A column of many squares would hide where edges begin.
            jut=_TOKEN + 0.02 if circuit.n_prefix > 1 else 0.0,
            target=circuit.target_key,
        )

    @property
    def width(self) -> float:
        """Of the page."""
        return self.left(len(self.columns)) + _TARGET + _MARGIN

    @property
    def body(self) -> float:
        """Height of the columns."""
        return max(_ROW * max(len(column) for column in self.columns), _PICTURE + 0.9)

    def left(self, layer: int) -> float:
        """Where a layer's thumbnails begin; the target is one layer after the last."""
        extra = _SPREAD if layer == len(self.columns) else 0.0
        return _MARGIN + _PICTURE + 0.45 + layer * self.pitch + extra

    def place(self, key: FeatureId, middle: float) -> tuple[float, float]:
        """Lower left corner of a node's thumbnail."""
        return self.left(key[0]), middle + self.heights[key] - _THUMB / 2 + 0.1

    def ports(self, edges: Sequence[Edge]) -> tuple[dict[Edge, float], dict[Edge, float]]:
        """How far above the middle of its side each edge leaves its source and arrives."""
        leaving: dict[Edge, float] = {}
        arriving: dict[Edge, float] = {}
        for own, other, places in (
            ("source", "target", leaving),
            ("target", "source", arriving),
        ):
            at: dict[FeatureId, list[Edge]] = {}
            for edge in edges:
                at.setdefault(getattr(edge, own), []).append(edge)
            for group in at.values():
                group = sorted(group, key=lambda edge: self.heights[getattr(edge, other)])
                step = min(0.05, _PORTS / max(len(group) - 1, 1))
                for place, edge in enumerate(group):
                    places[edge] = step * (place - (len(group) - 1) / 2)
        return leaving, arriving

    def line_width(self, share: float) -> float:
        """Of an edge, in points."""
        if self.thickest == 0:
            return _THINNEST
        return max(_THINNEST, _THICKEST * math.sqrt(abs(share) / self.thickest))

    def width_samples(self) -> list[tuple[float, float]]:
        """Three edges for the legend: shares in per cent, round numbers, and line widths."""
        if self.thickest == 0:
            return []
        largest = _round_down(100 * self.thickest)
        shares = [_round_down(largest / 30), _round_down(largest / 6), largest]
        return [(share, self.line_width(share / 100)) for share in shares]


def _round_down(value: float) -> float:
    """Return the next number below with 1, 2 or 5 and zeros."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-9)) * power


def _draw_heading(page: Page, circuit: Circuit, plan: _Plan, foot: float) -> None:
    top = foot + plan.body + _HEAD
    most = max(8, int(7 * plan.width) - len("What led to “”"))
    # One long word, or a script without spaces, is cut wherever it must be.
    name = textwrap.shorten(circuit.target, most, placeholder=" …")
    name = circuit.target[: most - 1] + "…" if name.strip() in ("", "…") else name
    page.text(_MARGIN, top - 0.27, f"What led to “{name}”", size=14, bold=True)
    about = "Layer l: the residual stream after block l, split by its SAE into features."
    page.text(_MARGIN, top - 0.53, about, size=10, colour=QUIET)
    for layer in range(circuit.n_layers):
        x = plan.left(layer) + _THUMB / 2
        page.text(x, foot + plan.body + 0.12, f"layer {layer}", size=11, align="center", bold=True)


def _draw_picture(page: Page, circuit: Circuit, middle: float) -> None:
    rows, columns = circuit.grid if circuit.image is None else circuit.image.shape[:2]
    longer = max(rows, columns)
    height, width = _PICTURE * rows / longer, _PICTURE * columns / longer
    x, y = _MARGIN + (_PICTURE - width) / 2, middle - height / 2 + 0.1
    if circuit.image is None:
        page.text(x + width / 2, y + height / 2, "not stored", align="center", colour=QUIET)
    else:
        page.image(circuit.image.numpy(), x, y, width, height)
    page.frame(x, y, width, height, colour=QUIET)
    name, probability = circuit.prediction
    words = f"{_wrapped(f'predicted: {name}', 20)}\n{probability:.1%}"
    page.text(x + width / 2, y + height + 0.12, "image", size=11, align="center", bold=True)
    page.text(x + width / 2, y - 0.08, words, align="center", rise="top", size=10)


def _draw_target(page: Page, circuit: Circuit, plan: _Plan, middle: float) -> None:
    name = _wrapped(circuit.target, 16)
    height = 0.66 + 0.17 * name.count("\n")
    x, y = plan.left(circuit.n_layers), middle - height / 2 + 0.1
    page.card(x, y, _TARGET, height)
    centre = x + _TARGET / 2
    page.text(centre, y + height - 0.08, name, size=10, align="center", rise="top", bold=True)
    what = "logit − mean logit" if circuit.target_index is not None else "target"
    value = f"{what}\n{circuit.target_value:.3g}".replace("-", "−")
    page.text(centre, y + 0.07, value, size=8.5, align="center", rise="bottom")
    page.text(centre, y + height + 0.12, "target", size=11, align="center", bold=True)


def _draw_edge(
    page: Page, plan: _Plan, edge: Edge, middle: float, ports: tuple[float, float]
) -> None:
    x, y = plan.place(edge.source, middle)
    start = (x + _THUMB + plan.jut, y + _THUMB / 2 + ports[0])
    x, y = plan.place(edge.target, middle)
    page.curve(
        start,
        (x, y + _THUMB / 2 + ports[1]),
        colour=POSITIVE if edge.weight > 0 else NEGATIVE,
        width=plan.line_width(edge.share),
        dashed=edge.weight < 0,
    )


def _draw_node(page: Page, circuit: Circuit, node: Node, corner: tuple[float, float]) -> None:
    x, y = corner
    prefix, patches = _relative_heat(circuit, node)
    picture = None if circuit.image is None else circuit.image.numpy()
    rows, columns = circuit.grid
    longer = max(rows, columns)
    height, width = _THUMB * rows / longer, _THUMB * columns / longer
    x, y = x + (_THUMB - width) / 2, y + (_THUMB - height) / 2
    size = (round(_PIXELS * rows / longer), round(_PIXELS * columns / longer))
    page.image(heat_on_picture(picture, patches, size=size), x, y, width, height)
    is_error, is_pinned = node.feature == ERROR, node.key in circuit.pinned
    page.frame(
        x, y, width, height,
        colour=INK if is_error or is_pinned else QUIET,
        line=2.4 if is_pinned else 1.2 if is_error else 0.5,
        dashed=is_error,
        hatched=is_error,
    )  # fmt: skip
    step = min(_TOKEN, height / max(len(prefix), 1))
    for number, value in enumerate(prefix):
        colour = colours()(0.5 + 0.5 * value)
        page.box(x + width + 0.02, y + height - step * (number + 1), step, step, colour)
    below = y - 0.125
    name = "error" if is_error else str(node.feature)
    share = _percent(node.share)
    # The lower line first: its backing would cut off what hangs below the upper one's.
    page.text(corner[0], below - 0.135, _words(circuit, node), size=8, italic=True, backed=True)
    page.text(corner[0], below, name, size=10, italic=is_error, backed=True)
    right = corner[0] + _THUMB + _TOKEN
    page.text(right, below, share, size=10, align="right", bold=True, backed=True)


def _relative_heat(circuit: Circuit, node: Node) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Importances of prefix tokens and of patches [rows, columns], the strongest being ±1."""
    tokens = circuit.heatmaps[circuit.nodes.index(node)].double().numpy()
    strongest = np.abs(tokens).max()
    tokens = tokens / strongest if strongest > 0 else tokens
    n = circuit.n_prefix
    return tokens[:n], tokens[n:].reshape(circuit.grid)


def _words(circuit: Circuit, node: Node) -> str:
    """Group and label of a node, in one short line."""
    label, group = circuit.labels.get(node.key, ""), circuit.group_of(node)
    words = f"[{group}] {label}" if group else label
    return textwrap.shorten(words.strip(), _LABEL, placeholder="…")


def _percent(share: float) -> str:
    digits = 0 if abs(share) >= 0.0995 else 1
    return f"{100 * share:.{digits}f}%".replace("-", "−")


def _wrapped(words: str, width: int) -> str:
    return textwrap.fill(textwrap.shorten(words, 4 * width, placeholder=" …"), width)

"""A circuit as a figure: layers in columns, from the image to the target."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vitlens.circuits.carried import Carried
from vitlens.circuits.circuit import ERROR, Circuit, Edge, Node, node_name
from vitlens.errors import FeatureError
from vitlens.plots.heatmap import colours, heat_on_image
from vitlens.plots.page import Page, flow, text_width
from vitlens.plots.style import root_of, styled
from vitlens.saes.base import FeatureId

# All lengths in inches, at the natural size.
_THUMB = 0.74
_ROW = 1.09  # from one node of a column to the next
_PITCH = (1.32, 2.4)  # from one layer to the next, at least and at most
_SPREAD = 0.3  # more room before the target, where many edges meet
_TOKEN = 0.17  # a square that stands for a prefix token
_IMAGE = 1.6
_TARGET = 1.4
_MARGIN = 0.22
_HEAD = 1.0
_PORTS = 0.4  # the part of a node's side that edges share
_PIXELS = 120  # of a thumbnail's side
_THICKEST, _THINNEST = 5.0, 0.35  # points
_EDGES_A_NODE = 3
_LABEL = 22  # characters
_RIM = 0.035  # between the two frames of a supernode
# The legend; its text is in points.
_LEGEND_SIZE, _LEGEND_LINE, _LEGEND_GAP, _LEGEND_SPACE = 10.0, 0.33, 0.34, 0.08
_SAMPLE = 0.9  # room for one sample of an edge's width
_SWEEPS = 12  # over the columns, to order their nodes

_Draw: TypeAlias = Callable[[Page, float, float], None]


@styled
def circuit_figure(
    circuit: Circuit,
    *,
    width: float | None = None,
    top_edges: int | None = None,
    supernodes: bool = False,
    ax: Axes | None = None,
) -> Figure:
    """Draw a circuit.

    Layers are columns from the image, on the left, to the target. A node is a thumbnail: its
    importance per patch on the image (blue raises the target, orange lowers it), next to it a
    small square per prefix token, below it its feature number and share, its label and, in
    brackets, its group; a pinned node has a thick frame. Nodes of a column are ordered so that
    few edges cross. Edges are blue and solid where they raise the target, orange and dashed
    where they lower it; their width grows with the square root of their share. Below the target
    stands how much of the answer the circuit carries alone (100% is the model's own, above is as
    wrong as below), how much is left without it, whether the class stays first, and the protocol.

    Parameters
    ----------
    circuit
        The circuit.
    width
        Width of a new figure, in inches; its height and text scale with it. By default what the
        number of layers needs, with text of 8 points.
    top_edges
        Number of edges to draw between two layers, the strongest ones; by default three per node
        of the fuller layer. All edges to the target are drawn.
    supernodes
        Whether to draw each group as one node, with the sums of its members' importances, per
        patch too, and edges (`Circuit.supernodes`). It has two frames, the number of its members
        in a corner, and the feature number of the strongest below.
    ax
        Axes to draw in; by default a new figure. The drawing is scaled to fit into these axes.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure is unknown to pyplot; `save_figure` writes it.

    Raises
    ------
    FeatureError
        When the circuit has no nodes, or `width` or `top_edges` is not above 0.
    """
    if not circuit.nodes:
        raise FeatureError("This circuit has no nodes to draw.")
    for name, value in (("width", width), ("top_edges", top_edges)):
        if value is not None and value <= 0:
            raise FeatureError(f"{name} must be above 0, not {value}.")
    sizes: dict[FeatureId, int] = {}
    if supernodes:
        circuit, sizes = _merged(circuit)
    edges = strongest_edges(circuit, top_edges)
    plan = _Plan.of(circuit, edges)
    items = _legend_items(
        widths=plan.width_samples(),
        prefix_names=circuit.prefix_names,
        has_error=any(node.feature == ERROR for node in circuit.nodes),
        has_negative=any(edge.weight < 0 for edge in edges),
        has_pinned=bool(circuit.pinned),
        has_groups=any(size > 1 for size in sizes.values()),
        drawn=(len(edges), len(circuit.edges)),
    )
    foot = _legend_height(items, plan.width - 2 * _MARGIN) + 2 * _MARGIN
    natural = plan.width
    scale = 1.0 if width is None else width / natural
    page = Page(natural, foot + plan.body + _HEAD, scale, ax=ax)
    middle = foot + plan.body / 2

    _draw_heading(page, circuit, plan, foot)
    _draw_image(page, circuit, middle)
    _draw_target(page, circuit, plan, middle)
    leaving, arriving = plan.ports(edges)
    for edge in sorted(edges, key=lambda edge: abs(edge.share)):
        _draw_edge(page, plan, edge, middle, (leaving[edge], arriving[edge]))
    for node in circuit.nodes:
        _draw_node(page, circuit, node, plan.place(node.key, middle), sizes.get(node.key, 1))
    _draw_legend(page, items, left=_MARGIN, top=foot - _MARGIN, width=natural - 2 * _MARGIN)
    return root_of(page.axes)


def _merged(circuit: Circuit) -> tuple[Circuit, dict[FeatureId, int]]:
    """Return a circuit to draw, with a node per supernode, and how many members each has.

    A node has the key of the supernode's strongest member; its label is the supernode's name.
    """
    made = circuit.supernodes()
    labels = {node.key: node.name.removeprefix(node_name(node.key)).strip() for node in made}
    labels |= {
        node.key: circuit.labels[node.key]
        for node in made
        if not labels[node.key] and node.key in circuit.labels
    }
    merged = replace(
        circuit,
        nodes=tuple(Node(*node.key, node.importance, node.share, 0.0) for node in made),
        edges=tuple(edge for node in made for edge in node.edges),
        heatmaps=torch.stack([node.heatmap for node in made]),
        pinned=tuple(node.key for node in made if set(node.members) & set(circuit.pinned)),
        groups={},
        labels=labels,
    )
    return merged, {node.key: len(node.members) for node in made}


def strongest_edges(circuit: Circuit, count: int | None = None) -> list[Edge]:
    """Return the strongest edges of each pair of layers, and all that lead to the target.

    Parameters
    ----------
    circuit
        The circuit.
    count
        Number of edges between two layers; by default three per node of the fuller layer.
    """
    sizes = Counter(node.layer for node in circuit.nodes)
    above = dict(pairwise(circuit.layers))
    kept: list[Edge] = []
    for layer, group in groupby(circuit.edges, key=lambda edge: edge.source[0]):
        between = sorted(group, key=lambda edge: -abs(edge.weight))
        if layer in above:
            fuller = max(sizes[layer], sizes[above[layer]])
            between = between[: _EDGES_A_NODE * fuller if count is None else count]
        kept += between
    return kept


@dataclass(frozen=True)
class _Plan:
    """Where things go, in inches; heights count from the middle of the body."""

    layers: tuple[int, ...]
    columns: list[list[FeatureId]]  # by position, without the target
    heights: dict[FeatureId, float]
    pitch: float
    thickest: float  # largest share of an edge
    jut: float  # how far beyond a thumbnail edges begin
    target: FeatureId

    @classmethod
    def of(cls, circuit: Circuit, edges: Sequence[Edge]) -> _Plan:
        by_layer: dict[int, list[FeatureId]] = {layer: [] for layer in circuit.layers}
        for node in circuit.nodes:
            by_layer[node.layer].append(node.key)
        # Edges too weak to be drawn would only blur the order.
        columns = order_columns([*by_layer.values(), [circuit.target_key]], edges)
        heights = {
            key: ((len(column) - 1) / 2 - place) * _ROW
            for column in columns
            for place, key in enumerate(column)
        }
        return cls(
            layers=circuit.layers,
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
        return max(_ROW * max(len(column) for column in self.columns), _IMAGE + 0.9)

    def left(self, position: int) -> float:
        """Where a column of thumbnails begins; the target's follows the last."""
        extra = _SPREAD if position == len(self.columns) else 0.0
        return _MARGIN + _IMAGE + 0.45 + position * self.pitch + extra

    def place(self, key: FeatureId, middle: float) -> tuple[float, float]:
        """Lower left corner of a node's thumbnail."""
        is_target = key == self.target
        position = len(self.layers) if is_target else self.layers.index(key[0])
        return self.left(position), middle + self.heights[key] - _THUMB / 2 + 0.1

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
    most = max(8, int(7 * plan.width) - len("Circuit for “”"))
    # One long word, or a script without spaces, is cut wherever it must be.
    name = textwrap.shorten(circuit.target, most, placeholder=" …")
    name = circuit.target[: most - 1] + "…" if name.strip() in ("", "…") else name
    page.text(_MARGIN, top - 0.27, f"Circuit for “{name}”", size=14, bold=True)
    about = "Layer l: the residual stream after block l, encoded by its SAE."
    page.text(_MARGIN, top - 0.53, about, size=10, colour=page.theme.quiet)
    for position, layer in enumerate(circuit.layers):
        x = plan.left(position) + _THUMB / 2
        page.text(x, foot + plan.body + 0.12, f"layer {layer}", size=11, align="center", bold=True)


def _draw_image(page: Page, circuit: Circuit, middle: float) -> None:
    rows, columns = circuit.grid if circuit.image is None else circuit.image.shape[:2]
    longer = max(rows, columns)
    height, width = _IMAGE * rows / longer, _IMAGE * columns / longer
    x, y = _MARGIN + (_IMAGE - width) / 2, middle - height / 2 + 0.1
    if circuit.image is None:
        page.text(
            x + width / 2, y + height / 2, "not stored", align="center", colour=page.theme.quiet
        )
    else:
        page.image(circuit.image.numpy(), x, y, width, height)
    page.frame(x, y, width, height, colour=page.theme.quiet)
    name, probability = circuit.prediction
    caption = f"{_wrapped(f'predicted: {name}', 20)}\n{probability:.1%}"
    page.text(x + width / 2, y + height + 0.12, "image", size=11, align="center", bold=True)
    page.text(x + width / 2, y - 0.08, caption, align="center", rise="top", size=10)


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
    if circuit.carried is not None:
        _draw_carried(page, circuit.carried, centre, y)


def _draw_carried(page: Page, carried: Carried, x: float, top: float) -> None:
    """Write what the circuit carries, and below it in small type the protocol."""
    shares = f"alone {carried.alone:.0%}\nwithout {carried.without:.0%}".replace("-", "−")
    if math.isnan(carried.alone):
        shares = "no share of\nthe answer"
    page.text(x, top - 0.08, shares, align="center", rise="top", size=10)
    protocol = (
        f"class {'' if carried.top1 else 'not '}first alone\n"
        f"error nodes: {carried.error_nodes}\nbaselines: {carried.baselines}"
    )
    page.text(x, top - 0.46, protocol, align="center", rise="top", size=8)


def _draw_edge(
    page: Page, plan: _Plan, edge: Edge, middle: float, ports: tuple[float, float]
) -> None:
    x, y = plan.place(edge.source, middle)
    start = (x + _THUMB + plan.jut, y + _THUMB / 2 + ports[0])
    x, y = plan.place(edge.target, middle)
    page.curve(
        start,
        (x, y + _THUMB / 2 + ports[1]),
        colour=page.theme.positive if edge.weight > 0 else page.theme.negative,
        width=plan.line_width(edge.share),
        dashed=edge.weight < 0,
    )


def _draw_node(
    page: Page, circuit: Circuit, node: Node, corner: tuple[float, float], members: int
) -> None:
    """Draw a node, or a supernode of this many members."""
    x, y = corner
    prefix, patches = _relative_heat(circuit, node)
    image = None if circuit.image is None else circuit.image.numpy()
    rows, columns = circuit.grid
    longer = max(rows, columns)
    height, width = _THUMB * rows / longer, _THUMB * columns / longer
    x, y = x + (_THUMB - width) / 2, y + (_THUMB - height) / 2
    size = (round(_PIXELS * rows / longer), round(_PIXELS * columns / longer))
    page.image(heat_on_image(image, patches, size=size), x, y, width, height)
    is_error, is_pinned = node.feature == ERROR, node.key in circuit.pinned
    if members > 1:
        page.frame(x - _RIM, y - _RIM, width + 2 * _RIM, height + 2 * _RIM, colour=page.theme.quiet)
        page.text(x + width - 0.05, y + 0.1, f"×{members}", size=9, align="right", backed=True)
    page.frame(
        x, y, width, height,
        colour=page.theme.ink if is_error or is_pinned else page.theme.quiet,
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
    # The lower line first: its backing would cut off the descenders of the upper one.
    page.text(corner[0], below - 0.135, _label(circuit, node), size=8, italic=True, backed=True)
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


def _label(circuit: Circuit, node: Node) -> str:
    """Group and label of a node, in one short line."""
    label, group = circuit.labels.get(node.key, ""), circuit.group_of(node)
    text = f"[{group}] {label}" if group else label
    return textwrap.shorten(text.strip(), _LABEL, placeholder="…")


def _percent(share: float) -> str:
    digits = 0 if abs(share) >= 0.0995 else 1
    return f"{100 * share:.{digits}f}%".replace("-", "−")


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(textwrap.shorten(text, 4 * width, placeholder=" …"), width)


@dataclass(frozen=True)
class _Item:
    """An entry of the legend: a symbol `width` inches wide, drawn from (x, y) on, and text."""

    width: float
    draw: _Draw
    text: str

    @property
    def room(self) -> float:
        """Width with the text, in inches."""
        return (
            self.width
            + (_LEGEND_SPACE if self.width else 0.0)
            + text_width(self.text, _LEGEND_SIZE)
        )


def _legend_height(items: Sequence[_Item], width: float) -> float:
    """Return the height of a legend that is `width` inches wide."""
    return _LEGEND_LINE * len(flow([item.room for item in items], width, _LEGEND_GAP))


def _draw_legend(
    page: Page, items: Sequence[_Item], *, left: float, top: float, width: float
) -> None:
    """Draw the entries line by line, from the top."""
    for number, line in enumerate(flow([item.room for item in items], width, _LEGEND_GAP)):
        x, y = left, top - _LEGEND_LINE * (number + 0.5)
        for index in line:
            item = items[index]
            item.draw(page, x, y)
            start = x + item.width + (_LEGEND_SPACE if item.width else 0.0)
            page.text(start, y, item.text, size=_LEGEND_SIZE)
            x += item.room + _LEGEND_GAP


def _legend_items(
    *,
    widths: Sequence[tuple[float, float]],
    prefix_names: Sequence[str],
    has_error: bool,
    has_negative: bool,
    has_pinned: bool,
    has_groups: bool,
    drawn: tuple[int, int],
) -> list[_Item]:
    """Return the entries of a circuit's legend.

    Parameters
    ----------
    widths
        Sample edges: share of the layer's importance in per cent, and line width in points.
    prefix_names
        Tokens that are not patches.
    has_error, has_negative, has_pinned, has_groups
        Whether there are error nodes, edges below zero, pinned nodes, and supernodes.
    drawn
        Number of edges drawn, and number of all edges.
    """
    items = [_Item(0.4, _line(), "edge that raises the target")]
    if has_negative:
        items.append(_Item(0.4, _line(negative=True), "edge that lowers it"))
    if widths:
        text = "edge width: share within its layer"
        items.append(_Item(_SAMPLE * len(widths) - 0.15, _widths(widths), text))
    items.append(_Item(1.35, _heat_scale, "importance per patch, relative to the node's strongest"))
    if prefix_names:
        items.append(_Item(0.2, _square, f"the same for {_listed(prefix_names)}"))
    if has_error:
        items.append(_Item(0.26, _error, "error node: the part of the stream that the SAE misses"))
    if has_pinned:
        items.append(_Item(0.26, _pinned, "pinned node"))
    if has_groups:
        text = "supernode: the sum of, here, five features; the strongest is named"
        items.append(_Item(0.34, _supernode, text))
    items.append(_Item(0.82, _numbers, "feature number and its share of its layer's importance"))
    if drawn[0] < drawn[1]:
        items.append(_Item(0, _nothing, f"the {drawn[0]} strongest of {drawn[1]} edges are drawn"))
    return items


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"the {names[0]} token"
    return f"the {names[0]} token and, below it, {', '.join(names[1:])}"


def _line(*, negative: bool = False) -> _Draw:
    def paint(page: Page, x: float, y: float) -> None:
        colour = page.theme.negative if negative else page.theme.positive
        page.curve((x, y), (x + 0.4, y), colour=colour, width=2.2, dashed=negative)

    return paint


def _widths(samples: Sequence[tuple[float, float]]) -> _Draw:
    def paint(page: Page, x: float, y: float) -> None:
        for number, (share, width) in enumerate(samples):
            start = x + number * _SAMPLE
            page.curve((start, y), (start + 0.28, y), colour=page.theme.quiet, width=width)
            page.text(start + 0.34, y, f"{share:g}%", size=_LEGEND_SIZE)

    return paint


def _heat_scale(page: Page, x: float, y: float) -> None:
    ramp = colours()(np.linspace(0, 1, 101))[None, :, :3].repeat(2, axis=0)
    page.text(x + 0.42, y, "−100%", size=8, align="right")
    page.image((255 * ramp).astype(np.uint8), x + 0.46, y - 0.07, 0.5, 0.14)
    page.text(x + 1.0, y, "100%", size=8)


def _numbers(page: Page, x: float, y: float) -> None:
    page.text(x, y, "213", size=_LEGEND_SIZE)
    page.text(x + 0.78, y, "31%", size=_LEGEND_SIZE, bold=True, align="right")


def _square(page: Page, x: float, y: float) -> None:
    page.box(x, y - 0.09, 0.18, 0.18, colours()(0.85))


def _error(page: Page, x: float, y: float) -> None:
    page.frame(x, y - 0.1, 0.22, 0.2, dashed=True, hatched=True, line=1.0)


def _pinned(page: Page, x: float, y: float) -> None:
    page.frame(x, y - 0.1, 0.22, 0.2, line=2.4)


def _supernode(page: Page, x: float, y: float) -> None:
    page.frame(x, y - 0.1 - _RIM, 0.24 + 2 * _RIM, 0.2 + 2 * _RIM, colour=page.theme.quiet)
    page.frame(x + _RIM, y - 0.1, 0.24, 0.2, colour=page.theme.quiet)
    page.text(x + _RIM + 0.12, y, "×5", size=9, align="center")


def _nothing(page: Page, x: float, y: float) -> None:
    pass


def order_columns(
    columns: Sequence[Sequence[FeatureId]], edges: Iterable[Edge]
) -> list[list[FeatureId]]:
    """Order the nodes of each column by the weighted barycentre of their neighbours.

    Sweeps go back from the target and forth from the image in turn (Sugiyama, Tagawa and Toda,
    1981); the order with the least weight in crossings is kept.

    Parameters
    ----------
    columns
        Keys of the nodes, column by column, in the order to start from.
    edges
        Between adjacent columns.
    """
    links = list(edges)
    orders = [list(column) for column in columns]
    best, least = orders, crossings(orders, links)
    for sweep in range(_SWEEPS):
        backwards = sweep % 2 == 0
        orders = _sweep(orders, links, backwards=backwards)
        weight = crossings(orders, links)
        if weight < least:
            best, least = orders, weight
    return [list(column) for column in best]


def crossings(orders: Sequence[Sequence[FeatureId]], edges: Sequence[Edge]) -> float:
    """Return the summed weight of crossings: for each, the product of both edges' weights."""
    total = 0.0
    for left, right in pairwise(orders):
        starts = {key: place for place, key in enumerate(left)}
        ends = {key: place for place, key in enumerate(right)}
        between = [e for e in edges if e.source in starts and e.target in ends]
        start = np.array([starts[e.source] for e in between])
        end = np.array([ends[e.target] for e in between])
        weight = np.array([abs(e.weight) for e in between])
        crossed = (start[:, None] < start) & (end[:, None] > end)
        total += float((crossed * np.outer(weight, weight)).sum())
    return total


def _sweep(
    orders: Sequence[Sequence[FeatureId]], edges: Sequence[Edge], *, backwards: bool
) -> list[list[FeatureId]]:
    pulls: dict[FeatureId, list[tuple[FeatureId, float]]] = {}
    for edge in edges:
        mover, anchor = (edge.source, edge.target) if backwards else (edge.target, edge.source)
        pulls.setdefault(mover, []).append((anchor, abs(edge.weight)))
    ordered = list(reversed(orders)) if backwards else list(orders)
    done = [list(ordered[0])]
    for column in ordered[1:]:
        fixed = _heights(done[-1])
        own = _heights(column)
        centre = {
            key: _mean([(fixed[k], w) for k, w in pulls.get(key, ()) if k in fixed], own[key])
            for key in column
        }
        done.append(sorted(column, key=lambda key, at=centre: at[key]))  # type: ignore[misc]
    return list(reversed(done)) if backwards else done


def _heights(column: Sequence[FeatureId]) -> dict[FeatureId, float]:
    """Places counted from the middle, where columns of different lengths are aligned."""
    return {key: place - (len(column) - 1) / 2 for place, key in enumerate(column)}


def _mean(weighted: list[tuple[float, float]], otherwise: float) -> float:
    total = sum(weight for _, weight in weighted)
    return sum(place * weight for place, weight in weighted) / total if total > 0 else otherwise

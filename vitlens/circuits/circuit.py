"""A circuit: the kept nodes and edges of one image, to look at, compare, save and load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitlens.circuits.marks import FeatureId, check_marks
from vitlens.circuits.places import place
from vitlens.errors import FeatureError
from vitlens.repr import ShapeRepr

if TYPE_CHECKING:
    import networkx

    from vitlens.circuits.verification import Verification
    from vitlens.images import ImageLike
    from vitlens.lens import Lens

#: The feature number of a layer's error node.
ERROR = -1
#: The feature number of the target node, which stands one layer after the last.
TARGET = -2


@dataclass(frozen=True)
class Node:
    """A feature, or the error node, of one layer.

    Attributes
    ----------
    layer
        The residual stream after this block.
    feature
        Feature number; `ERROR` (-1) for the layer's error node.
    importance
        N_l[f], in units of the target.
    share
        `importance` divided by the layer's sum of positive node importances.
    kept_importance
        The sum of the node's edges into the nodes kept in the next layer; at the last layer
        `importance` itself.
    """

    layer: int
    feature: int
    importance: float
    share: float
    kept_importance: float

    @property
    def key(self) -> tuple[int, int]:
        """(layer, feature), as edges name their ends."""
        return self.layer, self.feature

    @property
    def name(self) -> str:
        """A short name such as "5/213", or "5/error"."""
        return _name(self.key)


@dataclass(frozen=True)
class Edge:
    """The importance of one node by way of another, in the next layer.

    Attributes
    ----------
    source, target
        (layer, feature) of both ends.
    weight
        E_l[f, f'], in units of the target; into the target node N_l[f].
    share
        `weight` divided by the sum of positive node importances of the source's layer.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    weight: float
    share: float


class Row(NamedTuple):
    """One line of a circuit's table."""

    layer: int
    feature: str  # number, or "error"
    share: float  # of the layer's positive importance
    where: str
    strongest: str  # the strongest outgoing edge's end, or "" when there is none
    strongest_share: float  # that edge's share


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(ShapeRepr):
    """What led to one output for one image: nodes in layers, and the edges between them.

    Attributes
    ----------
    nodes
        By layer, and most important first within a layer.
    edges
        Between kept nodes of adjacent layers, and from the last layer to `target_key`; only
        those with a weight other than 0.
    heatmaps
        [n_nodes, T]: importances of each node by token, in units of the target; a row sums to
        the node's importance.
    grid
        Rows and columns of patches.
    prefix_names
        Names of the tokens before the patches.
    target, target_index, target_value
        What was explained, its class (None when it is no class), its value in the full model.
    prediction
        Name and probability of the predicted class.
    logits
        [n_classes] of the untouched model, or None.
    picture
        [H, W, 3] the image as the model saw it, or None.
    settings
        How the circuit was made; anything that JSON can hold.
    model
        Fingerprint of the model and its SAEs; feature numbers mean nothing in another.
    pinned
        (layer, feature) of nodes that were put in whatever the pruning says.
    groups
        Supernodes: for each name, the (layer, feature) of its nodes; a node is in one at most.
    labels
        What nodes are called, by (layer, feature).

    Raises
    ------
    FeatureError
        When a mark names a node that is not in the circuit, or a node is in two groups.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    heatmaps: Float[Tensor, "n_nodes T"]
    grid: tuple[int, int]
    prefix_names: tuple[str, ...]
    target: str
    target_index: int | None
    target_value: float
    prediction: tuple[str, float]
    logits: Float[Tensor, " C"] | None = None
    picture: UInt8[Tensor, "H W 3"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    pinned: tuple[FeatureId, ...] = ()
    groups: Mapping[str, tuple[FeatureId, ...]] = field(default_factory=dict)
    labels: Mapping[FeatureId, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = {node.key for node in self.nodes}
        marks = check_marks(keys, pinned=self.pinned, groups=self.groups, labels=self.labels)
        for name, value in marks.items():
            object.__setattr__(self, name, value)

    @property
    def n_layers(self) -> int:
        """How many layers have nodes."""
        return max((node.layer for node in self.nodes), default=-1) + 1

    @property
    def n_prefix(self) -> int:
        """How many tokens come before the patches."""
        return len(self.prefix_names)

    @property
    def target_key(self) -> tuple[int, int]:
        """The target node as edges name it."""
        return self.n_layers, TARGET

    def node(self, layer: int, feature: int) -> Node:
        """Return one node; raises `FeatureError` when it is not in the circuit."""
        return self.nodes[self._index(layer, feature)]

    def features(self, layer: int) -> tuple[int, ...]:
        """Return the kept features of a layer, ascending, the error node left out.

        Raises
        ------
        FeatureError
            When the circuit has no such layer.
        """
        if not 0 <= layer < self.n_layers:
            raise FeatureError(
                f"This circuit has layers 0 to {self.n_layers - 1}; there is no {layer}."
            )
        return tuple(
            sorted(n.feature for n in self.nodes if n.layer == layer and n.feature != ERROR)
        )

    def heatmap(self, node: Node) -> Float[Tensor, "rows columns"]:
        """Return a node's importance by patch, [rows, columns], in units of the target."""
        tokens = self.heatmaps[self._index(*node.key)]
        return tokens[self.n_prefix :].reshape(self.grid)

    def where(self, node: Node) -> str:
        """Say where on the image a node acts (see `vitlens.circuits.places.place`)."""
        return place(self.heatmaps[self._index(*node.key)], self.grid, self.prefix_names)

    def table(self) -> list[Row]:
        """Return one row a node: layer, feature, share, where, and its strongest edge."""
        strongest: dict[tuple[int, int], Edge] = {}
        for edge in self.edges:
            known = strongest.get(edge.source)
            if known is None or edge.weight > known.weight:
                strongest[edge.source] = edge
        rows = []
        for node in self.nodes:
            edge_out = strongest.get(node.key)
            rows.append(
                Row(
                    node.layer,
                    _feature_name(node.feature),
                    node.share,
                    self.where(node),
                    _name(edge_out.target) if edge_out else "",
                    edge_out.share if edge_out else 0.0,
                )
            )
        return rows

    def group_of(self, node: Node) -> str:
        """Return the name of the group a node is in, "" when it is in none."""
        return next((name for name, keys in self.groups.items() if node.key in keys), "")

    def compare(self, other: Circuit) -> tuple[float, ...]:
        """Return how far two circuits of the same model keep the same nodes.

        Parameters
        ----------
        other
            A circuit of the same model and SAEs, for instance for another image.

        Returns
        -------
        tuple of float
            By layer, the Jaccard index: nodes in both over nodes in either, 1 for equal sets.

        Raises
        ------
        FeatureError
            When the circuits are of different models, or have different numbers of layers.
        """
        if self.model and other.model and self.model != other.model:
            raise FeatureError(
                "These circuits belong to different models or SAEs "
                f"({self.model} and {other.model}); their features cannot be compared."
            )
        if self.n_layers != other.n_layers:
            raise FeatureError(
                f"These circuits have {self.n_layers} and {other.n_layers} layers; "
                "they cannot be compared."
            )
        overlaps = []
        for layer in range(self.n_layers):
            mine = {n.feature for n in self.nodes if n.layer == layer}
            theirs = {n.feature for n in other.nodes if n.layer == layer}
            overlaps.append(len(mine & theirs) / len(mine | theirs))
        return tuple(overlaps)

    def verify(self, lens: Lens, image: ImageLike, **options: Any) -> Verification:
        """Cut edges one by one, and compare with their importances; see `Lens.verify`."""
        return lens.verify(self, image, **options)

    def to_networkx(self) -> networkx.DiGraph:
        """Return the circuit as a directed graph.

        Returns
        -------
        networkx.DiGraph
            Nodes are (layer, feature), with ``kind`` ("feature", "error" or "target"), ``layer``,
            ``feature``, ``name``, ``importance``, ``share``; all but the target also with
            ``kept_importance``, ``where``, ``pinned``, ``group`` and ``label`` ("" where there
            is none). Edges have ``weight`` and ``share``.
        """
        from vitlens.circuits.network import to_networkx

        return to_networkx(self)

    def save(self, path: str | Path) -> None:
        """Write the circuit to one safetensors file, atomically.

        Raises
        ------
        VitlensError
            When the file cannot be written.
        """
        from vitlens.circuits.store import save_circuit

        save_circuit(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a circuit that `save` wrote. Nothing in the file is ever executed.

        Raises
        ------
        CheckpointError
            When the file is missing, damaged, a pickle, or holds something else.
        """
        from vitlens.circuits.store import load_circuit

        return load_circuit(path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return all(_same(value, getattr(other, name)) for name, value in vars(self).items())

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        name, probability = self.prediction
        head = f"{self.target} = {self.target_value:.3f}   predicted: {name} ({probability:.1%})"
        lines = [("layer", "feature", "share", "where", "strongest edge")]
        for row in self.table():
            edge = f"{row.strongest} ({row.strongest_share:.1%})" if row.strongest else ""
            lines.append((str(row.layer), row.feature, f"{row.share:.1%}", row.where, edge))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        return "\n".join([head, "", *(_line(line, widths) for line in lines)])

    def _index(self, layer: int, feature: int) -> int:
        for index, node in enumerate(self.nodes):
            if node.key == (layer, feature):
                return index
        raise FeatureError(f"Node {_name((layer, feature))} is not in this circuit.")


def _same(mine: object, other: object) -> bool:
    if isinstance(mine, Tensor) and isinstance(other, Tensor):
        return mine.dtype == other.dtype and torch.equal(mine, other)
    if isinstance(mine, Tensor) or isinstance(other, Tensor):
        return False
    return mine == other


def _name(key: tuple[int, int]) -> str:
    layer, feature = key
    return "target" if feature == TARGET else f"{layer}/{_feature_name(feature)}"


def _feature_name(feature: int) -> str:
    return "error" if feature == ERROR else str(feature)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Join the cells of a table's line; numbers to the right, words to the left."""
    layer, feature, share, where, edge = cells
    return (
        f"{layer:>{widths[0]}}  {feature:>{widths[1]}}  {share:>{widths[2]}}  "
        f"{where:<{widths[3]}}  {edge}"
    ).rstrip()

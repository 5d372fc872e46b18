"""A circuit: the kept nodes and edges of one image, to look at, compare, save and load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitlens.circuits.places import place
from vitlens.errors import CheckpointError, FeatureError
from vitlens.files import read_result, write_tensors

if TYPE_CHECKING:
    import networkx

#: The feature number of a layer's error node.
ERROR = -1
#: The feature number of the target node, which stands one layer after the last.
TARGET = -2

_FORMAT = "vitlens.circuit"
_VERSION = 1


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


@dataclass(frozen=True, eq=False)
class Circuit:
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
        """Return the kept features of a layer, ascending, the error node left out."""
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

    def to_networkx(self) -> networkx.DiGraph:
        """Return the circuit as a directed graph.

        Returns
        -------
        networkx.DiGraph
            Nodes are (layer, feature), with ``kind`` ("feature", "error" or "target"), ``layer``,
            ``feature``, ``name``, ``importance``, ``share``; all but the target also with
            ``kept_importance`` and ``where``. Edges have ``weight`` and ``share``.
        """
        import networkx

        graph = networkx.DiGraph(
            target=self.target, prediction=self.prediction[0], probability=self.prediction[1]
        )
        for node in self.nodes:
            kind = "error" if node.feature == ERROR else "feature"
            graph.add_node(
                node.key, kind=kind, name=node.name, where=self.where(node), **asdict(node)
            )
        layer, feature = self.target_key
        graph.add_node(
            self.target_key,
            kind="target",
            name=self.target,
            layer=layer,
            feature=feature,
            importance=self.target_value,
            share=1.0,
        )
        for edge in self.edges:
            graph.add_edge(edge.source, edge.target, weight=edge.weight, share=edge.share)
        return graph

    def save(self, path: str | Path) -> None:
        """Write the circuit to one safetensors file, atomically.

        Raises
        ------
        VitlensError
            When the file cannot be written.
        """
        tensors = {"heatmaps": self.heatmaps, "logits": self.logits, "picture": self.picture}
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "nodes": [list(asdict(node).values()) for node in self.nodes],
            "edges": [[*e.source, *e.target, e.weight, e.share] for e in self.edges],
            "grid": list(self.grid),
            "prefix_names": list(self.prefix_names),
            "target": [self.target, self.target_index, self.target_value],
            "prediction": list(self.prediction),
            "settings": dict(self.settings),
            "model": self.model,
        }
        write_tensors(path, {k: v for k, v in tensors.items() if v is not None}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a circuit that `save` wrote. Nothing in the file is ever executed.

        Raises
        ------
        CheckpointError
            When the file is missing, damaged, a pickle, or holds something else.
        """
        tensors, metadata = read_result(path, what="a circuit", format=_FORMAT, version=_VERSION)
        try:
            circuit = _from_file(tensors, metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds a damaged circuit: {error!r}.") from error
        n_tokens = circuit.n_prefix + circuit.grid[0] * circuit.grid[1]
        if circuit.heatmaps.shape != (len(circuit.nodes), n_tokens):
            raise CheckpointError(
                f"{path} holds a damaged circuit: heatmaps of shape "
                f"{tuple(circuit.heatmaps.shape)} for {len(circuit.nodes)} nodes and {n_tokens} "
                "tokens."
            )
        return circuit

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


def _from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Circuit:
    target, target_index, target_value = metadata["target"]
    predicted, probability = metadata["prediction"]
    rows, columns = metadata["grid"]
    return Circuit(
        nodes=tuple(Node(*values) for values in metadata["nodes"]),
        edges=tuple(
            Edge((layer, feature), (next_layer, next_feature), weight, share)
            for layer, feature, next_layer, next_feature, weight, share in metadata["edges"]
        ),
        heatmaps=tensors["heatmaps"],
        grid=(rows, columns),
        prefix_names=tuple(metadata["prefix_names"]),
        target=target,
        target_index=target_index,
        target_value=target_value,
        prediction=(predicted, probability),
        logits=tensors.get("logits"),
        picture=tensors.get("picture"),
        settings=metadata["settings"],
        model=metadata["model"],
    )


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

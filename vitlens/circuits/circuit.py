"""A circuit: the kept nodes and edges of one image, to look at, compare, save and load."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitlens.circuits.carried import Carried
from vitlens.errors import CheckpointError, FeatureError
from vitlens.io import read_result, write_tensors
from vitlens.repr import ShapeRepr
from vitlens.saes.base import FeatureId
from vitlens.tables import text_table

if TYPE_CHECKING:
    import networkx

#: The feature number of a layer's error node.
ERROR = -1
#: The feature number of the target node, which stands one layer after the last.
TARGET = -2

_NAMED_SETTINGS = ("select", "edges", "gradient", "error_gradients", "engine", "baselines")

_FORMAT = "vitlens.circuit"
_VERSION = 3

_THIRDS = (
    ("upper left", "top", "upper right"),
    ("left", "centre", "right"),
    ("lower left", "bottom", "lower right"),
)
# A node counts as spread out when its distance from its centre is this much of what the same
# importance on every patch would give.
_SPREAD = 0.85


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
        N_l[f], in units of the target (docs/method.md, "Node importance").
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
    def key(self) -> FeatureId:
        """(layer, feature), as edges name their ends."""
        return self.layer, self.feature

    @property
    def name(self) -> str:
        """A short name such as "5/213", or "5/error"."""
        return node_name(self.key)


@dataclass(frozen=True)
class Edge:
    """The importance of one node through another node, in the next layer that has an SAE.

    Attributes
    ----------
    source, target
        (layer, feature) of both ends.
    weight
        In units of the target: E_l[f, f'], into the target node N_l[f] (docs/method.md, "Edge
        importance"); or how far the target falls when the edge is cut ("Patched edges").
    share
        `weight` divided by the sum of positive node importances of the source's layer; of a patched
        edge, by the sum of the positive weights of all the circuit's edges from this layer.
    """

    source: FeatureId
    target: FeatureId
    weight: float
    share: float


class Row(NamedTuple):
    """One line of a circuit's table."""

    layer: int
    feature: str  # number, or "error"
    share: float  # of the layer's positive importance
    location: str
    strongest: str  # the strongest outgoing edge's end, or "" when there is none
    strongest_share: float  # that edge's share


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Explanation(ShapeRepr):
    """What was explained: the image, the target, the model and the settings.

    Attributes
    ----------
    layers
        Block numbers of the layers that have an SAE, ascending.
    grid
        Rows and columns of patches.
    prefix_names
        Names of the tokens before the patches.
    target, target_index, target_value
        Name of the target, its class (None for a function), and its value in the full model.
    prediction
        Name and probability of the predicted class.
    logits
        [n_classes] of the untouched model, or None.
    image
        [H, W, 3], the image as the model saw it, or None.
    settings
        Settings of the computation; anything that JSON can hold.
    model
        Fingerprint of the model and its SAEs; feature numbers mean nothing in another.
    """

    layers: tuple[int, ...]
    grid: tuple[int, int]
    prefix_names: tuple[str, ...]
    target: str
    target_index: int | None
    target_value: float
    prediction: tuple[str, float]
    logits: Float[Tensor, " C"] | None = None
    image: UInt8[Tensor, "H W 3"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def n_layers(self) -> int:
        """Number of layers with an SAE."""
        return len(self.layers)

    @property
    def n_prefix(self) -> int:
        """Number of tokens before the patches."""
        return len(self.prefix_names)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, including prefix tokens."""
        return self.n_prefix + self.grid[0] * self.grid[1]

    @property
    def target_key(self) -> FeatureId:
        """The key of the target node, as used in edges."""
        return (self.layers[-1] if self.layers else -1) + 1, TARGET

    def explanation(self) -> dict[str, Any]:
        """Return the fields of an `Explanation`, without those of a subclass."""
        return {f.name: getattr(self, f.name) for f in fields(Explanation)}

    def _stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return these fields as named tensors and JSON metadata."""
        tensors = {"logits": self.logits, "image": self.image}
        metadata = {
            name: value for name, value in self.explanation().items() if name not in tensors
        }
        metadata["settings"] = dict(self.settings)
        return {name: value for name, value in tensors.items() if value is not None}, metadata

    @staticmethod
    def _restored(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that `_stored` wrote."""
        rows, columns = metadata["grid"]
        predicted, probability = metadata["prediction"]
        return {
            "layers": tuple(metadata["layers"]),
            "grid": (rows, columns),
            "prefix_names": tuple(metadata["prefix_names"]),
            "target": metadata["target"],
            "target_index": metadata["target_index"],
            "target_value": metadata["target_value"],
            "prediction": (predicted, probability),
            "logits": tensors.get("logits"),
            "image": tensors.get("image"),
            "settings": metadata["settings"],
            "model": metadata["model"],
        }


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Supernode(ShapeRepr):
    """Nodes of one layer that are shown as one: every number is the sum over its members.

    Source: docs/method.md, "Supernodes".

    Attributes
    ----------
    name
        The group's name; the node's own for a node in no group.
    layer
        The residual stream after this block.
    members
        (layer, feature) of its nodes, those of the largest importance of either sign first.
    importance
        In units of the target.
    share
        `importance` divided by the layer's sum of positive node importances.
    heatmap
        [T], importance per token, in units of the target.
    edges
        To supernodes of the next layer, or to the target. Their ends are the supernodes' `key`.
    """

    name: str
    layer: int
    members: tuple[FeatureId, ...]
    importance: float
    share: float
    heatmap: Float[Tensor, " T"]
    edges: tuple[Edge, ...]

    @property
    def key(self) -> FeatureId:
        """(layer, feature) of the member with the largest importance, as edges name their ends."""
        return self.members[0]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Circuit(Explanation):
    """The circuit behind one output for one image: nodes in layers, and the edges between them.

    Attributes
    ----------
    nodes
        By layer, and most important first within a layer.
    edges
        Between kept nodes of adjacent layers, and from the last layer to `target_key`; only
        those with a weight other than 0.
    heatmaps
        [n_nodes, T]: importances of each node per token, in units of the target; a row sums to
        the node's importance.
    pinned
        (layer, feature) of nodes that are kept regardless of the pruning rules.
    groups
        Supernodes: for each name, the (layer, feature) of its nodes; a node is in one at most.
    labels
        Names of nodes, by (layer, feature).
    carried
        What the circuit's features carry, as `Lens.circuit` measures it; None for a circuit that
        was pruned without the model.

    Raises
    ------
    FeatureError
        When an annotation names a node that is not in the circuit, a node is in two groups, or
        a node is of a layer without SAE.

    See Also
    --------
    Explanation : The other attributes.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    heatmaps: Float[Tensor, "n_nodes T"]
    pinned: tuple[FeatureId, ...] = ()
    groups: Mapping[str, tuple[FeatureId, ...]] = field(default_factory=dict)
    labels: Mapping[FeatureId, str] = field(default_factory=dict)
    carried: Carried | None = None

    def __post_init__(self) -> None:
        for node in self.nodes:
            if node.layer not in self.layers:
                raise FeatureError(f"Node {node.name} is not in {_listed_layers(self.layers)}.")
        keys = {node.key for node in self.nodes}
        annotations = check_annotations(
            keys, pinned=self.pinned, groups=self.groups, labels=self.labels
        )
        for name, value in annotations.items():
            object.__setattr__(self, name, value)

    @property
    def alone(self) -> float:
        """The answer that the circuit's features give alone, 0 to 1 (`Carried.alone`).

        Raises
        ------
        FeatureError
            When it was not measured.
        """
        return self._measured().alone

    @property
    def without(self) -> float:
        """The answer without the circuit's features, 0 to 1 (`Carried.without`).

        Raises
        ------
        FeatureError
            When it was not measured.
        """
        return self._measured().without

    def _measured(self) -> Carried:
        if self.carried is None:
            raise FeatureError(
                "What this circuit carries was not measured: it was pruned without the model. Use "
                "`lens.carried(circuit, image)`."
            )
        return self.carried

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
        if layer not in self.layers:
            raise FeatureError(
                f"This circuit has {_listed_layers(self.layers)}; there is no layer {layer}."
            )
        return tuple(
            sorted(n.feature for n in self.nodes if n.layer == layer and n.feature != ERROR)
        )

    def heatmap(self, node: Node) -> Float[Tensor, "rows columns"]:
        """Return a node's importance per patch, [rows, columns], in units of the target."""
        tokens = self.heatmaps[self._index(*node.key)]
        return tokens[self.n_prefix :].reshape(self.grid)

    def location(self, node: Node) -> str:
        """Describe where on the image a node acts (see `vitlens.circuits.circuit.location`)."""
        return location(self.heatmaps[self._index(*node.key)], self.grid, self.prefix_names)

    def table(self) -> list[Row]:
        """Return one row per node: layer, feature, share, location, and its strongest edge."""
        strongest: dict[FeatureId, Edge] = {}
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
                    self.location(node),
                    node_name(edge_out.target) if edge_out else "",
                    edge_out.share if edge_out else 0.0,
                )
            )
        return rows

    def group_of(self, node: Node) -> str:
        """Return the name of the group that a node is in, "" when it is in none."""
        return next((name for name, keys in self.groups.items() if node.key in keys), "")

    def supernodes(self) -> tuple[Supernode, ...]:
        """Return the circuit with each group as one node (docs/method.md, "Supernodes").

        A node in no group, such as an error node, is a supernode of its own; the nodes of a group
        that are in different layers are a supernode per layer. `Lens.supernodes` makes groups.

        Returns
        -------
        tuple of Supernode
            By layer, and most important first within a layer.
        """
        name_of = {key: name for name, keys in self.groups.items() for key in keys}
        # By layer, and by the name of a group or the number of a feature in none.
        rows: dict[tuple[int, str | int], list[int]] = {}
        for row, node in enumerate(self.nodes):
            rows.setdefault((node.layer, name_of.get(node.key, node.feature)), []).append(row)
        order = [
            sorted(mine, key=lambda row: (-abs(self.nodes[row].importance), self.nodes[row].key))
            for mine in rows.values()
        ]
        key_of = {self.nodes[row].key: self.nodes[mine[0]].key for mine in order for row in mine}
        sums: dict[tuple[FeatureId, FeatureId], tuple[float, float]] = {}
        for edge in self.edges:
            ends = key_of[edge.source], key_of.get(edge.target, edge.target)
            weight, share = sums.get(ends, (0.0, 0.0))
            sums[ends] = weight + edge.weight, share + edge.share
        edges: dict[FeatureId, list[Edge]] = {}
        for (source, end), (weight, share) in sums.items():
            if weight != 0:
                edges.setdefault(source, []).append(Edge(source, end, weight, share))
        made = []
        for mine in order:
            members = [self.nodes[row] for row in mine]
            first = members[0]
            made.append(
                Supernode(
                    name=name_of.get(first.key, first.name),
                    layer=first.layer,
                    members=tuple(node.key for node in members),
                    importance=sum(node.importance for node in members),
                    share=sum(node.share for node in members),
                    heatmap=self.heatmaps[mine].sum(0),
                    edges=tuple(edges.get(first.key, ())),
                )
            )
        return tuple(sorted(made, key=lambda node: (node.layer, -node.importance, node.key)))

    def rename_groups(self, names: Mapping[str, str]) -> Circuit:
        """Return the circuit with other names for some groups; their members stay.

        Parameters
        ----------
        names
            From the present name of a group to its new one.

        Raises
        ------
        FeatureError
            When there is no such group, a name is empty, or two groups would have one name.
        """
        unknown = [name for name in names if name not in self.groups]
        if unknown:
            listed = ", ".join(repr(name) for name in self.groups) or "none"
            raise FeatureError(f"There is no group {unknown[0]!r}; the circuit has {listed}.")
        renamed = [names.get(name, name) for name in self.groups]
        twice = [name for name in renamed if renamed.count(name) > 1]
        if twice:
            raise FeatureError(f"Two groups would be called {twice[0]!r}; give each its own name.")
        return replace(self, groups=dict(zip(renamed, self.groups.values(), strict=True)))

    def compare(self, other: Circuit) -> tuple[float, ...]:
        """Return how far two circuits of the same model keep the same nodes.

        Parameters
        ----------
        other
            A circuit of the same model and SAEs, for instance for another image.

        Returns
        -------
        tuple of float
            Per layer, the Jaccard index: nodes in both over nodes in either, 1 for equal sets.

        Raises
        ------
        FeatureError
            When the circuits are of different models, or have different layers.
        """
        if self.model and other.model and self.model != other.model:
            raise FeatureError(
                "These circuits belong to different models or SAEs "
                f"({self.model} and {other.model}); their features cannot be compared."
            )
        if self.layers != other.layers:
            raise FeatureError(
                f"One circuit has {_listed_layers(self.layers)}, the other "
                f"{_listed_layers(other.layers)}; they cannot be compared."
            )
        overlaps = []
        for layer in self.layers:
            mine = {n.feature for n in self.nodes if n.layer == layer}
            theirs = {n.feature for n in other.nodes if n.layer == layer}
            either = mine | theirs
            overlaps.append(len(mine & theirs) / len(either) if either else 1.0)
        return tuple(overlaps)

    def to_networkx(self) -> networkx.DiGraph:
        """Return the circuit as a directed graph.

        Returns
        -------
        networkx.DiGraph
            Nodes are (layer, feature), with ``kind`` ("feature", "error" or "target"), ``layer``,
            ``feature``, ``name``, ``importance``, ``share``; all but the target also with
            ``kept_importance``, ``location``, ``pinned``, ``group`` and ``label`` ("" where there
            is none). Edges have ``weight`` and ``share``.
        """
        import networkx

        name, probability = self.prediction
        graph = networkx.DiGraph(target=self.target, prediction=name, probability=probability)
        for node in self.nodes:
            graph.add_node(
                node.key,
                kind="error" if node.feature == ERROR else "feature",
                name=node.name,
                location=self.location(node),
                pinned=node.key in self.pinned,
                group=self.group_of(node),
                label=self.labels.get(node.key, ""),
                **asdict(node),
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
        tensors, explanation = self._stored()
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            **explanation,
            "nodes": [list(asdict(node).values()) for node in self.nodes],
            "edges": [[*e.source, *e.target, e.weight, e.share] for e in self.edges],
            "pinned": [list(key) for key in self.pinned],
            "groups": {name: [list(key) for key in keys] for name, keys in self.groups.items()},
            "labels": [[*key, label] for key, label in self.labels.items()],
            "carried": None if self.carried is None else self.carried.to_dict(),
        }
        write_tensors(path, {**tensors, "heatmaps": self.heatmaps}, metadata)

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
            circuit = cls(
                **cls._restored(tensors, metadata),
                nodes=tuple(Node(*values) for values in metadata["nodes"]),
                edges=tuple(
                    Edge((layer, feature), (next_layer, next_feature), weight, share)
                    for layer, feature, next_layer, next_feature, weight, share in metadata["edges"]
                ),
                heatmaps=tensors["heatmaps"],
                pinned=tuple((layer, feature) for layer, feature in metadata["pinned"]),
                groups={
                    name: tuple((layer, feature) for layer, feature in keys)
                    for name, keys in metadata["groups"].items()
                },
                labels={(layer, feature): label for layer, feature, label in metadata["labels"]},
                carried=metadata["carried"] and Carried.from_dict(metadata["carried"]),
            )
        except (KeyError, TypeError, ValueError, FeatureError) as error:
            raise CheckpointError(f"{path} holds a damaged circuit: {error!r}.") from error
        if circuit.heatmaps.shape != (len(circuit.nodes), circuit.n_tokens):
            raise CheckpointError(
                f"{path} holds a damaged circuit: heatmaps of shape "
                f"{tuple(circuit.heatmaps.shape)} for {len(circuit.nodes)} nodes and "
                f"{circuit.n_tokens} tokens."
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
        rows = []
        for row in self.table():
            edge = f"{row.strongest} ({row.strongest_share:.1%})" if row.strongest else ""
            rows.append((str(row.layer), row.feature, f"{row.share:.1%}", row.location, edge))
        made = ", ".join(
            f"{name.replace('_', ' ')}: {self.settings[name]}"
            for name in _NAMED_SETTINGS
            if name in self.settings
        )
        header = ("layer", "feature", "share", "location", "strongest edge")
        table = text_table(header, rows, align="rrrll")
        about = [head, made, "" if self.carried is None else str(self.carried)]
        return "\n".join([*filter(None, about), "", table])

    def _index(self, layer: int, feature: int) -> int:
        for index, node in enumerate(self.nodes):
            if node.key == (layer, feature):
                return index
        raise FeatureError(f"Node {node_name((layer, feature))} is not in this circuit.")


def node_name(key: FeatureId) -> str:
    """Return a short name of a node: "5/213", "5/error" or "target"."""
    layer, feature = key
    return "target" if feature == TARGET else f"{layer}/{_feature_name(feature)}"


def check_annotations(
    nodes: Collection[FeatureId],
    *,
    pinned: Iterable[FeatureId],
    groups: Mapping[str, Iterable[FeatureId]],
    labels: Mapping[FeatureId, str],
) -> dict[str, Any]:
    """Return what people write on a circuit in its own types, by name.

    Parameters
    ----------
    nodes
        The nodes that there are.
    pinned, groups, labels
        See `Circuit`.

    Raises
    ------
    FeatureError
        When an annotation names none of these nodes, a node is in two groups, or a name is empty.
    """
    annotations: dict[str, Any] = {
        "pinned": tuple(dict.fromkeys(_key(key) for key in pinned)),
        "groups": {name: tuple(_key(key) for key in keys) for name, keys in groups.items()},
        "labels": {_key(key): str(label) for key, label in labels.items()},
    }
    grouped = [key for keys in annotations["groups"].values() for key in keys]
    named = (("pinned", annotations["pinned"]), ("grouped", grouped), ("labelled", labels))
    for what, keys in named:
        for layer, feature in keys:
            if (layer, feature) not in nodes:
                raise FeatureError(
                    f"Node ({layer}, {feature}) is not in this circuit and cannot be {what}."
                )
    if len(grouped) > len(set(grouped)):
        twice = next(key for key in grouped if grouped.count(key) > 1)
        raise FeatureError(f"Node {twice} appears twice in the groups; it can be in one only.")
    if not all(annotations["groups"]):
        raise FeatureError("A group needs a name.")
    return annotations


def annotations_within(
    nodes: Collection[FeatureId],
    *,
    pinned: Iterable[FeatureId],
    groups: Mapping[str, Iterable[FeatureId]],
    labels: Mapping[FeatureId, str],
) -> dict[str, Any]:
    """Return the annotations of these nodes; groups without a node are left out."""
    within = {name: tuple(key for key in keys if key in nodes) for name, keys in groups.items()}
    return {
        "pinned": tuple(key for key in pinned if key in nodes),
        "groups": {name: keys for name, keys in within.items() if keys},
        "labels": {key: label for key, label in labels.items() if key in nodes},
    }


def location(
    importances: Float[Tensor, " T"], grid: tuple[int, int], prefix_names: tuple[str, ...]
) -> str:
    """Describe in a few words where on the image a node is important.

    Only importances of the sum's sign count, as shares of their total. A prefix token with at
    least half of it gives its name. Otherwise the location is the third of the image, across and
    down, that holds the centroid of the patches; "spread over the image" when the root mean
    squared distance from the centroid is over .85 of that of an even spread.

    Parameters
    ----------
    importances
        Per-token importances, prefix tokens first, then the patches row by row.
    grid
        Rows and columns of patches.
    prefix_names
        Names of the prefix tokens, such as "CLS" or "register 2".

    Returns
    -------
    str
        For instance "CLS token", "upper left", "centre", "spread over the image"; "nowhere" for
        a node without importance.
    """
    values = importances.detach().cpu().double()
    mass = (values if values.sum() >= 0 else -values).clamp(min=0)
    if not mass.sum() > 0:
        return "nowhere"
    mass = mass / mass.sum()
    strongest = int(mass.argmax())
    if strongest < len(prefix_names) and mass[strongest] >= 0.5:
        name = prefix_names[strongest]
        return name if " " in name else f"{name} token"
    patches = mass[len(prefix_names) :].reshape(grid)
    if not patches.sum() > 0:
        return "prefix tokens"
    row, column, radius = _centroid(patches)
    even = _centroid(torch.ones_like(patches))[2]
    if even > 0 and radius > _SPREAD * even:
        return "spread over the image"
    return _THIRDS[_third(row, grid[0])][_third(column, grid[1])]


def _centroid(patches: Tensor) -> tuple[float, float, float]:
    """Return the centroid's row and column, and the root mean squared distance from it."""
    shares = patches / patches.sum()
    rows = torch.arange(patches.shape[0], dtype=shares.dtype)[:, None]
    columns = torch.arange(patches.shape[1], dtype=shares.dtype)[None, :]
    row, column = float((shares * rows).sum()), float((shares * columns).sum())
    square = float((shares * ((rows - row) ** 2 + (columns - column) ** 2)).sum())
    return row, column, math.sqrt(square)


def _third(position: float, length: int) -> int:
    """Return 0, 1 or 2: the third of `length` patches that the centre of one lies in."""
    return min(int(3 * (position + 0.5) / length), 2)


def _key(key: Iterable[int]) -> FeatureId:
    layer, feature = key
    return int(layer), int(feature)


def _feature_name(feature: int) -> str:
    return "error" if feature == ERROR else str(feature)


def _listed_layers(layers: tuple[int, ...]) -> str:
    """Return "layers 0 to 2" or "layers 2, 5, 9"."""
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer{'s' * (len(layers) != 1)} {', '.join(map(str, layers)) or 'none'}"


def _same(mine: object, other: object) -> bool:
    if isinstance(mine, Tensor) and isinstance(other, Tensor):
        return mine.dtype == other.dtype and torch.equal(mine, other)
    if isinstance(mine, Tensor) or isinstance(other, Tensor):
        return False
    return mine == other

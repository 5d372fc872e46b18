"""The attribution graph: every node and edge of one image, before pruning.

An `AttributionGraph` holds all that pruning needs, so that `AttributionGraph.prune` gives circuits
without the model. `prune_scores` prunes importances as well, and asks only for the edges that the
walk needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.circuits.circuit import (
    ERROR,
    Circuit,
    Edge,
    Explanation,
    Node,
    annotations_within,
)
from vitlens.circuits.prune import (
    Edges,
    Rules,
    edge_columns,
    filter_shares,
    keeps_edge,
    positive_sums,
    reachable,
    share_of,
    walk,
)
from vitlens.errors import CheckpointError, FeatureError
from vitlens.io import read_result, write_tensors
from vitlens.method.replacement import Baselines, Trace
from vitlens.saes.base import FeatureId

_FORMAT = "vitlens.attribution_graph"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Scores:
    """What pruning looks at: importances of nodes, and the edges between them.

    Attributes
    ----------
    nodes
        By position, importances, [n_l].
    tokens
        By position, the same before the sum over tokens, [T, n_l].
    edges
        As `walk` takes them, for these nodes.
    features
        By position, the feature number of every node, ascending, `ERROR` for an error node, which
        comes last.
    positive
        By position, the sum of positive importances that shares refer to.
    to_target
        Edges from the last position to the target, [n_L], where edges are patched: not the
        importances of the nodes. Shares of edges then refer to the sum of the positive edges
        that leave the circuit's nodes of the same layer.
    """

    nodes: Sequence[Float[Tensor, " n_l"]]
    tokens: Sequence[Float[Tensor, "T n_l"]]
    edges: Edges
    features: Sequence[Int[Tensor, " n_l"]]
    positive: Sequence[float]
    to_target: Float[Tensor, " n_L"] | None = None

    @classmethod
    def of_all(
        cls,
        nodes: Sequence[Float[Tensor, " F_l+1"]],
        tokens: Sequence[Float[Tensor, "T F_l+1"]],
        edges: Edges,
    ) -> Scores:
        """Return the scores of all features and error nodes, as `Importances` holds them."""
        features = [torch.tensor([*range(len(scores) - 1), ERROR]) for scores in nodes]
        return cls(nodes, tokens, edges, features, positive_sums(nodes))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttributionGraph(Explanation):
    """Nodes and edges of one image, unpruned.

    The graph of `Lens.attribute` with ``at_most=None`` holds every node that differs from its
    baseline or is active somewhere on the image; all others have importance 0 and no edges. With
    a number it holds the nodes that `walk` keeps for any count per layer up to it.

    Attributes
    ----------
    features
        By position, feature numbers, ascending; last `ERROR`, where the error node is in.
    nodes
        By position, importances, [n_l].
    tokens
        By position, the importances before the sum over tokens, [T, n_l].
    activations
        By position, activations, [T, n_l], an error node's norm; or None.
    edges
        By position but the last, [n_l, n_{l+1}]; the column of an error node is 0.
    positive
        By position, the sum of the positive importances of all nodes, which shares refer to.
    n_features
        By position, how many features the SAE has; or None.
    at_most
        The largest count of nodes per layer that `prune` takes; None for any.

    See Also
    --------
    vitlens.circuits.circuit.Explanation : The other attributes.
    """

    features: tuple[tuple[int, ...], ...]
    nodes: tuple[Float[Tensor, " n_l"], ...]
    tokens: tuple[Float[Tensor, "T n_l"], ...]
    activations: tuple[Float[Tensor, "T n_l"], ...] | None
    edges: tuple[Float[Tensor, "n_l n_l+1"], ...]
    positive: tuple[float, ...]
    n_features: tuple[int, ...] | None
    at_most: int | None

    @property
    def keys(self) -> tuple[FeatureId, ...]:
        """(layer, feature) of every node, by layer."""
        by_layer = zip(self.layers, self.features, strict=True)
        return tuple((layer, feature) for layer, features in by_layer for feature in features)

    def prune(
        self,
        nodes_per_layer: int | None = None,
        *,
        share: float | None = None,
        threshold: float | None = None,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        pinned: Collection[FeatureId] = (),
        removed: Collection[FeatureId] = (),
        groups: Mapping[str, Sequence[FeatureId]] | None = None,
        labels: Mapping[FeatureId, str] | None = None,
    ) -> Circuit:
        """Prune; see `vitlens.circuits.prune` for the rules.

        Parameters
        ----------
        nodes_per_layer, share, threshold
            Number of nodes to keep in every layer: a count, a share of the layer's nodes, or the
            smallest set that reaches this part of the positive importance. At most one of them;
            8 nodes per layer by default. A graph with `at_most` takes only a count, up to it.
        node_share, edge_share
            Least shares of nodes and edges, as in `Lens.circuit`.
        pinned
            Nodes to keep regardless of the rules, with their edges to other kept nodes.
        removed
            Nodes to leave out regardless of the rules; they are not replaced by others.
        groups, labels
            Annotations; those of nodes that are not kept are left out.

        Returns
        -------
        Circuit
            Without pinned and removed nodes, the circuit that `Lens.circuit` gives for the same
            image, target and rules, to rounding.

        Raises
        ------
        FeatureError
            When a rule is out of range, or a pinned or removed node is not in the graph.
        """
        rules = Rules(nodes_per_layer, share, threshold, node_share, edge_share)
        for key in (*pinned, *removed):
            self._check_known(*key)
        if self.at_most is None:
            scores = self._all_scores()
        elif rules.nodes_per_layer is None:
            raise FeatureError(
                f"This graph holds what up to {self.at_most} nodes per layer reach; pruning by "
                "share or threshold needs the graph of all nodes: leave out `at_most`."
            )
        elif rules.nodes_per_layer > self.at_most:
            raise FeatureError(
                f"This graph supports 1 to {self.at_most} nodes per layer, not "
                f"{rules.nodes_per_layer}."
            )
        else:
            features = [torch.tensor(numbers) for numbers in self.features]
            scores = Scores(self.nodes, self.tokens, self.edges, features, self.positive)
        return prune_scores(
            self,
            scores,
            rules,
            pinned=pinned,
            removed=removed,
            groups=groups or {},
            labels=labels or {},
        )

    @classmethod
    def from_circuit(cls, circuit: Circuit) -> AttributionGraph:
        """Return the nodes and edges of a circuit as a graph, to be pruned further.

        Raises
        ------
        FeatureError
            When the circuit has a layer without nodes.
        """
        features: list[tuple[int, ...]] = []
        for layer in circuit.layers:
            has_error = any(node.key == (layer, ERROR) for node in circuit.nodes)
            features.append((*circuit.features(layer), *([ERROR] if has_error else [])))
        if not features or not all(features):
            raise FeatureError("A circuit to prune needs nodes in every layer.")
        row = {node.key: number for number, node in enumerate(circuit.nodes)}
        by_layer = list(zip(circuit.layers, features, strict=True))
        rows = [[row[layer, f] for f in numbers] for layer, numbers in by_layer]
        weight = {(edge.source, edge.target): edge.weight for edge in circuit.edges}
        edges = [
            [[weight.get(((layer, f), (after, g)), 0.0) for g in ends] for f in starts]
            for (layer, starts), (after, ends) in pairwise(by_layer)
        ]
        return cls(
            **circuit.explanation(),
            features=tuple(features),
            nodes=tuple(
                torch.tensor([circuit.nodes[i].importance for i in layer], dtype=torch.float64)
                for layer in rows
            ),
            tokens=tuple(circuit.heatmaps[layer].T for layer in rows),
            activations=None,
            edges=tuple(torch.tensor(block, dtype=torch.float64) for block in edges),
            positive=tuple(_positive([circuit.nodes[i] for i in layer]) for layer in rows),
            n_features=None,
            at_most=max(len(layer) for layer in rows),
        )

    def save(self, path: str | Path) -> None:
        """Write the graph to one safetensors file, atomically.

        Raises
        ------
        VitlensError
            When the file cannot be written.
        """
        tensors, explanation = self._stored()
        parts = {
            "features": [torch.tensor(numbers) for numbers in self.features],
            "nodes": self.nodes,
            "tokens": self.tokens,
            "activations": self.activations or (),
            "edges": self.edges,
        }
        for name, values in parts.items():
            tensors |= {f"{position}.{name}": value for position, value in enumerate(values)}
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            **explanation,
            "positive": list(self.positive),
            "n_features": None if self.n_features is None else list(self.n_features),
            "at_most": self.at_most,
            "activations": self.activations is not None,
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> AttributionGraph:
        """Read a graph that `save` wrote. Nothing in the file is ever executed.

        Raises
        ------
        CheckpointError
            When the file is missing, damaged, a pickle, or holds something else.
        """
        tensors, metadata = read_result(
            path, what="an attribution graph", format=_FORMAT, version=_VERSION
        )
        try:
            positions = range(len(metadata["layers"]))
            known = metadata["n_features"]
            graph = cls(
                **cls._restored(tensors, metadata),
                features=tuple(tuple(tensors[f"{p}.features"].tolist()) for p in positions),
                nodes=tuple(tensors[f"{p}.nodes"] for p in positions),
                tokens=tuple(tensors[f"{p}.tokens"] for p in positions),
                activations=(
                    tuple(tensors[f"{p}.activations"] for p in positions)
                    if metadata["activations"]
                    else None
                ),
                edges=tuple(tensors[f"{p}.edges"] for p in positions[:-1]),
                positive=tuple(metadata["positive"]),
                n_features=None if known is None else tuple(known),
                at_most=metadata["at_most"],
            )
            graph._check_shapes()
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} holds a damaged attribution graph: {error!r}."
            ) from error
        return graph

    def _check_shapes(self) -> None:
        """Raise `ValueError` unless the tensors fit each other."""
        counts = [len(numbers) for numbers in self.features]
        expected = {
            "nodes": [(n,) for n in counts],
            "tokens": [(self.n_tokens, n) for n in counts],
            "activations": [(self.n_tokens, n) for n in counts],
            "edges": list(pairwise(counts)),
        }
        for name, shapes in expected.items():
            found = getattr(self, name)
            if found is not None and [tuple(value.shape) for value in found] != shapes:
                raise ValueError(f"{name} with shapes that do not match the features")
        if len(self.positive) != len(counts) or not all(counts):
            raise ValueError("a layer without nodes")

    def _check_known(self, layer: int, feature: int) -> None:
        if layer in self.layers and feature in self.features[self.layers.index(layer)]:
            return
        reach = "" if self.at_most is None else f" for up to {self.at_most} nodes per layer"
        raise FeatureError(f"Node ({layer}, {feature}) is not in this graph{reach}.")

    def _all_scores(self) -> Scores:
        """Return the scores of all nodes; those that are not stored have none."""
        assert self.n_features is not None
        stored = [
            torch.tensor([size if number == ERROR else number for number in numbers])
            for size, numbers in zip(self.n_features, self.features, strict=True)
        ]

        def spread(values: Sequence[Tensor]) -> list[Tensor]:
            full = []
            for value, size, indices in zip(values, self.n_features or (), stored, strict=True):
                full.append(value.new_zeros(*value.shape[:-1], size + 1))
                full[-1][..., indices] = value
            return full

        def columns(position: int, features: Tensor) -> Tensor:
            assert self.n_features is not None
            block, following = self.edges[position], stored[position + 1]
            found = block.new_zeros(self.n_features[position] + 1, len(features))
            column = torch.searchsorted(following, features).clamp(max=len(following) - 1)
            here = following[column] == features
            found[stored[position][:, None], here.nonzero()[:, 0]] = block[:, column[here]]
            return found

        return replace(
            Scores.of_all(spread(self.nodes), spread(self.tokens), columns),
            positive=self.positive,
        )


def attribution_graph(
    explanation: Explanation,
    nodes: Sequence[Float[Tensor, " F_l+1"]],
    tokens: Sequence[Float[Tensor, "T F_l+1"]],
    edges: Edges,
    trace: Trace,
    baselines: Baselines,
    *,
    at_most: int | None = None,
) -> AttributionGraph:
    """Collect the nodes and edges of one image.

    Parameters
    ----------
    explanation
        The target that is explained.
    nodes, tokens
        Importances by position, the error node last, and before the sum over tokens.
    edges
        All edges, or a function that gives columns (see `walk`); only the columns that the graph
        holds are asked for, once per position.
    trace, baselines
        The image's trace, and what features are replaced with.
    at_most
        Only the nodes that `walk` keeps for some count per layer up to this one; None for every
        node that is active or differs from its baseline.

    Raises
    ------
    FeatureError
        When `at_most` is below 1.
    """
    sizes = tuple(len(scores) - 1 for scores in nodes)
    if at_most is None:
        chosen = [
            torch.cat([_moving(z, baseline), torch.tensor([size])])
            for z, baseline, size in zip(trace.features, baselines.features, sizes, strict=True)
        ]
    else:
        chosen = list(reachable(nodes, edges, at_most=at_most))
    blocks = []
    for position, (here, following) in enumerate(pairwise(chosen)):
        features = following[following < sizes[position + 1]]
        block = edge_columns(edges, position, features).detach().cpu()[here]
        has_error = len(following) - len(features)
        blocks.append(torch.nn.functional.pad(block, (0, has_error)))
    activations = [
        torch.cat([features, error.norm(dim=1, keepdim=True)], dim=1)
        for features, error in zip(trace.features, trace.errors, strict=True)
    ]
    return AttributionGraph(
        **explanation.explanation(),
        features=tuple(
            tuple(ERROR if i == size else i for i in indices.tolist())
            for indices, size in zip(chosen, sizes, strict=True)
        ),
        nodes=_at(nodes, chosen),
        tokens=_at(tokens, chosen),
        activations=_at(activations, chosen),
        edges=tuple(blocks),
        positive=positive_sums(nodes),
        n_features=sizes,
        at_most=at_most,
    )


def prune_scores(
    explanation: Explanation,
    scores: Scores,
    rules: Rules,
    *,
    selected: Sequence[Int[Tensor, " kept"]] | None = None,
    connected: bool = False,
    pinned: Collection[FeatureId] = (),
    removed: Collection[FeatureId] = (),
    groups: Mapping[str, Sequence[FeatureId]] | None = None,
    labels: Mapping[FeatureId, str] | None = None,
) -> Circuit:
    """Walk back from the target, leave out small shares, and build the circuit.

    Parameters
    ----------
    explanation
        The target that is explained; the rules are added to its settings.
    scores
        One image's importances and edges.
    rules
        The pruning rules.
    selected
        By position, the nodes that were selected, in ranked order, in place of a walk.
    connected
        Whether features stay connected, see `build_circuit`.
    pinned, removed, groups, labels
        See `AttributionGraph.prune`.

    Raises
    ------
    FeatureError
        When a node is pinned and removed.
    """
    both = [key for key in pinned if key in removed]
    if both:
        raise FeatureError(f"Node {both[0]} is both pinned and removed.")
    ranked = selected or walk(
        scores.nodes,
        scores.edges,
        features=[numbers != ERROR for numbers in scores.features],
        **rules.of_walk,
    )
    shares = [
        [share_of(value, total) for value in values.detach().cpu().double().tolist()]
        for values, total in zip(scores.nodes, scores.positive, strict=True)
    ]
    kept = [
        indices.tolist() for indices in filter_shares(ranked, shares, node_share=rules.node_share)
    ]
    for position, (layer, numbers) in enumerate(
        zip(explanation.layers, scores.features, strict=True)
    ):
        fixed = [_index(numbers, feature) for at, feature in pinned if at == layer]
        gone = [_index(numbers, feature) for at, feature in removed if at == layer]
        kept[position] = [i for i in dict.fromkeys([*kept[position], *fixed]) if i not in gone]
    settings: dict[str, Any] = {**explanation.settings, **rules.settings}
    if removed:
        settings["removed"] = [list(key) for key in removed]
    circuit = build_circuit(
        explanation,
        scores,
        kept,
        edge_share=rules.edge_share,
        pinned=pinned,
        connected=connected,
    )
    keys = {node.key for node in circuit.nodes}
    annotations = annotations_within(keys, pinned=pinned, groups=groups or {}, labels=labels or {})
    return replace(circuit, settings=settings, **annotations)


def build_circuit(
    explanation: Explanation,
    scores: Scores,
    kept: Sequence[Collection[int] | Int[Tensor, " kept"]],
    *,
    edge_share: float = 0.0,
    pinned: Collection[FeatureId] = (),
    connected: bool = False,
) -> Circuit:
    """Build the circuit of the kept nodes.

    Parameters
    ----------
    explanation
        The target that is explained.
    scores
        One image's importances and edges.
    kept
        By position, the kept nodes: their indices in `scores`, as `walk` gives them.
    edge_share
        Leave out edges whose share, of either sign, is smaller (see `prune.keeps_edge`).
    pinned
        Nodes whose edges stay.
    connected
        Keep every feature connected with the image and the target through features: the
        strongest edge into it and out of it stays, however small its share, and a feature
        without any such edge is left out.

    Returns
    -------
    Circuit
        Nodes by layer and, within a layer, by importance; edges likewise, without those of
        weight 0.

    Raises
    ------
    FeatureError
        When a kept index is out of range, or the numbers of layers differ.
    """
    layers = explanation.layers
    if not len(kept) == len(scores.nodes) == len(layers):
        raise FeatureError(
            f"Kept nodes for {len(kept)} layers do not fit importances for "
            f"{len(scores.nodes)} layers."
        )
    ordered = [
        _by_importance(indices, values, layer)
        for layer, indices, values in zip(layers, kept, scores.nodes, strict=True)
    ]
    if connected:
        ordered = _connected(explanation, scores, ordered)
    nodes: list[Node] = []
    edges: list[Edge] = []
    for position, (layer, indices) in enumerate(zip(layers, ordered, strict=True)):
        values = scores.nodes[position].detach().cpu().double()
        positive = scores.positive[position]
        ends, weights = _outgoing(explanation, scores, ordered, position)
        is_feature = scores.features[position][indices] != ERROR
        stays = _strongest(weights, is_feature) if connected else torch.zeros_like(weights).bool()
        positive_edges = positive
        if scores.to_target is not None:
            positive_edges = float(weights.clamp(min=0).sum())
        rows = zip(indices, weights.tolist(), stays.tolist(), strict=True)
        for index, row, fixed in rows:
            importance = float(values[index])
            node = Node(
                layer=layer,
                feature=int(scores.features[position][index]),
                importance=importance,
                share=share_of(importance, positive),
                kept_importance=float(sum(row)),
            )
            nodes.append(node)
            for end, weight, strongest in zip(ends, row, fixed, strict=True):
                share = share_of(weight, positive_edges)
                is_fixed = strongest or node.key in pinned or end in pinned
                if keeps_edge(weight, share, edge_share=edge_share, pinned=is_fixed):
                    edges.append(Edge(node.key, end, weight, share))
    heatmaps = [
        tokens[:, indices].T.detach().cpu()
        for tokens, indices in zip(scores.tokens, ordered, strict=True)
    ]
    facts = explanation.explanation()
    if explanation.logits is not None:
        facts["logits"] = explanation.logits.detach().cpu()
    return Circuit(**facts, nodes=tuple(nodes), edges=tuple(edges), heatmaps=torch.cat(heatmaps))


def _by_importance(indices: Collection[int] | Tensor, scores: Tensor, layer: int) -> list[int]:
    """Return the kept indices, most important first, equal ones by index."""
    kept = sorted({int(index) for index in indices})
    if kept and not 0 <= kept[0] <= kept[-1] < len(scores):
        raise FeatureError(
            f"Layer {layer} has nodes 0 to {len(scores) - 1} (the last is its error node), but the "
            f"kept nodes are {kept[0]} to {kept[-1]}."
        )
    values = scores.tolist()
    return sorted(kept, key=lambda index: (-values[index], index))


def _connected(explanation: Explanation, scores: Scores, kept: list[list[int]]) -> list[list[int]]:
    """Leave out features that no edge connects with a feature before and a node after them."""
    while True:
        left = [list(indices) for indices in kept]
        for position in range(len(kept)):
            _, weights = _outgoing(explanation, scores, left, position)
            is_feature = scores.features[position][left[position]] != ERROR
            leads_on = (weights != 0).any(1) | ~is_feature
            left[position] = [
                i for i, on in zip(left[position], leads_on.tolist(), strict=True) if on
            ]
            if position + 1 < len(kept):
                reached = (weights[leads_on & is_feature] != 0).any(0).tolist()
                numbers = scores.features[position + 1]
                features = [i for i in left[position + 1] if numbers[i] != ERROR]
                lost = {i for i, there in zip(features, reached, strict=True) if not there}
                left[position + 1] = [i for i in left[position + 1] if i not in lost]
        if left == kept:
            return left
        kept = left


def _strongest(
    weights: Float[Tensor, "kept ends"], is_feature: Bool[Tensor, " kept"]
) -> Bool[Tensor, "kept ends"]:
    """The strongest edge out of every node, and the strongest of a feature into every end."""
    size = weights.abs()
    stays = torch.zeros_like(weights, dtype=torch.bool)
    if not size.numel():
        return stays
    stays[torch.arange(len(size)), size.argmax(1)] = True
    from_features = torch.where(is_feature[:, None], size, -1.0)
    stays[from_features.argmax(0), torch.arange(size.shape[1])] = True
    return stays


def _outgoing(
    explanation: Explanation, scores: Scores, kept: list[list[int]], position: int
) -> tuple[list[FeatureId], Float[Tensor, "kept ends"]]:
    """Return the ends of the edges that leave a layer, and their weights for each kept node."""
    sources = torch.tensor(kept[position], dtype=torch.int64)
    if position == len(kept) - 1:
        values = scores.nodes[position] if scores.to_target is None else scores.to_target
        return [explanation.target_key], values.detach().cpu().double()[sources, None]
    following = scores.features[position + 1]
    features = [index for index in kept[position + 1] if following[index] != ERROR]
    columns = edge_columns(scores.edges, position, torch.tensor(features, dtype=torch.int64))
    layer = explanation.layers[position + 1]
    ends = [(layer, int(following[index])) for index in features]
    return ends, columns.detach().cpu().double()[sources]


def _index(features: Int[Tensor, " n"], feature: int) -> int:
    """Return the place of a feature, which is there."""
    return int((features == feature).nonzero()[0, 0])


def _moving(z: Float[Tensor, "T F"], baseline: Float[Tensor, "T F"]) -> Int[Tensor, " n"]:
    """Return the features that are active, or differ from their baseline, on some token."""
    return ((z > 0) | (z != baseline)).any(0).nonzero().squeeze(1).cpu()


def _at(values: Sequence[Tensor], chosen: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Take the chosen entries of the last axis, as tensors of their own on the CPU."""
    pairs = zip(values, chosen, strict=True)
    return tuple(value[..., indices].detach().cpu() for value, indices in pairs)


def _positive(nodes: Sequence[Node]) -> float:
    """Return the sum that the shares of a layer's nodes refer to; 0 where no node has a share."""
    strongest = max(nodes, key=lambda node: abs(node.share))
    return strongest.importance / strongest.share if strongest.share else 0.0

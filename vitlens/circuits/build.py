"""Putting a circuit together from importances and the nodes to keep."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vitlens.circuits.circuit import ERROR, TARGET, Circuit, Edge, Node
from vitlens.circuits.marks import FeatureId
from vitlens.circuits.places import token_names
from vitlens.circuits.prune import (
    Edges,
    check_rule,
    check_share,
    edge_columns,
    filter_shares,
    keeps_edge,
    walk,
)
from vitlens.errors import FeatureError


class ImportancesLike(Protocol):
    """What `build_circuit` reads of one image's importances."""

    @property
    def nodes(self) -> Sequence[Tensor]:
        """By layer, [F_l + 1], the error node last."""

    @property
    def tokens(self) -> Sequence[Tensor]:
        """By layer, the same before the sum over tokens, [T, F_l + 1]."""

    @property
    def target(self) -> str:
        """What was explained."""

    @property
    def target_index(self) -> int | None:
        """The class, when the target is one."""

    @property
    def target_value(self) -> float:
        """The target on the untouched model."""


def build_circuit(
    importances: ImportancesLike,
    kept: Sequence[Int[Tensor, " kept"]],
    edges: Edges,
    *,
    grid: tuple[int, int],
    n_prefix: int,
    prediction: tuple[str, float],
    prefix_names: tuple[str, ...] | None = None,
    logits: Float[Tensor, " C"] | None = None,
    picture: UInt8[Tensor, "H W 3"] | None = None,
    settings: Mapping[str, Any] | None = None,
    model: str = "",
    edge_share: float = 0.0,
    names: Sequence[Int[Tensor, " F_l+1"]] | None = None,
    positive: Sequence[float] | None = None,
    pinned: Collection[FeatureId] = (),
    groups: Mapping[str, Sequence[FeatureId]] | None = None,
    labels: Mapping[FeatureId, str] | None = None,
) -> Circuit:
    """Put together the circuit of the kept nodes.

    Parameters
    ----------
    importances
        One image's importances.
    kept
        By layer, the kept node indices, F_l standing for the error node, as `walk` gives them.
    edges
        All edges, or a function that gives columns (see `walk`); usually `importances.edges`.
    grid, n_prefix, prediction, prefix_names, logits, picture, settings, model
        Stored with the circuit (see `Circuit`). Prefix tokens are called "CLS", "register 1", …
        unless named.
    edge_share
        Leave out edges whose share, of either sign, is smaller (see `prune.keeps_edge`).
    names
        By layer, the feature number of each entry of `importances.nodes`, `ERROR` for the error
        node; by default they are counted from 0, and the last is the error node.
    positive
        By layer, the sum of the positive node importances, which shares refer to; by default
        that of `importances.nodes`.
    pinned, groups, labels
        Marks (see `Circuit`).

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
    if len(kept) != len(importances.nodes):
        raise FeatureError(
            f"Kept nodes for {len(kept)} layers do not fit importances for "
            f"{len(importances.nodes)} layers."
        )
    check_share("edge_share", edge_share)
    names = feature_names(importances.nodes) if names is None else names
    positive = positive_sums(importances.nodes) if positive is None else positive
    ordered = [
        _by_importance(indices, scores, layer)
        for layer, (indices, scores) in enumerate(zip(kept, importances.nodes, strict=True))
    ]
    nodes: list[Node] = []
    links: list[Edge] = []
    for layer, indices in enumerate(ordered):
        scores = importances.nodes[layer].detach().cpu().double()
        ends, weights = _outgoing(ordered, edges, layer, importances.nodes, names)
        for index, row in zip(indices, weights.tolist(), strict=True):
            importance = float(scores[index])
            node = Node(
                layer=layer,
                feature=int(names[layer][index]),
                importance=importance,
                share=share_of(importance, positive[layer]),
                kept_importance=float(sum(row)),
            )
            nodes.append(node)
            for end, weight in zip(ends, row, strict=True):
                share = share_of(weight, positive[layer])
                fixed = node.key in pinned or end in pinned
                if keeps_edge(weight, share, edge_share=edge_share, pinned=fixed):
                    links.append(Edge(node.key, end, weight, share))
    heatmaps = [
        tokens[:, indices].T.detach().cpu()
        for tokens, indices in zip(importances.tokens, ordered, strict=True)
    ]
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(links),
        heatmaps=torch.cat(heatmaps),
        grid=grid,
        prefix_names=token_names(n_prefix) if prefix_names is None else tuple(prefix_names),
        target=importances.target,
        target_index=importances.target_index,
        target_value=float(importances.target_value),
        prediction=prediction,
        logits=None if logits is None else logits.detach().cpu(),
        picture=picture,
        settings=dict(settings or {}),
        model=model,
        pinned=tuple(pinned),
        groups={name: tuple(keys) for name, keys in (groups or {}).items()},
        labels=dict(labels or {}),
    )


def prune_circuit(
    importances: ImportancesLike,
    edges: Edges,
    *,
    nodes_per_layer: int | None = None,
    share: float | None = None,
    threshold: float | None = None,
    node_share: float = 0.0,
    edge_share: float = 0.0,
    settings: Mapping[str, Any],
    **facts: Any,
) -> Circuit:
    """Walk back from the target, leave out small shares, and put the circuit together.

    Parameters
    ----------
    importances, edges
        One image's importances, and its edges as `walk` takes them.
    nodes_per_layer, share, threshold
        How many nodes the walk keeps in every layer: at most one of the rules of `select`; by
        default 8 nodes.
    node_share, edge_share
        Least shares of nodes and edges (see `filter_shares` and `keeps_edge`).
    settings
        How the importances were made; the rules are added to it.
    facts
        What else `build_circuit` takes.

    Raises
    ------
    FeatureError
        When more than one rule is given, or one is out of range.
    """
    if nodes_per_layer is None and share is None and threshold is None:
        nodes_per_layer = 8
    kept = walk(importances.nodes, edges, count=nodes_per_layer, share=share, threshold=threshold)
    kept = filter_shares(
        kept,
        node_shares(importances.nodes, positive_sums(importances.nodes)),
        node_share=node_share,
    )
    rules = pruning_settings(
        nodes_per_layer=nodes_per_layer,
        share=share,
        threshold=threshold,
        node_share=node_share or None,
        edge_share=edge_share or None,
    )
    return build_circuit(
        importances, kept, edges, edge_share=edge_share, settings={**settings, **rules}, **facts
    )


def check_rules(
    *,
    nodes_per_layer: int | None,
    share: float | None,
    threshold: float | None,
    node_share: float,
    edge_share: float,
) -> None:
    """Raise what `prune_circuit` would for these rules, before there are importances."""
    if any(rule is not None for rule in (nodes_per_layer, share, threshold)):
        check_rule(nodes_per_layer, share, threshold, name="nodes_per_layer")
    check_share("node_share", node_share)
    check_share("edge_share", edge_share)


def pruning_settings(**rules: float | None) -> dict[str, float]:
    """Return the rules that were given, as `Circuit.settings` names them and JSON can hold them."""
    return {
        name: int(value) if name == "nodes_per_layer" else float(value)
        for name, value in rules.items()
        if value is not None
    }


def feature_names(nodes: Sequence[Tensor]) -> list[Int[Tensor, " F_l+1"]]:
    """Return the feature number of every node by layer, `ERROR` for the last."""
    return [torch.tensor([*range(len(scores) - 1), ERROR]) for scores in nodes]


def positive_sums(nodes: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the sum of positive importances by layer, which shares refer to."""
    return tuple(float(scores.detach().cpu().double().clamp(min=0).sum()) for scores in nodes)


def node_shares(nodes: Sequence[Tensor], positive: Sequence[float]) -> list[list[float]]:
    """Return the share of every node by layer."""
    return [
        [share_of(value, total) for value in scores.detach().cpu().double().tolist()]
        for scores, total in zip(nodes, positive, strict=True)
    ]


def share_of(value: float, positive: float) -> float:
    """Return a value over its layer's positive importance; 0 where there is none."""
    return value / positive if positive > 0 else 0.0


def _by_importance(indices: Tensor, scores: Tensor, layer: int) -> list[int]:
    """Return the kept indices, most important first, equal ones by index."""
    kept = sorted({int(index) for index in indices})
    if kept and not 0 <= kept[0] <= kept[-1] < len(scores):
        raise FeatureError(
            f"Layer {layer} has nodes 0 to {len(scores) - 1} (the last is its error node); "
            f"kept are {kept[0]} to {kept[-1]}."
        )
    values = scores.tolist()
    return sorted(kept, key=lambda index: (-values[index], index))


def _outgoing(
    kept: list[list[int]],
    edges: Edges,
    layer: int,
    nodes: Sequence[Tensor],
    names: Sequence[Tensor],
) -> tuple[list[FeatureId], Float[Tensor, "kept ends"]]:
    """Return the ends of the edges that leave a layer, and their weights for each kept node."""
    sources = torch.tensor(kept[layer], dtype=torch.int64)
    if layer == len(kept) - 1:
        weights = nodes[layer].detach().cpu().double()[sources]
        return [(layer + 1, TARGET)], weights[:, None]
    following = names[layer + 1]
    features = [index for index in kept[layer + 1] if following[index] != ERROR]
    columns = edge_columns(edges, layer, torch.tensor(features, dtype=torch.int64))
    ends = [(layer + 1, int(following[index])) for index in features]
    return ends, columns.detach().cpu().double()[sources]

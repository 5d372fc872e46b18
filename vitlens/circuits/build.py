"""Putting a circuit together from importances and the nodes to keep."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vitlens.circuits.circuit import ERROR, TARGET, Circuit, Edge, Node
from vitlens.circuits.places import token_names
from vitlens.circuits.prune import Edges, edge_columns
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
    ordered = [
        _by_importance(indices, scores, layer)
        for layer, (indices, scores) in enumerate(zip(kept, importances.nodes, strict=True))
    ]
    nodes: list[Node] = []
    links: list[Edge] = []
    for layer, indices in enumerate(ordered):
        scores = importances.nodes[layer].detach().cpu().double()
        positive = float(scores.clamp(min=0).sum())
        ends, weights = _outgoing(ordered, edges, layer, importances.nodes)
        for index, row in zip(indices, weights.tolist(), strict=True):
            importance = float(scores[index])
            feature = ERROR if index == len(scores) - 1 else index
            nodes.append(
                Node(layer, feature, importance, _share(importance, positive), float(sum(row)))
            )
            links.extend(
                Edge((layer, feature), end, weight, _share(weight, positive))
                for end, weight in zip(ends, row, strict=True)
                if weight
            )
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
    )


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
    kept: list[list[int]], edges: Edges, layer: int, nodes: Sequence[Tensor]
) -> tuple[list[tuple[int, int]], Float[Tensor, "kept ends"]]:
    """Return the ends of the edges that leave a layer, and their weights for each kept node."""
    sources = torch.tensor(kept[layer], dtype=torch.int64)
    if layer == len(kept) - 1:
        weights = nodes[layer].detach().cpu().double()[sources]
        return [(layer + 1, TARGET)], weights[:, None]
    # The next layer's error node has the last index; nothing leads into it.
    features = [index for index in kept[layer + 1] if index < len(nodes[layer + 1]) - 1]
    columns = edge_columns(edges, layer, torch.tensor(features, dtype=torch.int64))
    ends = [(layer + 1, feature) for feature in features]
    return ends, columns.detach().cpu().double()[sources]


def _share(value: float, positive: float) -> float:
    return value / positive if positive > 0 else 0.0

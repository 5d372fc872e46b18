"""Which nodes make up a circuit: pure selection over scores, and the walk back from the target."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.errors import FeatureError

#: Edges by layer, each [F_l + 1, F_{l+1}] with the error node's row last; or a function that
#: gives, for a layer l and features of layer l + 1, only those columns: [F_l + 1, n].
Edges: TypeAlias = Sequence[Tensor] | Callable[[int, Tensor], Tensor]


def select(
    scores: Float[Tensor, " n"],
    *,
    count: int | None = None,
    share: float | None = None,
    threshold: float | None = None,
) -> Int[Tensor, " kept"]:
    """Choose the highest scores, by exactly one of three rules.

    This is a pure function with one specification, so that it can be written again elsewhere:

    1. Take the scores as float64. Rank the indices by score, highest first; equal scores (0 and
       -0 are equal) by index, lowest first.
    2. Keep the first m of the ranking, where

       - ``count``: m = min(count, n);
       - ``share``: m = ceil(share · n - 1e-9);
       - ``threshold``: with p_i = max(score, 0) in ranked order and running sums
         P_m = P_{m-1} + p_m, the smallest m with P_m >= threshold · P_n;

       and m is at least 1, whatever the rule and the signs of the scores.

    Parameters
    ----------
    scores
        One score a node.
    count
        How many to keep, at least 1.
    share
        Which fraction of the nodes to keep, above 0 and up to 1.
    threshold
        Which fraction of the positive importance to keep, above 0 and up to 1.

    Returns
    -------
    Tensor
        The kept indices in ranked order, int64, on the CPU.

    Raises
    ------
    FeatureError
        When not exactly one rule is given, its value is out of range, or the scores are empty,
        not one-dimensional, or not finite.
    """
    check_rule(count, share, threshold)
    values = scores.detach().cpu().double().numpy()
    if values.ndim != 1 or not len(values):
        raise FeatureError(f"Scores must be one list of numbers, not of shape {values.shape}.")
    if not np.isfinite(values).all():
        raise FeatureError("Scores hold NaN or infinite values, and cannot be ranked.")
    order = np.argsort(-values, kind="stable")
    if count is not None:
        kept = min(count, len(values))
    elif share is not None:
        kept = math.ceil(share * len(values) - 1e-9)
    else:
        assert threshold is not None
        reached = np.cumsum(np.maximum(values[order], 0.0))
        kept = int(np.searchsorted(reached, threshold * reached[-1], side="left")) + 1
    return torch.from_numpy(order[: max(kept, 1)].copy())


def walk(
    nodes: Sequence[Float[Tensor, " F_l+1"]],
    edges: Edges,
    *,
    count: int | None = None,
    share: float | None = None,
    threshold: float | None = None,
    error_nodes: bool = True,
) -> tuple[Int[Tensor, " kept"], ...]:
    """Walk back from the target, keeping at each layer what matters to what is kept after it.

    The specification, with L the last layer and `select` as defined there:

    1. kept[L] = select(nodes[L]).
    2. For l = L-1 … 0: let S be the features among kept[l+1], its error node left out because
       nothing leads into an error node. The score of node f of layer l is the sum of
       edges[l][f, s] over s in S, added up in float64 in ascending order of s.
       kept[l] = select(score).
    3. Where S is empty (only the error node was kept), the score is nodes[l].
    4. Without error nodes, the last entry of every score is left out before `select`.

    Source: Kim et al., NeurIPS 2025, arXiv 2509.17401.

    Parameters
    ----------
    nodes
        Node importances by layer, each [F_l + 1], the error node last.
    edges
        By layer, each [F_l + 1, F_{l+1}]: from the nodes of layer l (error node's row last) to
        the features of layer l + 1; one less than there are layers. Or a function of a layer l
        and feature indices [n] of layer l + 1 that returns those columns, [F_l + 1, n]; it is
        called once a layer, from the last to the first.
    count, share, threshold
        How many nodes to keep in every layer, as in `select`; exactly one of them. A share
        counts the candidates: features and, unless left out, the error node.
    error_nodes
        Whether error nodes are candidates.

    Returns
    -------
    tuple of Tensor
        By layer, the kept node indices in ranked order, int64, on the CPU. Index F_l is the
        error node.

    Raises
    ------
    FeatureError
        When the shapes of nodes and edges do not fit each other, or the rule is not valid.
    """
    check_rule(count, share, threshold)
    if not nodes:
        raise FeatureError("There are no layers to walk through.")
    if not callable(edges) and len(edges) != len(nodes) - 1:
        raise FeatureError(
            f"{len(nodes)} layers of nodes need {len(nodes) - 1} layers of edges, not {len(edges)}."
        )
    return _walk_back(
        nodes,
        edges,
        features=[torch.arange(len(scores) - 1) for scores in nodes],
        candidates=[len(scores) - (not error_nodes) for scores in nodes],
        rule={"count": count, "share": share, "threshold": threshold},
    )


def walk_among(
    nodes: Sequence[Float[Tensor, " n_l"]],
    edges: Sequence[Float[Tensor, "n_l n_l+1"]],
    features: Sequence[Bool[Tensor, " n_l"]],
    *,
    count: int,
) -> tuple[Int[Tensor, " kept"], ...]:
    """Walk as `walk` does, among some of the nodes.

    The result is that of `walk` on all nodes when those it keeps are there, in the same order.

    Parameters
    ----------
    nodes
        Importances of these nodes by layer, in ascending order of their index in the layer.
    edges
        By layer, from each node to each node of the next layer; columns of error nodes are not
        looked at.
    features
        By layer, False for an error node.
    count
        How many nodes to keep in every layer.

    Returns
    -------
    tuple of Tensor
        By layer, places in `nodes`, in ranked order, int64, on the CPU.

    Raises
    ------
    FeatureError
        When there are no layers, or the count is below 1.
    """
    check_rule(count, None, None)
    if not nodes:
        raise FeatureError("There are no layers to walk through.")
    return _walk_back(
        nodes,
        edges,
        features=[mask.nonzero().squeeze(1) for mask in features],
        candidates=[len(scores) for scores in nodes],
        rule={"count": count},
    )


def filter_shares(
    kept: Sequence[Int[Tensor, " kept"]],
    shares: Sequence[Sequence[float]],
    *,
    node_share: float,
) -> tuple[Int[Tensor, " kept"], ...]:
    """Leave out kept nodes of little importance, after a walk.

    The specification, together with `keeps_edge`:

    1. The share of a node is its importance over the sum of the positive importances of all
       nodes of its layer, in float64; 0 where that sum is 0.
    2. With ``node_share`` above 0, a layer keeps the first node of the walk's ranking, and of
       the others those with share >= node_share. With 0 all stay, those below zero too.
    3. Pinned nodes are added, whatever their share.
    4. Edges run between the nodes that are there after this: see `keeps_edge`.

    Parameters
    ----------
    kept
        By layer, the kept nodes in ranked order, as `walk` gives them.
    shares
        By layer, the share of every node.
    node_share
        The least share, from 0 on.

    Raises
    ------
    FeatureError
        When `node_share` is negative or not a number.
    """
    check_share("node_share", node_share)
    if node_share == 0:
        return tuple(kept)
    strong = []
    for indices, of_node in zip(kept, shares, strict=True):
        large = torch.tensor([of_node[index] >= node_share for index in indices.tolist()])
        large[:1] = True
        strong.append(indices[large])
    return tuple(strong)


def keeps_edge(weight: float, share: float, *, edge_share: float, pinned: bool) -> bool:
    """Whether an edge between two kept nodes of adjacent layers, or to the target, is kept.

    It is when its weight is not 0, and its share, of either sign, is at least `edge_share` or
    one of its ends is pinned. The share is the weight over the sum of the positive importances
    of the source's layer, in float64; 0 where that sum is 0.
    """
    return weight != 0 and (pinned or abs(share) >= edge_share)


def check_share(name: str, value: float) -> None:
    """Raise `FeatureError` unless a least share is a number from 0 on."""
    if not (_is_number(value) and 0 <= value < math.inf):
        raise FeatureError(f"{name} must be a number from 0 on, not {value!r}.")


def check_count(name: str, value: object) -> None:
    """Raise `FeatureError` unless a count of nodes is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise FeatureError(f"{name} must be a whole number and at least 1, not {value!r}.")


def edge_columns(edges: Edges, layer: int, features: Int[Tensor, " n"]) -> Float[Tensor, "F_l+1 n"]:
    """Return the edges from layer `layer` into some features of the next layer.

    Parameters
    ----------
    edges
        All edges by layer, or a function that gives columns (see `walk`).
    layer
        The layer the edges start from.
    features
        Feature indices of layer + 1.

    Returns
    -------
    Tensor
        [F_l + 1, n], the error node's row last.

    Raises
    ------
    FeatureError
        When there are other than n columns.
    """
    if callable(edges):
        columns = edges(layer, features)
    else:
        columns = edges[layer][:, features.to(edges[layer].device)]
    if columns.ndim != 2 or columns.shape[1] != len(features):
        raise FeatureError(
            f"The edges of layer {layer} into {len(features)} features must have a column each; "
            f"their shape is {tuple(columns.shape)}."
        )
    return columns


def _walk_back(
    nodes: Sequence[Tensor],
    edges: Edges,
    *,
    features: Sequence[Int[Tensor, " features"]],
    candidates: Sequence[int],
    rule: Mapping[str, Any],
) -> tuple[Int[Tensor, " kept"], ...]:
    """Steps 1 to 4 of `walk`; the first `candidates` nodes of a layer may be kept."""
    kept: list[Tensor] = []
    for layer in reversed(range(len(nodes))):
        scores = nodes[layer]
        if kept:
            into = kept[0][torch.isin(kept[0], features[layer + 1])]
            if len(into):
                scores = _sum_into(edges, layer, into.sort().values, len(scores))
        kept.insert(0, select(scores[: candidates[layer]], **rule))
    return tuple(kept)


def _sum_into(edges: Edges, layer: int, features: Tensor, n_nodes: int) -> Tensor:
    columns = edge_columns(edges, layer, features)
    if len(columns) != n_nodes:
        raise FeatureError(
            f"Layer {layer} has {n_nodes} nodes (its error node included), but its edges have "
            f"{len(columns)} rows."
        )
    # NumPy adds up the first axis row by row: the order that the specification of `walk` fixes.
    rows = columns.detach().cpu().double().T.contiguous().numpy()
    return torch.from_numpy(rows.sum(axis=0))


def check_rule(
    count: int | None, share: float | None, threshold: float | None, *, name: str = "count"
) -> None:
    """Raise `FeatureError` unless exactly one of the rules of `select` is given, and in range.

    The count goes by `name` where the caller knows it by another.
    """
    rules = {name: count, "share": share, "threshold": threshold}
    given = {rule: value for rule, value in rules.items() if value is not None}
    if len(given) != 1:
        named = " and ".join(given) or "none of them"
        raise FeatureError(f"Give exactly one of {name}, share and threshold, not {named}.")
    if count is not None:
        check_count("The count of nodes to keep", count)
    for rule in ("share", "threshold"):
        value = given.get(rule)
        if value is not None and not (_is_number(value) and 0 < value <= 1):
            raise FeatureError(f"The {rule} must be a number above 0 and at most 1, not {value!r}.")


def _is_number(value: object) -> bool:
    if getattr(value, "ndim", None) == 0:  # of NumPy or PyTorch
        value = value.item()  # type: ignore[attr-defined]
    return isinstance(value, Real) and not isinstance(value, bool)

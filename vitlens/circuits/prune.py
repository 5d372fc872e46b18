"""Pruning: which nodes and edges of an attribution graph make up a circuit.

Pure functions over scores, with one specification that the diagram's JavaScript mirrors
(``widgets/js/src/diagram/prune.js``; tests hold both to the same cases): `select`, `walk`,
`filter_shares`, `keeps_edge`. Layers are numbered here by position: 0 is the first that has an SAE.
Source: docs/method.md, "Walk".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.errors import FeatureError, check_choice, check_count

#: Edges by position, each [F_l + 1, F_{l+1}] with the error node's row last; or a function that
#: gives, for a position l and features of position l + 1, only those columns: [F_l + 1, n].
Edges: TypeAlias = Sequence[Tensor] | Callable[[int, Tensor], Tensor]

#: How a circuit's nodes are selected: by a walk over edges (the paper), by path-integrated
#: importance, or by repeated elimination.
Select = Literal["walk", "path", "eliminate"]

#: How many nodes per layer a circuit keeps unless a rule is given.
DEFAULT_NODES = 8
#: The least number of nodes per layer where all layers share one budget.
DEFAULT_FLOOR = 3


@dataclass(frozen=True)
class Rules:
    """How a circuit is pruned.

    Attributes
    ----------
    nodes_per_layer, share, threshold
        Number of nodes kept in every layer, as ``count``, ``share`` and ``threshold`` of `select`:
        at most one of them; 8 nodes per layer by default.
    node_share, edge_share
        Least shares of nodes and edges (see `filter_shares` and `keeps_edge`).
    select
        How nodes are selected.
    nodes
        Instead of a number per layer, one number for all layers together. Not for "walk".
    floor
        With `nodes`, the least number of nodes per layer.

    Raises
    ------
    FeatureError
        When more than one number is given, a value is out of range, or the selection has no such
        rule.
    OptionError
        When the selection is unknown.
    """

    nodes_per_layer: int | None = None
    share: float | None = None
    threshold: float | None = None
    node_share: float = 0.0
    edge_share: float = 0.0
    select: Select = "walk"
    nodes: int | None = None
    floor: int = DEFAULT_FLOOR

    def __post_init__(self) -> None:
        check_choice("select", self.select, get_args(Select))
        others = [self.nodes_per_layer, self.share, self.threshold]
        if self.nodes is not None:
            if self.select == "walk":
                raise FeatureError(
                    "A walk needs a number per layer: give nodes_per_layer, share or threshold; or "
                    'select="eliminate" or "path".'
                )
            if any(other is not None for other in others):
                raise FeatureError(
                    "Give nodes (for all layers together) or a rule per layer, not both."
                )
            check_count("nodes", self.nodes)
            check_count("floor", self.floor)
        else:
            if all(other is None for other in others):
                object.__setattr__(self, "nodes_per_layer", DEFAULT_NODES)
            check_rule(self.nodes_per_layer, self.share, self.threshold, name="nodes_per_layer")
        if self.threshold is not None and self.select != "walk":
            raise FeatureError(
                'threshold needs select="walk"; give nodes_per_layer, share or nodes instead.'
            )
        check_share("node_share", self.node_share)
        check_share("edge_share", self.edge_share)

    @property
    def of_walk(self) -> dict[str, Any]:
        """The rule of `select`, for a walk."""
        return {
            "count": self.nodes_per_layer,
            "share": self.share,
            "threshold": self.threshold,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The rules in force, as `Circuit.settings` names them and JSON can hold them."""
        names = ["nodes_per_layer", "share", "threshold", "node_share", "edge_share", "nodes"]
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        if self.nodes is not None:
            given["floor"] = self.floor
        counts = ("nodes_per_layer", "nodes", "floor")
        plain = {name: int(v) if name in counts else float(v) for name, v in given.items()}
        return {"select": self.select, **plain}


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
        One score per node.
    count
        Number of nodes to keep, at least 1.
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
    features: Sequence[Bool[Tensor, " n_l"]] | None = None,
) -> tuple[Int[Tensor, " kept"], ...]:
    """Walk back from the target, keeping at each layer what matters to what is kept after it.

    The specification, with L the last position and `select` as defined there:

    1. kept[L] = select(nodes[L]).
    2. For l = L-1 … 0: let S be the features among kept[l+1], its error node left out because
       nothing leads into an error node. The score of node f of position l is the sum of
       edges[l][f, s] over s in S, added up in float64 in ascending order of s.
       kept[l] = select(score).
    3. Where S is empty (only the error node was kept), the score is nodes[l].
    4. Without error nodes, they are left out of every score before `select`.

    Source: docs/method.md, "Walk"; Kim et al., NeurIPS 2025, arXiv 2509.17401.

    Parameters
    ----------
    nodes
        Node importances by position, each [F_l + 1], the error node last.
    edges
        By position, each [F_l + 1, F_{l+1}]: from the nodes of position l (error node's row last)
        to the features of position l + 1; one less than there are positions. Or a function of a
        position l and feature indices [n] of position l + 1 that returns those columns,
        [F_l + 1, n]; it is called once per position, from the last to the first.
    count, share, threshold
        Number of nodes to keep in every layer, as in `select`; exactly one of them. A share
        counts the candidates: features and, unless left out, the error node.
    error_nodes
        Whether error nodes are candidates.
    features
        To walk among some of the nodes, in ascending order of their index: by position, False
        for an error node; nodes and edges are then those of these nodes. The result is that of a
        walk among all nodes where all that it keeps is there. By default only the last node of
        each position is an error node.

    Returns
    -------
    tuple of Tensor
        By position, the kept node indices in ranked order, int64, on the CPU. Index F_l is the
        error node.

    Raises
    ------
    FeatureError
        When the shapes of nodes and edges do not fit each other, or the rule is not valid.
    """
    check_rule(count, share, threshold)
    rule = {"count": count, "share": share, "threshold": threshold}
    (kept,) = _walk_back(nodes, edges, [rule], error_nodes=error_nodes, features=features)
    return kept


def reachable(
    nodes: Sequence[Float[Tensor, " F_l+1"]], edges: Edges, *, at_most: int
) -> tuple[Int[Tensor, " reached"], ...]:
    """Return the nodes that `walk` keeps for any count from 1 to `at_most`.

    All walks go back together, so that a function of edges is called once per position.

    Parameters
    ----------
    nodes, edges
        See `walk`.
    at_most
        The largest count of nodes per layer.

    Returns
    -------
    tuple of Tensor
        By position, node indices, ascending, int64, on the CPU.

    Raises
    ------
    FeatureError
        As `walk` does, or when `at_most` is below 1.
    """
    check_count("at_most", at_most)
    largest = max((len(scores) for scores in nodes), default=0)
    rules = [{"count": count} for count in range(1, min(at_most, largest) + 1)]
    walks = _walk_back(nodes, edges, rules)
    return tuple(torch.cat(kept).unique() for kept in zip(*walks, strict=True))


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
    3. Pinned nodes are added, whatever their share, and then removed nodes are left out.
    4. Edges run between the nodes that are there after this: see `keeps_edge`.

    Parameters
    ----------
    kept
        By position, the kept nodes in ranked order, as `walk` gives them.
    shares
        By position, the share of every node.
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
        raise FeatureError(f"{name} must be a number of at least 0, not {value!r}.")


def edge_columns(
    edges: Edges, position: int, features: Int[Tensor, " n"]
) -> Float[Tensor, "F_l+1 n"]:
    """Return the edges from one position into some features of the next.

    Parameters
    ----------
    edges
        All edges by position, or a function that gives columns (see `walk`).
    position
        Where the edges start.
    features
        Feature indices of position + 1.

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
        columns = edges(position, features)
    else:
        columns = edges[position][:, features.to(edges[position].device)]
    if columns.ndim != 2 or columns.shape[1] != len(features):
        raise FeatureError(
            f"The edges of position {position} into {len(features)} features must have one column "
            f"per feature; their shape is {tuple(columns.shape)}."
        )
    return columns


def positive_sums(nodes: Sequence[Tensor]) -> tuple[float, ...]:
    """Return by position the sum of positive importances, which shares refer to."""
    return tuple(float(scores.detach().cpu().double().clamp(min=0).sum()) for scores in nodes)


def share_of(value: float, positive: float) -> float:
    """Return a value over its layer's positive importance; 0 where there is none."""
    return value / positive if positive > 0 else 0.0


def _walk_back(
    nodes: Sequence[Tensor],
    edges: Edges,
    rules: Sequence[Mapping[str, Any]],
    *,
    error_nodes: bool = True,
    features: Sequence[Bool[Tensor, " n_l"]] | None = None,
) -> list[tuple[Tensor, ...]]:
    """Walk once for each rule of `select`, all of them together."""
    if not nodes:
        raise FeatureError("There are no layers to walk through.")
    if not callable(edges) and len(edges) != len(nodes) - 1:
        raise FeatureError(
            f"{len(nodes)} layers of nodes need {len(nodes) - 1} layers of edges, not {len(edges)}."
        )
    if features is None:
        features = [torch.arange(len(scores)) < len(scores) - 1 for scores in nodes]
    kept: list[list[Tensor]] = [[] for _ in rules]
    for position in reversed(range(len(nodes))):
        n_nodes = len(nodes[position])
        candidates = n_nodes if error_nodes else int(features[position].sum())
        # Into which features of the next layer each walk goes, ascending.
        into = [
            _features_among(walked[0], features[position + 1]) if walked else None
            for walked in kept
        ]
        wanted = [f for f in into if f is not None and len(f)]
        every = torch.cat(wanted).unique() if wanted else None
        if every is not None:
            every, columns = _columns(edges, position, every, n_nodes)
        for walked, ends, rule in zip(kept, into, rules, strict=True):
            scores = nodes[position]
            if ends is not None and len(ends):
                assert every is not None
                # NumPy adds up the first axis row by row: the order that `walk` specifies.
                rows = columns[torch.isin(every, ends).numpy()]
                scores = torch.from_numpy(rows.sum(axis=0))
            walked.insert(0, select(scores[:candidates], **rule))
    return [tuple(walked) for walked in kept]


def _features_among(kept: Tensor, features: Bool[Tensor, " n"]) -> Tensor:
    """Return the kept nodes that are features, ascending."""
    return kept[features[kept]].sort().values


def _columns(
    edges: Edges, position: int, features: Tensor, n_nodes: int
) -> "tuple[Tensor, np.ndarray[Any, np.dtype[np.float64]]]":
    """Return the features that any edge leads into, and the edges in float64, a row for each."""
    columns = edge_columns(edges, position, features)
    if len(columns) != n_nodes:
        raise FeatureError(
            f"Position {position} has {n_nodes} nodes (including its error node), but its edges "
            f"have {len(columns)} rows."
        )
    # Most features of a large walk are not active; nothing leads into them.
    reached = (columns != 0).any(0)
    rows = columns[:, reached].detach().cpu().double().T.contiguous().numpy()
    return features[reached.cpu()], rows


def check_rule(
    count: int | None, share: float | None, threshold: float | None, *, name: str = "count"
) -> None:
    """Raise `FeatureError` unless exactly one of the rules of `select` is given, and in range.

    `name` is the count's name in the message.
    """
    rules = {name: count, "share": share, "threshold": threshold}
    given = {rule: value for rule, value in rules.items() if value is not None}
    if len(given) != 1:
        named = " and ".join(given) or "none of them"
        raise FeatureError(f"Give exactly one of {name}, share and threshold, not {named}.")
    if count is not None:
        check_count(name, count)
    for rule in ("share", "threshold"):
        value = given.get(rule)
        if value is not None and not (_is_number(value) and 0 < value <= 1):
            raise FeatureError(f"The {rule} must be a number above 0 and at most 1, not {value!r}.")


def _is_number(value: object) -> bool:
    if getattr(value, "ndim", None) == 0:  # of NumPy or PyTorch
        value = value.item()  # type: ignore[attr-defined]
    return isinstance(value, Real) and not isinstance(value, bool)

"""The order of nodes within columns, so that edges cross little."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from vitlens.circuits.circuit import Edge
from vitlens.saes.base import FeatureId

_SWEEPS = 12


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

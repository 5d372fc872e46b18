"""What people write on a circuit: pinned nodes, named groups of nodes, labels."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vitlens.errors import FeatureError
from vitlens.saes.base import FeatureId


def check_marks(
    nodes: Collection[FeatureId],
    *,
    pinned: Iterable[FeatureId],
    groups: Mapping[str, Iterable[FeatureId]],
    labels: Mapping[FeatureId, str],
) -> dict[str, Any]:
    """Return the marks in their own types, by name.

    Parameters
    ----------
    nodes
        The nodes that there are.
    pinned, groups, labels
        See `Circuit`.

    Raises
    ------
    FeatureError
        When a mark names no node of these, a node is in two groups, or a name is empty.
    """
    marks: dict[str, Any] = {
        "pinned": tuple(dict.fromkeys(_key(key) for key in pinned)),
        "groups": {name: tuple(_key(key) for key in keys) for name, keys in groups.items()},
        "labels": {_key(key): str(label) for key, label in labels.items()},
    }
    grouped = [key for keys in marks["groups"].values() for key in keys]
    for what, keys in (("pinned", marks["pinned"]), ("grouped", grouped), ("labelled", labels)):
        for layer, feature in keys:
            if (layer, feature) not in nodes:
                raise FeatureError(
                    f"Node ({layer}, {feature}) is not in this circuit and cannot be {what}."
                )
    if len(grouped) > len(set(grouped)):
        twice = next(key for key in grouped if grouped.count(key) > 1)
        raise FeatureError(f"Node {twice} is in a group twice; it can be in one, and once.")
    if not all(marks["groups"]):
        raise FeatureError("A group needs a name.")
    return marks


def marks_within(
    nodes: Collection[FeatureId],
    *,
    pinned: Iterable[FeatureId],
    groups: Mapping[str, Iterable[FeatureId]],
    labels: Mapping[FeatureId, str],
) -> dict[str, Any]:
    """Return the marks that are on these nodes; groups without a node are left out."""
    within = {name: tuple(key for key in keys if key in nodes) for name, keys in groups.items()}
    return {
        "pinned": tuple(key for key in pinned if key in nodes),
        "groups": {name: keys for name, keys in within.items() if keys},
        "labels": {key: label for key, label in labels.items() if key in nodes},
    }


def _key(key: Iterable[int]) -> FeatureId:
    layer, feature = key
    return int(layer), int(feature)

"""Trait types with a meaning: nodes, patches, labels, groups; and the traits several parts share.

In Python they hold tuples and dictionaries, in the browser nested lists. A node is (layer,
feature); feature -1 is the layer's error node, -2 the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import traitlets as t

from vitlens.circuits.circuit import TARGET
from vitlens.saes.base import FeatureId


class _Sent(t.TraitType[Any, Any]):
    """A trait that is sent to the browser as JSON, and read back."""

    default_value: Any = None

    def __init__(self, default_value: Any = t.Undefined, **metadata: Any) -> None:
        super().__init__(default_value, **metadata)
        self.tag(sync=True, to_json=self.to_json, from_json=self.from_json)

    def make(self, value: Any) -> Any:
        """Return the value in its one form, or raise TypeError or ValueError."""
        raise NotImplementedError

    def validate(self, obj: Any, value: Any) -> Any:
        """Return the value in its one form.

        Raises
        ------
        traitlets.TraitError
            When it cannot be brought into that form.
        """
        try:
            return self.make(value)
        except (TypeError, ValueError) as error:
            raise t.TraitError(
                f"{type(obj).__name__}.{self.name} is {self.info()}, not {value!r}."
            ) from error

    def to_json(self, value: Any, owner: Any) -> Any:
        """Return the value as the browser gets it."""
        return value

    def from_json(self, value: Any, owner: Any) -> Any:
        """Return a value from the browser; `validate` looks at it afterwards."""
        return value


class NodeRef(_Sent):
    """One node, (layer, feature), or None."""

    info_text = "(layer, feature) or None"

    def make(self, value: Any) -> FeatureId | None:
        """Return a node's key or None."""
        return None if value is None else node_key(value)


class NodeList(_Sent):
    """Nodes, ((layer, feature), ...), each of them once."""

    info_text = "a list of (layer, feature)"
    default_value: Any = ()

    def make(self, value: Any) -> tuple[FeatureId, ...]:
        """Return the nodes' keys in the order given."""
        return tuple(dict.fromkeys(node_key(node) for node in _items(value)))


class Patches(_Sent):
    """Patches, ((row, column), ...); prefix token i is (-1, i)."""

    info_text = "a list of (row, column), in which prefix token i is (-1, i)"
    default_value: Any = ()

    def make(self, value: Any) -> tuple[tuple[int, int], ...]:
        """Return rows and columns in the order given, each patch once."""
        return tuple(dict.fromkeys(_pair(patch, least=(-1, 0)) for patch in _items(value)))


class Labels(_Sent):
    """Names people gave to nodes, {(layer, feature): text}."""

    info_text = "a dictionary {(layer, feature): text}"
    default_value: Any = t.Undefined

    def make_dynamic_default(self) -> Any:
        """Return a dictionary of its own for every widget."""
        return {}

    def make(self, value: Any) -> dict[FeatureId, str]:
        """Return names by node, without empty ones."""
        return {node_key(k): _text(v) for k, v in _entries(value) if _text(v)}

    def to_json(self, value: Any, owner: Any) -> Any:
        """Return [[layer, feature, text], ...]."""
        return [[*node, text] for node, text in value.items()]

    def from_json(self, value: Any, owner: Any) -> Any:
        """Return a dictionary of [[layer, feature, text], ...]."""
        return {(layer, feature): text for layer, feature, text in value}


class Groups(_Sent):
    """Named groups of nodes, {name: ((layer, feature), ...)}; a node is in one group at most."""

    info_text = (
        "a dictionary {name: [(layer, feature), ...]}, no name empty or there twice, a node in one "
        "group at most"
    )
    default_value: Any = t.Undefined

    def make_dynamic_default(self) -> Any:
        """Return a dictionary of its own for every widget."""
        return {}

    def make(self, value: Any) -> dict[str, tuple[FeatureId, ...]]:
        """Return nodes by name of the group, without empty groups."""
        nodes = NodeList()
        groups: dict[str, tuple[FeatureId, ...]] = {}
        for given, members in _entries(value):
            name = _text(given)
            if not name or name in groups:
                raise ValueError("a name is empty, or there twice")
            groups[name] = nodes.make(members)
        every = [node for members in groups.values() for node in members]
        if len(every) != len(set(every)):
            raise ValueError("a node is in two groups")
        return {name: members for name, members in groups.items() if members}

    def to_json(self, value: Any, owner: Any) -> Any:
        """Return [[name, [[layer, feature], ...]], ...]."""
        return [[name, members] for name, members in value.items()]

    def from_json(self, value: Any, owner: Any) -> Any:
        """Return a dictionary of [[name, nodes], ...]."""
        return dict(value)


class MeasuredEdges(_Sent):
    """Changes of the target, {(node, node): (predicted, measured)}; see `Verification.by_edge`."""

    info_text = "a dictionary {((layer, feature), (layer, feature)): (predicted, measured)}"
    default_value: Any = t.Undefined

    def make_dynamic_default(self) -> Any:
        """Return a dictionary of its own for every widget."""
        return {}

    def make(self, value: Any) -> dict[tuple[FeatureId, FeatureId], tuple[float, float]]:
        """Return both changes by edge."""
        edges = {}
        for (source, target), (predicted, measured) in _entries(value):
            changes = float(predicted), float(measured)
            if not all(map(math.isfinite, changes)):
                raise ValueError("a change is a finite number")
            edges[node_key(source), node_key(target)] = changes
        return edges

    def to_json(self, value: Any, owner: Any) -> Any:
        """Return [[node, node, predicted, measured], ...]."""
        return [[source, target, *changes] for (source, target), changes in value.items()]

    def from_json(self, value: Any, owner: Any) -> Any:
        """Return a dictionary of [[node, node, predicted, measured], ...]."""
        return {
            (tuple(source), tuple(target)): (predicted, measured)
            for source, target, predicted, measured in value
        }


class ImageTraits(t.HasTraits):
    """What every part that shows an image has.

    Attributes
    ----------
    picture
        One encoded image (WebP or PNG), of `n_images` pictures of equal size side by side.
    grid
        Rows and columns of patches.
    prefix_names
        Names of the tokens before the patches.
    patches
        The patches selected, ((row, column), ...); prefix token i is (-1, i).
    """

    picture = t.Bytes(b"").tag(sync=True)
    n_images = t.Int(1, min=1).tag(sync=True)
    grid = t.Tuple(t.Int(min=1), t.Int(min=1), default_value=(1, 1)).tag(sync=True)
    prefix_names = t.Tuple().tag(sync=True)
    patches = Patches()

    @t.validate("patches")
    def _patches_on_the_grid(self, proposal: Any) -> Any:
        rows, columns = self.grid
        for row, column in proposal.value:
            end = columns if row >= 0 else len(self.prefix_names)
            if row >= rows or column >= end:
                raise t.TraitError(
                    f"There is no patch ({row}, {column}): the grid has {rows} rows and {columns} "
                    f"columns, and {len(self.prefix_names)} tokens come before it."
                )
        return proposal.value


class NodeTraits(t.HasTraits):
    """What every part that shows nodes has.

    Attributes
    ----------
    selected, hovered
        One node (layer, feature), or None.
    labels
        Names people gave to nodes, {(layer, feature): text}.
    """

    selected = NodeRef()
    hovered = NodeRef()
    labels = Labels()


def node_key(value: Any) -> FeatureId:
    """Return (layer, feature) as a tuple of two int.

    Raises
    ------
    TypeError, ValueError
        When it is anything else, or a layer or feature that cannot be.
    """
    return _pair(value, least=(0, TARGET))


def _pair(value: Any, *, least: tuple[int, int]) -> tuple[int, int]:
    first, second = value
    if any(isinstance(x, bool | str) or int(x) != x for x in (first, second)):
        raise TypeError("two whole numbers are needed")
    if first < least[0] or second < least[1]:
        raise ValueError("a number is too small")
    return int(first), int(second)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, str | bytes | Mapping):
        raise TypeError("a list is needed")
    return list(value)


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if not isinstance(value, Mapping):
        raise TypeError("a dictionary is needed")
    return value.items()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is needed")
    return value.strip()

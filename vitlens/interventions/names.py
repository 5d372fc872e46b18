"""Naming features and tokens, and how much they change."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, TypeAlias

from vitlens.errors import FeatureError
from vitlens.saes.base import FeatureId

#: (row, column), or (-1, i) for prefix token i.
Position: TypeAlias = tuple[int, int]


def feature_ids(features: Any) -> tuple[FeatureId, ...]:
    """Features named in any of the ways that interventions take, each once.

    Parameters
    ----------
    features
        (layer, feature), a node with a `key`, or several of them.

    Raises
    ------
    FeatureError
        If there are none, one is an error node, or something else is given.
    """
    one = _pair(getattr(features, "key", features))
    named = [features] if one else listed(features)
    keys = []
    for item in named:
        key = _pair(getattr(item, "key", item))
        if key is None or key[0] < 0 or key[1] < -1:
            raise FeatureError(f"A feature is named (layer, feature), not {item!r}.")
        if key[1] == -1:
            raise FeatureError(
                f"({key[0]}, -1) is an error node. What error nodes hold is said by `errors`."
            )
        keys.append(key)
    if not keys:
        raise FeatureError("An intervention needs at least one feature.")
    return tuple(dict.fromkeys(keys))


def patch_keys(patches: Any) -> tuple[Position, ...] | None:
    """Tokens, each once: (row, column), (-1, i), or several of them; None for all.

    Raises
    ------
    FeatureError
        If there are none, or something else is given.
    """
    if patches is None:
        return None
    named = [patches] if _pair(patches) else listed(patches)
    pairs = []
    for item in named:
        pair = _pair(item)
        if pair is None or pair[0] < -1 or pair[1] < 0:
            raise FeatureError(
                f"A patch is (row, column), a prefix token (-1, number), not {item!r}."
            )
        pairs.append(pair)
    if not pairs:
        raise FeatureError("An intervention on no patch does nothing; None means every token.")
    return tuple(dict.fromkeys(pairs))


def finite_number(value: Any) -> float | None:
    """Return a number of Python's, NumPy's or PyTorch's; None for anything else that is given."""
    if getattr(value, "requires_grad", False):  # which would be lost
        return None
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)


def listed(value: Any) -> list[Any]:
    """What is in a collection; something that is none, alone."""
    try:
        return list(value)
    except TypeError:
        return [value]


def _pair(item: Any) -> tuple[int, int] | None:
    """Return two whole numbers as such, anything else as None."""
    try:
        first, second = item
        if isinstance(first, bool) or isinstance(second, bool):
            return None
        return operator.index(first), operator.index(second)
    except (TypeError, ValueError):
        return None

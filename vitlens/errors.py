"""Exceptions, one class per kind of error; all of them are a `VitlensError`."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral


class VitlensError(Exception):
    """Base class of vitlens errors; the message says what was wrong and what to do."""


class ImageError(VitlensError, ValueError):
    """An image that cannot be read, or does not fit the model."""


class ModelError(VitlensError, ValueError):
    """A model that is unknown, or of a kind that cannot be handled."""


class CheckpointError(VitlensError, ValueError):
    """A file of weights, features or results that is missing, damaged or of another kind."""


class TargetError(VitlensError, ValueError):
    """A target that is neither a class of the model nor a scalar function of its output."""


class FeatureError(VitlensError, IndexError):
    """Features out of range, or a selection of them of the wrong shape."""


class GroupError(VitlensError, ValueError):
    """Groups of images that are empty, incomplete, or not distinct."""


class NetworkError(VitlensError, OSError):
    """A download that failed, or was needed while offline."""


def near_matches(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x' or 'y'?" for the closest of `names`, or "" when none is close.

    Parameters
    ----------
    name
        The requested name.
    names
        The available names. Case is ignored in the comparison.

    Returns
    -------
    str
        A sentence with a leading space, to append to an error message.
    """
    by_lower = {candidate.lower(): candidate for candidate in names}
    found = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if not found:
        return ""
    quoted = [repr(by_lower[match]) for match in found]
    head = ", ".join(quoted[:-1])
    return f" Did you mean {head} or {quoted[-1]}?" if head else f" Did you mean {quoted[0]}?"


class OptionError(VitlensError, ValueError):
    """An option with a value that is not one of its choices."""


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Raise `FeatureError` unless `value` is a whole number that is large enough.

    Parameters
    ----------
    name
        The argument's name, for the message.
    value
        The value that the caller passed.
    least
        The smallest value that is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise FeatureError(f"{name} must be a whole number and at least {least}, not {value!r}.")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise `OptionError` unless `value` is one of `choices`.

    Parameters
    ----------
    name
        The option's name, for the message.
    value
        The value that the caller passed.
    choices
        The values that are allowed.
    """
    known = tuple(choices)
    if value not in known:
        hint = near_matches(value, known) if isinstance(value, str) else ""
        raise OptionError(f"{name} must be one of {', '.join(known)}, not {value!r}.{hint}")

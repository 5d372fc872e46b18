"""What is explained: a scalar of the model's output."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.errors import TargetError, near_matches

TargetLike = int | str | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class Target:
    """A scalar of the logits.

    Attributes
    ----------
    name
        What to call it: the class, or the function's name.
    index
        The class, or None for a function.
    function
        Logits of one image, [C], to a scalar tensor.
    """

    name: str
    index: int | None
    function: Callable[[Float[Tensor, " C"]], Float[Tensor, ""]]


def centred_logit(index: int) -> Callable[[Float[Tensor, " C"]], Float[Tensor, ""]]:
    """Return the default target of a class: its logit minus the mean of all logits."""
    return lambda logits: logits[..., index] - logits.mean(-1)


def resolve_target(
    target: TargetLike, logits: Float[Tensor, " C"], class_names: Sequence[str] | None = None
) -> Target:
    """Make a `Target` of what the user gave.

    Parameters
    ----------
    target
        A class index, a class name, a function from the logits [C] of one image to a scalar,
        or None for the predicted class.
    logits
        The model's output on the image, [C].
    class_names
        Names of the C classes, if known.

    Raises
    ------
    TargetError
        If there is no such class (near matches are named), several go by the name, the function
        gives no finite scalar, or a class is asked for where there is one logit.
    """
    n_classes = logits.shape[-1]
    if callable(target):
        return _of_function(target, logits)
    index = int(logits.argmax()) if target is None else find_class(target, n_classes, class_names)
    if n_classes == 1:
        raise TargetError(
            "The model has one logit, and a class stands for its logit minus the mean of all: "
            "always 0. Give a function: `target=lambda y: y[0]`."
        )
    name = class_names[index] if class_names else f"class {index}"
    return Target(name, index, centred_logit(index))


def _of_function(function: Callable[[Tensor], Tensor], logits: Float[Tensor, " C"]) -> Target:
    def scalar(logits: Float[Tensor, " C"]) -> Tensor:
        # On a copy: the function may work in place.
        value = function(logits.clone())
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TargetError(
                f"A target function must return a tensor with one number, got {what}; it receives "
                f"the logits of one image, [{len(logits)}]."
            )
        return value.reshape(())

    if not torch.isfinite(scalar(logits.detach())):
        raise TargetError("The target function returned NaN or infinity on this image.")
    return Target(getattr(function, "__name__", "target"), None, scalar)


def find_class(label: int | str, n_classes: int, class_names: Sequence[str] | None = None) -> int:
    """Index of a class given by index or name; case counts only where it tells two names apart.

    Raises
    ------
    TargetError
        If there is no such class (near matches are named), or several go by the name.
    """
    if isinstance(label, str):
        return _index_of(label, class_names)
    try:
        index = operator.index(label)
    except TypeError:
        raise TargetError(
            f"A target is a class index, a class name or a function of the logits, not {label!r}."
        ) from None
    if not 0 <= index < n_classes:
        raise TargetError(f"The model has classes 0 to {n_classes - 1}; there is no class {index}.")
    return index


def _index_of(name: str, class_names: Sequence[str] | None) -> int:
    if not class_names:
        raise TargetError(
            f"There are no class names to look {name!r} up in. Give the class index, or pass "
            "`class_names` to the Lens."
        )
    exact = [i for i, known in enumerate(class_names) if known == name]
    found = exact or [i for i, known in enumerate(class_names) if known.lower() == name.lower()]
    if not found:
        few = f" Classes: {', '.join(class_names)}." if len(class_names) <= 12 else ""
        raise TargetError(f"There is no class {name!r}.{near_matches(name, class_names)}{few}")
    if len(found) > 1:
        which = " and ".join(f"{i} ({class_names[i]!r})" for i in found)
        raise TargetError(f"{name!r} may be any of the classes {which}. Give the index of one.")
    return found[0]

"""The user's own model with interventions, inside a `with` block; and kept apart from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vitlens.errors import FeatureError
from vitlens.interventions.run import Plan
from vitlens.method.replacement import ReplacedPass
from vitlens.models.vision import VisionModel, on_the_cpu
from vitlens.saes.base import SAE

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


@dataclass(eq=False)
class _Active:
    """What is done to one model in one thread."""

    plans: list[Plan]
    paused: bool = False
    passing: ReplacedPass | None = None
    next_layer: int = 0
    handles: list[Any] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model, deep or pickled, carries its hooks along; there they do nothing.
        return _Active, ([], True)

    def after_block(
        self,
        layer: int,
        thread: int,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        stream: Tensor,
    ) -> Tensor:
        if self.paused or threading.get_ident() != thread:
            return stream
        # A pass that starts again or was cut off: nothing of the one before may be used.
        if self.passing is None or layer != self.next_layer or layer == 0:
            self.passing = self.plans[-1].passing()
        self.next_layer = layer + 1
        # `forward` itself, so that hooks see only the changed stream.
        again = partial(_again, block, args[1:], kwargs)
        return self.passing.after_block(layer, stream, again)


_active: WeakKeyDictionary[nn.Module, dict[int, _Active]] = WeakKeyDictionary()


def outer_plan(model: nn.Module, saes: Sequence[SAE]) -> Plan | None:
    """What is done to a model in this thread at present.

    Raises
    ------
    FeatureError
        If it is done by features of other SAEs.
    """
    active = _in_this_thread(model)
    if active is None:
        return None
    if active.plans[-1].replacement.saes is not saes:
        raise FeatureError(
            "Another lens is already intervening on this model, and its features differ."
        )
    return active.plans[-1]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the untouched model, even inside a `Lens.intervene` block."""
    active = _in_this_thread(model)
    if active is None or active.paused:
        yield
        return
    active.paused = True
    try:
        yield
    finally:
        active.paused = False


@contextmanager
def intervening(plan: Plan) -> Iterator[None]:
    """Run the model's own forward pass by a plan; see `Lens.intervene`.

    Parameters
    ----------
    plan
        All that is to be done, what `outer_plan` does included.

    Raises
    ------
    FeatureError
        See `Plan.passing`.
    """
    plan.passing()  # what one forward pass cannot do is refused before the block begins
    model, thread = plan.replacement.vision.module, threading.get_ident()
    by_thread = _active.setdefault(model, {})
    active = by_thread.get(thread)
    if active is None:
        active = by_thread[thread] = _Active([])
        hook = active.after_block
        active.handles = [
            block.register_forward_hook(partial(hook, layer, thread), with_kwargs=True)
            for layer, block in enumerate(plan.replacement.vision.blocks)
        ]
    active.plans.append(plan)
    active.passing = None
    try:
        yield
    finally:
        # Not the last one where blocks are closed in another order than they were opened.
        active.plans = [other for other in active.plans if other is not plan]
        active.passing = None
        if not active.plans:
            for handle in active.handles:
                handle.remove()
            del by_thread[thread]


@contextmanager
def isolated_model(vision: VisionModel) -> Iterator[None]:
    """Context whose results do not depend on the surrounding contexts.

    Inside, interventions of `Lens.intervene` rest, and neither `torch.inference_mode` nor
    `torch.autocast` nor `torch.set_default_device` has an effect. (Nor has `torch.no_grad`:
    attribution asks for gradients.)
    """
    with (
        on_the_cpu(),
        untouched(vision.module),
        torch.inference_mode(False),
        torch.autocast(vision.device.type, enabled=False),
    ):
        yield


def isolated(verb: _Verb) -> _Verb:
    """Make a method of a lens run in `isolated_model`."""

    @wraps(verb)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with isolated_model(self.vision):
            return verb(self, *args, **kwargs)

    return cast(_Verb, wrapped)


def _in_this_thread(model: nn.Module) -> _Active | None:
    return _active.get(model, {}).get(threading.get_ident())


def _again(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    return block.forward(x, *args, **kwargs)

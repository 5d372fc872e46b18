"""What a lens tells of a model depends on the model alone, not on where it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch

from vitlens.interventions.hooks import untouched
from vitlens.models.vision import VisionModel

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


@contextmanager
def alone(vision: VisionModel) -> Iterator[None]:
    """Context in which results are the same whatever is open around it.

    Inside, interventions of `Lens.intervene` rest, and neither `torch.inference_mode` nor
    `torch.autocast` has an effect. (Nor has `torch.no_grad`: attribution asks for gradients.)
    """
    with (
        untouched(vision.module),
        torch.inference_mode(False),
        torch.autocast(vision.device.type, enabled=False),
    ):
        yield


def isolated(verb: _Verb) -> _Verb:
    """Make a method of a lens run `alone`."""

    @wraps(verb)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with alone(self.vision):
            return verb(self, *args, **kwargs)

    return cast(_Verb, wrapped)

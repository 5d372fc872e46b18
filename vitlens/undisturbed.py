"""What a lens tells of a model depends on the model alone, not on where it is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

from vitlens.interventions.hooks import untouched

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def undisturbed(verb: _Verb) -> _Verb:
    """Make a method of a lens give the same whatever is open around the call.

    Inside, interventions of `Lens.intervene` rest, and neither `torch.inference_mode` nor
    `torch.no_grad` nor `torch.autocast` has an effect.
    """

    @wraps(verb)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        with (
            untouched(self.vit.model),
            torch.inference_mode(False),
            torch.autocast(self.vit.device.type, enabled=False),
        ):
            return verb(self, *args, **kwargs)

    return cast(_Verb, alone)

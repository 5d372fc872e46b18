"""What a lens tells of a model depends on the model alone, not on where it is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from vitlens.interventions.hooks import untouched

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def undisturbed(verb: _Verb) -> _Verb:
    """Make a method of a lens run on the untouched model, also inside `Lens.intervene`."""

    @wraps(verb)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        with untouched(self.vit.model):
            return verb(self, *args, **kwargs)

    return cast(_Verb, alone)

"""Forward- and reverse-mode derivatives, typed: torch.func's own signatures promise too little."""

import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# torch keeps the level of forward-mode derivatives in a global, which threads would share.
_LEVEL = threading.RLock()


def pullback(function: Callable[..., Any], *point: Any) -> Callable[[Any], Any]:
    """Function from a cotangent of the output to the tuple of cotangents of the arguments."""
    with torch.enable_grad():
        pulled: Any = torch.func.vjp(function, *point)
    pull: Callable[[Any], Any] = pulled[1]
    return pull


def pushforward(function: Callable[[Any], Any], point: Any, tangent: Any) -> Any:
    """Change of the output when the argument moves by `tangent`."""
    with _LEVEL:
        _prepare()
        pushed: Any = torch.func.jvp(function, (point,), (tangent,))
    return pushed[1]


@cache
def _prepare() -> None:
    """Use forward mode once: torch then loads scripts of its own, and warns about how it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))

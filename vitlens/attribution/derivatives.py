"""Forward- and reverse-mode derivatives, typed: torch.func's own signatures promise too little."""

from collections.abc import Callable
from typing import Any

import torch


def pullback(function: Callable[..., Any], *point: Any) -> Callable[[Any], Any]:
    """Function from a cotangent of the output to the tuple of cotangents of the arguments."""
    with torch.enable_grad():
        pulled: Any = torch.func.vjp(function, *point)
    pull: Callable[[Any], Any] = pulled[1]
    return pull


def pushforward(function: Callable[[Any], Any], point: Any, tangent: Any) -> Any:
    """Change of the output when the argument moves by `tangent`."""
    pushed: Any = torch.func.jvp(function, (point,), (tangent,))
    return pushed[1]

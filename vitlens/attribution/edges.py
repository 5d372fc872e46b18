"""Edges between two adjacent layers, by an engine of choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution import exact, jvp, vjp
from vitlens.attribution.pair import LayerPair
from vitlens.errors import ModelError

Engine = Literal["closed_form", "jvp", "vjp"]

ENGINES: dict[Engine, Callable[[LayerPair], Float[Tensor, "F+1 n"]]] = {
    "closed_form": exact.edges,
    "jvp": jvp.edges,
    "vjp": vjp.edges,
}


def compute_edges(pair: LayerPair, engine: Engine) -> Float[Tensor, "F+1 n"]:
    """Edge importances of one layer pair, the error node's row last.

    Parameters
    ----------
    engine
        "closed_form": closed form, all sources at once; "jvp": forward mode, one tangent a source;
        "vjp": reverse mode, one cotangent a target. They agree.

    Raises
    ------
    ModelError
        If the engine is unknown, "closed_form" does not know the block, or the numbers overflow.
    """
    if engine not in ENGINES:
        raise ModelError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}.")
    active = (pair.weights != 0)[:, pair.targets].any(0)
    result = pair.stream.new_zeros(pair.coefficients.shape[1] + 1, len(pair.targets))
    if active.any():
        with torch.no_grad():
            result[:, active] = ENGINES[engine](replace(pair, targets=pair.targets[active]))
    if not torch.isfinite(result).all():
        raise ModelError(
            f"Edges hold NaN or infinity: they do not fit into {result.dtype}. Load the model in"
            " float32."
        )
    return result

"""Reverse-mode engine: one cotangent a target feature, in chunks.

This is what the RRM release does with `jacrev`. It works for any block and any gradient, and is
slow: the reference the other engines are tested against.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution.pair import LayerPair
from vitlens.method.derivatives import pullback

_CHUNK = 64


def edges(pair: LayerPair) -> Float[Tensor, "F+1 n"]:
    """Edges from every source to the wanted targets; see `LayerPair` for the shapes."""
    n = len(pair.targets)
    columns = []
    # The forward pass runs once; each chunk pulls its cotangents back through the same graph.
    pull = pullback(pair.target_sums, pair.stream[None])
    for chunk in torch.eye(n, dtype=pair.stream.dtype, device=pair.stream.device).split(_CHUNK):
        (rows,) = torch.func.vmap(pull)(chunk)
        rows = rows[:, 0]
        onto_features = torch.einsum("ntf,tf->fn", rows @ pair.directions.T, pair.coefficients)
        onto_error = torch.einsum("ntd,td->n", rows, pair.error)
        columns.append(torch.cat([onto_features, onto_error[None]]))
    return torch.cat(columns, dim=1)

"""Forward-mode engine: one tangent a source feature, all its tokens together.

Works for any block and any gradient; the cost grows with the number of active sources
(RRM paper: the trick that makes pruned circuits cheap).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution.pair import LayerPair
from vitlens.method.derivatives import pushforward

_CHUNK = 32


def edges(pair: LayerPair) -> Float[Tensor, "F+1 n"]:
    """Edges from every source to the wanted targets; see `LayerPair` for the shapes."""
    stream = pair.stream[None]

    def push(tangent: Float[Tensor, "T D"]) -> Float[Tensor, " n"]:
        out: Tensor = pushforward(pair.target_sums, stream, tangent[None])
        return out

    sources = pair.active_sources()
    result = pair.stream.new_zeros(pair.coefficients.shape[1] + 1, len(pair.targets))
    for chunk in sources.split(_CHUNK):
        result[chunk] = torch.func.vmap(push)(pair.source_directions(chunk))
    return result

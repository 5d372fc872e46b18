"""One pair of adjacent layers, and the contract that every engine fulfils."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.attribution.gradients import Gradient, backward_rules
from vitlens.errors import ModelError
from vitlens.models.adapter import Block, ViT
from vitlens.saes.topk import TopKSAE

Engine = Literal["exact", "jvp", "vjp"]


@dataclass(frozen=True)
class LayerPair:
    """Everything an engine needs to compute the edges from layer l to layer l+1.

    Attributes
    ----------
    vit, block
        The model, and its block l+1.
    gradient
        "libragrad" or "plain".
    stream
        Residual stream at layer l, [T, D].
    coefficients
        How far along its decoder row each source feature reaches, (z_l - baseline) sd_l, [T, F_l].
    directions
        Decoder rows of the source features, [F_l, D].
    error
        The error node's own direction, e_l - baseline, [T, D].
    sae
        The SAE of layer l+1.
    weights
        What a unit of each target feature counts, G_{l+1}, [T, F_{l+1}].
    targets
        Target features wanted, [n], in the order of the result's columns.
    """

    vit: ViT
    block: Block
    gradient: Gradient
    stream: Float[Tensor, "T D"]
    coefficients: Float[Tensor, "T F"]
    directions: Float[Tensor, "F D"]
    error: Float[Tensor, "T D"]
    sae: TopKSAE
    weights: Float[Tensor, "T G"]
    targets: Int[Tensor, " n"]

    def target_sums(self, stream: Float[Tensor, "1 T D"]) -> Float[Tensor, " n"]:
        """Weighted activation of each wanted target feature, summed over tokens."""
        with backward_rules(self.vit, self.gradient):
            out = self.block(stream)[0]
        return (self.sae.encode(out) * self.weights).sum(0)[self.targets]

    def active_sources(self) -> Int[Tensor, " m"]:
        """Features that differ from their baseline somewhere, then F_l for the error node."""
        active = (self.coefficients != 0).any(0).nonzero().squeeze(1)
        return torch.cat([active, active.new_tensor([self.coefficients.shape[1]])])

    def source_directions(self, sources: Int[Tensor, " m"]) -> Float[Tensor, "m T D"]:
        """Direction in the stream of whole source features, over all tokens."""
        out = self.stream.new_empty(len(sources), *self.stream.shape)
        is_error = sources == self.coefficients.shape[1]
        features = sources[~is_error]
        out[~is_error] = self.coefficients.T[features, :, None] * self.directions[features, None]
        out[is_error] = self.error
        return out


EngineFunction = Callable[[LayerPair], Float[Tensor, "F+1 n"]]


def compute_edges(pair: LayerPair, engine: Engine) -> Float[Tensor, "F+1 n"]:
    """Edge importances of one layer pair, the error node's row last.

    Parameters
    ----------
    engine
        "exact": closed form, all sources at once; "jvp": forward mode, one tangent a source;
        "vjp": reverse mode, one cotangent a target. They agree.

    Raises
    ------
    ModelError
        If the engine is unknown, or "exact" does not know the block.
    """
    from vitlens.attribution import exact, jvp, vjp

    engines: dict[str, EngineFunction] = {
        "exact": exact.edges,
        "jvp": jvp.edges,
        "vjp": vjp.edges,
    }
    if engine not in engines:
        raise ModelError(f"engine must be one of {get_args(Engine)}, not {engine!r}.")
    active = (pair.weights != 0)[:, pair.targets].any(0)
    result = pair.stream.new_zeros(pair.coefficients.shape[1] + 1, len(pair.targets))
    if active.any():
        with torch.no_grad():
            result[:, active] = engines[engine](replace(pair, targets=pair.targets[active]))
    return result

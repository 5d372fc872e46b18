"""One pair of adjacent layers: what every engine gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.attribution.gradients import Gradient, backward_rules
from vitlens.models.vision import Block, VisionModel
from vitlens.saes.topk import TopKSAE


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
        What a unit of each target feature counts, G_{l+1}, [T, F_{l+1}]; 0 where it is not among
        the token's k on this image.
    active
        Which features of layer l+1 are among the token's k on this image, [T, F_{l+1}].
    targets
        Target features wanted, [n], in the order of the result's columns.
    """

    vision: VisionModel
    block: Block
    gradient: Gradient
    stream: Float[Tensor, "T D"]
    coefficients: Float[Tensor, "T F"]
    directions: Float[Tensor, "F D"]
    error: Float[Tensor, "T D"]
    sae: TopKSAE
    weights: Float[Tensor, "T G"]
    active: Bool[Tensor, "T G"]
    targets: Int[Tensor, " n"]

    def target_sums(self, stream: Float[Tensor, "1 T D"]) -> Float[Tensor, " n"]:
        """Weighted activation of each wanted target feature, summed over tokens."""
        with backward_rules(self.vision, self.gradient):
            out = self.block(stream)[0]
        features = self.sae.encode_with_stats(out, active=self.active).features
        return (features * self.weights).sum(0)[self.targets]

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

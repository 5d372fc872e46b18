"""Losses of the SAEs of all layers, each alone and one after another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.models.vision import VisionModel
from vitlens.saes.topk import TopKSAE


@dataclass(frozen=True)
class ChainLosses:
    """How far SAEs are from the model, alone and one after another.

    Attributes
    ----------
    alone
        Per layer, the share of the stream's variance in the batch that the SAE leaves unexplained.
    chain
        The same, of the stream that comes through the SAEs of all earlier layers and this one; it
        is compared with the model's own.
    output
        Kullback-Leibler divergence of the outputs' softmax, with all SAEs and no error nodes,
        from the model's, in nats a picture.
    aux
        AuxK: per layer, the share of the stream's variance that is left when the strongest dead
        features have explained what they can of the SAE's error alone; 0 where none is dead. The
        error is a constant, so that only what the dead features add has a gradient.
    active
        Per layer, which features were active on a token of the model's own stream.
    """

    alone: Float[Tensor, " layers"]
    chain: Float[Tensor, " layers"]
    output: Float[Tensor, ""]
    aux: Float[Tensor, " layers"]
    active: tuple[Bool[Tensor, " F"], ...]


def chain_losses(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    images: Float[Tensor, "n 3 H W"],
    *,
    dead: Sequence[Int[Tensor, " n_dead"]] | None = None,
    aux_features: int = 256,
    bfloat16: bool = False,
) -> ChainLosses:
    """Losses of a batch, with gradients to the weights of the SAEs.

    As everywhere, each token's standard deviation is a constant in the backward pass.

    Parameters
    ----------
    vit
        The model.
    saes
        Of layers 0 to B-2.
    images
        Model inputs.
    dead
        Per layer, indices of the dead features; none if left out.
    aux_features
        Most dead features that take part in `aux` on one token.
    bfloat16
        Run matrix products in bfloat16 (autocast).

    Notes
    -----
    AuxK: Gao et al., arXiv 2406.04093, section 2.4.
    """
    dtype = saes[0].W_enc.dtype
    low = torch.autocast(vision.device.type, torch.bfloat16) if bfloat16 else nullcontext()
    alone, chain, aux, active = [], [], [], []
    with low:
        with torch.no_grad():
            stem = vision.embed(images.to(device=vision.device, dtype=vision.dtype))
        own = replaced = stem.tokens
        for layer, block in enumerate(stem.blocks):
            with torch.no_grad():
                own = block(own)
            replaced = block(replaced.to(vision.dtype)) if layer else own
            if layer < len(saes):
                truth = own.to(dtype)
                # One pass through the SAE for both: it is the larger half of the work.
                both = saes[layer](torch.cat([replaced.to(dtype), truth]))
                replaced, rebuilt = both.reconstruction.chunk(2)
                total = (truth - truth.mean((0, 1))).square().sum()
                alone.append((rebuilt - truth).square().sum() / total)
                chain.append((replaced - truth).square().sum() / total)
                active.append((both.features.detach().chunk(2)[1] > 0).flatten(0, -2).any(0))
                silent = None if dead is None else dead[layer]
                error = (truth - rebuilt).detach()
                left = _left_by_dead(saes[layer], truth, error, silent, aux_features)
                aux.append(left / total)
        with torch.no_grad():
            expected = vision.readout(own).to(dtype).log_softmax(-1)
        found = vision.readout(replaced).to(dtype).log_softmax(-1)
    output = F.kl_div(found, expected, log_target=True, reduction="batchmean")
    return ChainLosses(
        torch.stack(alone), torch.stack(chain), output, torch.stack(aux), tuple(active)
    )


def _left_by_dead(
    sae: TopKSAE,
    stream: Float[Tensor, "n T D"],
    error: Float[Tensor, "n T D"],
    dead: Int[Tensor, " n_dead"] | None,
    aux_features: int,
) -> Float[Tensor, ""]:
    """Squared error that remains when the strongest dead features have explained some of it."""
    if dead is None or not len(dead) or not aux_features:
        return error.new_zeros(())
    normal = sae.normalize(stream)
    pre = (normal.values - sae.b_dec) @ sae.W_enc[:, dead]
    top, index = pre.relu().topk(min(aux_features, len(dead)), dim=-1)
    features = torch.zeros_like(pre).scatter(-1, index, top)
    return (features @ sae.W_dec[dead] * normal.std - error).square().sum()

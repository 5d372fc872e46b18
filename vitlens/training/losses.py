"""The losses of end-to-end tuning: each SAE alone, and all of them one after another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.method.replacement import FromSite, ReplacementModel, SiteState
from vitlens.models.vision import Block, Stem, VisionModel
from vitlens.saes.base import SAE


@dataclass(frozen=True)
class ChainLosses:
    """Distances of the SAEs from the model, alone and one after another.

    Attributes
    ----------
    alone
        Per site, the share of the stream's variance in the batch that the SAE leaves unexplained.
    chain
        The same for the stream that has passed all SAEs up to this one, compared with the model's
        own stream.
    output
        Kullback-Leibler divergence of the outputs' softmax, with all SAEs and no error nodes,
        from the model's, in nats per image.
    aux
        AuxK: per site, the share of the stream's variance that is left when the strongest dead
        features have explained what they can of the SAE's error alone; 0 where none is dead. The
        error is a constant, so that only what the dead features add has a gradient.
    active
        Per site, which features were active on a token of the model's own stream.
    """

    alone: Float[Tensor, " sites"]
    chain: Float[Tensor, " sites"]
    output: Float[Tensor, ""]
    aux: Float[Tensor, " sites"]
    active: tuple[Bool[Tensor, " F"], ...]


def chain_losses(
    replacement: ReplacementModel,
    images: Float[Tensor, "n 3 H W"],
    *,
    dead: Sequence[Int[Tensor, " n_dead"]] | None = None,
    aux_features: int = 256,
    bfloat16: bool = False,
) -> ChainLosses:
    """Losses of a batch, with gradients to the weights of the SAEs.

    The chain is the replaced run without error nodes. As everywhere, standard deviations and
    masks are constants in the backward pass.

    Parameters
    ----------
    replacement
        The model and its SAEs.
    images
        Model inputs.
    dead
        Per site, indices of the dead features; none if left out.
    aux_features
        Most dead features that take part in `aux` on one token.
    bfloat16
        Run matrix products in bfloat16 (autocast).

    Notes
    -----
    AuxK: Gao et al., arXiv 2406.04093, section 2.4.
    """
    vision, saes = replacement.vision, replacement.saes
    dtype = saes[0].W_enc.dtype
    low = torch.autocast(vision.device.type, torch.bfloat16) if bfloat16 else nullcontext()
    chain: list[Tensor] = []
    alone, aux, active = [], [], []
    with low:
        images = images.to(device=vision.device, dtype=vision.dtype)
        *streams, output = vision.residuals(images, (*replacement.layers, vision.depth - 1))
        if replacement.layers[-1] == vision.depth - 1:
            streams.append(output)
        truths = [stream.to(dtype) for stream in streams]
        totals = [(truth - truth.mean((0, 1))).square().sum() for truth in truths]
        for position, (sae, truth, total) in enumerate(zip(saes, truths, totals, strict=True)):
            out = sae(truth)
            alone.append(out.error.square().sum() / total)
            active.append((out.features.detach() > 0).flatten(0, -2).any(0))
            silent = None if dead is None else dead[position]
            aux.append(_left_by_dead(sae, truth, out.error.detach(), silent, aux_features) / total)

        def observe(state: SiteState, replaced: Tensor) -> None:
            error = replaced - truths[state.position]
            chain.append(error.square().sum() / totals[state.position])

        start = FromSite(0, streams[0])
        found = replacement.run(start, error_nodes="zero", observe=observe, grad=True)
        with torch.no_grad():
            expected = vision.readout(output).to(dtype).log_softmax(-1)
    divergence = F.kl_div(
        found.to(dtype).log_softmax(-1), expected, log_target=True, reduction="batchmean"
    )
    return ChainLosses(
        torch.stack(alone), torch.stack(chain), divergence, torch.stack(aux), tuple(active)
    )


def _left_by_dead(
    sae: SAE,
    stream: Float[Tensor, "n T D"],
    error: Float[Tensor, "n T D"],
    dead: Int[Tensor, " n_dead"] | None,
    aux_features: int,
) -> Float[Tensor, ""]:
    """Squared error that remains when the strongest dead features have explained some of it."""
    if dead is None or not len(dead) or not aux_features:
        return error.new_zeros(())
    normal = sae.normalize(stream)
    pre = sae.pre_activations(normal.values)[..., dead]
    top, index = pre.relu().topk(min(aux_features, len(dead)), dim=-1)
    features = torch.zeros_like(pre).scatter(-1, index, top)
    return (features @ sae.W_dec[dead] * normal.std - error).square().sum()


class PromotedModel(VisionModel):
    """A model in half precision as SAEs in single precision see it.

    Blocks and read-out compute in the model's own precision; the stream between them is in single
    precision.

    Parameters
    ----------
    vision
        The model, which is not changed.
    dtype
        Dtype of the stream.
    """

    def __init__(self, vision: VisionModel, dtype: torch.dtype) -> None:
        self.__dict__.update(vision.__dict__)
        self._own, self._dtype = vision.dtype, dtype

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of images, stream and logits."""
        return self._dtype

    def embed(self, images: Float[Tensor, "n 3 H W"]) -> Stem:
        """As `VisionModel.embed`, with promoted tokens and blocks."""
        stem = super().embed(images.to(self._own))
        blocks = tuple(partial(self._run, block) for block in stem.blocks)
        return Stem(stem.tokens.to(self._dtype), blocks)

    def readout(self, tokens: Float[Tensor, "n T D"]) -> Float[Tensor, "n C"]:
        """As `VisionModel.readout`, with promoted logits."""
        return super().readout(tokens.to(self._own)).to(self._dtype)

    def _run(self, block: Block, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n T D"]:
        return block(stream.to(self._own)).to(self._dtype)


def promoted(vision: VisionModel, dtype: torch.dtype) -> VisionModel:
    """The model with its stream in a precision; the model itself where it has it already."""
    return vision if vision.dtype == dtype else PromotedModel(vision, dtype)

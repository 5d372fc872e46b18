"""The losses of end-to-end tuning: each SAE alone, all of them in a chain, and small circuits.

The loss of small circuits asks that a few features carry the answer. On every image the M features
of a site that differ most from their means are kept, all others are at their means::

    C_i  = top M of { f active: sum_t (z_i[t, f] - z_bar_i[t, f])^2 }
    loss = KL( softmax(model) || softmax(r(C)) )                                  (49)

with r(C) the replaced run (9) that keeps C, error nodes at the model's own values or at their
means, and M drawn at random for every batch.

Source: docs/method.md, "SAEs for small circuits".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.method.replacement import (
    Baselines,
    ErrorNodes,
    FromSite,
    KeepFeatures,
    ReplacementModel,
    SiteState,
    Trace,
)
from vitlens.models.vision import Block, Stem, VisionModel
from vitlens.saes.base import SAE

# Weight of the batches so far in running means, once there are many.
_MEMORY = 0.98


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
    circuit
        Equation (49), in nats per image; 0 where it was not requested.
    means
        With `circuit`, the running means with this batch.
    """

    alone: Float[Tensor, " sites"]
    chain: Float[Tensor, " sites"]
    output: Float[Tensor, ""]
    aux: Float[Tensor, " sites"]
    active: tuple[Bool[Tensor, " F"], ...]
    circuit: Float[Tensor, ""]
    means: RunningMeans | None


@dataclass(frozen=True)
class RunningMeans:
    """Means of features and error nodes at each position, over the latest batches.

    Attributes
    ----------
    n_batches
        Batches so far. All count equally at first; later ones fade out.
    features, errors
        Per site, [T, F_i] and [T, D].
    """

    n_batches: int = 0
    features: tuple[Float[Tensor, "T F"], ...] = ()
    errors: tuple[Float[Tensor, "T D"], ...] = ()

    def after(
        self, features: Sequence[Float[Tensor, "n T F"]], errors: Sequence[Float[Tensor, "n T D"]]
    ) -> RunningMeans:
        """Return the means with one more batch."""
        weight = max(1 / (self.n_batches + 1), 1 - _MEMORY)

        def moved(known: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
            now = [values.detach().mean(0) for values in batch]
            return tuple(
                torch.lerp(old, new, weight) for old, new in zip(known or now, now, strict=True)
            )

        return RunningMeans(
            self.n_batches + 1, moved(self.features, features), moved(self.errors, errors)
        )

    def to_tensors(self, layers: Sequence[int]) -> dict[str, Tensor]:
        """Tensors by name, for a file."""
        found = {"n_batches": torch.tensor(self.n_batches)}
        for layer, z, e in zip(layers, self.features, self.errors, strict=True):
            found |= {f"{layer}.features": z, f"{layer}.errors": e}
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], layers: Sequence[int]) -> RunningMeans:
        """Read what `to_tensors` gave; no means where there are no tensors."""
        if not tensors:
            return cls()
        return cls(
            int(tensors["n_batches"]),
            tuple(tensors[f"{layer}.features"] for layer in layers),
            tuple(tensors[f"{layer}.errors"] for layer in layers),
        )


@dataclass(frozen=True)
class SmallCircuits:
    """What the loss of small circuits keeps, in one batch.

    Attributes
    ----------
    n_features
        M, features kept per site.
    error_nodes
        "clean", or "baseline": their means.
    means
        Running means over the batches so far.
    """

    n_features: int
    error_nodes: ErrorNodes
    means: RunningMeans


def chain_losses(
    replacement: ReplacementModel,
    images: Float[Tensor, "n 3 H W"],
    *,
    dead: Sequence[Int[Tensor, " n_dead"]] | None = None,
    aux_features: int = 256,
    bfloat16: bool = False,
    circuits: SmallCircuits | None = None,
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
    circuits
        The small circuits of this batch; without them their loss is left out.

    Notes
    -----
    AuxK: Gao et al., arXiv 2406.04093, section 2.4.
    """
    vision, saes = replacement.vision, replacement.saes
    dtype = saes[0].W_enc.dtype
    low: AbstractContextManager[Any] = nullcontext()
    if bfloat16:
        # Without the cache of weights: inside another autocast block it is never cleared, and
        # every step would use the weights of the first.
        low = torch.autocast(vision.device.type, torch.bfloat16, cache_enabled=False)
    chain: list[Tensor] = []
    alone, aux, active, features, errors = [], [], [], [], []
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
            if circuits is not None:
                features.append(out.features.detach().to(dtype))
                errors.append(out.error.detach().to(dtype))
            silent = None if dead is None else dead[position]
            aux.append(_left_by_dead(sae, truth, out.error.detach(), silent, aux_features) / total)

        def observe(state: SiteState, replaced: Tensor) -> None:
            error = replaced - truths[state.position]
            chain.append(error.square().sum() / totals[state.position])

        start = FromSite(0, streams[0])
        found = replacement.run(start, error_nodes="zero", observe=observe, grad=True)
        with torch.no_grad():
            logits = vision.readout(output).to(dtype)
        divergence = _divergence(found, logits)
        of_circuits, means = found.new_zeros(()), None
        if circuits is not None and torch.isfinite(torch.stack(alone)).all():
            means = circuits.means.after(features, errors)
            clean = Trace(
                logits=logits,
                residuals=tuple(truths),
                features=tuple(features),
                errors=tuple(errors),
                means=(),
                stds=(),
                output=output,
                image=images,
                layers=replacement.layers,
            )
            # What error nodes hold is a constant, or they would learn to carry the answer.
            masks = strongest(features, means.features, circuits.n_features)
            first = saes[0].encode_with_stats(truths[0])
            chosen = torch.where(masks[0][:, None], first.features, means.features[0])
            held = errors[0] if circuits.error_nodes == "clean" else means.errors[0]
            changed = saes[0].decode(chosen, first.mean, first.std) + held
            kept = ReplacementModel(
                vision, saes, replacement.layers, Baselines(means.features, means.errors, "mean")
            ).run(
                FromSite(0, changed, changed=True, clean=clean),
                KeepFeatures(masks),
                error_nodes=circuits.error_nodes,
                grad=True,
            )
            of_circuits = _divergence(kept, logits)
    return ChainLosses(
        torch.stack(alone),
        torch.stack(chain),
        divergence,
        torch.stack(aux),
        tuple(active),
        of_circuits,
        means,
    )


def strongest(
    features: Sequence[Float[Tensor, "n T F"]],
    means: Sequence[Float[Tensor, "T F"]],
    n_features: int,
) -> tuple[Bool[Tensor, "n F"], ...]:
    """Masks of the active features that differ most from their means, in equation (49).

    Parameters
    ----------
    features, means
        Per site, activations of n images, and their means.
    n_features
        M, most features per site.
    """
    masks = []
    for z, z_bar in zip(features, means, strict=True):
        active = (z > 0).any(1)
        strength = torch.where(active, (z - z_bar).square().sum(1), -1.0)
        best = strength.topk(min(n_features, strength.shape[1]), dim=1).indices
        masks.append(torch.zeros_like(active).scatter(1, best, True) & active)
    return tuple(masks)


def _divergence(found: Float[Tensor, "n C"], logits: Float[Tensor, "n C"]) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence of the outputs found from the model's, nats per image."""
    return F.kl_div(
        found.to(logits.dtype).log_softmax(-1),
        logits.log_softmax(-1),
        log_target=True,
        reduction="batchmean",
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

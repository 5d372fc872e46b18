"""The target's gradient at the residual stream of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution.targets import Target
from vitlens.errors import ModelError, TargetError
from vitlens.method.libragrad import libragrad, written_out_attention
from vitlens.models.vision import Block, VisionModel
from vitlens.replacement import Trace
from vitlens.saes.topk import TopKSAE

Gradient = Literal["libragrad", "plain"]
ErrorPaths = Literal["leaf", "through"]


def backward_rules(vision: VisionModel, gradient: Gradient) -> AbstractContextManager[None]:
    """Context in which the model's forward passes get the wanted backward pass."""
    return libragrad(vision.module) if gradient == "libragrad" else written_out_attention()


def stream_gradients(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    target: Target,
    *,
    gradient: Gradient,
    errors: ErrorPaths,
) -> tuple[Float[Tensor, "T D"], ...]:
    """Gradient of the target at the stream after blocks 0 ... B-2 (METHOD "Importances").

    Parameters
    ----------
    gradient
        "libragrad" or "plain".
    errors
        "leaf": below the top SAE the gradient only flows through the features of the next
        layer; "through": the model's ordinary gradient.

    Raises
    ------
    TargetError
        If the target does not depend on the logits in a way that has a derivative.
    ModelError
        If weights or activations were made in `torch.inference_mode`.
    """
    weights = (p for part in (vision.module, *saes) for p in part.parameters())
    if any(tensor.is_inference() for tensor in (*weights, *trace.residuals)):
        raise ModelError(
            "Weights or activations were made inside torch.inference_mode, and have no gradients. "
            "Load the model and the SAEs, and trace images, outside of it."
        )
    blocks = vision.embed(trace.image[None]).blocks
    with torch.enable_grad():
        if errors == "through":
            return _through(vision, blocks, trace, target, gradient)
        return _leaf(vision, blocks, saes, trace, target, gradient)


def _through(
    vision: VisionModel, blocks: tuple[Block, ...], trace: Trace, target: Target, gradient: Gradient
) -> tuple[Tensor, ...]:
    stream = trace.residuals[0][None].detach().requires_grad_()
    streams = [stream]
    with backward_rules(vision, gradient):
        for block in blocks[1:]:
            streams.append(block(streams[-1]))
        logits = vision.readout(streams[-1])
    return tuple(grad[0] for grad in _target_gradients(target, logits[0], streams[:-1]))


def _leaf(
    vision: VisionModel,
    blocks: tuple[Block, ...],
    saes: Sequence[TopKSAE],
    trace: Trace,
    target: Target,
    gradient: Gradient,
) -> tuple[Tensor, ...]:
    top = len(saes) - 1
    stream = trace.residuals[top][None].detach().requires_grad_()
    with backward_rules(vision, gradient):
        logits = vision.readout(blocks[-1](stream))
    grads = [_target_gradients(target, logits[0], [stream])[0][0]]
    for layer in range(top - 1, -1, -1):
        weights = feature_gradients(saes[layer + 1], trace.stds[layer + 1], grads[-1])
        stream = trace.residuals[layer][None].detach().requires_grad_()
        with backward_rules(vision, gradient):
            out = blocks[layer + 1](stream)[0]
        active = trace.features[layer + 1] > 0
        features = saes[layer + 1].encode_with_stats(out, active=active).features
        (grad,) = torch.autograd.grad((features * weights).sum(), stream)
        grads.append(grad[0])
    return tuple(reversed(grads))


def _target_gradients(
    target: Target, logits: Float[Tensor, " C"], streams: Sequence[Tensor]
) -> Sequence[Tensor]:
    value = target.function(logits)
    if value.requires_grad:
        grads = torch.autograd.grad(value, streams, allow_unused=True)
        if all(grad is not None for grad in grads):
            return grads
    raise TargetError(
        f"The target {target.name!r} has no derivative with respect to the logits, so that nothing "
        "has an importance for it. Let it compute with the logits it is given, without `argmax`, "
        "`detach`, `item` or a comparison."
    )


def feature_gradients(
    sae: TopKSAE, std: Float[Tensor, "T 1"], grad: Float[Tensor, "T D"]
) -> Float[Tensor, "T F"]:
    """G_l[t, f] = sd_l[t] <grad_l[t], W_dec[f]>, the target's gradient at each feature."""
    return std * (grad @ sae.W_dec.T)

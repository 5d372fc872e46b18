"""The logit lens of one feature: what it would say if it spoke to the read-out directly.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020); with the final norm's scale
held fixed, as in the direct logit attribution of Elhage et al., "A mathematical framework for
transformer circuits" (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution.gradients import Gradient, backward_rules
from vitlens.errors import FeatureError, ModelError
from vitlens.method.derivatives import pushforward
from vitlens.models.vision import VisionModel
from vitlens.replacement import Baselines, Trace
from vitlens.saes.topk import TopKSAE


def contribution(
    saes: Sequence[TopKSAE], trace: Trace, baselines: Baselines, layer: int, feature: int
) -> Float[Tensor, "T D"]:
    """What one node adds to the residual stream of its layer, beyond its baseline.

    Parameters
    ----------
    layer, feature
        The node; feature -1 is the layer's error node.

    Raises
    ------
    FeatureError
        If there is no such layer or feature.
    """
    check_node(saes, layer, feature)
    if feature == -1:
        return trace.errors[layer] - baselines.errors[layer]
    moved = trace.features[layer][:, feature] - baselines.features[layer][:, feature]
    return (moved[:, None] * trace.stds[layer]) * saes[layer].W_dec[feature]


def logit_lens(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    layer: int,
    feature: int,
    *,
    gradient: Gradient = "libragrad",
) -> Float[Tensor, " C"]:
    """How far a feature's own contribution would move each logit, past all later blocks.

    The derivative of the read-out at the last residual stream of this image, along what the
    feature adds to its layer's stream (`contribution`), at all tokens together. The mean over
    the classes is taken off, since a softmax does not see it.

    Parameters
    ----------
    layer, feature
        The feature; -1 is the layer's error node.
    gradient
        "libragrad" holds the final norm's scale fixed, which makes the parts of a stream add up;
        "plain" is the read-out's ordinary derivative.

    Returns
    -------
    Tensor
        One number a class, [C], in units of logits; they sum to 0.

    Raises
    ------
    FeatureError
        If there is no such layer or feature.
    ModelError
        If the gradient is unknown.
    """
    if gradient not in get_args(Gradient):
        raise ModelError(f"gradient must be one of {get_args(Gradient)}, not {gradient!r}.")
    added = contribution(saes, trace, baselines, layer, feature)

    def readout(stream: Float[Tensor, "1 T D"]) -> Float[Tensor, "1 C"]:
        with backward_rules(vision, gradient):
            return vision.readout(stream)

    with torch.no_grad():
        effect: Tensor = pushforward(readout, trace.output[None], added[None])[0]
    return effect - effect.mean()


def check_node(saes: Sequence[TopKSAE], layer: int, feature: int) -> None:
    """Raise `FeatureError` unless the layer has this feature; -1 is its error node."""
    if not 0 <= layer < len(saes):
        raise FeatureError(f"Layers with features are 0 to {len(saes) - 1}; there is no {layer}.")
    if not -1 <= feature < saes[layer].n_features:
        raise FeatureError(
            f"Layer {layer} has features 0 to {saes[layer].n_features - 1} (-1 is its error node); "
            f"there is no {feature}."
        )

"""The logit lens of one feature: how far its own contribution would move each logit directly.

With the contribution ``c[t] = (z_i[t, f] - z_bar_i[t, f]) sd_i[t] W_dec_i[f]`` of a feature to the
stream of its site, and the read-out's derivative J at the stream after the last block::

    lens = J c - mean over classes of (J c)                                (40)

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020); with the final norm's scale
held fixed, as in the direct logit attribution of Elhage et al., "A mathematical framework for
transformer circuits" (2021); docs/method.md, "Logit lens".
"""

from __future__ import annotations

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.errors import check_choice
from vitlens.method.derivatives import pushforward
from vitlens.method.libragrad import Gradient, backward_rules
from vitlens.method.replacement import ReplacementModel, Trace


def contribution(
    replacement: ReplacementModel, trace: Trace, layer: int, feature: int
) -> Float[Tensor, "T D"]:
    """What one node adds to the residual stream of its layer, beyond its baseline.

    Parameters
    ----------
    replacement
        The model, with its baselines.
    trace
        Trace of one image.
    layer, feature
        The node; feature -1 is the layer's error node.

    Raises
    ------
    FeatureError
        If there is no such layer or feature.
    """
    position = replacement.check_node(layer, feature)
    baselines = replacement.baselines
    if feature == -1:
        return trace.errors[position] - baselines.errors[position]
    moved = trace.features[position][:, feature] - baselines.features[position][:, feature]
    return (moved[:, None] * trace.stds[position]) * replacement.saes[position].W_dec[feature]


def logit_lens(
    replacement: ReplacementModel,
    trace: Trace,
    layer: int,
    feature: int,
    *,
    gradient: Gradient = "libragrad",
) -> Float[Tensor, " C"]:
    """How far a feature's own contribution would move each logit, past all later blocks: (40).

    Parameters
    ----------
    replacement, trace
        See `contribution`.
    layer, feature
        The feature; -1 is the layer's error node.
    gradient
        "libragrad" holds the final norm's scale fixed, so that the parts of a stream add up;
        "plain" is the read-out's ordinary derivative.

    Returns
    -------
    Tensor
        One number per class, [C], in units of logits; they sum to 0.

    Raises
    ------
    FeatureError
        If there is no such layer or feature.
    OptionError
        If the gradient is unknown.
    """
    check_choice("gradient", gradient, get_args(Gradient))
    added = contribution(replacement, trace, layer, feature)

    def readout(stream: Float[Tensor, "1 T D"]) -> Float[Tensor, "1 C"]:
        with backward_rules(replacement.vision.module, gradient):
            return replacement.vision.readout(stream)

    with torch.no_grad():
        effect: Tensor = pushforward(readout, trace.output[None], added[None])[0]
    return effect - effect.mean()

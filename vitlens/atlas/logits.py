"""The logit lens over a data set: what one unit of a feature does to each logit.

As `vitlens.attribution.logit_lens` for one image, but at the mean final stream of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution.gradients import backward_rules
from vitlens.errors import ModelError
from vitlens.models.vision import VisionModel
from vitlens.saes.topk import TopKSAE

#: At which tokens a feature is added: all, those before the patches, or the patches.
Readout: TypeAlias = Literal["both", "prefix", "patch"]


def readout_directions(
    vision: VisionModel,
    stream: Float[Tensor, "T D"],
    stds: Sequence[Float[Tensor, " T"]],
    *,
    readout: Readout = "both",
) -> Float[Tensor, "L C D"]:
    """By layer and class, the direction in the stream that raises the logit.

    The derivative of the model's read-out, final norm included with its scale held fixed (as
    LibraGrad does), at `stream`; summed over the chosen tokens, each weighted by how long a unit
    of a feature is there.

    Parameters
    ----------
    vit
        The model.
    stream
        Mean of the stream after the last block over the data set.
    stds
        By layer, the mean standard deviation of the stream by position: a unit of activation adds
        the decoder row times this.
    readout
        Which tokens: "both", "prefix" or "patch".

    Returns
    -------
    Tensor
        [L, C, D]; the mean over classes is taken off, since a softmax does not see it. The inner
        product with a decoder row is the effect of one unit of the feature at all chosen tokens
        together, in logits.

    Raises
    ------
    ModelError
        If `readout` is unknown.
    """
    if readout not in get_args(Readout):
        raise ModelError(f"readout must be one of {get_args(Readout)}, not {readout!r}.")
    weights = torch.stack([std.to(stream) for std in stds])
    if readout != "both":
        left_out = slice(vision.n_prefix) if readout == "patch" else slice(vision.n_prefix, None)
        weights[:, left_out] = 0
    with torch.enable_grad():
        point = stream.detach()[None].requires_grad_()
        with backward_rules(vision, "libragrad"):
            logits = vision.readout(point)[0]
        rows = []
        for logit in logits:
            (gradient,) = torch.autograd.grad(logit, point, retain_graph=True)
            rows.append(weights @ gradient[0])
    directions = torch.stack(rows, 1)
    return directions - directions.mean(1, keepdim=True)


def effects(
    saes: Sequence[TopKSAE], directions: Float[Tensor, "L C D"], layer: int
) -> Float[Tensor, "F C"]:
    """What one unit of each feature of a layer does to each logit; see `readout_directions`."""
    return saes[layer].W_dec @ directions[layer].to(saes[layer].W_dec).T

"""What a model's last linear layer reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitlens.errors import ModelError
from vitlens.images import ImageLike
from vitlens.lens_base import LensBase
from vitlens.saes.data import batched


def last_layer(lens: LensBase) -> nn.Linear | None:
    """The linear layer that gives the logits; None where the read-out ends otherwise."""
    head = getattr(lens.vision.module, "head", None)
    return head if lens.vision.head is None and isinstance(head, nn.Linear) else None


def pooled(lens: LensBase, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n E"]:
    """What the last linear layer reads, from the stream after the last block."""
    with torch.no_grad():
        model = lens.vision.module
        return model.forward_head(model.norm(stream), pre_logits=True)


def readout_inputs(
    lens: LensBase, images: Sequence[ImageLike], *, batch_size: int = 16
) -> Float[Tensor, "n E"]:
    """What the last linear layer reads, for every image, on the CPU.

    Raises
    ------
    ModelError
        If the read-out does not end in a linear layer (`model.head`).
    """
    if last_layer(lens) is None:
        raise ModelError("The model's read-out does not end in one linear layer, `model.head`.")
    tensors = (lens.tensor(image) for image in images)
    found = [
        pooled(lens, lens.vision.residuals(batch)[-1]).cpu()
        for batch in batched(tensors, batch_size, lens.vision.image_size)
    ]
    return torch.cat(found)

"""Read-outs for towers that come without a classifier."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitlens.errors import ModelError


class ZeroShotHead(nn.Module):
    """CLIP's zero-shot classifier: cosine similarity with one text embedding a class.

    Parameters
    ----------
    text
        Text embeddings of the class prompts, [C, E]; they are L2-normalised here.
    scale
        The logit scale (exponential of CLIP's `logit_scale`; 100 in the published models).
    bias
        Added to every logit (SigLIP's `logit_bias`).

    Raises
    ------
    ModelError
        If `text` is not a matrix.
    """

    text: Tensor

    def __init__(self, text: Float[Tensor, "C E"], *, scale: float = 100.0, bias: float = 0.0):
        super().__init__()
        if text.ndim != 2:
            raise ModelError(f"Text embeddings must be [classes, width], got {tuple(text.shape)}.")
        self.register_buffer("text", F.normalize(text.detach().clone(), dim=-1))
        self.scale, self.bias = scale, bias
        self.eval()  # as a `VisionModel` wants its head

    def forward(self, features: Float[Tensor, "n E"]) -> Float[Tensor, "n C"]:
        """Logits of image embeddings."""
        return self.scale * F.normalize(features, dim=-1) @ self.text.T + self.bias

"""A ViT whose head reads the CLS token and the mean of the patch tokens.

Source: the linear evaluation of Oquab et al., "DINOv2: learning robust visual features without
supervision" (arXiv 2304.07193), appendix B.3.
"""

from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class ClsMeanViT(VisionTransformer):
    """timm's `VisionTransformer` with the read-out ``head([CLS, mean patch])``.

    The final norm is applied to every token before they are pooled, and the head is linear on
    the ``2 D`` pooled values. Register tokens are not read.

    Parameters
    ----------
    **kwargs
        Arguments of `timm.models.vision_transformer.VisionTransformer` other than `global_pool`
        and `fc_norm`. The model must have a class token.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "global_pool": "token", "fc_norm": False})
        self.reset_classifier(self.num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one with `num_classes` outputs; the pooling is fixed."""
        if global_pool not in (None, "token"):
            raise ValueError("The pooling of ClsMeanViT is fixed: [CLS, mean patch].")
        like = self.pos_embed
        assert like is not None  # this architecture always has position embeddings
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(
                2 * self.embed_dim, num_classes, device=like.device, dtype=like.dtype
            )

    def pool(
        self, x: Float[Tensor, "n tokens width"], pool_type: str | None = None
    ) -> Float[Tensor, "n twice_width"]:
        """Concatenate the class token and the mean of the patch tokens.

        Parameters
        ----------
        x
            The tokens after the final norm, prefix tokens first.
        pool_type
            Part of timm's interface; the pooling is fixed.

        Returns
        -------
        Tensor
            Shape [n, 2 D].
        """
        return torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(dim=1)], dim=-1)

"""Read-outs that timm does not have: CLIP's zero-shot head, and a head on [CLS, mean patch]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitlens.errors import ModelError


class ZeroShotHead(nn.Module):
    """CLIP's zero-shot classifier: cosine similarity with one text embedding per class.

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


class ClsMeanViT(VisionTransformer):
    """timm's `VisionTransformer` with the read-out ``head([CLS, mean patch])``.

    The read-out of the linear evaluation of Oquab et al., "DINOv2: learning robust visual features
    without supervision" (arXiv 2304.07193), appendix B.3.

    The final norm is applied to every token before they are pooled, and the head is linear on
    the ``2 D`` pooled values. Register tokens are not read.

    Parameters
    ----------
    img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio
        Sizes, as for `timm.models.vision_transformer.VisionTransformer`.
    init_values, reg_tokens, num_classes
        LayerScale, registers and classes, likewise.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        init_values: float | None = None,
        reg_tokens: int = 0,
        num_classes: int = 1000,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            init_values=init_values,
            reg_tokens=reg_tokens,
            num_classes=num_classes,
            global_pool="token",
            fc_norm=False,
        )
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

"""Tiny random lenses, made in milliseconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer

from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.replacement import Baselines
from vitlens.saes.topk import TopKSAE

CLASSES = ("bird", "mammal", "fruit", "flower", "vehicle")


def tiny_lens(
    seed: int = 0, *, depth: int = 4, features: int = 30, dtype: torch.dtype = torch.float32
) -> Lens:
    """A lens of random weights: 24 channels, 3 x 3 patches and CLS, baselines other than zero."""
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=24, patch_size=8, embed_dim=24, depth=depth, num_heads=3, num_classes=5
    )
    saes, z, e = [], [], []
    for _ in range(depth - 1):
        W_dec = F.normalize(torch.randn(features, 24), dim=1)
        sae = TopKSAE.from_weights(
            W_enc=W_dec.T.contiguous(), W_dec=W_dec, b_dec=torch.zeros(24), k=4
        )
        saes.append(sae.to(dtype=dtype))
        z.append(0.1 * torch.rand(10, features).to(dtype))
        e.append(0.1 * torch.randn(10, 24).to(dtype))
    return Lens(
        model.to(dtype).eval(),
        saes,
        baselines=Baselines(z, e),
        class_names=CLASSES,
        transform=Transform(size=(24, 24), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )


def tiny_image(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise as the tiny model's input, [3, 24, 24]."""
    return torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)

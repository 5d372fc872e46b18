"""What several folders of tests build on: small models, SAEs of every kind, lenses, images.

Everything has random weights and is built in milliseconds, except `reference`: the models of
``tests/data/reference``, for which a slow program has computed exact results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.models import VisionTransformer

from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.method.replacement import Baselines
from vitlens.saes.base import SAE, Normalization
from vitlens.saes.threshold import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE
from vitlens.saes.topk import TopKSAE

CLASSES = ("bird", "mammal", "fruit", "flower", "vehicle")
D_MODEL, N_TOKENS = 24, 10

#: What `sae_of_kind` can build; "budget" is a top-k SAE with an image budget.
KINDS = ("topk", "budget", "relu", "jumprelu", "batchtopk", "matryoshka")


def tiny_model(
    seed: int = 0, *, depth: int = 4, dtype: torch.dtype = torch.float32
) -> VisionTransformer:
    """A Vision Transformer with random weights: 24 channels, 3 x 3 patches and CLS, 5 classes."""
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=24, patch_size=8, embed_dim=D_MODEL, depth=depth, num_heads=3, num_classes=5
    )
    return model.to(dtype).eval()


def tiny_lens(
    seed: int = 0, *, depth: int = 4, features: int = 30, dtype: torch.dtype = torch.float32
) -> Lens:
    """A lens on `tiny_model` with a top-k SAE after every block but the last.

    No baseline is zero, so that a forgotten baseline changes results.
    """
    model = tiny_model(seed, depth=depth)
    saes, z, e = [], [], []
    for _ in range(depth - 1):
        W_dec = F.normalize(torch.randn(features, D_MODEL), dim=1)
        sae = TopKSAE.from_weights(
            W_enc=W_dec.T.contiguous(), W_dec=W_dec, b_dec=torch.zeros(D_MODEL), k=4
        )
        saes.append(sae.to(dtype=dtype))
        z.append(0.1 * torch.rand(N_TOKENS, features).to(dtype))
        e.append(0.1 * torch.randn(N_TOKENS, D_MODEL).to(dtype))
    return Lens(
        model.to(dtype),
        saes,
        baselines=Baselines(z, e),
        class_names=CLASSES,
        transform=tiny_transform(),
    )


def tiny_transform() -> Transform:
    """The transform of `tiny_model`: 24 x 24 pixels."""
    return Transform(size=(24, 24), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def tiny_image(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise as an input of `tiny_model`, [3, 24, 24]."""
    return torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sae_of_kind(
    kind: str,
    *,
    seed: int = 0,
    d_model: int = D_MODEL,
    n_features: int = 30,
    normalization: Normalization = "layer",
    scale: float = 0.5,
    b_enc: bool = False,
    subtract_b_dec: bool = True,
    dtype: torch.dtype = torch.float32,
) -> SAE:
    """An SAE of any of `KINDS` with random weights, some of its features active on most tokens.

    Parameters
    ----------
    scale
        Typical size of the entries of the stream, by which the SAE is adjusted if it does not
        normalise each token (`normalization` "none" and "fixed").
    b_enc
        Whether the encoder has a bias.
    """
    random = torch.Generator().manual_seed(seed)
    W_dec = F.normalize(torch.randn(n_features, d_model, generator=random), dim=1)
    noise = 0.3 / d_model**0.5 * torch.randn(d_model, n_features, generator=random)
    unit = scale if normalization == "none" else 1.0  # of pre-activations
    weights: dict[str, Any] = {
        "W_enc": W_dec.T + noise,
        "W_dec": W_dec,
        "b_dec": 0.1 * unit * torch.randn(d_model, generator=random),
        "b_enc": 0.2 * unit * torch.randn(n_features, generator=random) if b_enc else None,
        "normalization": normalization,
        "subtract_b_dec": subtract_b_dec,
    }
    if normalization == "fixed":
        weights["input_mean"] = 0.2 * scale * torch.randn(d_model, generator=random)
        weights["input_scale"] = torch.tensor(scale)
    third = n_features // 3
    build: dict[str, Callable[[], SAE]] = {
        "topk": lambda: TopKSAE.from_weights(**weights, k=4),
        "budget": lambda: TopKSAE.from_weights(**weights, k=4, budget=third),
        "relu": lambda: ReLUSAE.from_weights(**weights),
        "jumprelu": lambda: JumpReLUSAE.from_weights(
            **weights, threshold=unit * (0.5 + torch.rand(n_features, generator=random))
        ),
        "batchtopk": lambda: BatchTopKSAE.from_weights(**weights, threshold=unit),
        "matryoshka": lambda: MatryoshkaSAE.from_weights(
            **weights, threshold=unit, groups=(third, n_features - third)
        ),
    }
    return build[kind]().to(dtype)


def lens_with(
    kind: str | Sequence[str] = "topk",
    *,
    layers: Sequence[int] = (0, 1, 2),
    seed: int = 0,
    depth: int = 4,
    n_features: int = 30,
    normalization: Normalization = "layer",
    b_enc: bool = False,
    subtract_b_dec: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Lens:
    """A lens on `tiny_model` with SAEs of one kind, or of one kind each, after some blocks.

    No baseline is zero, so that a forgotten baseline changes results.
    """
    kinds = [kind] * len(layers) if isinstance(kind, str) else list(kind)
    saes = {
        layer: sae_of_kind(
            each,
            seed=seed + layer,
            n_features=n_features,
            normalization=normalization,
            b_enc=b_enc,
            subtract_b_dec=subtract_b_dec,
            dtype=dtype,
        )
        for layer, each in zip(layers, kinds, strict=True)
    }
    random = torch.Generator().manual_seed(seed)
    z = [0.1 * torch.rand(N_TOKENS, n_features, generator=random) for _ in layers]
    e = [0.1 * torch.randn(N_TOKENS, D_MODEL, generator=random) for _ in layers]
    return Lens(
        tiny_model(seed, depth=depth, dtype=dtype),
        saes,
        baselines=Baselines(z, e).to(dtype=dtype),
        class_names=CLASSES,
        transform=tiny_transform(),
    )


def noise_image(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Noise as a picture file would hold it; `size` is (height, width)."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))


#: The models of the reference data.
REFERENCES = ("vit_cls", "vit_reg_layerscale", "vit_avgpool_fcnorm")


class Reference(NamedTuple):
    """A model of the reference data, and what the slow program computed for it."""

    config: dict[str, Any]
    data: dict[str, torch.Tensor]
    model: VisionTransformer
    saes: list[TopKSAE]
    baselines: Baselines


@cache
def reference(name: str = "vit_cls", dtype: torch.dtype = torch.float64) -> Reference:
    """One of `REFERENCES`; shared by all that ask for it, so leave it as it is."""
    folder = Path(__file__).parent / "data" / "reference"
    config = json.loads((folder / f"{name}.json").read_text())
    data = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }
    model = VisionTransformer(**config["timm_VisionTransformer"]).to(dtype).eval()
    model.load_state_dict(
        {key.removeprefix("model."): v for key, v in data.items() if key.startswith("model.")}
    )
    layers = range(len(config["top_k"]))
    saes = [
        TopKSAE.from_weights(
            **{w: data[f"sae.{layer}.{w}"] for w in ("W_enc", "W_dec", "b_dec")},
            k=config["top_k"][layer],
        )
        for layer in layers
    ]
    baselines = Baselines(
        [data[f"baseline.{layer}.features"] for layer in layers],
        [data[f"baseline.{layer}.errors"] for layer in layers],
    )
    return Reference(config, data, model, saes, baselines)

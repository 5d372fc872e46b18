"""What several folders of tests build on: small models, SAEs of every kind, lenses, images.

Everything has random weights and is built in milliseconds, except `reference`: the models of
``tests/data/reference``, for which a slow program has computed exact results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.layers import QuickGELU, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models import Eva, VisionTransformer, VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import nn

from tests.reference import program
from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.method.replacement import Baselines, ReplacementModel
from vitlens.models.heads import ClsMeanViT
from vitlens.models.vision import VisionModel
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


#: Sizes of `LinearModel`.
LINEAR_TOKENS, LINEAR_WIDTH, LINEAR_FEATURES = 4, 6, 5


class _LinearBlock(nn.Module):
    """Mixes tokens and channels by fixed matrices, on top of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(
            0.3 * torch.randn(LINEAR_TOKENS, LINEAR_TOKENS, dtype=torch.float64)
        )
        self.channels = nn.Parameter(
            0.3 * torch.randn(LINEAR_WIDTH, LINEAR_WIDTH, dtype=torch.float64)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.tokens @ x @ self.channels


class _LinearPatches(nn.Module):
    grid_size, img_size = (2, 2), (2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(2).transpose(1, 2)
        return torch.cat([x, x.flip(1)], dim=2)


class LinearModel(nn.Module):
    """Four linear blocks and a linear head; float64."""

    num_prefix_tokens, embed_dim = 0, LINEAR_WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.norm = _LinearPatches(), nn.Identity()
        self.blocks = nn.ModuleList([_LinearBlock() for _ in range(4)])
        self.head = nn.Linear(LINEAR_WIDTH, 3, bias=False, dtype=torch.float64)

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self._pos_embed(self.patch_embed(images))
        for block in self.blocks:
            x = block(x)
        return self.forward_head(x)


def linear_lens() -> Lens:
    """A lens on `LinearModel` whose SAEs are linear as well: no activation is ever cut off."""
    torch.manual_seed(0)
    saes = []
    for _ in range(3):
        basis = torch.linalg.qr(torch.randn(LINEAR_WIDTH, LINEAR_WIDTH, dtype=torch.float64)).Q[
            :, :LINEAR_FEATURES
        ]
        # Activations are far from zero.
        weights = {"W_enc": basis, "W_dec": basis.T, "b_dec": -50 * basis.sum(1)}
        saes.append(TopKSAE.from_weights(**weights, k=LINEAR_FEATURES, normalization="none"))
    baselines = Baselines(
        [40 + torch.rand(LINEAR_TOKENS, LINEAR_FEATURES, dtype=torch.float64) for _ in saes],
        [torch.rand(LINEAR_TOKENS, LINEAR_WIDTH, dtype=torch.float64) for _ in saes],
    )
    model = LinearModel().eval()
    return Lens(model, saes, baselines=baselines, transform=lambda _: torch.zeros(3, 2, 2))


#: Sizes of the models below.
SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
#: Vision Transformers of `tiny_model`'s size but for 3 blocks, by how they read out.
READOUTS: dict[str, Callable[[], nn.Module]] = {
    "cls": partial(VisionTransformer, **SMALL, num_classes=5),
    "average": partial(
        VisionTransformer, **SMALL, num_classes=5, global_pool="avg", class_token=False
    ),
    "cls_average": partial(VisionTransformer, **SMALL, num_classes=5, global_pool="avg"),
    "cls_mean": partial(ClsMeanViT, **SMALL, num_classes=5),
    "attention": partial(
        VisionTransformer, **SMALL, num_classes=5, global_pool="map", class_token=False
    ),
    "registers": partial(VisionTransformer, **SMALL, num_classes=5, reg_tokens=2),
}


def lens_with_readout(readout: str) -> Lens:
    """A float64 lens with one of `READOUTS` and fitted baselines."""
    torch.manual_seed(3)
    model = READOUTS[readout]().eval().double()
    for name, weight in model.named_parameters():
        if "norm" in name:  # a fresh norm has weight 1 and bias 0, which would hide mistakes
            weight.data += 0.3 * torch.randn_like(weight)
    saes = []
    for _ in range(2):
        rows = F.normalize(torch.randn(30, 24, dtype=torch.float64), dim=1)
        sae = TopKSAE.from_weights(
            W_enc=rows.T, W_dec=rows, b_dec=0.1 * torch.randn(24, dtype=torch.float64), k=4
        )
        saes.append(sae)
    lens = Lens(model, saes, transform=lambda image: image)
    lens.fit_baselines(torch.randn(5, 3, 24, 24, dtype=torch.float64), progress=False)
    return lens


#: Kinds of Vision Transformers that vitlens knows.
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": partial(VisionTransformer, **SMALL, num_classes=5),
    "average pooling": partial(VisionTransformer, **SMALL, num_classes=5, global_pool="avg"),
    "dinov2": partial(
        VisionTransformer,
        **SMALL,
        num_classes=5,
        reg_tokens=4,
        init_values=0.3,
        mlp_layer=SwiGLUPacked,
        act_layer=nn.SiLU,
    ),
    "swiglu, rms, qk norm": partial(
        VisionTransformer,
        **SMALL,
        num_classes=5,
        mlp_layer=SwiGLU,
        act_layer=nn.SiLU,
        norm_layer=RmsNorm,
        qk_norm=True,
        qkv_bias=False,
    ),
    "clip": partial(VisionTransformer, **SMALL, num_classes=5, pre_norm=True, act_layer=QuickGELU),
    "siglip": partial(
        VisionTransformer, **SMALL, num_classes=5, class_token=False, global_pool="map"
    ),
    "parallel": partial(VisionTransformer, **SMALL, num_classes=5, block_fn=ParallelScalingBlock),
    "post-norm": partial(VisionTransformer, **SMALL, num_classes=5, block_fn=ResPostBlock),
    "distilled deit": partial(VisionTransformerDistilled, **SMALL, num_classes=5),
    "dinov3": partial(
        Eva,
        **SMALL,
        num_classes=5,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        num_reg_tokens=2,
        rope_type="dinov3",
        init_values=0.5,
        dynamic_img_size=False,
    ),
}


def model_of_family(family: str) -> nn.Module:
    """One of `FAMILIES` in float64, no weight of it at its initial value."""
    torch.manual_seed(0)
    model = FAMILIES[family]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def lens_on(model: nn.Module, head: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Lens:
    """A float64 lens with a random top-k SAE after every block of a model but the last."""
    vision = VisionModel(model, head=head)
    saes = []
    for _ in range(vision.depth - 1):
        W_dec = F.normalize(torch.randn(32, vision.d_model).double(), dim=1)
        b_dec = torch.zeros(vision.d_model).double()
        saes.append(TopKSAE.from_weights(W_enc=W_dec.T, W_dec=W_dec, b_dec=b_dec, k=5))
    return Lens(vision, saes, transform=lambda picture: torch.zeros(3, 24, 24))


def double_image() -> torch.Tensor:
    """Noise as an input of `model_of_family`, [3, 24, 24] in float64."""
    return tiny_image(1, torch.float64)


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


def written_out(sae: SAE) -> program.SparseAutoencoder:
    """An SAE in the form that the slow program of `tests/reference` reads."""
    return program.SparseAutoencoder(
        kind=sae.kind,
        W_enc=sae.W_enc,
        W_dec=sae.W_dec,
        b_dec=sae.b_dec,
        b_enc=sae.b_enc,
        k=getattr(sae, "k", 0),
        budget=getattr(sae, "budget", None),
        threshold=getattr(sae, "threshold", 0.0),
        normalization=sae.normalization,
        input_mean=sae.input_mean,
        input_scale=1.0 if sae.input_scale is None else float(sae.input_scale),
        subtract_b_dec=sae.subtract_b_dec,
    )


def run_by_hand(
    replacement: ReplacementModel,
    image: torch.Tensor,
    keep: list[torch.Tensor],
    error_nodes: list[str],
) -> torch.Tensor:
    """Logits of a replaced run of one image, by its definition, one block after another."""
    model = replacement.vision.module
    clean = running = model._pos_embed(model.patch_embed(image[None]))
    for layer, block in enumerate(model.blocks):
        clean, running = block(clean), block(running)
        if layer not in replacement.layers:
            continue
        i = replacement.layers.index(layer)
        sae, z_bar = replacement.saes[i], replacement.baselines.features[i]
        z, mean, std = sae.encode_with_stats(running)
        errors = {
            "clean": sae(clean).error,
            "free": running - sae.decode(z, mean, std),
            "baseline": replacement.baselines.errors[i],
            "zero": torch.zeros_like(running),
        }
        z = torch.where(keep[i], z, z_bar)
        running = sae.decode(z, mean, std) + errors[error_nodes[i]]
    return model.forward_head(model.norm(running))[0]

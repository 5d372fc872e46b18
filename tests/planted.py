"""A small model by hand with a true feature and a shortcut, and images that separate the two.

Images are 24 x 24 in 3 x 3 patches. The red of the middle patch shows the class (bright: "bird",
dark: "mammal"); the blue of the others shows the place (bright: "water", dark: "land"); green is
noise. Every colour has its own direction in the stream, the blocks change almost nothing, and the
head reads mean red with weight 1 and mean blue with weight `shortcut`. Eight patches are blue and
one is red: from a weight of about 1/8 on the place decides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer

from vitlens.debias import GroupedImages
from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.saes.threshold import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE
from vitlens.saes.topk import TopKSAE

BIRD, MAMMAL, WATER, LAND, GREEN, DARK_GREEN = range(6)
D_MODEL = 24
CLASSES, PLACES = ("bird", "mammal"), ("water", "land")


def directions() -> torch.Tensor:
    """Four orthogonal unit vectors with mean 0, [4, 24]: red, green, blue, and a constant one."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(D_MODEL, 4, generator=generator)
    return torch.linalg.qr(random - random.mean(0)).Q.T.contiguous()


def planted_lens(
    *,
    shortcut: float = 0.3,
    dtype: torch.dtype = torch.float32,
    kind: str = "topk",
    layers: tuple[int, ...] = (0, 1),
) -> Lens:
    """The model, with SAEs that have its six directions and 14 random ones."""
    red, green, blue, constant = directions()
    model = VisionTransformer(
        img_size=24, patch_size=8, embed_dim=D_MODEL, depth=3, num_heads=3, num_classes=2,
        global_pool="avg", class_token=False, fc_norm=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1e-3, generator=generator)
        model.pos_embed.zero_()
        model.patch_embed.proj.weight.zero_()
        model.norm.weight.fill_(1.0)
        for channel, direction in enumerate((red, green, blue)):
            model.patch_embed.proj.weight[:, channel] = direction[:, None, None] / 64
        model.patch_embed.proj.bias.copy_(constant)
        weight = red + shortcut * blue
        model.head.weight.copy_(torch.stack([weight, -weight]))
    others = torch.randn(14, D_MODEL, generator=generator)
    for direction in (red, green, blue, constant):
        others -= (others @ direction)[:, None] * direction
    others = F.normalize(others, dim=1)
    W_dec = torch.cat([torch.stack([red, -red, blue, -blue, green, -green]), others])
    weights = {
        "W_enc": W_dec.T.contiguous(),
        "W_dec": W_dec,
        "b_dec": D_MODEL**0.5 * 0.5 * constant,
    }
    sae = {
        "topk": lambda: TopKSAE.from_weights(**weights, k=3),
        "budget": lambda: TopKSAE.from_weights(**weights, k=3, budget=8),
        "relu": lambda: ReLUSAE.from_weights(**weights),
        "jumprelu": lambda: JumpReLUSAE.from_weights(**weights, threshold=torch.full((20,), 0.1)),
        "batchtopk": lambda: BatchTopKSAE.from_weights(**weights, threshold=0.1),
        "matryoshka": lambda: MatryoshkaSAE.from_weights(**weights, threshold=0.1, groups=(6, 14)),
    }[kind]()
    return Lens(
        model.to(dtype).eval(),
        {layer: sae.to(dtype) for layer in layers},
        class_names=CLASSES,
        transform=Transform(size=(24, 24), mean=(0.5,) * 3, std=(0.5,) * 3),
    )


def planted_images(
    counts: tuple[int, int, int, int] = (16, 16, 16, 16), *, seed: int = 0
) -> GroupedImages:
    """Model inputs; `counts` are of bird/water, bird/land, mammal/water, mammal/land."""
    generator = torch.Generator().manual_seed(seed)
    images, labels, places = [], [], []
    for group, count in enumerate(counts):
        label, place = divmod(group, 2)
        for _ in range(count):
            strength = 0.6 + 0.8 * torch.rand(3, generator=generator)
            patches = 0.2 * torch.randn(3, 3, 3, generator=generator)
            patches[0] *= 0.25
            patches[2] += strength[2] * (1 - 2 * place)
            patches[0, 1, 1] += 2 * strength[0] * (1 - 2 * label)
            patches[2, 1, 1] = 0
            images.append(patches.repeat_interleave(8, 1).repeat_interleave(8, 2))
            labels.append(label)
            places.append(place)
    return GroupedImages(images, torch.tensor(labels), torch.tensor(places), CLASSES, PLACES)


def groups_of(counts: tuple[int, ...], attributes: int = 2) -> GroupedImages:
    """Groups with these counts, of blank images."""
    index = [i for i, n in enumerate(counts) for _ in range(n)]
    labels = torch.tensor([i // attributes for i in index])
    values = torch.tensor([i % attributes for i in index])
    names = tuple("abc"[:attributes])
    classes = tuple(f"c{i}" for i in range(len(counts) // attributes))
    return GroupedImages([torch.zeros(1)] * len(index), labels, values, classes, names)

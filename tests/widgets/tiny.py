"""A lens small enough for kernels in tests, with registers and names, a picture and an atlas."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from timm.models import VisionTransformer

import vitlens
from vitlens.atlas.atlas import Atlas
from vitlens.images import Transform

CLASSES = ("bird", "mammal", "fruit", "flower", "vehicle", "building", "insect", "tool")


def tiny_lens(*, features: int = 60, depth: int = 4) -> vitlens.Lens:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = VisionTransformer(
        img_size=48,
        patch_size=8,
        embed_dim=24,
        depth=depth,
        num_heads=3,
        num_classes=len(CLASSES),
        reg_tokens=2,
    ).eval()
    saes = []
    for _ in range(depth - 1):
        rows = F.normalize(torch.randn(features, 24), dim=1)
        saes.append(
            vitlens.TopKSAE.from_weights(W_enc=rows.T, W_dec=rows, b_dec=torch.zeros(24), k=4)
        )
    transform = Transform(size=(48, 48), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return vitlens.Lens(model, saes, class_names=CLASSES, transform=transform)


def tiny_picture() -> Image.Image:
    y, x = np.mgrid[:60, :60]
    disc = 255 * ((x - 30) ** 2 + (y - 30) ** 2 < 400)
    return Image.fromarray(np.stack([4 * x, 4 * y, disc], axis=-1).astype(np.uint8))


def tiny_atlas(lens: vitlens.Lens, out: Path | str | None = None, *, heats: bool = True) -> Atlas:
    """An atlas of 16 pictures of bars, discs and noise, for `tiny_lens`."""
    return Atlas.build(
        lens,
        [tiny_shape(i) for i in range(16)],
        n_top=5,
        n_sampled=6,
        thumbnails=48,
        heatmaps=heats,
        batch_size=8,
        out=out,
        progress=False,
    )


def open_atlas(folder: Path, names: Path) -> vitlens.Lens:
    """`tiny_lens` with a saved atlas, and a file of names in another folder."""
    lens = tiny_lens()
    lens.atlas = Atlas.load(folder, lens, names=names / "names.jsonl")
    return lens


def texts_of(figure: Figure) -> str:
    """All texts of a figure, in lines."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def tiny_shape(seed: int) -> Image.Image:
    """A bar, a disc or noise, in a colour of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48] - rng.integers(16, 32, (2, 1, 1))
    shape = (np.abs(x) < 4, x**2 + y**2 < 100, rng.random((48, 48)) < 0.3)[seed % 3]
    inks = rng.integers(0, 256, (2, 3))
    return Image.fromarray(np.where(shape[..., None], inks[0], inks[1]).astype(np.uint8))

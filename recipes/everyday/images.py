"""Step 3: labelled images, cut-outs on photographs at a random position, size and light."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from recipes.everyday import sources
from recipes.everyday.sources import Cutout

SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
COVER = (0.40, 0.80)  # side of the object relative to the side of the image
# Backgrounds are stored with this shorter side; crops have sides from 224 to all of it.
_BACKGROUND_SIDE = 640


@dataclass(frozen=True)
class Composite:
    """One labelled image, RGB uint8 [224, 224, 3], with its cut-out and background."""

    pixels: np.ndarray
    cutout: Cutout
    background: Path


@dataclass(frozen=True)
class Composites:
    """Images [n, 224, 224, 3] with labels; `cutout[i]` indexes `cutouts`."""

    pixels: UInt8[np.ndarray, "n 224 224 3"]
    labels: Int[Tensor, " n"]
    cutout: Int[Tensor, " n"]
    cutouts: tuple[Cutout, ...]

    def batches(self, size: int = 64) -> Iterator[Float[Tensor, "b 3 224 224"]]:
        """Normalised model inputs."""
        for start in range(0, len(self.pixels), size):
            yield normalise(self.pixels[start : start + size])


def normalise(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Scale to [0, 1], then normalise by the mean and standard deviation of ImageNet."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_composites(n: int = 300, seed: int = 0) -> Composites:
    """Unseen photographic cut-outs on unseen photographs; classes are equally frequent."""
    return composites("test", n, seed=seed, kinds=("photo",))


def composites(
    split: str,
    n: int,
    *,
    seed: int,
    kinds: Sequence[str] = ("photo",),
    augment: bool = False,
    photo_share: float = 0.5,
) -> Composites:
    """Make `n` composites of one split, deterministically.

    Classes are equally frequent, and so are the cut-outs of a class, except for `photo_share`: the
    share of photographs among the cut-outs when there are both kinds.
    """
    rng = np.random.default_rng([seed, *split.encode()])
    chosen = tuple(sources.of(split, kinds))
    order = _balanced(chosen, n, rng, photo_share)
    made = [composite(chosen[i], split, rng, augment=augment) for i in order]
    return Composites(
        pixels=np.stack([m.pixels for m in made]),
        labels=torch.tensor([chosen[i].label for i in order]),
        cutout=torch.tensor(order),
        cutouts=chosen,
    )


def _balanced(
    chosen: Sequence[Cutout], n: int, rng: np.random.Generator, photo_share: float
) -> list[int]:
    """Indices into `chosen`: classes in turn, cut-outs of a class and kind in shuffled rounds."""
    labels = sorted({c.label for c in chosen})  # there is no clip art of coins
    decks: dict[tuple[int, str], list[int]] = {}
    order = []
    for i in range(n):
        label = labels[i % len(labels)]
        kinds = sorted({c.kind for c in chosen if c.label == label})
        kind = kinds[0]
        if len(kinds) == 2:
            kind = "photo" if rng.random() < photo_share else "clip art"
        deck = decks.setdefault((label, kind), [])
        if not deck:
            same = [j for j, c in enumerate(chosen) if (c.label, c.kind) == (label, kind)]
            deck += [int(j) for j in rng.permutation(same)]
        order.append(deck.pop())
    return order


def composite(
    cutout: Cutout,
    split: str,
    rng: np.random.Generator,
    *,
    augment: bool = False,
    background: Path | None = None,
) -> Composite:
    """Put one cut-out on a background of the split; `augment` varies more, for training."""
    background = background or _choose_background(split, rng, augment)
    canvas = background_crop(background, rng)
    return Composite(place(cutout, canvas, rng, augment=augment), cutout, background)


def place(
    cutout: Cutout, canvas: Image.Image, rng: np.random.Generator, *, augment: bool = False
) -> UInt8[np.ndarray, "224 224 3"]:
    """Put one cut-out on an image of 224 x 224."""
    thing = _object(cutout.path)
    if augment:
        thing = _disturb(thing, rng)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.normal(0, 25 if augment else 8)
    thing = thing.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    thing = thing.crop(thing.getbbox())
    side = rng.uniform(0.3, 1.0) if augment and rng.random() < 0.5 else rng.uniform(*COVER)
    scale = side * SIZE / max(thing.size)
    size = tuple(max(2, round(scale * s)) for s in thing.size)
    thing = thing.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    left, top = (int(rng.integers(0, SIZE - s + 1)) for s in thing.size)
    if rng.random() < 0.5:
        _cast_shadow(canvas, thing, left, top, rng)
    pixels = np.asarray(thing, dtype=np.float32)
    lit = _light(pixels[..., :3], rng, 0.35 if augment else 0.2)
    under = np.asarray(canvas, dtype=np.float32)
    alpha = pixels[..., 3:] / 255
    out = _light(under, rng, 0.25)
    box = np.s_[top : top + thing.height, left : left + thing.width]
    out[box] = lit * alpha + out[box] * (1 - alpha)
    return _finish(out, rng, augment)


def plain(cutout: Cutout, rng: np.random.Generator) -> np.ndarray:
    """A cut-out on one plain colour."""
    thing = _object(cutout.path)
    scale = rng.uniform(0.5, 1.0) * SIZE / max(thing.size)
    thing = thing.resize(tuple(max(2, round(scale * s)) for s in thing.size))
    canvas = Image.new("RGB", (SIZE, SIZE), tuple(int(c) for c in rng.integers(0, 256, 3)))
    canvas.paste(thing, tuple(int(rng.integers(0, SIZE - s + 1)) for s in thing.size), thing)
    return np.asarray(canvas)


def natural(path: Path, rng: np.random.Generator) -> np.ndarray:
    """A random crop of a photograph, as it is."""
    return np.asarray(background_crop(path, rng))


@cache
def _object(path: Path) -> Image.Image:
    """The trimmed cut-out, at most 256 px."""
    rgba = sources.trim(Image.open(path).convert("RGBA"))
    rgba.thumbnail((256, 256), Image.Resampling.LANCZOS)
    return rgba


@cache
def _background(path: Path) -> Image.Image:
    image = Image.open(path)
    image.draft("RGB", (2 * _BACKGROUND_SIDE, 2 * _BACKGROUND_SIDE))
    scale = _BACKGROUND_SIDE / min(image.size)
    size = (round(scale * image.width), round(scale * image.height))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=2)


@cache
def _painted() -> tuple[Path, ...]:
    return tuple(sources.wallpaper(name) for name in sources.PAINTED)


def _choose_background(split: str, rng: np.random.Generator, augment: bool) -> Path:
    photographs = sources.backgrounds()[split]
    several = _painted() if augment and rng.random() < 0.3 else photographs
    return several[rng.integers(len(several))]


def background_crop(path: Path, rng: np.random.Generator) -> Image.Image:
    """A random square of a wallpaper, resized to 224, mirrored half of the time."""
    image = _background(path)
    side = round(SIZE * (min(image.size) / SIZE) ** rng.random())
    left, top = (int(rng.integers(0, s - side + 1)) for s in image.size)
    crop = image.resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
    )
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _disturb(thing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Stretch; sometimes remove or rotate the colours, or cut a part off."""
    stretch = math.exp(rng.normal(0, 0.15))
    thing = thing.resize((max(8, round(thing.width * stretch)), thing.height))
    draw = rng.random()
    if draw < 0.1:
        alpha = thing.getchannel("A")
        thing = thing.convert("L").convert("RGBA")
        thing.putalpha(alpha)
    elif draw < 0.3:
        hue = Image.merge("RGB", thing.split()[:3]).convert("HSV")
        h, s, v = hue.split()
        turn = int(rng.integers(-40, 41))
        h = h.point(lambda value: (value + turn) % 256)
        coloured = Image.merge("HSV", (h, s, v)).convert("RGB")
        coloured.putalpha(thing.getchannel("A"))
        thing = coloured
    if rng.random() < 0.3:
        width, height = thing.size
        keep = rng.uniform(0.65, 0.95)
        if rng.random() < 0.5:
            left = int(rng.uniform(0, width * (1 - keep)))
            thing = thing.crop((left, 0, left + max(8, int(keep * width)), height))
        else:
            top = int(rng.uniform(0, height * (1 - keep)))
            thing = thing.crop((0, top, width, top + max(8, int(keep * height))))
    return thing


def _cast_shadow(
    canvas: Image.Image, thing: Image.Image, left: int, top: int, rng: np.random.Generator
) -> None:
    dx, dy = (int(d) for d in rng.integers(-8, 9, 2))
    strength = rng.uniform(0.2, 0.6)
    mask = Image.new("L", canvas.size)
    mask.paste(thing.getchannel("A").point(lambda a: int(strength * a)), (left + dx, top + dy))
    canvas.paste((0, 0, 0), (0, 0), mask.filter(ImageFilter.BoxBlur(4)))


def _light(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change exposure, white balance and contrast of a copy."""
    gain = math.exp(rng.normal(0, strength)) * np.exp(rng.normal(0, strength / 5, 3))
    contrast = math.exp(rng.normal(0, strength / 2))
    mean = pixels.mean()
    return (((pixels - mean) * contrast + mean) * gain).astype(np.float32).clip(0, 255)


def _finish(pixels: np.ndarray, rng: np.random.Generator, augment: bool) -> np.ndarray:
    if augment and rng.random() < 0.2:
        pixels = pixels + rng.normal(0, rng.uniform(2, 12), pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < (0.3 if augment else 0.15):
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return np.asarray(image)

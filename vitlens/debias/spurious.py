"""The bundled benchmark: birds and mammals whose backgrounds predict the class, in training only.

In training 95 % of the birds are in front of water or sky and 95 % of the mammals in front of
plants; in validation and test class and background are independent. No cut-out and no photograph is
in two splits. The images are composed as those of Waterbirds (Sagawa et al., "Distributionally
robust neural networks for group shifts", ICLR 2020).
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from vitlens.bundle import load
from vitlens.debias.groups import GroupedImages
from vitlens.debias.runs import readout_inputs
from vitlens.images import ImageLike
from vitlens.io import read_json, read_tensors
from vitlens.lens import About, Lens

Split = Literal["train", "validation", "test"]

FOLDER = Path(__file__).parents[1] / "bundles" / "spurious"
SIZES: dict[Split, int] = {"train": 400, "validation": 160, "test": 200}
BIAS = 0.95  # share of a class's training images with the background of that class
SIDE = 224
COVER = (0.18, 0.36)  # side of the cut-out relative to the side of the image

_STRENGTH = 1e-3  # C of the probe's logistic regression, on standardised inputs


@dataclass(frozen=True)
class Spurious:
    """A classifier with a shortcut, and images that show it.

    Attributes
    ----------
    lens
        The backbone and SAEs of `everyday` with a linear probe that was trained on `train`.
    train, validation, test
        Images in four groups. Choose on validation, report on test.
    """

    lens: Lens
    train: GroupedImages
    validation: GroupedImages
    test: GroupedImages


def spurious(
    seed: int = 0, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Spurious:
    """Make the benchmark of one seed.

    Images are composed on access, the same ones every time. The probes of seeds 0 to 4 are stored;
    that of another seed is trained here, which takes a pass over the training images.

    Parameters
    ----------
    seed
        Seed of the images (cut-out, position, size, background, light), and so of the probe.
    device, dtype
        Device and dtype of the model.

    Returns
    -------
    Spurious
        A lens, and the images of the three splits.
    """
    probe = _stored_probe(seed) or probe_weights(seed)
    n_classes, n_inputs = probe["weight"].shape
    head = nn.Linear(n_inputs, n_classes).requires_grad_(False)
    head.load_state_dict(probe)
    everyday = load("everyday", baselines="median", device=device, dtype=dtype)
    lens = _with_head(everyday, head, _facts()["class_names"])
    return Spurious(lens, *(spurious_images(split, seed) for split in SIZES))


def spurious_images(split: Split, seed: int = 0, *, n: int | None = None) -> GroupedImages:
    """The images of one split.

    Parameters
    ----------
    split
        "train", "validation" or "test".
    seed
        See `spurious`.
    n
        Number of images; by default 400, 160 and 200. In training the classes have the same size,
        in the other splits all four groups do.
    """
    n = SIZES[split] if n is None else n
    rng = np.random.default_rng([seed, *split.encode()])
    facts = _facts()
    labels = np.arange(n) % 2
    turn = np.arange(n) // 2
    rare = math.ceil(1 / (1 - BIAS) - 1e-9)
    conflicting = turn % rare == rare - 1 if split == "train" else turn % 2 == 1
    attributes = np.where(conflicting, 1 - labels, labels)
    cutouts = _dealt(facts["cutouts"], "class", split, labels, rng)
    backgrounds = _dealt(facts["backgrounds"], "attribute", split, attributes, rng)
    order = rng.permutation(n)
    return GroupedImages(
        _Composites(cutouts[order], backgrounds[order], (seed, *split.encode())),
        torch.from_numpy(labels[order]),
        torch.from_numpy(attributes[order]),
        facts["class_names"],
        facts["attribute_names"],
    )


def _stored_probe(seed: int) -> dict[str, Tensor]:
    """The stored result of `probe_weights`; empty for a seed that is not stored."""
    stored, _ = read_tensors(FOLDER / "probes.safetensors")
    names = ("weight", "bias") if f"{seed}.weight" in stored else ()
    return {name: stored[f"{seed}.{name}"] for name in names}


def probe_weights(seed: int) -> dict[str, Tensor]:
    """Train the probe of a seed: logistic regression on the input of the head of `everyday`.

    Returns
    -------
    dict
        "weight" [2, 2 D] and "bias" [2]; each class has half of the regression's weights.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train = spurious_images("train", seed)
    x = readout_inputs(load("everyday"), train.images).double().numpy()
    scaler = StandardScaler().fit(x)
    fitted = LogisticRegression(C=_STRENGTH, max_iter=2000).fit(
        scaler.transform(x), train.labels.numpy()
    )
    weight = torch.from_numpy(fitted.coef_[0] / scaler.scale_)
    bias = float(fitted.intercept_[0]) - weight @ torch.from_numpy(scaler.mean_)
    return {
        "weight": torch.stack([-weight, weight]).float() / 2,
        "bias": torch.stack([-bias, bias]).float() / 2,
    }


def _with_head(lens: Lens, head: nn.Linear, class_names: Sequence[str]) -> Lens:
    """A lens with the same backbone, SAEs and baselines, and another last layer."""
    # Only the head differs: the copy shares every other weight with the original.
    shared = {id(p): p for p in (*lens.vision.module.parameters(), *lens.vision.module.buffers())}
    model = copy.deepcopy(lens.vision.module, shared)
    model.head = head.to(device=lens.vision.device, dtype=lens.vision.dtype)
    model.num_classes = head.out_features
    return Lens(
        model.eval(),
        dict(zip(lens.layers, lens.saes, strict=True)),
        baselines=lens.baselines,
        class_names=class_names,
        transform=lens.transform,
        about=About(name="spurious"),
    )


class _Composites(Sequence[ImageLike]):
    """Cut-outs on backgrounds; image `i` depends on the seed and `i` alone."""

    def __init__(
        self, cutouts: Int[np.ndarray, " n"], backgrounds: Int[np.ndarray, " n"], seed: Any
    ):
        self._cutouts, self._backgrounds, self._seed = cutouts, backgrounds, seed

    def __len__(self) -> int:
        return len(self._cutouts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} images; there is no image {index}.")
        index %= len(self)
        rng = np.random.default_rng([*self._seed, index])
        return _composite(
            _source(f"cutout.{self._cutouts[index]}"),
            _source(f"background.{self._backgrounds[index]}"),
            rng,
        )


def _composite(
    thing: Image.Image, background: Image.Image, rng: np.random.Generator
) -> Image.Image:
    """Put a cut-out on a random square of a background; each is mirrored half of the time."""
    side = round(min(background.size) * rng.uniform(0.6, 1.0))
    left, top = (int(rng.integers(0, s - side + 1)) for s in background.size)
    canvas = background.resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )
    if rng.random() < 0.5:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    thing = thing.rotate(rng.normal(0, 8), Image.Resampling.BICUBIC, expand=True)
    thing = thing.crop(thing.getbbox())
    scale = rng.uniform(*COVER) * SIDE / max(thing.size)
    width, height = (max(2, round(scale * s)) for s in thing.size)
    thing = thing.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2)
    canvas = _lit(canvas, rng)
    place = int(rng.integers(0, SIDE - width + 1)), int(rng.integers(0, SIDE - height + 1))
    canvas.paste(_lit(thing.convert("RGB"), rng), place, thing.getchannel("A"))
    return canvas


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change the brightness of an image by a random factor."""
    gain = math.exp(rng.normal(0, 0.15))
    return image.point(lambda value: min(255, round(gain * value)))


def _dealt(
    entries: list[dict[str, Any]],
    what: str,
    split: Split,
    values: Int[np.ndarray, " n"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " n"]:
    """Draw an entry of the right class or attribute value for each image, all equally often."""
    chosen = np.zeros(len(values), dtype=int)
    for value in (0, 1):
        deck = [i for i, e in enumerate(entries) if (e[what], e["split"]) == (value, split)]
        images = np.flatnonzero(values == value)
        rounds = [rng.permutation(deck) for _ in range(math.ceil(len(images) / len(deck)))]
        chosen[images] = np.concatenate(rounds)[: len(images)]
    return chosen


@cache
def _facts() -> Any:
    return read_json(FOLDER / "spurious.json")


@cache
def _blobs() -> dict[str, Tensor]:
    return read_tensors(FOLDER / "pictures.safetensors")[0]


@cache
def _source(name: str) -> Image.Image:
    image = Image.open(io.BytesIO(_blobs()[name].numpy().tobytes()))
    return image.convert("RGBA" if name.startswith("cutout") else "RGB")

"""The benchmark `vitlens.spurious`: cut-outs, backgrounds, credits, and the probes of five seeds.

    python -m recipes.everyday.spurious

Cut-outs keep the splits of `sources`: no step of `everyday` has seen those of the test split. The
same holds for photographs of `sources.PHOTOGRAPHS`. The others come from albums on which only the
SAEs were trained, and nothing with labels.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from recipes.everyday import credits, sources
from recipes.everyday.fetch import WORK, fetch
from recipes.everyday.sources import CLASSES, Cutout
from recipes.everyday.store import BUNDLE as EVERYDAY
from vitlens.debias.spurious import probe_weights
from vitlens.io import write_json, write_tensors

BUNDLE = EVERYDAY.parent / "spurious"
PAIR = ("bird", "mammal")
ATTRIBUTES = ("water or sky", "plants")
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
SEEDS = range(5)
CUTOUT_SIDE, BACKGROUND_SIDE = 160, 320

_MATE = "mate-backgrounds: nature/{}.jpg"
_PLASMA = "plasma-workspace-wallpapers: {}"
_LXQT = "lxqt-themes: wallpapers/{}"
_ALBUM = "kphotoalbum: demo/{}.jpg"
_KDE = "copyright 2014 KDE Visual Design Group, GPL-2.0-or-later"
_KPHOTO = "copyright 2003-2014 Jesper K. Pedersen and the KPhotoAlbum developers, GPL-2.0-or-later"
_LXQT_TEAM = "copyright 2010-2022 Razor team and LXQt team, LGPL-2.1-or-later"


def _mate(name: str) -> str:
    return f"copyright {credits.AUTHORS[name]}, GPL-2.0-or-later"


# Split, kind, name, package, credit.
BACKGROUNDS = (
    ("train", 0, "BytheWater", _PLASMA, _KDE),
    ("train", 0, "ColdRipple", _PLASMA, _KDE),
    ("train", 0, "DarkestHour", _PLASMA, _KDE),
    ("train", 0, "Kite", _PLASMA, _KDE),
    ("train", 0, "summer_1am", _PLASMA, _KDE),
    ("train", 1, "Blinds", _MATE, _mate("Blinds")),
    ("train", 1, "OneStandsOut", _PLASMA, _KDE),
    ("train", 1, "appleflower", _LXQT, _LXQT_TEAM),
    ("train", 1, "drop", _LXQT, _LXQT_TEAM),
    ("val", 0, "cloud", _LXQT, _LXQT_TEAM),
    ("val", 0, "skagen", _ALBUM, _KPHOTO),
    ("val", 1, "FallenLeaf", _PLASMA, _KDE),
    ("val", 1, "GreenMeadow", _MATE, _mate("GreenMeadow")),
    ("test", 0, "Aqua", _MATE, _mate("Aqua")),
    ("test", 0, "skagen_2", _ALBUM, _KPHOTO),
    ("test", 1, "Path", _PLASMA, _KDE),
    ("test", 1, "RainDrops", _MATE, _mate("RainDrops")),
)  # fmt: skip
_STAMPS = "copyright 2002-2022 Bill Kendrick and the Tux Paint contributors, GPL-2.0"


def build() -> None:
    """Write the images with their credits, then one probe per seed."""
    fetch()
    write_pictures()
    write_probes()


def write_probes() -> None:
    """Train one probe per seed, and write ``probes.safetensors``."""
    probes = {}
    for seed in SEEDS:
        for name, value in probe_weights(seed).items():
            probes[f"{seed}.{name}"] = value
    write_tensors(BUNDLE / "probes.safetensors", probes, {"seeds": list(SEEDS)})


def write_pictures() -> None:
    """Write ``pictures.safetensors`` (WebP files as bytes) and ``spurious.json``."""
    chosen = [c for c in sources.cutouts() if c.kind == "photo" and CLASSES[c.label] in PAIR]
    blobs, cutouts, backgrounds = {}, [], []
    for number, cutout in enumerate(chosen):
        blobs[f"cutout.{number}"] = _webp(_cut_out(cutout), quality=80)
        cutouts.append(
            {
                "class": PAIR.index(CLASSES[cutout.label]),
                "split": SPLIT_NAMES[cutout.split],
                "credit": f"{cutout.source}, {_STAMPS}",
            }
        )
    for number, (split, kind, name, where, credit) in enumerate(BACKGROUNDS):
        path = _background(name, where)
        blobs[f"background.{number}"] = _webp(_small(path), quality=80)
        source = where.format(path.name if where == _LXQT else name)
        backgrounds.append(
            {
                "attribute": kind,
                "split": SPLIT_NAMES[split],
                "credit": f"{source}, {credit}",
            }
        )
    write_tensors(BUNDLE / "pictures.safetensors", blobs, {})
    write_json(
        BUNDLE / "spurious.json",
        {
            "class_names": PAIR,
            "attribute_names": ATTRIBUTES,
            "cutouts": cutouts,
            "backgrounds": backgrounds,
        },
    )


def _background(name: str, where: str) -> Path:
    if where == _ALBUM:
        return WORK / "kphotoalbum/usr/share/kphotoalbum/demo" / f"{name}.jpg"
    if where == _LXQT:
        folder = WORK / "lxqt-themes/usr/share/lxqt/wallpapers"
        return next(folder.glob(f"{name}.*"))
    return sources.wallpaper(name)


def _cut_out(cutout: Cutout) -> Image.Image:
    rgba = sources.trim(Image.open(cutout.path).convert("RGBA"))
    rgba.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.LANCZOS)
    return rgba


def _small(path: Path) -> Image.Image:
    picture = Image.open(path)
    picture.draft("RGB", (4 * BACKGROUND_SIDE, 4 * BACKGROUND_SIDE))
    scale = BACKGROUND_SIDE / min(picture.size)
    size = (round(scale * picture.width), round(scale * picture.height))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2)


def _webp(picture: Image.Image, *, quality: int) -> Tensor:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality, method=6)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


if __name__ == "__main__":
    build()

"""Step 9: the images of the bundled atlas, each with its credit, as they are bundled."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.everyday import credits, images, sources
from recipes.everyday.fetch import STAMPS, WORK
from recipes.everyday.sources import CLASSES, Cutout
from vitlens.io import atomic_folder, write_json

FOLDER = WORK / "atlas-pictures"
QUALITY = 56  # of WebP: keeps the whole bundle below 40 MB

BACKGROUNDS = ("Aqua", "Blinds", "Dune", "GreenMeadow", "RainDrops", "Storm", "Wood")
# Photographs of lomiri-wallpapers: file, author, licence.
LOMIRI = (
    ("16.04/Bridge_by_Sander_Klootwijk", "Sander Klootwijk", "CC-BY-SA-4.0"),
    ("16.04/Dragonfly_by_Bolly", "Bolly", "CC-BY-SA-4.0"),
    ("16.04/Picture_0B_by_freespace", "Trevor “Freespace”", "CC-BY-4.0"),
    ("16.04/Picture_1A_by_freespace", "Trevor “Freespace”", "CC-BY-4.0"),
    ("16.04/Wine_by_Jakkub_Mede", "Jakub Mede", "CC-BY-4.0"),
    ("16.04/aitzgorri_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    ("16.04/analogpattern_by_Peter_Nerlich", "Peter Nerlich", "CC-BY-SA-4.0"),
    ("16.04/free_by_Peter_Nerlich", "Peter Nerlich", "CC-BY-SA-4.0"),
    ("16.04/friends_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    ("16.04/greentock_by_Peter_Nerlich", "Peter Nerlich", "CC-BY-SA-4.0"),
    ("16.04/life_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    ("16.04/picosdeeuropa_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    ("16.04/seeding_by_Clements_Engelhardt", "Clemens Engelhardt", "CC0-1.0"),
    ("16.04/sunset_by_Aitzol_Berasategi", "Aitzol Berasategi", "CC-BY-4.0"),
    ("16.04/umang_by_Abhishek_Mudgal", "Abhishek Mudgal", "CC-BY-4.0"),
    ("20.04/Kleiber_by_Lukas_Baubkus", "Lukas Baubkus", "CC-BY-SA-3.0"),
)
CROPS = 3  # per photograph without a cut-out
FLOWERS = ("FreshFlower", "Garden", "YellowFlower")


@dataclass(frozen=True)
class Picture:
    """One image of the atlas, RGB uint8 [224, 224, 3], with its sources."""

    name: str
    pixels: np.ndarray
    group: str
    label: int | None
    credit: str


def write_pictures() -> None:
    """Write the images as WebP files, and ``pictures.json`` with their credits."""
    rows = []
    shutil.rmtree(FOLDER, ignore_errors=True)
    with atomic_folder(FOLDER) as folder:
        for picture in pictures():
            (folder / f"{picture.name}.webp").write_bytes(encoded(picture.pixels))
            rows.append(
                {
                    "file": f"{picture.name}.webp",
                    "group": picture.group,
                    "label": None if picture.label is None else CLASSES[picture.label],
                    "credit": picture.credit,
                }
            )
        write_json(folder / "pictures.json", rows)


def pictures() -> Iterator[Picture]:
    """Make all images in a fixed order: composites of cut-outs, then crops of photographs.

    Unseen photographic cut-outs (validation and test) appear twice, those of the training split
    once.
    """
    unseen = [c for split in ("val", "test") for c in sources.of(split, ("photo",))]
    seen = sources.of("train", ("photo",))
    for number, cutout in enumerate([*unseen, *unseen, *seen]):
        rng = np.random.default_rng([number, 4])
        background = BACKGROUNDS[number % len(BACKGROUNDS)]
        yield _composite(number, cutout, background, rng)
    for name in credits.AUTHORS:
        label = CLASSES.index("flower") if name in FLOWERS else None
        credit = f"Crop of {credits.photograph(name)}."
        yield from _crops(sources.wallpaper(name), name, label, credit)
    for file, author, licence in LOMIRI:
        package = f"lomiri-wallpapers-{file[:5]}"
        path = next((WORK / package).rglob(f"{file.split('/')[1]}.jpg"))
        credit = f"Crop of {package}: {path.name}, copyright {author}, {licence}."
        yield from _crops(path, path.stem.split("_by_")[0], None, credit)


def encoded(pixels: np.ndarray) -> bytes:
    """WebP bytes."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def _composite(number: int, cutout: Cutout, background: str, rng: np.random.Generator) -> Picture:
    made = images.composite(cutout, "", rng, background=sources.wallpaper(background))
    thing = str(cutout.path.relative_to(STAMPS).with_suffix(""))
    name = f"{number:03d}-{cutout.path.stem}-on-{background.lower()}"
    return Picture(name, made.pixels, thing, cutout.label, credits.composite(cutout, background))


def _crops(path: Path, name: str, label: int | None, credit: str) -> Iterator[Picture]:
    for number in range(CROPS):
        rng = np.random.default_rng([number, *name.encode()])
        pixels = np.asarray(images.background_crop(path, rng))
        yield Picture(f"{name.lower()}-{number + 1}", pixels, name, label, credit)

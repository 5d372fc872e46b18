"""The source images: what they show, and the split each belongs to."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.everyday.fetch import (
    ALBUMS,
    BACKGROUNDS,
    CLIP_ART,
    MORE_ALBUMS,
    OPENCV,
    STAMPS,
)

CLASSES = ("bird", "coin", "flower", "fruit", "mammal", "vehicle")
SPLITS = {"train": 0.60, "val": 0.15, "test": 0.25}

# Photographic cut-outs of tuxpaint-stamps-default. "fruit" includes vegetables and nuts.
PHOTO_FOLDERS = {
    "bird": ("animals/birds",),
    "coin": ("symbols/money",),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit", "food/vegetables", "food/nuts"),
    "mammal": ("animals/mammals", "animals/marsupials"),
    "vehicle": ("vehicles", "military/vehicles"),
}
DRAWN_FOLDERS = ("cartoon", "toys", "plastic", "00_symbols")
# A wheel is not a vehicle, and a balloon is unlike the others; the echidna is a silhouette and the
# hedgehog a drawing.
NOT_PHOTOS = ("7spoke256", "wheel_tractor", "balloon360", "echidna", "hedgehog")

# Clip art: the drawings among the stamps, and openclipart-png.
STAMP_DRAWINGS = {
    "bird": ("animals/birds/cartoon",),
    "fruit": ("food/fruit/cartoon",),
    "mammal": ("animals/mammals/bears/cartoon", "animals/mammals/cats/cartoon"),
    "vehicle": (
        "vehicles/construction/cartoon",
        "vehicles/emergency/cartoon",
        "vehicles/farming/cartoon",
        "vehicles/flight/cartoon",
        "vehicles/flight/planes/cartoon",
        "vehicles/locomotive/cartoon",
        "vehicles/masstransit/cartoon",
        "vehicles/ship/cartoon",
    ),
}
CLIP_ART_FOLDERS = {
    "bird": ("animals/birds",),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit", "food/vegetables"),
    "mammal": ("animals/mammals",),
    "vehicle": ("transportation/vehicles",),
}
# Files whose names start like this show something else: a dish, a tree, a road sign, a broken link.
NOT_CLIP_ART = (
    "apple_juice", "baby-tux_alex", "cactus", "candied", "cartoon_tree", "cat_scratching",
    "cat_scrathing", "champignon", "cigno_di_notte", "contour_bat", "crazy_monkey", "crossroads",
    "curve", "cycle_", "duck_yellow_ii", "elephant_outline", "eris", "gumnut", "juice", "kallisti",
    "lighthouse", "manager", "mirjam", "parking", "pie_", "quay", "rocket", "shelby", "slate",
    "sledge", "stambecco", "stormo", "straw_tote", "the_mad", "tile", "toro_al", "toy_paper",
    "trainSign", "tree_whit", "turkey_on", "turkey_platter", "tux_didier", "wing_",
)  # fmt: skip

PHOTOGRAPHS = (
    "Aqua", "Blinds", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "Dune",
    "FallenLeaf", "GreenMeadow", "Grey", "Kite", "OneStandsOut", "Path",
    "RainDrops", "Storm", "Wood", "summer_1am",
)  # fmt: skip
# Photographs that show one of the classes (flowers, boats): natural images, never backgrounds.
SUBJECTS = ("EveningGlow", "FreshFlower", "Garden", "LadyBird", "TwoWings", "YellowFlower")
# Those of them that SAEs are trained on.
UNLABELLED = ("EveningGlow", "LadyBird", "TwoWings")
# Rendered and painted wallpapers, used only as additional training backgrounds.
PAINTED = (
    "Altai", "Autumn", "Canopee", "Cascade", "Cluster", "Elarun", "Honeywave", "IceCold", "Kay",
    "Kokkini", "MilkyWay", "Opal", "PastelHills", "Patak", "SafeLanding", "Shell", "Volna",
    "Elephants", "adwaita-l", "grid-l", "licorice-l", "truchet-l", "wood-l", "Stripes",
    "Ubuntu-Mate-Cold-no-logo", "Ubuntu-Mate-Warm-no-logo",
)  # fmt: skip
# Images of opencv-doc that show ordinary scenes, without results drawn on them.
OPENCV_PICTURES = {
    "examples/alphamat/input_images": ("plant",),
    "examples/data": (
        "aero1", "aloeL", "apple", "baboon", "basketball1", "board", "box_in_scene", "building",
        "butterfly", "fruits", "graf1", "home", "left", "leuvenA", "licenseplate_motion", "messi5",
        "orange", "rubberwhale1", "squirrel_cls", "starry_night", "stuff",
    ),
    "examples/hfs/data": ("000", "002"),
    "examples/text": (
        "scenetext01", "scenetext02", "scenetext03", "scenetext04", "scenetext06",
        "scenetext_segmented_word01",
    ),
    "opencv4/html": (
        "227943776_1", "230501201_1", "4_barcodes", "Histogram_Calculation_Original_Image",
        "Laplace_Operator_Tutorial_Original_Image", "Remap_Tutorial_Original_Image",
        "Template_Matching_Image_Result", "ambush_5_left", "astra_color", "bicubicOutput",
        "bus_det", "cat_det", "coins", "detect_test1", "detect_test2", "facereg",
        "feature_building", "fusion_mertens", "handDst", "histogram_sample",
        "julia_facedetect_sample", "motion_original", "opencv_bus_res", "person_multi_det",
        "retina_TreeHdr_retina", "space_shuttle", "yolo",
    ),
}  # fmt: skip

# Left out of `more_albums`: drawings, and images of a place that is in another image.
NOT_ALBUM = (
    "graffiti", "party-room", "room1", "room2", "room3", "school2", "spotlight-stage",
    "tennis-backboard", "woods-and-bench",
)  # fmt: skip


@dataclass(frozen=True)
class Cutout:
    """An image of one object with a transparent background."""

    path: Path
    label: int
    kind: str  # "photo" or "clip art"
    split: str = ""

    @property
    def source(self) -> str:
        """Package and file, as in ``tuxpaint-stamps-default: animals/birds/owl.png``."""
        if self.path.is_relative_to(STAMPS):
            return f"tuxpaint-stamps-default: {self.path.relative_to(STAMPS)}"
        return f"openclipart-png: {self.path.relative_to(CLIP_ART)}"


@cache
def cutouts() -> tuple[Cutout, ...]:
    """Every cut-out of every class with its split, in a fixed order."""
    photos = _find(STAMPS, PHOTO_FOLDERS, "photo")
    photos = [c for c in photos if not _is_drawn(c.path)]
    drawings = _find(STAMPS, STAMP_DRAWINGS, "clip art") + _find(
        CLIP_ART, CLIP_ART_FOLDERS, "clip art"
    )
    drawings = [c for c in drawings if not c.path.name.startswith(NOT_CLIP_ART)]
    drawings = [c for c in drawings if _is_cut_out(c.path)]
    return tuple(_split(photos) + _split(drawings))


@cache
def other_cutouts() -> tuple[Cutout, ...]:
    """Stamps of things that belong to no class, without letters and signs."""
    taken = [f for folders in PHOTO_FOLDERS.values() for f in folders] + ["symbols", "town/flags"]
    found = [
        Cutout(path, -1, "other", "train")
        for path in sorted(STAMPS.rglob("*.png"))
        if not any(path.is_relative_to(STAMPS / folder) for folder in taken)
    ]
    return tuple(c for c in found if _is_cut_out(c.path))


@cache
def backgrounds() -> dict[str, tuple[Path, ...]]:
    """Photographs by split (names in `PHOTOGRAPHS`), the largest version of each."""
    names = sorted(PHOTOGRAPHS)
    random.Random(0).shuffle(names)
    n_train = round(SPLITS["train"] * len(names))
    n_val = round(SPLITS["val"] * len(names))
    parts = {
        "train": names[:n_train],
        "val": names[n_train : n_train + n_val],
        "test": names[n_train + n_val :],
    }
    return {split: tuple(wallpaper(name) for name in sorted(part)) for split, part in parts.items()}


def wallpaper(name: str) -> Path:
    """The largest landscape file of a wallpaper, which may be installed in several sizes."""
    found = {
        path.resolve()  # some sizes link to another
        for folder in BACKGROUNDS
        for path in folder.rglob("*")
        if path.suffix in (".jpg", ".png", ".webp")
        and not path.name.startswith(("screenshot", "720x1440", "1080x1920"))
        and (path.stem == name or name in path.relative_to(folder).parts[:1])
    }
    return max(found, key=lambda path: (path.stat().st_size, path.name))


@cache
def albums() -> tuple[Path, ...]:
    """Photographs of no split and no class that only SAEs are trained on, in a fixed order."""
    found = [path for folder in ALBUMS for path in sorted(folder.iterdir())]
    for folder, names in OPENCV_PICTURES.items():
        found += [next((OPENCV / folder).glob(f"{name}.[jp][pn]g")) for name in names]
    return _pictures(found)


@cache
def more_albums() -> tuple[Path, ...]:
    """Photographs of no split and no class that SAEs are only tuned on, in a fixed order."""
    found = [path for folder in MORE_ALBUMS for path in sorted(folder.iterdir())]
    return _pictures(path for path in found if path.stem not in NOT_ALBUM)


def _pictures(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Keep the paths of images that are not too small."""
    pictures = (path for path in paths if path.suffix in (".jpg", ".png", ".webp"))
    files = (path for path in pictures if path.is_file() and not path.is_symlink())
    return tuple(path for path in files if _side(path) >= 150)


def _side(path: Path) -> int:
    with Image.open(path) as image:
        return min(image.size)


def wallpaper_name(path: Path) -> str:
    """The name by which `wallpaper` finds a file."""
    return path.parents[2].name if path.parent.name.startswith("images") else path.stem


def _find(root: Path, folders: dict[str, tuple[str, ...]], kind: str) -> list[Cutout]:
    return [
        Cutout(path, CLASSES.index(name), kind)
        for name, places in folders.items()
        for place in places
        for path in sorted((root / place).rglob("*.png"))
    ]


def _is_drawn(path: Path) -> bool:
    return path.stem in NOT_PHOTOS or any(part in DRAWN_FOLDERS for part in path.parts)


def _is_cut_out(path: Path) -> bool:
    """Whether the image has transparent margins and is neither very thin nor very large."""
    with Image.open(path) as image:
        if image.width * image.height > 50_000_000:
            return False
        covered = np.asarray(image.convert("RGBA").getchannel("A").resize((64, 64))) > 128
    edge = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
    return bool(0.05 < covered.mean() < 0.97 and edge.mean() < 0.9)


def _split(found: Sequence[Cutout]) -> list[Cutout]:
    """Distribute groups of similar cut-outs over the splits, class by class, with a fixed seed."""
    result = []
    for label in range(len(CLASSES)):
        groups = _group([c for c in found if c.label == label])
        random.Random(label).shuffle(groups)
        total, dealt = sum(map(len, groups)), defaultdict(int)
        for group in groups:
            # The split that is furthest below its share gets the next group.
            split = max(SPLITS, key=lambda s: SPLITS[s] - dealt[s] / total)
            dealt[split] += len(group)
            result += [replace(c, split=split) for c in group]
    return sorted(result, key=lambda c: c.path)


def _group(found: Sequence[Cutout]) -> list[list[Cutout]]:
    """Group cut-outs that share the first word of their names, or look alike, mirrored or not."""
    hashes = [_hashes(c.path) for c in found]
    group = list(range(len(found)))
    for i in range(len(found)):
        for j in range(i):
            alike = min(int((hashes[i][0] != other).sum()) for other in hashes[j]) <= 8
            if alike or _first_word(found[i].path) == _first_word(found[j].path):
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    members = defaultdict(list)
    for g, cutout in zip(group, found, strict=True):
        members[g].append(cutout)
    return list(members.values())


def _first_word(path: Path) -> str:
    return re.split(r"[-_ ]", path.stem.lower())[0]


def _hashes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Difference hash (64 bits) of the trimmed cut-out on white, and of its mirror image."""
    rgba = trim(Image.open(path).convert("RGBA"))
    flat = Image.new("RGBA", rgba.size, "white")
    flat.alpha_composite(rgba)
    grey = np.asarray(flat.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=int)
    mirrored = grey[:, ::-1]
    return np.diff(grey) > 0, np.diff(mirrored) > 0


def trim(rgba: Image.Image) -> Image.Image:
    """Cut the transparent margin off."""
    return rgba.crop(rgba.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox())


def of(split: str, kinds: Iterable[str] = ("photo", "clip art")) -> list[Cutout]:
    """The cut-outs of one split."""
    kinds = tuple(kinds)
    return [c for c in cutouts() if c.split == split and c.kind in kinds]

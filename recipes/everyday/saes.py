"""Step 6 and 7: the SAEs of layers 0 to 10, and the baselines, of the stored model."""

import shutil
from functools import cache

import numpy as np
import torch
from PIL import Image
from PIL.Image import Transpose
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.everyday import images, sources
from recipes.everyday.fetch import WORK
from recipes.everyday.store import BUNDLE, stored_model
from vitlens.io import read_json
from vitlens.method.replacement import ReplacementModel, fit_baselines
from vitlens.models.vision import VisionModel
from vitlens.saes import SAE, load_saes, save_saes
from vitlens.training import TrainConfig, TuneConfig, train_saes, tune_saes

FOLDER = BUNDLE / "saes"
BASELINES = {kind: BUNDLE / "baselines" / f"{kind}.safetensors" for kind in ("mean", "median")}
TRAINED, TUNED = WORK / "saes", WORK / "saes-tuned"
N_IMAGES = 14_000  # 3.6 million tokens
N_TUNE = 16_000
CONFIG = TrainConfig(
    sizes=(256, 512, 768, 768, 768, 768, 768, 768, 768, 768, 768),
    k=(32, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40),
    batch_tokens=1024,
    forward_images=16,
    learning_rate=3e-3,
    warmup_steps=100,
    decay_share=0.3,
    precision="bfloat16",
)
# K of the tuned SAEs, chosen on validation. The K of layers 1 to 10 determine the cost of edges;
# that of layer 0 does not, and its reconstruction error reaches all layers.
TUNED_K = (48, 38, 40, 40, 40, 40, 40, 40, 40, 40, 42)
TUNE = TuneConfig(
    batch_images=8, chain_weight=1.0, output_weight=1.0, dead_after=30, precision="bfloat16"
)


def train() -> None:
    """Train the SAEs on unlabelled images, tune them together, and store them in the bundle."""
    vision = VisionModel(stored_model())
    trained = train_saes(vision, _loader(TrainingPictures(N_IMAGES)), CONFIG, out=TRAINED)
    print(trained)
    for sae, k in zip(trained.saes.values(), TUNED_K, strict=True):
        sae.k = k
    tuned = tune_saes(vision, trained.saes, _loader(TuningPictures(N_TUNE)), TUNE, out=TUNED)
    print(tuned)
    first, last = (read_json(run / "manifest.json")["metadata"] for run in (TRAINED, TUNED))
    metadata = {"training": first["training"], "tuning": last["tuning"]}
    save_saes(tuned.saes, FOLDER, metadata=metadata, dtype=torch.float16)
    for run in (TRAINED, TUNED):
        shutil.rmtree(run)
    stored_saes.cache_clear()


def _loader(pictures: Dataset) -> DataLoader:
    return DataLoader(pictures, batch_size=16, num_workers=1)


def baselines() -> None:
    """Means and medians over 512 training composites: half of photographs, half of both kinds."""
    photos = images.composites("train", 256, seed=7)
    mixed = images.composites("train", 256, seed=8, kinds=("photo", "clip art"))
    batches = [*photos.batches(32), *mixed.batches(32)]
    saes = stored_saes()
    replacement = ReplacementModel(VisionModel(stored_model()), saes, range(len(saes)))
    for kind, path in BASELINES.items():
        fit_baselines(replacement, batches, kind=kind).save(path, dtype=torch.int8)


@cache
def stored_saes() -> list[SAE]:
    """The SAEs of the bundle, float32."""
    return list(load_saes(FOLDER).values())


class TrainingPictures(Dataset):
    """Unlabelled images, as varied as the training split allows; image `i` depends on `i` alone.

    SAEs trained on composites alone reconstruct unseen photographs much worse than seen ones. So
    scenes are rotated, recoloured and blended, several objects are put on one scene, some of no
    class, and parts are enlarged.
    """

    # Shares of training backgrounds, albums and all scenes; then of the changes to scenes.
    of_each = (0.3, 0.5, 0.2)
    blended, turned, recoloured = 0.3, 0.5, 0.5

    def __init__(self, n: int) -> None:
        self.n = n
        self.cutouts = sources.of("train")
        self.photographs = sources.backgrounds()["train"]
        self.albums = sources.albums()
        self.scenes = self.albums + tuple(
            sources.wallpaper(name) for name in (*sources.UNLABELLED, *sources.PAINTED)
        )

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.n:
            raise IndexError(index)
        rng = np.random.default_rng([99, index])
        kind = rng.choice(4, p=(0.25, 0.5, 0.2, 0.05))
        if kind == 0:
            pixels = images.composite(self._cutout(rng), "train", rng).pixels
        elif kind == 3:
            pixels = images.plain(self._cutout(rng), rng)
        else:
            picture = self._scene(rng)
            for _ in range(0 if kind == 2 else rng.integers(1, 4)):
                cutout = self._cutout(rng)
                picture = Image.fromarray(
                    images.place(cutout, picture, rng, augment=rng.random() < 0.5)
                )
            pixels = np.asarray(_enlarge(picture, rng) if rng.random() < 0.3 else picture)
        return images.normalise(pixels[None])[0]

    def _cutout(self, rng: np.random.Generator) -> sources.Cutout:
        """A random cut-out: one in four of no class, else any class; three in four photographs."""
        if rng.random() < 0.25:
            others = sources.other_cutouts()
            return others[rng.integers(len(others))]
        label = rng.integers(len(sources.CLASSES))
        same = [c for c in self.cutouts if c.label == label]
        photos = [c for c in same if c.kind == "photo"]
        chosen = photos if rng.random() < 0.75 else same
        return chosen[rng.integers(len(chosen))]

    def _scene(self, rng: np.random.Generator) -> Image.Image:
        """A crop of a photograph or wallpaper, sometimes rotated, recoloured or blended."""
        known = (self.photographs, self.albums, self.scenes)[rng.choice(3, p=self.of_each)]
        scene = images.background_crop(known[rng.integers(len(known))], rng)
        if rng.random() < self.blended:
            other = self.scenes[rng.integers(len(self.scenes))]
            scene = Image.blend(scene, images.background_crop(other, rng), rng.uniform(0.2, 0.8))
        if self.turned and rng.random() < self.turned:
            turns = (Transpose.ROTATE_90, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM)
            scene = scene.transpose(turns[rng.integers(3)])
        return _recoloured(scene, rng) if rng.random() < self.recoloured else scene


class TuningPictures(TrainingPictures):
    """Unlabelled images like those that the SAEs will be used on, with more photographs.

    Most show one object on a photograph, others none or several. Few scenes are blended or
    recoloured: images unlike photographs take up features that photographs need.
    """

    of_each = (0.2, 0.74, 0.06)
    blended, turned, recoloured = 0.15, 0.0, 0.15

    def __init__(self, n: int) -> None:
        super().__init__(n)
        more = sources.more_albums()
        self.albums, self.scenes = self.albums + more, self.scenes + more

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.n:
            raise IndexError(index)
        rng = np.random.default_rng([100, index])
        kind = rng.choice(4, p=(0.6, 0.15, 0.22, 0.03))
        if kind == 3:
            return images.normalise(images.plain(self._cutout(rng), rng)[None])[0]
        picture = self._scene(rng)
        for _ in range((1, int(rng.integers(2, 4)), 0)[kind]):
            disturbed = rng.random() < 0.25
            thing = images.place(self._cutout(rng), picture, rng, augment=disturbed)
            picture = Image.fromarray(thing)
        pixels = np.asarray(_enlarge(picture, rng) if rng.random() < 0.1 else picture)
        return images.normalise(pixels[None])[0]


def _recoloured(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    hue, saturation, value = scene.convert("HSV").split()
    turn = int(rng.integers(256))
    hue = hue.point(lambda h: (h + turn) % 256)
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _enlarge(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of the image, resized to the size of the image."""
    side = int(rng.integers(90, images.SIZE))
    left, top = (int(v) for v in rng.integers(0, images.SIZE - side + 1, 2))
    box = (left, top, left + side, top + side)
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box)

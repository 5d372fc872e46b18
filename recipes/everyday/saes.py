"""Step 6 and 7: the SAEs of layers 0 to 10, and the baselines, of the stored model."""

import shutil
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.everyday import images, sources
from recipes.everyday.fetch import WORK
from recipes.everyday.store import BUNDLE, stored_model
from vitlens.files import read_json
from vitlens.models.adapter import ViT
from vitlens.replacement import fit_baselines
from vitlens.saes import TopKSAE, TrainConfig, load_saes, save_saes, train_saes

FOLDER = BUNDLE / "saes"
BASELINES = BUNDLE / "baselines.safetensors"
TRAINED = WORK / "saes"
N_IMAGES = 7900  # 2.03 million tokens
CONFIG = TrainConfig(
    sizes=(384, 384, 576, 576, 576, 576, 640, 640, 704, 704, 704),
    k=(32, 48, 48, 48, 48, 48, 48, 48, 48, 48, 48),
    batch_tokens=1024,
    forward_images=16,
    learning_rate=3e-3,
    warmup_steps=100,
    decay_share=0.3,
    precision="bfloat16",
)


def train() -> None:
    """Train the SAEs on unlabelled training pictures and put them, as float16, into the bundle."""
    pictures = DataLoader(TrainingPictures(N_IMAGES), batch_size=16, num_workers=1)
    result = train_saes(ViT(stored_model()), pictures, CONFIG, out=TRAINED)
    print(result)
    training = read_json(TRAINED / "manifest.json")["metadata"]
    save_saes(result.saes, FOLDER, metadata=training, dtype=torch.float16)
    shutil.rmtree(TRAINED)
    stored_saes.cache_clear()


def baselines() -> None:
    """Medians over 512 training composites, half of them of photographs, half of either kind."""
    photos = images.composites("train", 256, seed=7)
    mixed = images.composites("train", 256, seed=8, kinds=("photo", "clip art"))
    batches = [*photos.batches(32), *mixed.batches(32)]
    fitted = fit_baselines(ViT(stored_model()), stored_saes(), batches)
    fitted.save(BASELINES, dtype=torch.float16)


@cache
def stored_saes() -> list[TopKSAE]:
    """The SAEs of the bundle, float32."""
    return load_saes(FOLDER)


class TrainingPictures(Dataset):
    """Composites (as for training and as for testing), crops of photographs, plain cut-outs.

    Everything comes from the training split; picture `i` depends on `i` alone.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.cutouts = sources.of("train")
        self.photographs = sources.backgrounds()["train"]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.n:
            raise IndexError(index)
        rng = np.random.default_rng([99, index])
        kind = rng.choice(4, p=(0.3, 0.45, 0.15, 0.1))
        if kind == 2:
            photograph = self.photographs[rng.integers(len(self.photographs))]
            pixels = images.natural(photograph, rng)
        else:
            cutout = self._cutout(rng)
            if kind == 3:
                pixels = images.plain(cutout, rng)
            else:
                pixels = images.composite(cutout, "train", rng, augment=kind == 0).pixels
        return images.normalise(pixels[None])[0]

    def _cutout(self, rng: np.random.Generator) -> sources.Cutout:
        """Classes equally often, photographs three times in four."""
        label = rng.integers(len(sources.CLASSES))
        same = [c for c in self.cutouts if c.label == label]
        photos = [c for c in same if c.kind == "photo"]
        chosen = photos if rng.random() < 0.75 else same
        return chosen[rng.integers(len(chosen))]

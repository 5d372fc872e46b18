"""Step 10: the control of the atlas, an untrained ViT with SAEs trained the same way."""

import torch
from torch.utils.data import DataLoader

from recipes.everyday.fetch import WORK
from recipes.everyday.saes import CONFIG, TrainingPictures
from recipes.everyday.store import BUNDLE
from vitlens.bundle import build_model
from vitlens.images import Transform
from vitlens.io import read_json
from vitlens.lens import Lens
from vitlens.models.heads import ClsMeanViT
from vitlens.models.vision import VisionModel
from vitlens.saes import load_saes
from vitlens.training import train_saes

FOLDER = WORK / "untrained"
N_IMAGES = 4_000  # of the 14,000: the streams are much simpler, and two cores are slow


def train() -> None:
    """Train SAEs on the streams of the untrained model, as step 6 on those of the trained one."""
    pictures = DataLoader(TrainingPictures(N_IMAGES), batch_size=16, num_workers=0)
    print(train_saes(VisionModel(untrained_model()), pictures, CONFIG, out=FOLDER / "saes"))


def untrained_model() -> ClsMeanViT:
    """The architecture of `everyday` as timm initialises it, with LayerScale 1.

    With the published initial value of 1e-5 the blocks would change almost nothing, and all layers
    would be the same.
    """
    torch.manual_seed(0)
    config = read_json(BUNDLE / "bundle.json")
    config["kwargs"] = {**config["kwargs"], "init_values": 1.0}
    return build_model(config)


def untrained_lens() -> Lens:
    """The control as a lens; its classes have no meaning."""
    config = read_json(BUNDLE / "bundle.json")
    return Lens(
        untrained_model(),
        load_saes(FOLDER / "saes"),
        class_names=config["class_names"],
        transform=Transform.from_dict(config["transform"]),
    )

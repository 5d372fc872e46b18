"""A model of three blocks of 16 channels and 5 tokens, its images, and ways to interrupt a run."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import IterableDataset

from vitlens.models.vision import VisionModel
from vitlens.saes import SAE

D_MODEL, DEPTH, T = 16, 3, 5
N_IMAGES = 14


def make_vision(dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisionTransformer(
            img_size=16, patch_size=8, embed_dim=D_MODEL, depth=DEPTH, num_heads=2, num_classes=4
        )
    return VisionModel(model.eval().to(dtype))


def decided_vision():
    """The same with an output as decided as a trained model's."""
    vision = make_vision()
    with torch.no_grad():
        vision.module.head.weight *= 50
    return vision


def make_images(n=N_IMAGES, dtype=torch.float64):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


def weights_of(saes):
    return [tensor for sae in saes.values() for tensor in sae.state_dict().values()]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for one, other in zip(weights_of(first), weights_of(second), strict=True):
        assert torch.equal(one, other)


def copy_of(sae, **settings):
    return SAE.from_tensors(sae.state_dict(), {**sae.settings(), **settings})


class Interrupted:
    """Images that press Ctrl-C before image `stop`, `times` times after the first `skip` times."""

    def __init__(self, images, stop, times=1, skip=0):
        self.images, self.stop, self.left, self.skip = images, stop, times, skip

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        if position == self.stop and self.left:
            if not self.skip:
                self.left -= 1
                raise KeyboardInterrupt
            self.skip -= 1
        return self.images[position]


class Stream(IterableDataset):
    """Images whose number is not known."""

    def __iter__(self):
        return iter(make_images())

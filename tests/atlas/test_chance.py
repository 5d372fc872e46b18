"""The classes' chance level: what exchanged labels give, however unequal the classes are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import VisionTransformer
from torch import Tensor

from vitlens.atlas.atlas import Atlas
from vitlens.atlas.bins import hash_text
from vitlens.atlas.chance import buckets, dealt, n_buckets
from vitlens.atlas.codes import Codes, ImageMarks
from vitlens.atlas.scores import Scores, layer_scores
from vitlens.atlas.sums import LayerSums
from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.saes.topk import TopKSAE

FEATURES = 2000
NAMES = ("selectivity", "class_information")


def test_the_fullest_bucket_goes_to_the_class_that_lacks_most() -> None:
    per_bucket, per_class = torch.tensor([1, 4, 0, 2, 2, 1]), torch.tensor([3, 0, 7])
    # 4 to class 2 (lacks 7), 2 to class 0 (both lack 3), 2 to class 2, 1 and 1 to either.
    assert dealt(per_bucket, per_class)[[1, 3, 4, 0, 5]].tolist() == [2, 0, 2, 0, 2]
    assert dealt(torch.zeros(4, dtype=torch.int64), torch.zeros(2)).tolist() == [0] * 4


@pytest.mark.parametrize(
    "per_class", [[300, 60, 20, 5, 4, 2], [30_000, 6000, 500, 80, 15], [9] * 300]
)
def test_classes_keep_their_sizes(per_class: list[int]) -> None:
    wanted = torch.tensor(per_class)
    drawn = buckets(torch.arange(int(wanted.sum())), len(wanted))
    per_bucket = drawn.bincount(minlength=n_buckets(len(wanted)))
    found = dealt(per_bucket, wanted)[drawn].bincount(minlength=len(wanted))
    assert torch.equal(found, wanted) or (found - wanted).abs().max() <= 2


def test_buckets_are_of_all_sizes() -> None:
    n, size = 400_000, n_buckets(6)
    counts = buckets(torch.arange(n), 6).bincount(minlength=size).double()
    expected = (2 * torch.arange(size) + 1) * (n / size**2)
    assert len(counts) == size
    assert float(((counts - expected) ** 2 / expected).mean()) == pytest.approx(1, abs=0.3)


def independent(per_class: list[int], n_unlabelled: int = 0) -> tuple[Codes, ImageMarks]:
    """Features that are active on a tenth of the images, whatever the class; one token an image."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([*per_class, n_unlabelled])
    names = torch.tensor([*range(len(per_class)), -1])
    labels = names.repeat_interleave(sizes)[torch.randperm(int(sizes.sum()), generator=generator)]
    shape = (len(labels), 1, FEATURES)
    z = torch.rand(shape, generator=generator)
    z *= torch.rand(shape, generator=generator) < 0.1
    ids = torch.tensor([hash_text(str(number)) for number in range(len(labels))])
    marks = ImageMarks.of(ids, ids, labels, n_classes=len(per_class), n_prefix=0, n_tokens=1)
    return Codes.of(z, torch.arange(FEATURES).expand(shape), FEATURES), marks


def scored(codes: Codes, marks: ImageMarks, n_classes: int) -> Scores:
    sums = LayerSums.zeros(n_tokens=1, n_prefix=0, n_features=FEATURES, n_classes=n_classes)
    sums.add(codes, marks, torch.ones(codes.n_images, 1))
    known = marks.label >= 0
    return layer_scores(
        0,
        sums,
        n_images=codes.n_images,
        per_class=marks.label[known].bincount(minlength=n_classes),
        per_bucket=marks.bucket[known].bincount(minlength=n_buckets(n_classes)),
        n_prefix=0,
    )


@pytest.mark.parametrize(
    ("per_class", "n_unlabelled"),
    [
        ([40] * 6, 0),
        ([300, 60, 20, 5, 4, 2], 0),
        ([300, 60, 20, 5, 4, 2], 100),
        ([39] * 10 + [0] * 990, 0),
        ([2000, 400, 100, 20, 5], 0),
    ],
    ids=["equal", "unequal", "some without a class", "10 of 1000 names", "more than buckets"],
)
def test_one_in_a_hundred_independent_features_is_above_chance(
    per_class: list[int], n_unlabelled: int
) -> None:
    found = scored(*independent(per_class, n_unlabelled), len(per_class))
    for name in NAMES:
        # Both the features above the level and the level itself are drawn: 20 +- 6.3 of 2000.
        assert 0.001 < float(found.above(name).double().mean()) < 0.021, name


def test_the_level_is_that_of_exchanged_labels() -> None:
    per_class = [300, 60, 20, 5, 4, 2]
    codes, marks = independent(per_class)
    found = scored(codes, marks, len(per_class))
    means = codes.activations[..., 0].double().numpy()
    rng = np.random.default_rng(0)
    levels = []
    for _ in range(20):
        labels = rng.permutation(marks.label.numpy())
        by_class = np.stack([means[labels == label].mean(0) for label in range(len(per_class))])
        best = by_class.max(0)
        rest = (by_class.sum(0) - best) / (len(per_class) - 1)
        levels.append(np.quantile((best - rest) / (best + rest), 0.99))
    assert found.chance["selectivity"] == pytest.approx(np.mean(levels), abs=4 * np.std(levels))


def tinted() -> list[Image.Image]:
    """Noise in four colours by turns."""
    rng = np.random.default_rng(0)
    colours = np.array([[220, 20, 20], [20, 220, 20], [20, 20, 220], [128, 128, 128]])
    noise = rng.normal(0, 40, (120, 48, 48, 3))
    pixels = (colours[np.arange(120) % 4, None, None] + noise).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(one) for one in pixels]


def colour_lens(n_classes: int) -> Lens:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=n_classes
    )
    rows = F.normalize(torch.randn(60, 24), dim=1)
    sae = TopKSAE.from_weights(W_enc=rows.T, W_dec=rows, b_dec=torch.zeros(24), k=4)
    half = (0.5, 0.5, 0.5)
    return Lens(
        model.eval(),
        [sae],
        class_names=[f"class {number}" for number in range(n_classes)],
        transform=Transform(size=(48, 48), mean=half, std=half),
    )


def test_names_without_images_hide_no_class() -> None:
    def class_features(n_classes: int) -> Tensor:
        atlas = Atlas.build(
            colour_lens(n_classes), tinted(), labels=[number % 4 for number in range(120)],
            n_top=2, n_sampled=2, pictures=None, stimuli=False, layout=False, progress=False,
        )  # fmt: skip
        return atlas.scores(0).of_kind("class")

    few = class_features(4)
    assert few.sum() > 10
    assert (class_features(1000) == few).double().mean() > 0.9


def test_without_classes_there_are_no_buckets():
    ids = torch.arange(5)
    assert n_buckets(0) == 0
    assert torch.equal(buckets(ids, 0), torch.zeros(5, dtype=torch.int64))
    nothing = torch.zeros(0, dtype=torch.int64)
    assert len(dealt(nothing, nothing)) == 0

"""Scores, kinds and their chance levels, however unequal the classes are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import VisionTransformer
from torch import Tensor

from tests.atlas_by_hand import FEATURES, activations, scored
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.exact import hash_text, n_buckets
from vitlens.atlas.scores import KINDS, NAMES, Scores, kind_of, layer_scores
from vitlens.atlas.state import ActiveFeatures, ImageInfo, LayerSums
from vitlens.errors import FeatureError
from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.saes.topk import TopKSAE


def test_chance_is_measured_on_the_shuffled_sums() -> None:
    z, labels = activations()
    found = scored(z, labels)
    assert set(found.chance) == {"position", "selectivity", "class_information"}
    assert found.shuffled["position"][0] < 0.1 < found["position"][0]
    live = found.shuffled["position"][:4].double()
    assert found.chance["position"] == pytest.approx(float(live.quantile(0.99)))
    assert found.above("position").tolist()[0] and not found.above("position").tolist()[4]
    assert found.kind(0).name == "position"
    assert found.kind(4) == ("none", 0.0)


def test_a_kind_needs_all_its_scores() -> None:
    chance = {name: 0.2 for names in KINDS.values() for name in names}
    assert kind_of({"curvature": 0.8, "direction": 0.1}, chance).name == "none"
    assert kind_of({"curvature": -0.1, "direction": 0.4}, chance).name == "none"
    assert kind_of({"curvature": 0.1, "direction": 0.4}, chance) == ("curve", 2.0)
    assert kind_of({"position": 0.3, "hue": float("nan")}, chance).name == "position"
    tiny = torch.tensor([0.02, 0.009, 0.2])
    found = Scores(0, {"frequency": torch.ones(3), "position": tiny}, {"position": 0.001})
    assert found.above("position").tolist() == [True] * 3
    assert found.of_kind("position").tolist() == [True, False, True]
    small = kind_of({"position": 0.02}, {"position": 0.0001})
    assert small == ("position", 2.0) and str(small) == "position ×2.0"


def test_scores_refuse_what_they_do_not_have() -> None:
    found = scored(*activations())
    with pytest.raises(FeatureError, match="position"):
        found["positon"]
    with pytest.raises(FeatureError):
        found.of(FEATURES)
    with pytest.raises(FeatureError, match="control"):
        found.above("extent")
    with pytest.raises(FeatureError, match="kind"):
        found.of_kind("square")
    with pytest.raises(FeatureError):
        Scores(0, {"a": torch.zeros(2), "b": torch.zeros(3)})
    assert set(found.names) <= set(NAMES)


def test_columns_are_added_with_their_control() -> None:
    found = scored(*activations())
    column = torch.tensor([0.5, 0.1, math.nan, 0.2, math.nan])
    more = found.with_columns({"monosemanticity": column}, {"monosemanticity": column / 2})
    assert more.chance["monosemanticity"] == pytest.approx(0.25, abs=0.01)
    assert more.above("monosemanticity").tolist() == [True, False, False, False, False]
    assert "monosemanticity" not in found.values


MANY = 2000


CLASS_SCORES = ("selectivity", "class_information")


def independent(per_class: list[int], n_unlabelled: int = 0) -> tuple[ActiveFeatures, ImageInfo]:
    """Features active on a tenth of the images, whatever the class; one token per image."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([*per_class, n_unlabelled])
    names = torch.tensor([*range(len(per_class)), -1])
    labels = names.repeat_interleave(sizes)[torch.randperm(int(sizes.sum()), generator=generator)]
    shape = (len(labels), 1, MANY)
    z = torch.rand(shape, generator=generator)
    z *= torch.rand(shape, generator=generator) < 0.1
    ids = torch.tensor([hash_text(str(number)) for number in range(len(labels))])
    info = ImageInfo.of(ids, ids, labels, n_classes=len(per_class), n_prefix=0, n_tokens=1)
    return ActiveFeatures.of(z), info


def scores_of(active: ActiveFeatures, info: ImageInfo, n_classes: int) -> Scores:
    sums = LayerSums.zeros(n_tokens=1, n_prefix=0, n_features=MANY, n_classes=n_classes)
    sums.add(active, info, torch.ones(active.n_images, 1))
    known = info.label >= 0
    return layer_scores(
        0,
        sums,
        n_images=active.n_images,
        per_class=info.label[known].bincount(minlength=n_classes),
        per_bucket=info.bucket[known].bincount(minlength=n_buckets(n_classes)),
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
    found = scores_of(*independent(per_class, n_unlabelled), len(per_class))
    for name in CLASS_SCORES:
        # Both the features above the level and the level itself are drawn: 20 +- 6.3 of 2000.
        assert 0.001 < float(found.above(name).double().mean()) < 0.021, name


def test_the_level_is_that_of_exchanged_labels() -> None:
    per_class = [300, 60, 20, 5, 4, 2]
    active, info = independent(per_class)
    found = scores_of(active, info, len(per_class))
    means = active.activations[..., 0].double().numpy()
    rng = np.random.default_rng(0)
    levels = []
    for _ in range(20):
        labels = rng.permutation(info.label.numpy())
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
            n_top=2, n_sampled=2, thumbnails=None, stimuli=False, layout=False, progress=False,
        )  # fmt: skip
        return atlas.scores(0).of_kind("class")

    few = class_features(4)
    assert few.sum() > 10
    assert (class_features(1000) == few).double().mean() > 0.9

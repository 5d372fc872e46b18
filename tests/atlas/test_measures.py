"""Measures of position, class and extent against slow references on raw activations."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
import torch
from torch import Tensor

from vitlens.atlas import bins, chance, measures
from vitlens.atlas.evolution import Evolution, evolution
from vitlens.atlas.scores import KINDS, NAMES, Scores, kind_of, layer_scores
from vitlens.atlas.sums import LayerSums
from vitlens.errors import CheckpointError, FeatureError

IMAGES, PREFIX, PATCHES, FEATURES, CLASSES = 24, 2, 9, 5, 3


def activations(seed: int = 0) -> tuple[Tensor, list[int]]:
    """Sparse activations [images, T, F], and a label an image; class 2 is rare."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(IMAGES, PREFIX + PATCHES, FEATURES, generator=generator).relu().double()
    z *= torch.rand(IMAGES, 1, FEATURES, generator=generator) > 0.3
    z[:, PREFIX + 4, 0] += 2  # a place
    z[::2, :, 1] += 1  # every other image: class 0
    z[..., 4] = 0  # dead
    labels = [0 if i % 2 == 0 else 1 if i < 20 else 2 for i in range(IMAGES)]
    return z, labels


def slow_omega_squared(groups: list[list[float]]) -> float:
    """One-way analysis of variance by the textbook."""
    values = [value for group in groups for value in group]
    grand = sum(values) / len(values)
    means = [sum(group) / len(group) for group in groups]
    total = sum((value - grand) ** 2 for value in values)
    between = sum(len(g) * (m - grand) ** 2 for g, m in zip(groups, means, strict=True))
    within = sum((v - m) ** 2 for g, m in zip(groups, means, strict=True) for v in g)
    if total == 0:
        return 0.0
    mean_square = within / (len(values) - len(groups))
    return (between - (len(groups) - 1) * mean_square) / (total + mean_square)


def sums_of(z: Tensor, labels: list[int], buckets: list[int]) -> tuple[LayerSums, Tensor, Tensor]:
    """The sums of raw activations in whole numbers, by plain loops; images by class and bucket."""
    n, tokens, features = z.shape
    zero = LayerSums.zeros(n_tokens=tokens, n_prefix=PREFIX, n_features=features, n_classes=CLASSES)
    generator = torch.Generator().manual_seed(7)
    for i in range(n):
        fixed = (z[i] / bins.UNIT).round().long()
        mean = (z[i].mean(0) / bins.UNIT).round().long()
        order = torch.randperm(tokens - PREFIX, generator=generator) + PREFIX
        zero.n_active += (z[i] > 0).sum(0)
        zero.prefix_active += (z[i, :PREFIX] > 0).long()
        zero.n_images += (z[i] > 0).any(0).long()
        zero.position += fixed
        zero.position_shuffled += torch.cat([fixed[:PREFIX], fixed[order]])
        zero.squares += (z[i, PREFIX:].square() / bins.SQUARE_UNIT).round().long().sum(0)
        zero.image_mean += mean
        zero.image_squares += (z[i].mean(0).square() / bins.IMAGE_SQUARE_UNIT).round().long()
        if labels[i] >= 0:
            zero.class_mean[labels[i]] += mean
            zero.bucket_mean[buckets[i]] += mean
        for f, b in product(range(features), [bins.bin_index(z[i].float())]):
            for t in range(tokens):
                zero.histogram[f, b[t, f]] += int(z[i, t, f] > 0)
    per_class = torch.tensor([labels.count(c) for c in range(CLASSES)])
    known = torch.tensor([b for b, label in zip(buckets, labels, strict=True) if label >= 0])
    return zero, per_class, known.bincount(minlength=len(zero.bucket_mean))


def scored(z: Tensor, labels: list[int]) -> Scores:
    buckets = chance.buckets(torch.arange(len(z)), CLASSES)
    sums, per_class, per_bucket = sums_of(z, labels, buckets.tolist())
    return layer_scores(
        0,
        sums,
        n_images=len(z),
        per_class=per_class,
        per_bucket=per_bucket,
        n_prefix=PREFIX,
    )


def test_position_is_the_analysis_of_variance_over_places() -> None:
    z, labels = activations()
    found = scored(z, labels)["position"]
    for f in range(FEATURES):
        groups = [z[:, PREFIX + p, f].tolist() for p in range(PATCHES)]
        assert found[f] == pytest.approx(slow_omega_squared(groups), abs=1e-5)
    assert found[0] > 0.3 > found[2]


def test_class_information_is_the_analysis_of_variance_over_image_means() -> None:
    z, labels = activations()
    found = scored(z, labels)["class_information"]
    means = z.mean(1)
    for f in range(FEATURES):
        groups = [
            [float(means[i, f]) for i in range(IMAGES) if labels[i] == c] for c in range(CLASSES)
        ]
        assert found[f] == pytest.approx(slow_omega_squared(groups), abs=1e-4)
    assert found[1] > 0.7 > found[2]


def test_images_without_a_class_only_tell_the_variance_within() -> None:
    z, labels = activations()
    some = [label if i > 5 else -1 for i, label in enumerate(labels)]
    z[:6, :, 3] += 5  # tells images without a class from all others, but not the classes
    found = scored(z, some)["class_information"]
    means = z.mean(1)
    for f in range(FEATURES - 1):
        groups = [
            [float(means[i, f]) for i in range(IMAGES) if some[i] == c] for c in (0, 1, 2, -1)
        ]
        own = [sum(group) / len(group) for group in groups]
        within = sum((v - m) ** 2 for g, m in zip(groups, own, strict=True) for v in g)
        square = within / (IMAGES - 4)
        known = [value for group in groups[:3] for value in group]
        grand = sum(known) / len(known)
        between = sum(len(g) * (m - grand) ** 2 for g, m in zip(groups[:3], own[:3], strict=True))
        expected = (between - 2 * square) / (between + (len(known) - 3) * square + square)
        assert found[f] == pytest.approx(expected, abs=1e-4)
    assert found[1] > 0.7 and found[3] < 0.2


def test_selectivity_is_that_of_morcos() -> None:
    z, labels = activations()
    found = scored(z, labels)["selectivity"]
    for f in range(FEATURES - 1):
        means = [
            float(torch.stack([z[i].mean(0)[f] for i in range(IMAGES) if labels[i] == c]).mean())
            for c in range(CLASSES)
        ]
        best = max(means)
        rest = (sum(means) - best) / (CLASSES - 1)
        assert found[f] == pytest.approx((best - rest) / (best + rest), abs=1e-4)
    assert found[4] == 0
    one = measures.class_selectivity(torch.tensor([[3.0], [0], [0]]), torch.tensor([2, 4, 0]))
    assert float(one) == 1
    assert float(measures.class_selectivity(torch.tensor([[3.0]]), torch.tensor([2]))) == 0


def test_extent_prefix_share_and_frequency_count_tokens() -> None:
    z, labels = activations()
    found = scored(z, labels)
    for f in range(FEATURES - 1):
        active = [i for i in range(IMAGES) if (z[i, :, f] > 0).any()]
        share = sum(float((z[i, PREFIX:, f] > 0).double().mean()) for i in active) / len(active)
        assert found["extent"][f] == pytest.approx(share)
        on_prefix = float(z[:, :PREFIX, f].sum() / z[..., f].sum())
        assert found["prefix_share"][f] == pytest.approx(on_prefix, abs=1e-5)
        assert found["frequency"][f] == pytest.approx(float((z[..., f] > 0).double().mean()))
        assert found["image_frequency"][f] == pytest.approx(len(active) / IMAGES)
    for name in ("extent", "prefix_share", "frequency", "position", "class_information"):
        assert found[name][4] == 0


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


def test_no_variance_and_few_images_say_nothing() -> None:
    ones = torch.ones(4, 3)
    assert measures.omega_squared(ones, torch.ones(4).long(), torch.full((3,), 4.0)).eq(0).all()
    assert measures.omega_squared(ones[:1], torch.tensor([9]), torch.ones(3)).eq(0).all()
    constant = measures.omega_squared(3 * ones, torch.full((4,), 3), torch.full((3,), 12.0))
    assert constant.eq(0).all()
    with pytest.raises(FeatureError):
        measures.frequency(torch.zeros(3).long(), 0)


def test_unbiased_where_there_is_nothing_to_find() -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(20, 16, 4000, generator=generator).relu()
    share = measures.omega_squared(z.sum(0), torch.full((16,), 20), z.square().sum((0, 1)))
    assert abs(float(share.mean())) < 3 * float(share.std()) / math.sqrt(4000)


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


def test_an_evolution_goes_through_json() -> None:
    z, labels = activations()
    scores = [scored(z, labels), scored(z.flip(0), labels)]
    scores[1] = Scores(1, scores[1].values, scores[1].chance, scores[1].shuffled)
    found = evolution(scores)
    assert found.course.n_live == (4, 4)
    frequency = scores[0]["frequency"][:4].double()
    assert found.course.quartiles["frequency"][0][1] == pytest.approx(
        float(frequency.quantile(0.5))
    )
    above = scores[0]["position"][:4] > scores[0].chance["position"]
    assert found.course.above["position"][0] == float(above.double().mean()) > 0
    assert found.controls["shuffled"].above["position"][0] <= 0.25
    both = found.with_control("untrained", found)
    again = Evolution.from_dict(json.loads(json.dumps(both.to_dict())))
    assert again == both
    assert f"{found.course.kinds['position'][0]:.1%}" in str(both) and "untrained" in str(both)
    with pytest.raises(CheckpointError):
        Evolution.from_dict({"layers": [0]})
    with pytest.raises(FeatureError):
        found.with_control("untrained", evolution(scores[:1]))
    with pytest.raises(FeatureError):
        evolution([])


def test_a_dead_layer_has_an_evolution() -> None:
    z, labels = activations()
    found = evolution([scored(torch.zeros_like(z), labels)])
    assert found.course.n_live == (0,)
    assert math.isnan(found.course.quartiles["position"][0][1])
    json.dumps(found.to_dict(), allow_nan=False)

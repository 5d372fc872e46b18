"""Measures and trust against slow references on raw activations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from tests.atlas_by_hand import CLASSES, FEATURES, IMAGES, PATCHES, PREFIX, activations, scored
from vitlens.atlas import measures
from vitlens.atlas.measures import monosemanticity, random_similarity, trust
from vitlens.errors import FeatureError


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


def test_monosemanticity_is_the_mean_over_pairs() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(9, 5) + 1
    pairs = [
        float(F.cosine_similarity(embeddings[i], embeddings[j], dim=0))
        for i, j in itertools.combinations(range(9), 2)
    ]
    chance = random_similarity(embeddings)
    assert chance == pytest.approx(sum(pairs) / len(pairs))
    rows = torch.tensor([[0, 3, 7, -1], [2, -1, -1, -1], [-1, -1, -1, -1], [4, 4, 4, 4]])
    found = monosemanticity(embeddings, rows, chance)
    three = [(0, 3), (0, 7), (3, 7)]
    own = sum(float(F.cosine_similarity(embeddings[i], embeddings[j], dim=0)) for i, j in three)
    assert float(found[0]) == pytest.approx(own / 3 - chance, abs=1e-6)
    assert found[1:3].isnan().all()
    assert float(found[3]) == pytest.approx(1 - chance, abs=1e-6)
    assert random_similarity(embeddings[:1]) != random_similarity(embeddings[:1])  # NaN


def test_trust_is_the_product_of_its_parts() -> None:
    found = trust(
        monosemanticity=torch.tensor([0.3, 0.6, -0.1, float("nan"), 0.6]),
        random_similarity=0.4,
        n_images=torch.tensor([4, 16, 100, 1, 0]),
        frequency=torch.tensor([0.01, 0.5, 0.2, 0.001, 0.0]),
        n_top=8,
        health=0.8,
    )
    assert (found[0].coherence, found[0].images, found[0].rarity) == pytest.approx((0.5, 0.5, 0.99))
    assert found[0].value == pytest.approx(0.5 * 0.5 * 0.99 * 0.8)
    assert found[1].value == pytest.approx(1 * 1 * 0.5 * 0.8)
    assert [one.value for one in found[2:]] == [0, 0, 0]  # at odds, nearly dead, dead
    unknown = trust(
        monosemanticity=torch.tensor([0.3]),
        random_similarity=0.4,
        n_images=torch.tensor([8]),
        frequency=torch.tensor([0.0]),
        n_top=8,
    )[0]
    assert unknown.health is None
    assert unknown.value == pytest.approx(0.5)

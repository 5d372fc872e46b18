"""Debiasing a model whose shortcut and true feature are known, and wrong input."""

from __future__ import annotations

import pytest

import vitlens
from tests.builders import KINDS, tiny_lens
from tests.planted import BIRD, LAND, MAMMAL, WATER, planted_images, planted_lens
from vitlens.debias import Debiasing, GroupedImages, Removal, debias
from vitlens.debias.search import _check_classes, default_layers
from vitlens.errors import FeatureError, GroupError

SHORTCUTS = {WATER, LAND}
TRUE = {BIRD, MAMMAL}


def test_the_shortcut_is_ranked_first(found: Debiasing) -> None:
    first, second = found.candidates[:2]
    assert {first.feature, second.feature} <= SHORTCUTS
    assert "activation difference" in first.sources
    assert {c.attribute for c in found.candidates if c.feature == WATER} == {"water"}
    assert first.q_value < 1e-6
    assert first.relief > 0.3
    assert not any(c.feature in TRUE for c in found.candidates)
    assert any("circuit" in c.sources for c in found.candidates)


def test_ablation_restores_the_worst_group(found: Debiasing) -> None:
    assert {feature for _, feature in found.features} == SHORTCUTS
    assert found.reports["nothing"].worst < 0.1
    assert found.reports["removed"].worst == 1
    assert found.reports["random features"].worst < 0.1
    assert found.reports["DFR"].worst == found.reports["mean difference"].worst == 1
    assert found.collateral == {}
    assert found.test is not None
    assert found.test.worst[-1] == 1
    assert "Collateral damage, in points: none" in str(found)


def test_removing_the_true_feature_is_collateral_damage() -> None:
    fair = planted_lens(shortcut=0.03)
    images = planted_images(seed=3)
    result = debias(fair, images, features=[(1, BIRD)], progress=False)
    assert result.reports["nothing"].worst == 1
    assert set(result.collateral) == {"bird, land", "bird, water"}
    assert result.collateral["bird, land"] < -0.5
    by_class = result.reports["removed"].by_class()
    assert by_class["mammal"] == 1
    assert by_class["bird"] < 0.7
    assert "bird, land -" in str(result)
    assert not result.tested


def test_picks_are_candidates_whatever_they_are(lens: vitlens.Lens) -> None:
    result = debias(lens, planted_images(), picks=[(1, BIRD)], n_random=0, progress=False)
    picked = [c for c in result.candidates if "picked" in c.sources]
    assert [(c.key, c.sources) for c in picked] == [((1, BIRD), ("picked",))]
    assert (1, BIRD) not in result.features
    assert "random features" not in result.reports


def test_projecting_out_restores_the_worst_group(lens: vitlens.Lens) -> None:
    result = debias(
        lens, planted_images(), test=planted_images(seed=1), project=True, progress=False
    )
    assert {feature for _, feature in result.features} <= SHORTCUTS
    assert result.reports["nothing"].worst < 0.1
    assert result.reports["removed"].worst == 1
    assert result.model().removal == Removal(project=True)
    assert "projected out, to baseline" in str(result)


def test_bad_input(lens: vitlens.Lens) -> None:
    whole = planted_images((4, 4, 4, 4))
    for counts, message in (
        ((4, 4, 4, 0), "No image is in the group 'mammal, land'"),
        ((4, 4, 0, 0), "same class, 'bird'"),
        ((4, 0, 4, 0), "same attribute value, 'water'"),
        ((4, 0, 0, 4), "attribute is identical to the class"),
        ((0, 4, 4, 0), "attribute is identical to the class"),
    ):
        with pytest.raises(GroupError, match=message):
            lens.debias(planted_images(counts), progress=False)
        with pytest.raises(GroupError, match=message):
            lens.debias(whole, test=planted_images(counts), progress=False)
    for options in ({"picks": [(1, 20)]}, {"picks": [(5, 0)]}, {"features": [(1, 20)]}):
        with pytest.raises(FeatureError, match="another lens"):
            lens.debias(whole, progress=False, **options)
    with pytest.raises(FeatureError, match="Layers with SAEs are 0, 1"):
        lens.debias(whole, layers=[2], progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_works_for_saes_of_every_kind_at_one_layer(kind: str) -> None:
    lens = planted_lens(kind=kind, layers=(1,))
    result = debias(lens, planted_images(), test=planted_images(seed=1), n_random=0, progress=False)
    assert {layer for layer, _ in result.features} == {1}
    assert {feature for _, feature in result.features} <= SHORTCUTS
    assert result.reports["nothing"].worst < 0.1
    assert result.reports["removed"].worst == 1
    assert result.model().layers == (1,)


def test_default_layers_are_those_with_saes_next_to_the_middle() -> None:
    assert default_layers(tiny_lens(depth=8)) == (3, 4, 5)
    assert default_layers(planted_lens(layers=(1,))) == (1,)


def test_classes_must_be_the_models(lens: vitlens.Lens) -> None:
    images = planted_images((2, 2, 2, 2))
    three = GroupedImages(
        images.images, images.labels, images.attributes, ("a", "b", "c"), ("water", "land")
    )
    with pytest.raises(GroupError, match="have 3 classes"):
        _check_classes(lens, three)
    turned = GroupedImages(
        images.images, images.labels, images.attributes, ("mammal", "bird"), ("water", "land")
    )
    with pytest.raises(GroupError, match="another order"):
        _check_classes(lens, turned)

"""Effect sizes and rank tests of features, against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted import groups_of
from vitlens.debias.candidates import conflicting, differences, find_candidates
from vitlens.errors import FeatureError


def test_effects_and_p_values_agree_with_scipy_in_one_stratum() -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, (40, 5)).astype(float)  # many ties
    side = np.arange(40) % 3 == 0
    x[side, 1] += 2
    x[side, 2] -= 1
    found = differences(
        torch.from_numpy(x), torch.from_numpy(side).long(), torch.zeros(40, dtype=torch.long)
    )
    for column in range(5):
        a, b = x[side, column], x[~side, column]
        spread = (((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / (len(x) - 2)
        d = (a.mean() - b.mean()) / spread**0.5
        assert found.effect[column] == pytest.approx(abs(d))
        assert found.value[column] == int(d > 0)
        test = mannwhitneyu(a, b, use_continuity=False, method="asymptotic")
        assert found.p_value[column] == pytest.approx(test.pvalue)
        auc = np.mean([(u > v) + 0.5 * (u == v) for u in a for v in b])
        assert found.auc[column] == pytest.approx(auc if d > 0 else 1 - auc)


def test_strata_are_held_fixed() -> None:
    """A feature of the class shows no effect of an attribute that is correlated with the class."""
    groups = groups_of((40, 5, 5, 40))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(90, 2))
    x[:, 0] += 3 * groups.labels.numpy()
    x[:, 1] += 3 * groups.attributes.numpy()
    found = differences(torch.from_numpy(x), groups.attributes, groups.labels)
    assert found.p_value[0] > 0.01
    assert found.p_value[1] < 1e-4
    pooled = differences(torch.from_numpy(x), groups.attributes, torch.zeros(90).long())
    assert pooled.p_value[0] < 1e-6  # without strata it would look like the attribute
    (candidate,) = find_candidates({3: torch.from_numpy(x)}, groups)
    assert candidate.key == (3, 1)
    assert candidate.attribute == "b"
    assert candidate.effect == pytest.approx(3, abs=1)
    assert abs(candidate.class_effect) < 1


def test_combined_rank_sums_agree_with_all_permutations() -> None:
    """Van Elteren's statistic, its variance from all permutations of two small strata."""
    from itertools import combinations, product

    from scipy.stats import norm, rankdata

    x = np.array([3.0, 1, 4, 1, 5, 9, 2, 6, 5])
    strata = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    side = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0], dtype=bool)

    def sums(s: int) -> tuple[float, list[float]]:
        ranks, own = rankdata(x[strata == s]), side[strata == s]
        weight = 1 / (len(ranks) + 1)
        every = [weight * ranks[list(c)].sum() for c in combinations(range(len(own)), own.sum())]
        return weight * float(ranks[own].sum()), every

    observed, spaces = zip(*(sums(s) for s in (0, 1)), strict=True)
    totals = [sum(pair) for pair in product(*spaces)]
    z = (sum(observed) - np.mean(totals)) / np.std(totals)
    found = differences(
        torch.from_numpy(x)[:, None], torch.from_numpy(side).long(), torch.from_numpy(strata)
    )
    assert found.p_value[0] == pytest.approx(2 * norm.sf(abs(z)))


def test_the_false_discovery_rate_is_controlled() -> None:
    groups = groups_of((30, 30, 30, 30))
    rng = np.random.default_rng(2)
    noise = torch.from_numpy(rng.normal(size=(120, 2000)))
    assert len(find_candidates({0: noise}, groups, alpha=0.05)) <= 2
    real = noise.clone()
    real[:, :100] += groups.attributes[:, None]
    found = find_candidates({0: real}, groups, alpha=0.05, at_most=None)
    false = sum(candidate.feature >= 100 for candidate in found)
    assert len(found) - false > 60
    assert false / len(found) < 0.12


def test_the_most_different_of_three_attribute_values_is_named() -> None:
    groups = groups_of((20,) * 6, attributes=3)
    x = torch.randn(120, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[groups.attributes == 2, 0] += 4
    (candidate,) = find_candidates({0: x}, groups)
    assert (candidate.feature, candidate.attribute) == (0, "c")


def test_a_feature_of_all_values_but_one_is_named_not_x() -> None:
    """It differs most from the value on which it is not active."""
    groups = groups_of((20,) * 6, attributes=3)
    x = torch.randn(120, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[groups.attributes != 2, 0] += 2
    (candidate,) = find_candidates({0: x}, groups)
    assert (candidate.feature, candidate.attribute) == (0, "not c")
    aucs, gaps = [], []
    for label in (0, 1):
        here = x[groups.labels == label, 0], groups.attributes[groups.labels == label]
        with_it, without = here[0][here[1] != 2], here[0][here[1] == 2]
        aucs.append(float((with_it[:, None] > without).double().mean()))
        spread = torch.cat([with_it - with_it.mean(), without - without.mean()]).square().sum() / 58
        gaps.append(float((with_it.mean() - without.mean()) / spread.sqrt()))
    assert candidate.auc == pytest.approx(np.mean(aucs)) and candidate.auc > 0.8
    assert candidate.effect == pytest.approx(np.mean(gaps)) and candidate.effect > 1


def test_strata_with_one_image_on_a_side_count_in_ranks_only() -> None:
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(44, 300)))
    strata = torch.tensor([0] * 40 + [1] * 2 + [2] * 2)
    side = torch.arange(44) % 2
    whole, large = (differences(x[:n], side[:n], strata[:n]) for n in (44, 40))
    assert np.array_equal(whole.effect, large.effect)
    assert not np.array_equal(whole.p_value, large.p_value)
    assert whole.effect.max() < 1.5
    pairs = differences(x[40:], side[40:], strata[40:])  # only such strata
    assert not pairs.effect.any() and (pairs.p_value < 1).any()


def test_candidates_name_their_sources() -> None:
    groups = groups_of((20,) * 4)
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 0] += 4 * groups.attributes
    x[:, 3] += 4 * groups.labels
    found = find_candidates(
        {2: x}, groups, circuits={(2, 0): 0.5, (2, 3): 0.4}, picks=[(2, 3), (2, 3)]
    )
    by_key = {candidate.key: candidate for candidate in found}
    assert by_key[2, 0].sources == ("activation difference", "circuit")
    assert by_key[2, 0].share == 0.5
    assert by_key[2, 3].sources == ("picked",)  # a feature of the class can only be picked
    for wrong in ((2, 4), (1, 0), (2, -1)):
        with pytest.raises(FeatureError, match="another lens"):
            find_candidates({2: x}, groups, picks=[wrong])


def test_constant_activations_are_not_candidates() -> None:
    groups = groups_of((5,) * 4)
    assert find_candidates({0: torch.ones(20, 3)}, groups) == ()


def test_conflicting_images_are_the_most_wrong_of_the_worst_group() -> None:
    groups = groups_of((3, 3, 3, 3))
    logits = torch.zeros(12, 2)
    logits[torch.arange(12), groups.labels] = 1
    logits[3:6, 1] = torch.tensor([2.0, 5.0, 3.0])
    assert conflicting(groups, logits, n=2).tolist() == [4, 5]

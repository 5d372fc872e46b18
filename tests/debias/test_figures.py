"""Effect sizes, tests, baselines and reports, against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitlens.debias.baselines import dfr, erased, leace, mean_difference
from vitlens.debias.candidates import conflicting, differences, find_candidates
from vitlens.debias.groups import GroupedImages
from vitlens.debias.report import GroupReport, TradeOff, group_report, mean_report
from vitlens.errors import FeatureError


def groups_of(counts: tuple[int, ...], attributes: int = 2) -> GroupedImages:
    index = [i for i, n in enumerate(counts) for _ in range(n)]
    labels = torch.tensor([i // attributes for i in index])
    values = torch.tensor([i % attributes for i in index])
    names = tuple("abc"[:attributes])
    classes = tuple(f"c{i}" for i in range(len(counts) // attributes))
    return GroupedImages([torch.zeros(1)] * len(index), labels, values, classes, names)


def test_effects_and_p_values_of_one_stratum() -> None:
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
    """What only follows the class shows no effect of an attribute that goes along with it."""
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


def test_joined_rank_sums_by_hand() -> None:
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


def test_noise_gives_few_candidates_and_the_rate_is_controlled() -> None:
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


def test_three_attribute_values() -> None:
    groups = groups_of((20,) * 6, attributes=3)
    x = torch.randn(120, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[groups.attributes == 2, 0] += 4
    (candidate,) = find_candidates({0: x}, groups)
    assert (candidate.feature, candidate.attribute) == (0, "c")


def test_a_feature_of_all_values_but_one() -> None:
    """It differs most from the value that it is not active on, and goes along with the others."""
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


def test_strata_with_one_image_of_a_side_have_ranks_but_no_spread() -> None:
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(44, 300)))
    strata = torch.tensor([0] * 40 + [1] * 2 + [2] * 2)
    side = torch.arange(44) % 2
    whole, large = (differences(x[:n], side[:n], strata[:n]) for n in (44, 40))
    assert np.array_equal(whole.effect, large.effect)
    assert not np.array_equal(whole.p_value, large.p_value)
    assert whole.effect.max() < 1.5
    pairs = differences(x[40:], side[40:], strata[40:])  # nothing but such strata
    assert not pairs.effect.any() and (pairs.p_value < 1).any()


def test_where_candidates_come_from() -> None:
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
    assert by_key[2, 3].sources == ("picked",)  # what tells the class comes by picks alone
    for wrong in ((2, 4), (1, 0), (2, -1)):
        with pytest.raises(FeatureError, match="another lens"):
            find_candidates({2: x}, groups, picks=[wrong])


def test_constant_activations_are_no_candidates() -> None:
    groups = groups_of((5,) * 4)
    assert find_candidates({0: torch.ones(20, 3)}, groups) == ()


def test_conflicting_images_are_the_most_wrong_of_the_worst_group() -> None:
    groups = groups_of((3, 3, 3, 3))
    logits = torch.zeros(12, 2)
    logits[torch.arange(12), groups.labels] = 1
    logits[3:6, 1] = torch.tensor([2.0, 5.0, 3.0])
    assert conflicting(groups, logits, n=2).tolist() == [4, 5]


def biased(n: int = 60) -> tuple[torch.Tensor, GroupedImages]:
    """Inputs whose first direction is the attribute, whose second the class."""
    groups = groups_of((n,) * 4)
    x = torch.randn(4 * n, 10, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 6 * groups.attributes
    x[:, 1] += 4 * groups.labels
    return x, groups


def test_linear_removal_takes_the_attribute_and_leaves_the_class() -> None:
    x, groups = biased()
    erasers = {"mean": mean_difference(x, groups), "leace": leace(x, groups)}
    head = torch.nn.Linear(10, 2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(10)[:2] * torch.tensor([[-1.0], [1.0]]))
        head.bias.zero_()
    for eraser in filter(None, erasers.values()):
        left = eraser(x.double())
        gaps = [
            left[groups.groups == 2 * c + 1].mean(0) - left[groups.groups == 2 * c].mean(0)
            for c in (0, 1)
        ]
        assert float(sum(gaps).norm()) < 0.02  # type: ignore[union-attr]
        class_gap = left[groups.labels == 1].mean(0) - left[groups.labels == 0].mean(0)
        assert float(class_gap[1]) == pytest.approx(4, abs=0.5)
        logits = erased(eraser, x, head)
        assert logits.shape == (240, 2)
        torch.testing.assert_close(logits[:, 1], left[:, 1])


def test_dfr_ignores_the_attribute() -> None:
    x, groups = biased()
    fair = dfr(x, groups)
    report = group_report("DFR", fair(x), groups)
    assert report.worst > 0.9
    assert torch.equal(fair(x), dfr(x, groups)(x))
    assert not torch.equal(fair(x), dfr(x, groups, seed=1)(x))


def report(n: int, right: list[float], count: int = 10) -> GroupReport:
    return GroupReport(
        "x", ("a, c", "a, d", "b, c", "b, d"), ("a", "b"),
        torch.tensor(right, dtype=torch.float64), torch.full((4,), float(count)), n,
    )  # fmt: skip


def test_reports() -> None:
    before, after = report(0, [10, 2, 4, 9]), report(3, [8, 8, 7, 9])
    assert (before.average, before.worst, before.worst_group) == (0.625, 0.2, "a, d")
    assert after.collateral(before) == {"a, c": pytest.approx(-0.2)}
    assert before.by_class() == {"a": 0.6, "b": 0.65}
    assert mean_report([before, after], "both").accuracy.tolist() == [0.9, 0.5, 0.55, 0.9]
    lines = str(before).splitlines()
    assert lines[0].split("  ")[-1] == "b, d"
    assert "62.5" in lines[1]


def test_the_number_of_features_is_the_best_within_the_allowed_drop() -> None:
    curve = TradeOff(
        (
            report(0, [10, 2, 4, 10]),
            report(1, [10, 5, 4, 9]),
            report(2, [9, 5, 5, 8]),
            report(3, [9, 5, 5, 8]),
            report(4, [6, 6, 6, 6]),
        )
    )
    assert curve.best(max_drop=0.02) == 2
    assert curve.best(max_drop=0.1) == 4
    assert curve.n_features.tolist() == [0, 1, 2, 3, 4]
    assert TradeOff((report(0, [9, 9, 9, 9]), report(1, [8, 9, 9, 9]))).best() == 0


def test_group_report_counts() -> None:
    groups = groups_of((2, 1, 1, 2))
    logits = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1], [0, 1]])
    found = group_report("x", logits, groups, n_features=2)
    assert found.right.tolist() == [1, 1, 0, 2]
    assert found.accuracy.tolist() == [0.5, 1, 0, 1]

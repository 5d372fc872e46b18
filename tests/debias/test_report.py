"""Reports by group and trade-off curves, against counts by hand."""

from __future__ import annotations

import pytest
import torch

from tests.planted import groups_of
from vitlens.debias.report import GroupReport, TradeOff, group_report, mean_report


def report(n: int, right: list[float], count: int = 10) -> GroupReport:
    return GroupReport(
        "x", ("a, c", "a, d", "b, c", "b, d"), ("a", "b"),
        torch.tensor(right, dtype=torch.float64), torch.full((4,), float(count)), n,
    )  # fmt: skip


def test_averages_worst_groups_and_collateral_of_reports() -> None:
    before, after = report(0, [10, 2, 4, 9]), report(3, [8, 8, 7, 9])
    assert (before.average, before.worst, before.worst_group) == (0.625, 0.2, "a, d")
    assert after.collateral(before) == {"a, c": pytest.approx(-0.2)}
    assert before.by_class() == {"a": 0.6, "b": 0.65}
    assert mean_report([before, after], "both").accuracy.tolist() == [0.9, 0.5, 0.55, 0.9]
    lines = str(before).splitlines()
    assert lines[0].split("  ")[-1] == "b, d"
    assert "62.5" in lines[1]


def test_the_best_number_of_features_keeps_to_the_allowed_drop() -> None:
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


def test_group_report_counts_correct_images() -> None:
    groups = groups_of((2, 1, 1, 2))
    logits = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1], [0, 1]])
    found = group_report("x", logits, groups, n_features=2)
    assert found.right.tolist() == [1, 1, 0, 2]
    assert found.accuracy.tolist() == [0.5, 1, 0, 1]

"""Linear concept removal and DFR on inputs with a known shortcut."""

from __future__ import annotations

import pytest
import torch

from tests.planted import groups_of
from vitlens.debias.baselines import dfr, erased, leace, mean_difference
from vitlens.debias.groups import GroupedImages
from vitlens.debias.report import group_report


def biased(n: int = 60) -> tuple[torch.Tensor, GroupedImages]:
    """Inputs whose first direction is the attribute, and whose second is the class."""
    groups = groups_of((n,) * 4)
    x = torch.randn(4 * n, 10, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 6 * groups.attributes
    x[:, 1] += 4 * groups.labels
    return x, groups


def test_linear_removal_erases_the_attribute_and_keeps_the_class() -> None:
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

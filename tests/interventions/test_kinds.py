"""What interventions are: values that compare, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vitlens
from tests.builders import tiny_image
from tests.interventions.by_hand import DOUBLE, active
from vitlens import Ablate, Clamp, Patch, Project, Scale, Steer
from vitlens.errors import FeatureError, OptionError


def test_values_compare_and_name_features_in_many_ways(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)
    node = lens.circuit(x, nodes_per_layer=1, select="walk").nodes[0]
    if node.feature >= 0:
        assert Ablate(node) == Ablate((node.layer, node.feature)) == Ablate([node.key, node.key])
    assert Ablate((0, 1)) != Ablate((0, 1), "zero")
    assert Scale((0, 1), 2.0) != Steer((0, 1), 2.0)
    assert Patch((0, 1), x) == Patch((0, 1), x)
    assert Patch((0, 1), x) != Patch((0, 1), x.clone())
    assert Ablate(torch.tensor([[0, 1], [2, 3]])).features == ((0, 1), (2, 3))
    joined = Ablate((0, 1)) + Scale((1, 2), 2.0) + [Steer((1, 2), 1.0)]
    assert len(joined) == 3
    assert {Ablate((0, 1)), Ablate((0, 1))} == {Ablate((0, 1))}


@pytest.mark.parametrize(
    "two", [2, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2), torch.tensor(2.0)]
)
def test_numbers_of_other_libraries(lens: vitlens.Lens, two: Any) -> None:
    x = tiny_image(7, DOUBLE)
    for kind in (Scale, Clamp, Steer):
        change = kind(active(lens, 0), two)
        assert change == kind(active(lens, 0), 2.0)
        assert repr(change) == repr(kind(active(lens, 0), 2.0))
        expected = lens.run_with(x, kind(active(lens, 0), 2.0)).after
        assert torch.equal(lens.run_with(x, change).after, expected)


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: Ablate([]), "at least one feature"),
        (lambda: Ablate((0, 1), patches=[]), "at least one patch"),
        (lambda: Ablate((0, 1), "zeros"), "not 'zeros'. Did you mean 'zero'"),
        (lambda: Project((0, 1), "mean"), "Project: `to` must be one of baseline, zero"),
        (lambda: Ablate((0, 1), "mean"), "belong together"),
        (lambda: Ablate((0, 1), over=[tiny_image()]), "belong together"),
        (lambda: Ablate("5/3"), "must be \\(layer, feature\\)"),
        (lambda: Ablate((0, 1.5)), "must be \\(layer, feature\\)"),
        (lambda: Ablate((-1, 2)), "must be \\(layer, feature\\)"),
        (lambda: Ablate((2, -1)), "error node"),
        (lambda: Ablate((0, 1), patches=[(0, -1)]), "A patch must be"),
        (lambda: Steer((0, 1), float("nan")), "Steer.0/1, strength=nan.*finite"),
        (lambda: Scale((0, 1), float("inf")), "factor must be a finite"),
        (lambda: Clamp((0, 1), None), "value must be a finite"),
        (lambda: Clamp((0, 1), True), "value must be a finite"),
        (lambda: Clamp((0, 1), torch.tensor(True)), "value must be a finite"),
        (lambda: Clamp((0, 1), torch.tensor(float("nan"))), "value must be a finite"),
        (lambda: Clamp((0, 1), torch.ones(2)), "value must be a finite"),
        (lambda: Clamp((0, 1), torch.tensor(2.0, requires_grad=True)), "without gradient"),
        (lambda: Ablate((0, 1)) + 3, "not 3"),
    ],
)
def test_values_that_make_no_sense(make_it: Any, words: str) -> None:
    with pytest.raises((FeatureError, OptionError), match=words):
        make_it()


def test_contradictions_name_both(lens: vitlens.Lens) -> None:
    x, a, b = tiny_image(7, DOUBLE), Ablate([(1, 2), (1, 3)]), Clamp((1, 3), 2.0)
    with pytest.raises(FeatureError) as caught:
        lens.run_with(x, [a, b])
    assert repr(a) in str(caught.value)
    assert repr(b) in str(caught.value)
    assert "feature 1/3" in str(caught.value)
    with pytest.raises(FeatureError, match="cancels the first"):
        Steer((0, 1), 1.0) + Patch((0, 1), x)
    with pytest.raises(FeatureError, match="contradict"):
        Ablate((0, 1), patches=[(0, 0), (1, 1)]) + Clamp((0, 1), 1.0, patches=(1, 1))
    lens.run_with(x, Ablate((0, 1), patches=(0, 0)) + Clamp((0, 1), 1.0, patches=(1, 1)))

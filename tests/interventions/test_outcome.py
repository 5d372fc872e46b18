"""Outcomes of interventions: numbers and printing."""

from __future__ import annotations

import pytest
import torch

import vitlens
from tests.builders import CLASSES, tiny_image
from tests.interventions.by_hand import DOUBLE, active
from vitlens import Ablate, Steer


def test_outcome_prints(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)
    joined = vitlens.interventions.kinds.interventions(
        Steer([active(lens, 2, i) for i in range(6)], 20.0)
    )
    outcome = lens.run_with(x, joined)
    text = str(outcome)
    assert "strength=20.0" in text
    assert "(6 features)" in text
    assert all(name in text for name in CLASSES)
    assert outcome.top == (lens.predict(x)[0][0], outcome.ranking()[0][0])
    assert outcome.flipped == (outcome.top[0] != outcome.top[1])
    centred = outcome.after - outcome.after.mean() - (outcome.before - outcome.before.mean())
    best = int(outcome.before.argmax())
    assert outcome.effect() == pytest.approx(float(centred[best]))
    assert outcome.effect(CLASSES[0]) == pytest.approx(float(centred[0]))
    many = vitlens.interventions.outcome.Outcome(
        torch.arange(50.0),
        -torch.arange(50.0),
        tuple(f"c{i}" for i in range(50)),
        joined,
        ("free",),
        "median",
    )
    assert "and 40 more classes" in str(many)
    assert "c49 " in str(many)
    assert "c0 " in str(many)
    assert "2 images" in str(lens.run_with([x, -x], Ablate((0, 1))))

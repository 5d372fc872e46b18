"""The evolution of scores through the layers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.atlas_by_hand import activations, scored
from vitlens.atlas.evolution import Evolution, evolution
from vitlens.atlas.scores import Scores
from vitlens.errors import CheckpointError, FeatureError


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

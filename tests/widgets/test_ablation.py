"""Ablations in place: the numbers of `run_with`, history, and wishes that overtake each other."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
import torch
import traitlets

import vitlens
from tests.tiny import tiny_image, tiny_lens
from vitlens.lens import Lens
from vitlens.widgets import CircuitDiagram, ablation


@pytest.fixture(scope="module")
def lens() -> Lens:
    return tiny_lens(3)


@pytest.fixture
def diagram(lens: Lens) -> CircuitDiagram:
    return CircuitDiagram.of(lens, tiny_image(3), at_most=8)


def active(lens: Lens, layer: int, place: int = 0) -> int:
    sums = lens.trace(tiny_image(3)).features[layer].sum(0)
    return int(sums.argsort(descending=True)[place])


def keep_all_but(lens: Lens, off: dict[int, list[int]]) -> list[list[int]]:
    return [
        [f for f in range(sae.n_features) if f not in off.get(layer, [])]
        for layer, sae in enumerate(lens.saes)
    ]


def assert_told(outcome: dict[str, Any], logits: torch.Tensor, lens: Lens) -> None:
    expected = logits[outcome["indices"]]
    torch.testing.assert_close(
        torch.tensor(outcome["after"]["logits"]), expected, atol=1e-5, rtol=0
    )
    probabilities = logits.softmax(-1)[outcome["indices"]]
    told = torch.tensor(outcome["after"]["probabilities"])
    torch.testing.assert_close(told, probabilities, atol=1e-5, rtol=0)
    assert lens.class_names is not None
    assert outcome["classes"] == [lens.class_names[i] for i in outcome["indices"]]


def test_features_off(lens: Lens, diagram: CircuitDiagram) -> None:
    off = {0: [active(lens, 0), active(lens, 0, 1)], 2: [active(lens, 2)]}
    diagram.ablations = [(layer, f, None) for layer, fs in off.items() for f in fs]
    logits = lens.run_with(tiny_image(3), keep=keep_all_but(lens, off))
    assert_told(diagram.outcome, logits, lens)
    clean = lens.trace(tiny_image(3)).logits
    assert not torch.allclose(logits, clean, atol=1e-3)
    before = torch.tensor(diagram.outcome["before"]["logits"])
    torch.testing.assert_close(before, clean[diagram.outcome["indices"]])
    torch.testing.assert_close(diagram.logits_with(diagram.ablations), logits)


def test_values_and_an_error_node(lens: Lens, diagram: CircuitDiagram) -> None:
    set_to, off = active(lens, 1), active(lens, 0)
    diagram.ablations = [(1, set_to, 2.5), (0, off, None), (2, -1, None)]
    changes = vitlens.Ablate((0, off)) + vitlens.Clamp((1, set_to), 2.5)
    logits = lens.run_with(tiny_image(3), changes, errors=["clean", "clean", "baseline"]).after
    assert_told(diagram.outcome, logits, lens)
    json.dumps(diagram.outcome, allow_nan=False)


def test_history_and_reset(lens: Lens, diagram: CircuitDiagram) -> None:
    first, second = (0, active(lens, 0), None), (1, active(lens, 1), 1.0)
    diagram.ablations = [first]
    after_first = diagram.outcome
    diagram.ablations = [first, second]
    diagram.ablations = []
    assert diagram.outcome == {}
    tried = [entry["ablations"] for entry in diagram.history]
    assert tried == [[list(first)], [list(first), list(second)]]
    diagram.ablations = tried[0]
    assert diagram.outcome == after_first
    assert [entry["ablations"] for entry in diagram.history] == [tried[1], tried[0]]
    best = after_first["classes"][
        max(range(5), key=lambda i: after_first["after"]["probabilities"][i])
    ]
    assert diagram.history[-1]["top"][0] == best


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (5, "is a list of"),
        ([(0, 1)], "is a list of"),
        ([(0, 1.5, None)], "is a list of"),
        ([(0, 1, float("inf"))], "is a list of"),
        ([(0, -2, None)], "is a list of"),
        ([(9, 1, None)], "layers|Layers"),
        ([(0, 30, None)], "features 0 to 29"),
        ([(0, -1, 2.0)], "switched off, but not set"),
        ([(0, 1, None), (0, 1, 2.0)], "contradict"),
    ],
)
def test_nonsense_is_refused(diagram: CircuitDiagram, wanted: Any, words: str) -> None:
    with pytest.raises(traitlets.TraitError, match=words):
        diagram.ablations = wanted
    assert diagram.ablations == ()
    diagram.set_state({"ablations": wanted})
    assert diagram.notice


def test_another_image_forgets(lens: Lens, diagram: CircuitDiagram) -> None:
    diagram.ablations = [(0, active(lens, 0), None)]
    assert diagram.can_ablate
    diagram.look_at(diagram.scene)
    assert (diagram.ablations, diagram.outcome, diagram.history) == ((), {}, [])


def test_without_a_lens_nothing_can_be_ablated(lens: Lens) -> None:
    assert not CircuitDiagram(lens.attribute(tiny_image(3), at_most=2)).can_ablate


def test_the_last_wish_wins(
    lens: Lens, diagram: CircuitDiagram, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun, runs = threading.Event(), threading.Event(), []
    real = ablation._outcome

    def slow(scene: Any, wanted: Any) -> dict[str, Any]:
        runs.append(wanted)
        begun.set()
        assert go.wait(20)
        return real(scene, wanted)

    monkeypatch.setattr(ablation, "_outcome", slow)
    told = []
    diagram.observe(lambda change: told.append(change.new["ablations"]), "outcome")
    wishes = [((0, active(lens, 0, place), None),) for place in range(3)]

    async def use() -> None:
        diagram.ablations = wishes[0]
        await asyncio.to_thread(begun.wait, 20)
        assert diagram.outcome == {}  # the loop is free while the model runs
        diagram.ablations = wishes[1]
        diagram.ablations = wishes[2]
        go.set()
        while diagram.background("ablation").busy:
            await asyncio.sleep(0.01)

    asyncio.run(use())
    assert told == [[list(item) for item in wishes[2]]]
    assert runs == [wishes[0], wishes[2]]  # the one in between never ran


def test_cancel(lens: Lens, diagram: CircuitDiagram) -> None:
    async def use() -> None:
        diagram.ablations = [(0, active(lens, 0), None)]
        diagram._answer_cancel({}, [])
        await asyncio.sleep(0.3)

    asyncio.run(use())
    assert diagram.outcome == {}


def test_many_classes_are_told_by_their_tops(lens: Lens, diagram: CircuitDiagram) -> None:
    before, after = torch.randn(2, 1000)
    shown = ablation._worth_telling(before, after, target=7)
    assert set(before.topk(8).indices.tolist()) | set(after.topk(8).indices.tolist()) | {7} == set(
        shown
    )
    assert shown == sorted(shown, key=lambda i: -before[i])

"""The user's own model inside a `with` block, and verbs that are isolated from it."""

from __future__ import annotations

import copy
import threading
from contextlib import ExitStack
from typing import Any

import pytest
import torch

import vitlens
from tests.builders import tiny_image, tiny_lens
from tests.interventions.by_hand import DOUBLE, active, close, slow, streams_of
from vitlens import Ablate, Clamp, Patch, Scale, Steer
from vitlens.errors import FeatureError
from vitlens.interventions.hooks import _active
from vitlens.widgets.scene import Scene


def test_after_an_exception_the_model_is_as_before() -> None:
    lens, x = tiny_lens(1), tiny_image(1)
    model = lens.vision.module
    before = model(x[None])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    broken = model.blocks[2].mlp.register_forward_hook(lambda *_: 1 / 0)
    for errors in ("clean", "free"):
        with pytest.raises(ZeroDivisionError), lens.intervene(Ablate((0, 1)), error_nodes=errors):
            model(x[None])
    broken.remove()
    assert torch.equal(model(x[None]), before)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not _active.get(model)


def test_a_pass_cut_off_inside_leaves_nothing_behind() -> None:
    lens, x = tiny_lens(1), tiny_image(1)
    model, change = lens.vision.module, Clamp([(0, f) for f in range(30)], 1.0)
    expected = lens.run_with(x, change).after
    with lens.intervene(change):
        broken = model.blocks[2].mlp.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tiny_image(2)[None])
        broken.remove()
        assert torch.equal(model(x[None])[0], expected)
        assert torch.equal(lens.vision.readout(lens.vision.residuals(x[None])[-1])[0], expected)


def test_a_block_run_alone_starts_a_pass_of_its_own(lens: vitlens.Lens) -> None:
    model, change = lens.vision.module, Scale(active(lens, 2), 3.0)
    stream = streams_of(model, tiny_image(2, DOUBLE))[1][None]
    with lens.intervene(change):
        expected = model.blocks[2](stream)
    with lens.intervene(change):
        model(tiny_image(7, DOUBLE)[None])
        close(model.blocks[2](stream), expected)


def test_nested(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)
    model, f, g = lens.vision.module, active(lens, 0), active(lens, 2)
    outer, inner = Scale(f, 2.0), Steer(f, 1.0) + Patch(g, tiny_image(4, DOUBLE))
    both = [outer, *inner]
    expected = {errors: slow(lens, x, both, errors) for errors in ("free", "clean")}
    untouched = model(x[None])
    with lens.intervene(outer, error_nodes="free"):
        first = model(x[None])
        with lens.intervene(inner):
            close(model(x[None])[0], expected["free"])
        with lens.intervene(inner, error_nodes="clean"):
            close(model(x[None])[0], expected["clean"])
            outcome = lens.run_with(x, both)
            close(outcome.before, untouched[0])
            close(outcome.after, expected["clean"])
            close(lens.trace(x).logits, expected["clean"])
        with pytest.raises(FeatureError, match="contradict"), lens.intervene(Ablate(f)):
            pass
        assert torch.equal(model(x[None]), first)
    assert torch.equal(model(x[None]), untouched)


def test_two_lenses_of_one_model_do_not_nest(lens: vitlens.Lens) -> None:
    other = vitlens.Lens(lens.vision.module, tiny_lens(8, dtype=DOUBLE).saes)
    with (
        lens.intervene(Ablate((0, 0))),
        pytest.raises(FeatureError, match="Another lens"),
        other.intervene(Ablate((0, 0))),
    ):
        pass


def test_other_threads_run_the_untouched_model(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)
    expected, found = lens.vision.module(x[None]), []
    with lens.intervene(Ablate(active(lens, 0))):
        thread = threading.Thread(target=lambda: found.append(lens.vision.module(x[None])))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


VERBS: dict[str, Any] = {
    "importances": lambda lens, x: lens.importances(x).nodes,
    "circuit": lambda lens, x: lens.circuit(x, select="walk"),
    "attribute": lambda lens, x: lens.attribute(x).nodes,
    "conservation": lambda lens, x: lens.conservation(x),
    "logit_lens": lambda lens, x: dict(lens.logit_lens(x, 1, 0)),
    "faithfulness": lambda lens, x: lens.faithfulness([x], q=(0, 0.1, 1), progress=False),
    "fit_baselines": lambda lens, x: lens.fit_baselines([x], progress=False).errors,
    "verify": lambda lens, x: (
        lens.verify(lens.circuit(x, nodes_per_layer=2, select="walk"), x).measured
    ),
    "keep": lambda lens, x: lens.run_with(x, keep=[[1], [2], [3]]),
    "widgets": lambda lens, x: Scene.of(lens, x).importances.nodes,
}


@pytest.mark.parametrize("errors", ["clean", "free"])
@pytest.mark.parametrize("verb", VERBS)
def test_other_verbs_see_the_untouched_model(lens: vitlens.Lens, verb: str, errors: str) -> None:
    x = tiny_image(7, DOUBLE)
    node, ask = active(lens, 0), VERBS[verb]
    expected = ask(lens, x)
    with lens.intervene(Steer(node, 3.0), error_nodes=errors):
        changed = lens.trace(x).logits
        found = ask(lens, x)
        assert torch.equal(lens.trace(x).logits, changed)
    assert_same(found, expected)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(found, vitlens.Circuit | vitlens.Curves):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


AROUND = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("verb", VERBS)
def test_torch_contexts_do_not_count(verb: str, around: str) -> None:
    lens, ask = tiny_lens(7), VERBS[verb]
    expected = ask(lens, tiny_image(7))
    with AROUND[around]():
        found = ask(lens, tiny_image(7))
    assert_same(found, expected)


def test_a_copy_of_the_model_is_untouched(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)[None]
    expected = lens.vision.module(x)
    with lens.intervene(Ablate(active(lens, 0))):
        other = copy.deepcopy(lens.vision.module)
        assert torch.equal(other(x), expected)
    assert torch.equal(other(x), expected)


def test_gradients_pass_through(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE).requires_grad_()
    (before,) = torch.autograd.grad(lens.vision.module(x[None])[0, 0], x)
    with lens.intervene(Scale(active(lens, 1), 2.0)):
        (after,) = torch.autograd.grad(lens.vision.module(x[None])[0, 0], x)
    assert torch.isfinite(after).all()
    assert after.abs().max() > 0
    assert not torch.allclose(before, after)


def test_blocks_closed_in_another_order_than_they_were_opened() -> None:
    lens, x = tiny_lens(), tiny_image()
    first, second = Ablate((1, 3)), Ablate((1, 11))
    known = {
        name: lens.run_with(x, change).after
        for name, change in {"first": first, "both": first + second}.items()
    }
    untouched = lens.vision.module(x[None])[0]
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(lens.intervene(first))
    torch.testing.assert_close(lens.vision.module(x[None])[0], known["first"])
    inner.enter_context(lens.intervene(second))
    torch.testing.assert_close(lens.vision.module(x[None])[0], known["both"])
    outer.close()
    torch.testing.assert_close(lens.vision.module(x[None])[0], known["both"])
    inner.close()
    assert torch.equal(lens.vision.module(x[None])[0], untouched)

"""Interventions against a slow program with plain forward hooks; the context manager; bad input."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer

import vitlens
from tests.models.test_vision import FAMILIES, image, lens_of, make
from tests.tiny import CLASSES, tiny_image, tiny_lens
from vitlens import Ablate, Clamp, Patch, Project, Scale, Steer
from vitlens.errors import FeatureError, ImageError
from vitlens.interventions.hooks import _active
from vitlens.interventions.run import _BATCH, _tokens
from vitlens.widgets.scene import Scene

DOUBLE = torch.float64


def streams_of(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What the blocks of the untouched model give for one image, [T, D] each."""
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[0].detach().clone()))
        for block in model.blocks
    ]
    model(x[None])
    for handle in handles:
        handle.remove()
    return seen


def code(
    sae: vitlens.TopKSAE, x: torch.Tensor, *, k: int | None = None
) -> tuple[list[float], float, float, torch.Tensor]:
    """Activations, mean, standard deviation and error of one token, from METHOD's formulas."""
    mean, std = x.mean(), x.std()
    raw = (((x - mean) / (std + 1e-5)) - sae.b_dec) @ sae.W_enc
    z = [0.0] * sae.n_features
    for feature in raw.argsort(descending=True)[: k or sae.k].tolist():
        z[feature] = max(float(raw[feature]), 0.0)
    return z, float(mean), float(std), x - build(sae, z, float(mean), float(std))


def component(v: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The part of v in the span of some rows, by least squares (rows may be dependent or none)."""
    if not len(rows):
        return torch.zeros_like(v)
    return rows.T @ torch.linalg.lstsq(rows.T, v[:, None], driver="gelsd").solution[:, 0]


def build(sae: vitlens.TopKSAE, z: Sequence[float], mean: float, std: float) -> torch.Tensor:
    return (torch.tensor(z, dtype=DOUBLE) @ sae.W_dec + sae.b_dec) * std + mean


@torch.no_grad()
def slow(
    lens: vitlens.Lens,
    x: torch.Tensor,
    changes: Sequence[vitlens.interventions.kinds.Intervention],
    errors: str | Sequence[str] = "clean",
) -> torch.Tensor:
    """Logits of one image, token by token and feature by feature."""
    model = lens.vision.module
    held = [errors] * len(lens.saes) if isinstance(errors, str) else errors
    clean = streams_of(model, x)
    columns = lens.vision.grid[1]

    def meant(change: Any, token: int) -> bool:
        if change.patches is None:
            return True
        if token < lens.vision.n_prefix:
            return (-1, token) in change.patches
        return divmod(token - lens.vision.n_prefix, columns) in change.patches

    others = {
        id(change): [streams_of(model, picture) for picture in pictures]
        for change in changes
        for pictures in [getattr(change, "over", ()) or [getattr(change, "image", x)]]
    }

    def other(change: Any, layer: int, token: int, feature: int) -> float:
        streams = others[id(change)]
        return sum(code(lens.saes[layer], s[layer][token])[0][feature] for s in streams) / len(
            streams
        )

    def hook(layer: int) -> Any:
        sae = lens.saes[layer]

        def changed(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
            rows = []
            for token, running in enumerate(out[0]):
                z, mean, std, error = code(sae, running)
                z0, _, _, clean_error = code(sae, clean[layer][token])
                if held[layer] == "clean":
                    error = clean_error
                elif held[layer] == "baseline":
                    error = lens.baselines.errors[layer][token]
                for change in changes:
                    for at, f in change.features:
                        if at != layer or not meant(change, token):
                            continue
                        if isinstance(change, Scale):
                            z[f] *= change.factor
                        elif isinstance(change, Steer):
                            z[f] += change.strength
                        elif isinstance(change, Clamp):
                            if change.patches is not None or z0[f] > 0:
                                z[f] = change.value
                        elif isinstance(change, Patch) or change.to == "mean":
                            z[f] = other(change, layer, token, f)
                        elif change.to == "zero":
                            z[f] = 0.0
                        else:
                            z[f] = float(lens.baselines.features[layer][token, f])
                    if isinstance(change, Project) and meant(change, token):
                        named = [f for at, f in change.features if at == layer]
                        goal = torch.zeros_like(running)
                        if change.to == "baseline":
                            usual = lens.baselines.features[layer][token].tolist()
                            goal = build(sae, usual, mean, std) - build(
                                sae, [0.0] * sae.n_features, mean, std
                            )
                            goal += lens.baselines.errors[layer][token]
                        now = build(sae, z, mean, std) + error - mean - std * sae.b_dec
                        error = error - component(now - goal, sae.W_dec[named])
                rows.append(build(sae, z, mean, std) + error)
            return torch.stack(rows)[None]

        return changed

    handles = [model.blocks[i].register_forward_hook(hook(i)) for i in range(len(lens.saes))]
    logits = model(x[None])[0]
    for handle in handles:
        handle.remove()
    return logits


@pytest.fixture
def lens() -> vitlens.Lens:
    lens = tiny_lens(7, dtype=DOUBLE)
    for sae in lens.saes:
        torch.nn.init.normal_(sae.b_dec, std=0.2)
    return lens


def active(lens: vitlens.Lens, layer: int, place: int = 0, seed: int = 7) -> tuple[int, int]:
    """A feature that is active on the test image, the strongest first."""
    sums = lens.trace(tiny_image(seed, DOUBLE)).features[layer].sum(0)
    return layer, int(sums.argsort(descending=True)[place])


def kinds(features: Any, *, patches: Any = None) -> dict[str, Any]:
    over = (tiny_image(2, DOUBLE), tiny_image(3, DOUBLE))
    return {
        "baseline": Ablate(features, patches=patches),
        "zero": Ablate(features, "zero", patches=patches),
        "mean": Ablate(features, "mean", over=over, patches=patches),
        "scale": Scale(features, 2.5, patches=patches),
        "set": Clamp(features, -1.5, patches=patches),
        "steer": Steer(features, 3.0, patches=patches),
        "swap": Patch(features, tiny_image(4, DOUBLE), patches=patches),
        "project": Project(features, patches=patches),
        "project to zero": Project(features, "zero", patches=patches),
    }


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("patches", [None, [(-1, 0), (0, 2), (2, 1)]], ids=["all", "some"])
@pytest.mark.parametrize("errors", ["clean", "free", "baseline"])
@pytest.mark.parametrize("kind", kinds((0, 0)))
def test_every_kind_at_every_layer(lens: vitlens.Lens, kind: str, errors: str, patches: Any):
    x, moved = tiny_image(7, DOUBLE), []
    for layer in range(3):
        features = [active(lens, layer), active(lens, layer, 3), active(lens, layer, 29)]
        change = kinds(features, patches=patches)[kind]
        outcome = lens.run_with(x, change, errors=errors)
        close(outcome.after, slow(lens, x, [change], errors))
        moved.append(float(outcome.change.abs().max()))
        with lens.intervene(change, errors=errors):
            close(lens.vision.module(x[None])[0], outcome.after)
    assert max(moved) > 1e-4


@pytest.mark.parametrize("errors", ["clean", "free", "baseline", ("clean", "baseline", "free")])
def test_many_at_many_layers(lens: vitlens.Lens, errors: Any) -> None:
    x = tiny_image(7, DOUBLE)
    a, b, c = (active(lens, layer) for layer in range(3))
    changes = (
        Clamp([a, b], 2.0)
        + Scale([a, c], 0.5)
        + Steer([a, active(lens, 2, 5)], 1.5, patches=[(1, 1)])
        + Ablate([active(lens, 0, 2), active(lens, 2, 1)])
        + Patch(active(lens, 1, 1), tiny_image(5, DOUBLE), patches=(0, 0))
        + Ablate(active(lens, 1, 1), "zero", patches=[(0, 1), (-1, 0)])
    )
    expected = slow(lens, x, changes, errors)
    close(lens.run_with(x, changes, errors=errors).after, expected)
    close(lens.plan(changes, errors=errors).logits_of(lens.trace(x)), expected)


def test_projections_among_others(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)
    a, b, c = active(lens, 1), active(lens, 1, 1), active(lens, 2)
    changes = (
        Steer(a, 2.0)
        + Project([b, c, active(lens, 1, 2)], patches=[(0, 1), (1, 1), (-1, 0)])
        + Scale([a, b], 0.5)
        + Project(active(lens, 1, 4), "zero")
        + Steer(b, 1.5)
    )
    for errors in ("clean", "free", ("clean", "baseline", "free")):
        close(lens.run_with(x, changes, errors=errors).after, slow(lens, x, changes, errors))
    with pytest.raises(FeatureError, match="nothing of the first is left"):
        Steer(b, 1.5) + Project(b)


@pytest.mark.parametrize("to", ["zero", "baseline"])
def test_a_projection_leaves_only_what_it_says(lens: vitlens.Lens, to: str) -> None:
    x = tiny_image(7, DOUBLE)
    sae, base = lens.saes[1], lens.baselines
    features = [3, 11, 25, 0]
    change = Project([(1, f) for f in features], to)
    with lens.intervene(change, errors="free"):
        stream = lens.vision.residuals(x[None])[1][0]
    mean, std = (v[0] for v in sae.encode_with_stats(lens.vision.residuals(x[None])[1])[1:])
    left = (stream - mean - sae.b_dec * std) @ sae.W_dec[features].T
    usual = (base.features[1] @ sae.W_dec * std + base.errors[1]) @ sae.W_dec[features].T
    close(left, usual if to == "baseline" else torch.zeros_like(left))
    apart = Project((1, 3), to) + Project((1, 11), to)
    again = Project([(1, 11), (1, 3)], to)
    once = lens.run_with(x, Project([(1, 3), (1, 11)], to), errors="free").after
    close(lens.run_with(x, again, errors="free").after, once)
    assert not torch.allclose(lens.run_with(x, apart, errors="free").after, once, atol=1e-9)


def test_directions_that_are_parallel() -> None:
    lens = tiny_lens(7, dtype=DOUBLE)
    rows = lens.saes[1].W_dec
    rows[5] = rows[9] = -rows[2]
    x = tiny_image(7, DOUBLE)
    change = Project([(1, 2), (1, 5), (1, 9), (1, 7)])
    close(lens.run_with(x, change).after, slow(lens, x, [change]))
    close(
        lens.run_with(x, Project([(1, 2), (1, 7)], "zero"), errors="free").after,
        lens.run_with(x, Project([(1, 5), (1, 7)], "zero"), errors="free").after,
    )


def test_a_mean_over_more_images_than_run_together(lens: vitlens.Lens) -> None:
    over = [tiny_image(seed, DOUBLE) for seed in range(_BATCH + 1)]
    change, x = Ablate([active(lens, 1)], "mean", over=over), tiny_image(7, DOUBLE)
    close(lens.run_with(x, change).after, slow(lens, x, [change]))


def test_patches_go_row_by_row() -> None:
    model = VisionTransformer(
        img_size=(16, 24), patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    vision = vitlens.VisionModel(model.eval())
    mask = _tokens(vision, Scale((0, 1), 2.0, patches=[(-1, 0), (0, 2), (1, 0)]))
    assert mask[:, 0].nonzero()[:, 0].tolist() == [0, 3, 4]
    names = [vision.token_name(token) for token in (0, 3, 4)]
    assert names == ["CLS", "row 1, column 3", "row 2, column 1"]


def test_the_order_counts(lens: vitlens.Lens) -> None:
    x, f = tiny_image(7, DOUBLE), active(lens, 1)
    first = lens.run_with(x, Scale(f, 3.0) + Steer(f, 1.0)).after
    second = lens.run_with(x, Steer(f, 1.0) + Scale(f, 3.0)).after
    assert not torch.allclose(first, second)
    close(first, slow(lens, x, [Scale(f, 3.0), Steer(f, 1.0)]))
    close(second, slow(lens, x, [Steer(f, 1.0), Scale(f, 3.0)]))


@pytest.mark.parametrize("errors", ["clean", "free", "baseline"])
def test_batches(lens: vitlens.Lens, errors: str) -> None:
    images = [tiny_image(seed, DOUBLE) for seed in range(5)]
    changes = [Clamp(active(lens, 0), 2.0), Scale(active(lens, 2), 0.0)]
    outcome = lens.run_with(images, changes, errors=errors, batch_size=2)
    assert len(outcome) == 5
    for x, one in zip(images, outcome, strict=True):
        close(one.after, slow(lens, x, changes, errors))
        close(one.before, lens.vision.logits(x[None])[0])
    with lens.intervene(changes, errors=errors):
        close(lens.vision.module(torch.stack(images)), outcome.after)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    lens = lens_of(make(family))
    trace = lens.trace(image())
    features = [(layer, int(z.sum(0).argmax())) for layer, z in enumerate(trace.features)]
    changes = Scale(features[0], 2.0) + Clamp(features[1], 3.0)
    for errors in ("clean", "free"):
        outcome = lens.run_with(image(), changes, errors=errors)
        close(outcome.after, slow(lens, image(), changes, errors))
        with lens.intervene(changes, errors=errors):
            close(lens.vision.module(image()[None])[0], outcome.after)
        assert torch.equal(outcome.before, lens.vision.logits(image()[None])[0])


def test_no_intervention_is_the_model_bit_for_bit() -> None:
    lens, x = tiny_lens(1), tiny_image(1)
    model, expected = lens.vision.module, lens.vision.logits(x[None])
    for errors in ("free", "clean"):
        outcome = lens.run_with(x, errors=errors)
        assert torch.equal(outcome.before, expected[0])
        assert torch.equal(outcome.after, expected[0])
        with lens.intervene([], errors=errors):
            assert torch.equal(model(x[None]), expected)
    unchanged = Scale([(0, 1), (2, 3)], 1.0)
    assert torch.equal(lens.run_with(x, unchanged, errors="free").after, expected[0])
    baseline = lens.run_with(x, errors="baseline")
    assert not torch.allclose(baseline.before, baseline.after, atol=1e-4)


def test_after_an_exception_the_model_is_as_before() -> None:
    lens, x = tiny_lens(1), tiny_image(1)
    model = lens.vision.module
    before = model(x[None])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    broken = model.blocks[2].mlp.register_forward_hook(lambda *_: 1 / 0)
    for errors in ("clean", "free"):
        with pytest.raises(ZeroDivisionError), lens.intervene(Ablate((0, 1)), errors=errors):
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
    with lens.intervene(outer, errors="free"):
        first = model(x[None])
        with lens.intervene(inner):
            close(model(x[None])[0], expected["free"])
        with lens.intervene(inner, errors="clean"):
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
    "circuit": lambda lens, x: lens.circuit(x),
    "candidates": lambda lens, x: lens.candidates(x).nodes,
    "conservation": lambda lens, x: lens.conservation(x),
    "logit_lens": lambda lens, x: dict(lens.logit_lens(x, 1, 0)),
    "faithfulness": lambda lens, x: lens.faithfulness([x], q=(0, 0.1, 1), progress=False),
    "fit_baselines": lambda lens, x: vars(lens.fit_baselines([x], progress=False)),
    "verify": lambda lens, x: lens.verify(lens.circuit(x, nodes_per_layer=2), x).measured,
    "keep": lambda lens, x: lens.run_with(x, keep=[[1], [2], [3]]),
    "widgets": lambda lens, x: Scene.of(lens, x).importances.nodes,
}


@pytest.mark.parametrize("errors", ["clean", "free"])
@pytest.mark.parametrize("verb", VERBS)
def test_other_verbs_see_the_untouched_model(lens: vitlens.Lens, verb: str, errors: str) -> None:
    x = tiny_image(7, DOUBLE)
    node, ask = active(lens, 0), VERBS[verb]
    expected = ask(lens, x)
    with lens.intervene(Steer(node, 3.0), errors=errors):
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


def test_nothing_is_encoded_where_nothing_changes(
    lens: vitlens.Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = vitlens.TopKSAE.encode_with_stats

    def counted(sae: vitlens.TopKSAE, x: torch.Tensor) -> Any:
        calls.append(next(i for i, known in enumerate(lens.saes) if known is sae))
        return real(sae, x)

    monkeypatch.setattr(vitlens.TopKSAE, "encode_with_stats", counted)
    images = torch.stack([tiny_image(1, DOUBLE)])
    lens.plan(Scale((1, 3), 2.0), errors="free").logits(images)
    assert calls == [1]
    calls.clear()
    lens.plan(Scale((1, 3), 2.0)).logits(images)
    assert sorted(calls) == [1, 2, 2]


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
    )
    assert "and 40 more classes" in str(many)
    assert "c49 " in str(many)
    assert "c0 " in str(many)
    assert "2 images" in str(lens.run_with([x, -x], Ablate((0, 1))))


def test_values_compare_and_name_features_in_many_ways(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)
    node = lens.circuit(x, nodes_per_layer=1).nodes[0]
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
        (lambda: Ablate((0, 1), patches=[]), "no patch"),
        (lambda: Ablate((0, 1), "zeros"), "not 'zeros'. Did you mean 'zero'"),
        (lambda: Project((0, 1), "mean"), "Project takes features to one of baseline, zero"),
        (lambda: Ablate((0, 1), "mean"), "belong together"),
        (lambda: Ablate((0, 1), over=[tiny_image()]), "belong together"),
        (lambda: Ablate("5/3"), "named \\(layer, feature\\)"),
        (lambda: Ablate((0, 1.5)), "named \\(layer, feature\\)"),
        (lambda: Ablate((-1, 2)), "named \\(layer, feature\\)"),
        (lambda: Ablate((2, -1)), "error node"),
        (lambda: Ablate((0, 1), patches=[(0, -1)]), "A patch is"),
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
    with pytest.raises(FeatureError, match=words):
        make_it()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (Ablate((3, 0)), "0 to 2; there is no 3"),
        (Steer((1, 30), 1.0), "features 0 to 29; there is no 30. Is it of another lens"),
        (Ablate((0, 1), patches=[(3, 0)]), "3 rows and 3 columns"),
        (Ablate((0, 1), patches=[(0, 3)]), "no patch \\(0, 3\\)"),
        (Ablate((0, 1), patches=[(-1, 1)]), "1 prefix tokens"),
        ([Ablate((0, 1)), 5], "not 5"),
    ],
)
def test_interventions_that_do_not_fit(lens: vitlens.Lens, changes: Any, words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        lens.run_with(tiny_image(7, DOUBLE), changes)
    with pytest.raises(FeatureError, match=words), lens.intervene(changes):
        pass
    assert not _active.get(lens.vision.module)


def test_contradictions_name_both(lens: vitlens.Lens) -> None:
    x, a, b = tiny_image(7, DOUBLE), Ablate([(1, 2), (1, 3)]), Clamp((1, 3), 2.0)
    with pytest.raises(FeatureError) as caught:
        lens.run_with(x, [a, b])
    assert repr(a) in str(caught.value)
    assert repr(b) in str(caught.value)
    assert "feature 1/3" in str(caught.value)
    with pytest.raises(FeatureError, match="nothing of the first is left"):
        Steer((0, 1), 1.0) + Patch((0, 1), x)
    with pytest.raises(FeatureError, match="contradict"):
        Ablate((0, 1), patches=[(0, 0), (1, 1)]) + Clamp((0, 1), 1.0, patches=(1, 1))
    lens.run_with(x, Ablate((0, 1), patches=(0, 0)) + Clamp((0, 1), 1.0, patches=(1, 1)))


def test_keep_and_interventions_do_not_go_together(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)
    with pytest.raises(FeatureError, match="without interventions"):
        lens.run_with(x, Ablate((0, 1)), keep=[[0]] * 3)
    with pytest.raises(FeatureError, match="one image"):
        lens.run_with([x], keep=[[0]] * 3)
    with pytest.raises(FeatureError, match="no image"):
        lens.run_with([], Ablate((0, 1)))
    with pytest.raises(FeatureError, match="all 3 layers"):
        lens.run_with(x, Ablate((0, 1)), errors=["clean"])
    with pytest.raises(FeatureError, match="errors must be one of"):
        lens.run_with(x, Ablate((0, 1)), errors="leaf")
    with pytest.raises(ImageError):
        lens.run_with(x, Patch((0, 1), "no-such-file.png"))


def test_mixed_batches_with_float32() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=24, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5
    ).eval()
    rows = F.normalize(torch.randn(30, 24), dim=1)
    sae = vitlens.TopKSAE.from_weights(W_enc=rows.T, W_dec=rows, b_dec=torch.zeros(24), k=4)
    lens = vitlens.Lens(model, [sae, sae], transform=lambda _: tiny_image(0))
    outcome = lens.run_with([tiny_image(i) for i in range(3)], Steer((0, 2), 1.0), errors="free")
    assert outcome.after.dtype == torch.float32
    assert outcome[0].class_names[0] == "class 0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projecting_in_half_precision(dtype: torch.dtype) -> None:
    full, half = tiny_lens(), tiny_lens(dtype=dtype)
    change = Project([(1, 3), (1, 11)])
    expected = full.run_with(tiny_image(), change).after
    found = half.run_with(tiny_image(dtype=dtype), change).after
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


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

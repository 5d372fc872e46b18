"""Interventions against a slow program with plain forward hooks; what does not fit a lens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer

import vitlens
from tests.builders import (
    FAMILIES,
    KINDS,
    double_image,
    lens_on,
    lens_with,
    model_of_family,
    tiny_image,
    tiny_lens,
)
from tests.interventions.by_hand import DOUBLE, active, close, kinds, slow
from vitlens import Ablate, Clamp, Patch, Project, Scale, Steer
from vitlens.errors import FeatureError, ImageError, OptionError
from vitlens.interventions.hooks import _active
from vitlens.interventions.run import _BATCH, _tokens


@pytest.mark.parametrize("patches", [None, [(-1, 0), (0, 2), (2, 1)]], ids=["all", "some"])
@pytest.mark.parametrize("errors", ["clean", "free", "baseline"])
@pytest.mark.parametrize("kind", kinds((0, 0)))
def test_every_kind_at_every_layer(lens: vitlens.Lens, kind: str, errors: str, patches: Any):
    x, moved = tiny_image(7, DOUBLE), []
    for layer in range(3):
        features = [active(lens, layer), active(lens, layer, 3), active(lens, layer, 29)]
        change = kinds(features, patches=patches)[kind]
        outcome = lens.run_with(x, change, error_nodes=errors)
        close(outcome.after, slow(lens, x, [change], errors))
        moved.append(float(outcome.change.abs().max()))
        with lens.intervene(change, error_nodes=errors):
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
    close(lens.run_with(x, changes, error_nodes=errors).after, expected)
    close(lens.plan(changes, error_nodes=errors).logits_of(lens.trace(x)), expected)


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
        close(lens.run_with(x, changes, error_nodes=errors).after, slow(lens, x, changes, errors))
    with pytest.raises(FeatureError, match="cancels the first"):
        Steer(b, 1.5) + Project(b)


@pytest.mark.parametrize("to", ["zero", "baseline"])
def test_a_projection_leaves_only_what_it_says(lens: vitlens.Lens, to: str) -> None:
    x = tiny_image(7, DOUBLE)
    sae, base = lens.saes[1], lens.baselines
    features = [3, 11, 25, 0]
    change = Project([(1, f) for f in features], to)
    with lens.intervene(change, error_nodes="free"):
        stream = lens.vision.residuals(x[None])[1][0]
    mean, std = (v[0] for v in sae.encode_with_stats(lens.vision.residuals(x[None])[1])[1:])
    left = (stream - mean - sae.b_dec * std) @ sae.W_dec[features].T
    usual = (base.features[1] @ sae.W_dec * std + base.errors[1]) @ sae.W_dec[features].T
    close(left, usual if to == "baseline" else torch.zeros_like(left))
    apart = Project((1, 3), to) + Project((1, 11), to)
    again = Project([(1, 11), (1, 3)], to)
    once = lens.run_with(x, Project([(1, 3), (1, 11)], to), error_nodes="free").after
    close(lens.run_with(x, again, error_nodes="free").after, once)
    assert not torch.allclose(lens.run_with(x, apart, error_nodes="free").after, once, atol=1e-9)


def test_directions_that_are_parallel() -> None:
    lens = tiny_lens(7, dtype=DOUBLE)
    rows = lens.saes[1].W_dec
    rows[5] = rows[9] = -rows[2]
    x = tiny_image(7, DOUBLE)
    change = Project([(1, 2), (1, 5), (1, 9), (1, 7)])
    close(lens.run_with(x, change).after, slow(lens, x, [change]))
    close(
        lens.run_with(x, Project([(1, 2), (1, 7)], "zero"), error_nodes="free").after,
        lens.run_with(x, Project([(1, 5), (1, 7)], "zero"), error_nodes="free").after,
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
    outcome = lens.run_with(images, changes, error_nodes=errors, batch_size=2)
    assert len(outcome) == 5
    for x, one in zip(images, outcome, strict=True):
        close(one.after, slow(lens, x, changes, errors))
        close(one.before, lens.vision.logits(x[None])[0])
    with lens.intervene(changes, error_nodes=errors):
        close(lens.vision.module(torch.stack(images)), outcome.after)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    lens = lens_on(model_of_family(family))
    trace = lens.trace(double_image())
    features = [(layer, int(z.sum(0).argmax())) for layer, z in enumerate(trace.features)]
    changes = Scale(features[0], 2.0) + Clamp(features[1], 3.0)
    for errors in ("clean", "free"):
        outcome = lens.run_with(double_image(), changes, error_nodes=errors)
        close(outcome.after, slow(lens, double_image(), changes, errors))
        with lens.intervene(changes, error_nodes=errors):
            close(lens.vision.module(double_image()[None])[0], outcome.after)
        assert torch.equal(outcome.before, lens.vision.logits(double_image()[None])[0])


def test_no_intervention_is_the_model_bit_for_bit() -> None:
    lens, x = tiny_lens(1), tiny_image(1)
    model, expected = lens.vision.module, lens.vision.logits(x[None])
    for errors in ("free", "clean"):
        outcome = lens.run_with(x, error_nodes=errors)
        assert torch.equal(outcome.before, expected[0])
        assert torch.equal(outcome.after, expected[0])
        with lens.intervene([], error_nodes=errors):
            assert torch.equal(model(x[None]), expected)
    unchanged = Scale([(0, 1), (2, 3)], 1.0)
    assert torch.equal(lens.run_with(x, unchanged, error_nodes="free").after, expected[0])
    baseline = lens.run_with(x, error_nodes="baseline")
    assert not torch.allclose(baseline.before, baseline.after, atol=1e-4)


def test_nothing_is_encoded_where_nothing_changes(
    lens: vitlens.Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = vitlens.TopKSAE.encode_with_stats

    def counted(sae: vitlens.TopKSAE, x: torch.Tensor, **options: Any) -> Any:
        calls.append(next(i for i, known in enumerate(lens.saes) if known is sae))
        return real(sae, x, **options)

    monkeypatch.setattr(vitlens.TopKSAE, "encode_with_stats", counted)
    images = torch.stack([tiny_image(1, DOUBLE)])
    lens.plan(Scale((1, 3), 2.0), error_nodes="free").logits(images)
    assert calls == [1]
    calls.clear()
    lens.plan(Scale((1, 3), 2.0)).logits(images)
    assert sorted(calls) == [1, 2, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (Ablate((3, 0)), "are 0, 1, 2; there is no SAE at 3"),
        (
            Steer((1, 30), 1.0),
            "features 0 to 29 .*; there is no 30. Does it belong to another lens",
        ),
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


def test_what_does_not_go_together_is_refused(lens: vitlens.Lens) -> None:
    x = tiny_image(7, DOUBLE)
    with pytest.raises(FeatureError, match="not both"):
        lens.run_with(x, Ablate((0, 1)), keep=[[0]] * 3)
    with pytest.raises(ImageError, match="no images"):
        lens.run_with([], Ablate((0, 1)))
    with pytest.raises(FeatureError, match="each of 3 layers"):
        lens.run_with(x, Ablate((0, 1)), error_nodes=["clean"])
    with pytest.raises(OptionError, match="error_nodes must be one of"):
        lens.run_with(x, Ablate((0, 1)), error_nodes="leaf")
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
    outcome = lens.run_with(
        [tiny_image(i) for i in range(3)], Steer((0, 2), 1.0), error_nodes="free"
    )
    assert outcome.after.dtype == torch.float32
    assert outcome[0].class_names[0] == "class 0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projecting_in_half_precision(dtype: torch.dtype) -> None:
    full, half = tiny_lens(), tiny_lens(dtype=dtype)
    change = Project([(1, 3), (1, 11)])
    expected = full.run_with(tiny_image(), change).after
    found = half.run_with(tiny_image(dtype=dtype), change).after
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sae_kind_at_some_layers(kind: str) -> None:
    lens = lens_with(kind, layers=(1, 3, 4), depth=7, seed=7, dtype=DOUBLE)
    x = tiny_image(7, DOUBLE)
    a, b, c = (active(lens, layer) for layer in lens.layers)
    changes = (
        Clamp([a, b], 2.0)
        + Scale([a, c], 0.5)
        + Ablate([active(lens, 1, 2), active(lens, 4, 1)])
        + Patch(active(lens, 3, 1), tiny_image(5, DOUBLE), patches=(0, 0))
        + Project([active(lens, 4, 2), active(lens, 4, 3)], patches=[(0, 1), (-1, 0)])
        + Ablate(active(lens, 3, 2), "mean", over=[tiny_image(2, DOUBLE), tiny_image(3, DOUBLE)])
    )
    for error_nodes in ("clean", "free", "baseline", "zero", ("clean", "free", "zero")):
        outcome = lens.run_with(x, changes, error_nodes=error_nodes)
        close(outcome.after, slow(lens, x, changes, error_nodes))
        close(lens.plan(changes, error_nodes=error_nodes).logits_of(lens.trace(x)), outcome.after)
        with lens.intervene(changes, error_nodes=error_nodes):
            close(lens.vision.module(x[None])[0], outcome.after)
    with pytest.raises(FeatureError, match="Layers with SAEs are 1, 3, 4; there is no SAE at 2"):
        lens.run_with(x, Ablate((2, 0)))


def test_several_reference_images_are_the_mean_of_their_runs(lens: vitlens.Lens) -> None:
    x, change = tiny_image(7, DOUBLE), Ablate([active(lens, 0), active(lens, 2)])
    lens.baselines = lens.reference_baselines([tiny_image(seed, DOUBLE) for seed in (2, 3)])
    found = lens.run_with(x, change)
    assert found.baselines == "reference"
    with pytest.raises(FeatureError, match="mean of several runs"), lens.intervene(change):
        pass
    with lens.intervene(Scale(active(lens, 0), 2.0), error_nodes="free"):
        assert not torch.equal(lens.vision.module(x[None])[0], found.before)
    both = []
    for seed in (2, 3):
        lens.baselines = lens.reference_baselines(tiny_image(seed, DOUBLE))
        both.append(slow(lens, x, [change]))
    close(found.after, torch.stack(both).mean(0))

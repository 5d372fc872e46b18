"""The replaced forward pass: equations worked out step by step, and ways to start that agree."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.builders import KINDS, N_TOKENS, run_by_hand, sae_of_kind, tiny_image, tiny_model
from vitlens.errors import CheckpointError, FeatureError, ModelError, OptionError
from vitlens.method.replacement import (
    Baselines,
    Change,
    FromSite,
    KeepFeatures,
    ReplacementModel,
    SiteState,
    fit_baselines,
    keep_masks,
    reference_baselines,
)
from vitlens.models.vision import VisionModel

DOUBLE = torch.float64


def build(kind: str = "topk", layers: tuple[int, ...] = (0, 2, 3)) -> ReplacementModel:
    """A replacement model with SAEs at some of five blocks, in float64, no baseline zero."""
    vision = VisionModel(tiny_model(depth=5, dtype=DOUBLE))
    saes = [sae_of_kind(kind, seed=layer, dtype=DOUBLE) for layer in layers]
    torch.manual_seed(1)
    z = [0.1 * torch.rand(N_TOKENS, sae.n_features, dtype=DOUBLE) for sae in saes]
    e = [0.1 * torch.randn(N_TOKENS, sae.d_model, dtype=DOUBLE) for sae in saes]
    return ReplacementModel(vision, saes, layers, Baselines(z, e))


def images(n: int = 3) -> Tensor:
    return torch.stack([tiny_image(seed, DOUBLE) for seed in range(n)])


def masks(replacement: ReplacementModel, *shape: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.rand(*shape, s.n_features, generator=random) < 0.5 for s in replacement.saes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error_nodes", ["clean", "free", "baseline", "zero"])
def test_a_run_follows_the_definition_from_images_and_from_a_trace(kind, error_nodes) -> None:
    model, image = build(kind), images(1)[0]
    keep = masks(model)
    expected = run_by_hand(model, image, keep, [error_nodes] * 3)
    for inputs in (image[None], model.trace(image[None])[0], model.trace(image[None])):
        (found,) = model.run(inputs, KeepFeatures(keep), error_nodes=error_nodes)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_error_nodes_may_differ_by_site() -> None:
    model, image = build(), images(1)[0]
    for held in itertools.permutations(["clean", "baseline", "zero", "free"], 3):
        (found,) = model.run(image[None], KeepFeatures(masks(model)), error_nodes=held)
        expected = run_by_hand(model, image, masks(model), list(held))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_without_a_change_the_model_is_itself() -> None:
    model = build()
    trace = model.trace(images())
    for error_nodes, inputs in itertools.product(("clean", "free"), (images(), trace)):
        assert torch.equal(model.run(inputs, error_nodes=error_nodes), trace.logits)
    assert not torch.allclose(model.run(images(), error_nodes="zero"), trace.logits)


def test_a_batch_gives_what_single_images_give() -> None:
    model = build("budget")
    batch = model.trace(images())
    for n, image in enumerate(images()):
        single = model.trace(image[None])[0]
        for name, value in vars(batch[n]).items():
            for a, b in zip(value, getattr(single, name), strict=True):
                torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b))
    change = KeepFeatures(masks(model))
    expected = torch.cat([model.run(image[None], change) for image in images()])
    for inputs in (images(), batch):
        torch.testing.assert_close(model.run(inputs, change), expected, rtol=1e-10, atol=1e-10)


def test_several_masks_run_as_rows_of_one_trace() -> None:
    model = build()
    trace, many = model.trace(images(1))[0], masks(model, 4)
    found = model.run(trace, KeepFeatures(many))
    for row in range(4):
        one = KeepFeatures([mask[row] for mask in many])
        torch.testing.assert_close(found[row], model.run(trace, one)[0])
    with pytest.raises(FeatureError, match="3 images cannot be run as 4 rows"):
        model.run(model.trace(images()), KeepFeatures(many))


class SwitchOff(Change):
    """Sets all features of one site to 0."""

    def __init__(self, position: int) -> None:
        self.position = position

    def touches(self, position: int) -> bool:
        return position == self.position

    def features(self, state: SiteState) -> Tensor:
        return torch.zeros_like(state.features)


@pytest.mark.parametrize("error_nodes", ["clean", "free"])
def test_starting_at_a_site_gives_the_same(error_nodes) -> None:
    model = build()
    trace, change = model.trace(images()), SwitchOff(1)
    expected = model.run(images(), change, error_nodes=error_nodes)
    for position in (0, 1):
        start = FromSite(position, trace.residuals[position], clean=trace)
        found = model.run(start, change, error_nodes=error_nodes)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # The untouched stream goes along where no trace is given.
    start = FromSite(1, trace.residuals[1])
    torch.testing.assert_close(model.run(start, change, error_nodes=error_nodes), expected)
    # Behind the change, and with the change made by hand.
    seen: dict[int, Tensor] = {}
    model.run(
        trace, change, error_nodes=error_nodes, observe=lambda s, x: seen.update({s.position: x})
    )
    start = FromSite(1, seen[1], changed=True, clean=trace)
    torch.testing.assert_close(model.run(start, error_nodes=error_nodes), expected)


def test_a_changed_stream_without_a_trace_has_no_clean_error_nodes() -> None:
    model = build()
    start = FromSite(0, model.trace(images()).residuals[0], changed=True)
    with pytest.raises(FeatureError, match="needs the trace"):
        model.run(start, SwitchOff(1))


def test_before_and_after_is_two_runs() -> None:
    model = build()
    for change in (SwitchOff(2), None):
        before, after = model.before_and_after(images(), change)
        torch.testing.assert_close(before, model.trace(images()).logits)
        torch.testing.assert_close(after, model.run(images(), change))


def test_active_clean_keeps_the_mask_of_the_untouched_model() -> None:
    model = build()
    trace = model.trace(images())
    seen: list[tuple[Tensor, Tensor]] = []

    def observe(state: SiteState, stream: Tensor) -> None:
        if state.clean is not None:
            seen.append((state.features > 0, state.clean.features > 0))

    model.run(trace, SwitchOff(0), active="clean", observe=observe)
    assert len(seen) == 2 and all(not (now & ~clean).any() for now, clean in seen)
    seen.clear()
    model.run(trace, SwitchOff(0), observe=observe)
    assert any((now & ~clean).any() for now, clean in seen)


def test_gradients_are_recorded_only_on_request() -> None:
    model = build()
    inputs = images().requires_grad_()
    assert not model.run(inputs, SwitchOff(1)).requires_grad
    (gradient,) = torch.autograd.grad(model.run(inputs, SwitchOff(1), grad=True).sum(), inputs)
    assert gradient.abs().sum() > 0


# Baselines


def test_means_and_medians_over_images() -> None:
    model, batches = build("budget"), images(5).split(2)
    trace = model.trace(images(5))
    mean, median = (
        fit_baselines(model, batches, kind=kind, progress=False) for kind in ("mean", "median")
    )
    assert (mean.kind, median.kind) == ("mean", "median")
    for i in range(3):
        torch.testing.assert_close(mean.features[i], trace.features[i].mean(0))
        torch.testing.assert_close(mean.errors[i], trace.errors[i].mean(0))
        torch.testing.assert_close(median.features[i], trace.features[i].median(0).values)
        torch.testing.assert_close(median.errors[i], trace.errors[i].median(0).values)


def test_several_reference_images_give_the_mean_of_the_runs() -> None:
    model, references = build(), images(3)[1:]
    change = KeepFeatures(masks(model))
    runs = []
    for reference in references:
        model.baselines = reference_baselines(model.trace(reference[None]))
        assert model.baselines.kind == "reference" and not model.baselines.references
        runs.append(model.run(images(1), change, error_nodes="baseline"))
    model.baselines = reference_baselines(model.trace(references))
    found = model.run(images(1), change, error_nodes="baseline")
    torch.testing.assert_close(found, torch.stack(runs).mean(0))
    torch.testing.assert_close(
        model.baselines.features[0], model.trace(references).features[0].mean(0)
    )


@pytest.mark.parametrize("kind", ["median", "mean", "zero", "custom"])
def test_saved_baselines_come_back_with_their_kind(kind, tmp_path) -> None:
    saved = replace(build().baselines, kind=kind)
    saved.save(tmp_path / "b.safetensors")
    loaded = Baselines.load(tmp_path / "b.safetensors")
    assert loaded.kind == kind
    assert all(map(torch.equal, loaded.features, saved.features))
    assert all(map(torch.equal, loaded.errors, saved.errors))


def test_baselines_of_8_bits_are_close_and_keep_their_zeros(tmp_path) -> None:
    torch.manual_seed(0)
    sparse = torch.rand(7, 20) * (torch.rand(7, 20) < 0.1)
    z = [torch.rand(7, 20), sparse, torch.zeros(7, 20)]
    e = [torch.randn(7, 6) * torch.logspace(-3, 3, 6) for _ in z]
    Baselines(z, e, "mean").save(tmp_path / "b.safetensors", dtype=torch.int8)
    loaded = Baselines.load(tmp_path / "b.safetensors")
    assert loaded.kind == "mean"
    for found, given in zip((*loaded.features, *loaded.errors), (*z, *e), strict=True):
        assert found.dtype == torch.float32 and found.shape == given.shape
        # One scale per column: half a step of 127, or what is cut off for finer steps.
        step = given.abs().amax(0) / 127
        assert ((found - given).abs() <= 0.3 * given.abs().amax(0) + step).all()
        close = (found - given).norm() <= 0.02 * given.norm()
        assert close or not given.any()
    assert torch.equal(loaded.features[1] == 0, sparse == 0)
    sizes = {}
    for dtype in (torch.int8, torch.float16):
        large = Baselines([torch.rand(200, 300)], [torch.randn(200, 50)])
        large.save(tmp_path / "large.safetensors", dtype=dtype)
        sizes[dtype] = (tmp_path / "large.safetensors").stat().st_size
    assert sizes[torch.int8] < 0.55 * sizes[torch.float16]


def test_saved_reference_baselines_come_back(tmp_path) -> None:
    model = build()
    saved = reference_baselines(model.trace(images()))
    saved.save(tmp_path / "b.safetensors")
    loaded = Baselines.load(tmp_path / "b.safetensors")
    assert len(loaded.references) == 3
    for a, b in zip(loaded.references, saved.references, strict=True):
        assert all(map(torch.equal, a.features, b.features))


# What does not fit


def test_sites_saes_and_options_are_checked() -> None:
    model = build()
    with pytest.raises(CheckpointError, match="ascending"):
        ReplacementModel(model.vision, model.saes, (2, 0, 3))
    with pytest.raises(CheckpointError, match="one SAE per layer"):
        ReplacementModel(model.vision, model.saes, (0, 2))
    with pytest.raises(ModelError, match="no block 7"):
        ReplacementModel(model.vision, model.saes, (0, 2, 7))
    with pytest.raises(ModelError, match="Baselines of layer 2"):
        wrong = [z[:, :-1] if i == 1 else z for i, z in enumerate(model.baselines.features)]
        model.baselines = Baselines(wrong, model.baselines.errors)
    with pytest.raises(OptionError, match="error_nodes must be one of clean, free"):
        model.run(images(), error_nodes="fre")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind must be one of median, mean, zero, not 'meen'"):
        fit_baselines(model, [images()], kind="meen")  # type: ignore[arg-type]
    with pytest.raises(FeatureError, match="there is no SAE at 1"):
        model.position(1)


def test_keep_names_features_by_site_or_by_layer() -> None:
    model = build()
    by_site = keep_masks(model, [[0, 3], [], torch.arange(30) < 2])
    by_layer = keep_masks(model, {0: [0, 3], 2: [], 3: [0, 1]})
    assert all(map(torch.equal, by_site, by_layer))
    assert [mask.nonzero().squeeze(1).tolist() for mask in by_site] == [[0, 3], [], [0, 1]]
    with pytest.raises(FeatureError, match="no SAE at 1"):
        keep_masks(model, {1: [0]})
    with pytest.raises(FeatureError, match="must also list the features of layer 3"):
        keep_masks(model, {0: [0], 2: [1]})

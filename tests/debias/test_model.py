"""The debiased classifier as a module and as a file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import vitlens
from tests.planted import LAND, WATER, planted_images, planted_lens
from vitlens.debias import DebiasedModel, Debiasing, Removal
from vitlens.errors import CheckpointError, FeatureError, OptionError

FEATURES = [(0, WATER), (1, LAND), (1, 9)]


def batch_of(lens: vitlens.Lens, n: int = 2) -> torch.Tensor:
    images = planted_images((n,) * 4, seed=3).images
    return torch.stack([lens.tensor(image) for image in images])


def test_the_debiased_model_travels(lens: vitlens.Lens, found: Debiasing, tmp_path: Path) -> None:
    model = found.model()
    batch = torch.stack(list(planted_images(seed=1).images))
    model.save(tmp_path / "debiased.json")
    again = DebiasedModel.load(tmp_path / "debiased.json", lens)
    assert again.features == found.features
    assert torch.equal(again(batch), model(batch))
    projected = DebiasedModel(lens, found.features, to="zero", project=True)
    projected.save(tmp_path / "projected.json")
    other = DebiasedModel.load(tmp_path / "projected.json", lens)
    assert other.removal == Removal("zero", project=True)
    assert torch.equal(other(batch), projected(batch))
    right = again(batch).argmax(1) == planted_images(seed=1).labels
    assert float(right.double().mean()) == found.reports["removed"].average
    assert again.predict(batch[0])[0][0] == "bird"
    assert torch.equal(found.model(0)(batch), lens.vision.logits(batch))
    with pytest.raises(FeatureError, match="0 to"):
        found.model(len(found.path) + 1)


def test_a_file_of_another_lens_is_refused(found: Debiasing, tmp_path: Path) -> None:
    found.model().save(tmp_path / "debiased.json")
    with pytest.raises(CheckpointError, match="another lens"):
        DebiasedModel.load(tmp_path / "debiased.json", planted_lens(shortcut=0.2))
    (tmp_path / "other.json").write_text('{"features": []}')
    with pytest.raises(CheckpointError, match="does not hold a debiased model"):
        DebiasedModel.load(tmp_path / "other.json", planted_lens())
    text = (tmp_path / "debiased.json").read_text().replace('"baseline"', '"nowhere"')
    (tmp_path / "debiased.json").write_text(text)
    with pytest.raises(CheckpointError, match="not complete"):
        DebiasedModel.load(tmp_path / "debiased.json", planted_lens())


def test_unknown_ways_of_removal_are_refused(lens: vitlens.Lens) -> None:
    with pytest.raises(OptionError, match="baseline, zero, not 'mean'"):
        DebiasedModel(lens, [(1, WATER)], to="mean")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="True or False, not 'no'"):
        DebiasedModel(lens, [(1, WATER)], project="no")  # type: ignore[arg-type]
    with pytest.raises(FeatureError):
        DebiasedModel(lens, [(1, 20)])


@pytest.mark.parametrize("project", [False, True], ids=["ablated", "projected"])
def test_casting_the_debiased_model_leaves_the_lens_unchanged(project: bool) -> None:
    lens = planted_lens()
    lens.fit_baselines(planted_images((4, 4, 4, 4)).images, progress=False)
    before = {name: value.clone() for name, value in lens.vision.module.state_dict().items()}
    batch = batch_of(lens)
    model = DebiasedModel(lens, FEATURES, project=project)
    single = model(batch)
    double = model.to(torch.float64)(batch.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)
    for name, value in lens.vision.module.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])
    assert all(sae.W_dec.dtype == torch.float32 for sae in lens.saes)
    assert all(z.dtype == torch.float32 for z in lens.baselines.features)
    assert lens.vision.logits(batch).dtype == torch.float32


def test_state_dicts_restore_trained_models() -> None:
    lens = planted_lens(dtype=torch.float64)
    lens.fit_baselines(planted_images((4, 4, 4, 4)).images, progress=False)
    batch = batch_of(lens)
    model, other = DebiasedModel(lens, FEATURES), DebiasedModel(lens, FEATURES)
    untouched = lens.vision.logits(batch)
    loss = nn.functional.cross_entropy(model(batch), torch.arange(len(batch)) % 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss.backward()
    optimizer.step()
    assert not torch.allclose(model(batch), other(batch))
    assert torch.equal(lens.vision.logits(batch), untouched)
    changed = model.state_dict()
    changed["baselines.features_0"] = changed["baselines.features_0"] + 1
    other.load_state_dict(changed)
    model.load_state_dict(changed)
    torch.testing.assert_close(other(batch), model(batch), atol=0, rtol=0)
    with torch.no_grad():
        assert not torch.allclose(model(batch), DebiasedModel(lens, FEATURES)(batch))


def test_parameters_are_those_of_the_classifier_alone(lens: vitlens.Lens) -> None:
    model = DebiasedModel(lens, FEATURES)
    own = dict(lens.vision.module.named_parameters())
    found = {name.removeprefix("module."): value for name, value in model.named_parameters()}
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    assert not {id(value) for value in own.values()} & {id(value) for value in found.values()}
    assert {"saes.0.W_dec", "baselines.errors_1"} <= model.state_dict().keys()


@pytest.mark.parametrize("project", [False, True], ids=["ablated", "projected"])
def test_gradients_reach_images_and_weights_as_inside_intervene(project: bool) -> None:
    lens = planted_lens(dtype=torch.float64)
    lens.fit_baselines(planted_images((4, 4, 4, 4)).images, progress=False)
    batch = batch_of(lens).requires_grad_(True)
    debiased = DebiasedModel(lens, FEATURES, project=project)
    (grad,) = torch.autograd.grad(debiased(batch)[:, 0].sum(), batch)
    removal = debiased.removal.of(FEATURES)
    with lens.intervene(removal, error_nodes="free"):
        (expected,) = torch.autograd.grad(lens.vision.module(batch)[:, 0].sum(), batch)
    torch.testing.assert_close(grad, expected)
    assert float(grad.abs().max()) > 0
    debiased(batch)[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in debiased.parameters())
    (plain,) = torch.autograd.grad(lens.vision.module(batch)[:, 0].sum(), batch)
    (without,) = torch.autograd.grad(DebiasedModel(lens, [])(batch)[:, 0].sum(), batch)
    torch.testing.assert_close(without, plain)


def test_the_text_of_a_debiased_model_is_short(lens: vitlens.Lens) -> None:
    text = str(DebiasedModel(lens, [(1, WATER)], to="zero"))
    assert text == "VisionTransformer with 1 feature ablated, to zero"


def test_train_mode_never_makes_results_random(lens: vitlens.Lens) -> None:
    batch = batch_of(lens)
    model = DebiasedModel(lens, FEATURES)
    assert not model.training
    expected = model(batch)
    model.train()
    assert model.training and not any(part.training for part in model.module.modules())
    assert torch.equal(model(batch), expected)
    assert not model.eval().training
    assert not lens.vision.module.training


def test_deep_copies_are_independent(lens: vitlens.Lens) -> None:
    batch = batch_of(lens)
    model = DebiasedModel(lens, FEATURES)
    expected = model(batch)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(batch), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.01)
    assert torch.equal(model(batch), expected)
    assert not torch.allclose(twin(batch), expected)


def test_a_module_made_inside_intervene_is_of_the_untouched_model(lens: vitlens.Lens) -> None:
    batch = batch_of(lens)
    expected = DebiasedModel(lens, FEATURES)(batch)
    with lens.intervene(vitlens.Ablate((0, 3), "zero")):
        inside = DebiasedModel(lens, FEATURES)
        assert torch.equal(inside(batch), expected)
    assert torch.equal(inside(batch), expected)

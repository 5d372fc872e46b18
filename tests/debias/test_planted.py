"""Debiasing a model whose shortcut and true feature are known, and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitlens
from tests.planted import BIRD, LAND, MAMMAL, WATER, planted_images, planted_lens
from vitlens import Ablate, Project
from vitlens.debias import DebiasedModel, Debiasing, GroupedImages, GroupRuns, debias
from vitlens.debias.removal import Removal
from vitlens.debias.runs import margins
from vitlens.debias.search import _check_classes
from vitlens.errors import CheckpointError, FeatureError, GroupError

SHORTCUTS = {WATER, LAND}
TRUE = {BIRD, MAMMAL}


@pytest.fixture(scope="module")
def lens() -> vitlens.Lens:
    return planted_lens()


@pytest.fixture(scope="module")
def found(lens: vitlens.Lens) -> Debiasing:
    return lens.debias(
        planted_images(), test=planted_images(seed=1), layers=[1], circuits=2, progress=False
    )


def test_the_planted_model_follows_the_place(lens: vitlens.Lens) -> None:
    report = GroupRuns(lens, planted_images(seed=2), [1]).report(())
    assert report.accuracy.tolist()[0] == report.accuracy.tolist()[3] == 1
    assert report.worst < 0.1


def test_the_shortcut_is_ranked_first(found: Debiasing) -> None:
    first, second = found.candidates[:2]
    assert {first.feature, second.feature} <= SHORTCUTS
    assert "activation difference" in first.sources
    assert {c.attribute for c in found.candidates if c.feature == WATER} == {"water"}
    assert first.q_value < 1e-6
    assert first.relief > 0.3
    assert not any(c.feature in TRUE for c in found.candidates)
    assert any("circuit" in c.sources for c in found.candidates)


def test_ablation_restores_the_worst_group(found: Debiasing) -> None:
    assert {feature for _, feature in found.features} == SHORTCUTS
    assert found.reports["nothing"].worst < 0.1
    assert found.reports["removed"].worst == 1
    assert found.reports["random features"].worst < 0.1
    assert found.reports["DFR"].worst == found.reports["mean difference"].worst == 1
    assert found.collateral == {}
    assert found.test is not None
    assert found.test.worst[-1] == 1
    assert "Collateral damage, in points: none" in str(found)


def test_removing_the_true_feature_is_collateral_damage() -> None:
    fair = planted_lens(shortcut=0.03)
    images = planted_images(seed=3)
    result = debias(fair, images, features=[(1, BIRD)], progress=False)
    assert result.reports["nothing"].worst == 1
    assert set(result.collateral) == {"bird, land", "bird, water"}
    assert result.collateral["bird, land"] < -0.5
    by_class = result.reports["removed"].by_class()
    assert by_class["mammal"] == 1
    assert by_class["bird"] < 0.7
    assert "bird, land -" in str(result)
    assert not result.tested


def test_picks_are_candidates_whatever_they_are(lens: vitlens.Lens) -> None:
    result = debias(lens, planted_images(), picks=[(1, BIRD)], n_random=0, progress=False)
    picked = [c for c in result.candidates if "picked" in c.sources]
    assert [(c.key, c.sources) for c in picked] == [((1, BIRD), ("picked",))]
    assert (1, BIRD) not in result.features
    assert "random features" not in result.reports


@pytest.mark.parametrize("project", [False, True], ids=["ablated", "projected"])
@pytest.mark.parametrize("to", ["baseline", "zero"])
def test_runs_from_the_middle_are_runs_of_the_whole_model(to: str, project: bool) -> None:
    lens = planted_lens(dtype=torch.float64)
    images = planted_images((3, 2, 2, 3), seed=4)
    lens.fit_baselines(images.images, progress=False)
    runs = GroupRuns(lens, images, [0, 1], batch_size=4)
    features = [(0, WATER), (1, LAND), (1, 9)]
    batch = torch.stack([lens.tensor(image) for image in images.images])
    model = DebiasedModel(lens, features, to=to, project=project)
    found = runs.without(features, removal=Removal(to, project))
    torch.testing.assert_close(found, model(batch))
    kind = Project if project else Ablate
    outcome = lens.run_with(list(batch), kind(features, to), errors="free")
    torch.testing.assert_close(found, outcome.after)
    torch.testing.assert_close(runs.logits, lens.vision.module(batch))
    assert not torch.allclose(model(batch), runs.logits)


@pytest.mark.parametrize("project", [False, True], ids=["ablated", "projected"])
def test_first_order_effects_are_the_slope_of_the_margin(project: bool) -> None:
    """Against finite differences: the stream moved a little towards the changed one."""
    lens = planted_lens(dtype=torch.float64)
    images = planted_images((2, 2, 2, 2), seed=5)
    runs = GroupRuns(lens, images, [0, 1], batch_size=3)
    keys = [(0, WATER), (1, LAND), (1, BIRD)]
    batch = torch.stack([lens.tensor(image) for image in images.images])
    for given in ([], [(0, LAND)]):
        effects = runs.effects(
            keys, given=given, removal=Removal("zero", project), gradient="plain"
        )
        for column, (layer, feature) in enumerate(keys):
            moved = [
                _margin(lens, batch, images, given, (layer, feature), h, project=project)
                for h in (0, 1e-5)
            ]
            torch.testing.assert_close(
                effects[:, column], (moved[1] - moved[0]) / 1e-5, atol=1e-4, rtol=1e-3
            )


def _margin(
    lens: vitlens.Lens,
    batch: torch.Tensor,
    images: GroupedImages,
    given: list[tuple[int, int]],
    key: tuple[int, int],
    step: float,
    *,
    project: bool,
) -> torch.Tensor:
    """Margins with `given` at zero, and one feature this part of the way to zero."""
    with torch.no_grad():
        stem = lens.vision.embed(batch)
        stream = stem.tokens
        for at, block in enumerate(stem.blocks):
            stream = block(stream)
            if at == len(lens.saes):
                break
            sae = lens.saes[at]
            z, mean, sd = sae.encode_with_stats(stream)
            changes = [(feature, 1.0) for layer, feature in given if layer == at]
            for feature, part in changes + [(key[1], step)] * (key[0] == at):
                row = sae.W_dec[feature]
                size = z[..., feature, None] * sd
                if project:
                    size = (stream - mean - sae.b_dec * sd) @ row[:, None]
                stream = stream - part * size * row
        return margins(lens.vision.readout(stream), images.labels)


def test_projecting_out_restores_the_worst_group(lens: vitlens.Lens) -> None:
    result = debias(
        lens, planted_images(), test=planted_images(seed=1), project=True, progress=False
    )
    assert {feature for _, feature in result.features} <= SHORTCUTS
    assert result.reports["nothing"].worst < 0.1
    assert result.reports["removed"].worst == 1
    assert result.model().removal == Removal(project=True)
    assert "projected out, to baseline" in str(result)


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


def test_bad_input(lens: vitlens.Lens) -> None:
    whole = planted_images((4, 4, 4, 4))
    for counts, message in (
        ((4, 4, 4, 0), "No image is in the group 'mammal, land'"),
        ((4, 4, 0, 0), "same class, 'bird'"),
        ((4, 0, 4, 0), "same attribute value, 'water'"),
        ((4, 0, 0, 4), "attribute is equal to the class"),
        ((0, 4, 4, 0), "attribute is equal to the class"),
    ):
        with pytest.raises(GroupError, match=message):
            lens.debias(planted_images(counts), progress=False)
        with pytest.raises(GroupError, match=message):
            lens.debias(whole, test=planted_images(counts), progress=False)
    for options in ({"picks": [(1, 20)]}, {"picks": [(5, 0)]}, {"features": [(1, 20)]}):
        with pytest.raises(FeatureError, match="another lens"):
            lens.debias(whole, progress=False, **options)
    with pytest.raises(FeatureError, match="Layers are 0 to 1"):
        lens.debias(whole, layers=[2], progress=False)
    with pytest.raises(FeatureError, match="streams of layers"):
        GroupRuns(lens, whole, [0]).without([(1, WATER)])
    with pytest.raises(FeatureError, match='"baseline" or "zero"'):
        DebiasedModel(lens, [(1, WATER)], to="mean")
    with pytest.raises(FeatureError, match="True or False, not 'no'"):
        DebiasedModel(lens, [(1, WATER)], project="no")


def test_classes_must_be_the_models(lens: vitlens.Lens) -> None:
    images = planted_images((2, 2, 2, 2))
    three = GroupedImages(
        images.images, images.labels, images.attributes, ("a", "b", "c"), ("water", "land")
    )
    with pytest.raises(GroupError, match="have 3 classes"):
        _check_classes(lens, three)
    turned = GroupedImages(
        images.images, images.labels, images.attributes, ("mammal", "bird"), ("water", "land")
    )
    with pytest.raises(GroupError, match="another order"):
        _check_classes(lens, turned)

"""Runs from kept streams, and first-order effects, against runs of the whole model."""

from __future__ import annotations

import pytest
import torch

import vitlens
from tests.builders import KINDS
from tests.planted import BIRD, LAND, WATER, planted_images, planted_lens
from vitlens import Ablate, Project
from vitlens.debias import DebiasedModel, GroupedImages, GroupRuns, Removal
from vitlens.debias.runs import margins
from vitlens.errors import FeatureError


def test_the_planted_model_follows_the_place(lens: vitlens.Lens) -> None:
    report = GroupRuns(lens, planted_images(seed=2), [1]).report(())
    assert report.accuracy.tolist()[0] == report.accuracy.tolist()[3] == 1
    assert report.worst < 0.1


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
    torch.testing.assert_close(found, model(batch).detach())
    kind = Project if project else Ablate
    outcome = lens.run_with(list(batch), kind(features, to), error_nodes="free")
    torch.testing.assert_close(found, outcome.after)
    torch.testing.assert_close(runs.logits, lens.vision.module(batch))
    assert not torch.allclose(model(batch), runs.logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("project", [False, True], ids=["ablated", "projected"])
def test_runs_with_saes_of_every_kind_at_one_layer(kind: str, project: bool) -> None:
    lens = planted_lens(dtype=torch.float64, kind=kind, layers=(1,))
    images = planted_images((3, 2, 2, 3), seed=4)
    lens.fit_baselines(images.images, kind="mean", progress=False)
    runs = GroupRuns(lens, images, [1], batch_size=4)
    assert list(runs.activations) == [1]
    features, removal = [(1, WATER), (1, 9)], Removal("baseline", project)
    batch = torch.stack([lens.tensor(image) for image in images.images])
    found = runs.without(features, removal=removal)
    outcome = lens.run_with(list(batch), removal.of(features), error_nodes="free")
    torch.testing.assert_close(found, outcome.after)
    model = DebiasedModel(lens, features, project=project)
    torch.testing.assert_close(found, model(batch).detach())
    assert not torch.allclose(found, runs.logits)


def test_several_reference_images_as_baselines_give_the_mean_of_the_runs() -> None:
    lens = planted_lens(dtype=torch.float64)
    images = planted_images((2, 2, 2, 2), seed=4)
    references = planted_images((1, 1, 1, 1), seed=8).images
    features = [(0, WATER), (1, LAND)]
    logits, effects = [], []
    for reference in references:
        lens.baselines = lens.reference_baselines([reference])
        runs = GroupRuns(lens, images, [0, 1])
        logits.append(runs.without(features))
        effects.append(runs.effects(features))
    lens.baselines = lens.reference_baselines(references)
    runs = GroupRuns(lens, images, [0, 1])
    torch.testing.assert_close(runs.without(features), torch.stack(logits).mean(0))
    torch.testing.assert_close(runs.effects(features), torch.stack(effects).mean(0))
    model = DebiasedModel(lens, features)
    batch = torch.stack([lens.tensor(image) for image in images.images])
    torch.testing.assert_close(runs.without(features), model(batch).detach())
    assert "baselines.references.3.features_0" in model.state_dict()


@pytest.mark.parametrize(
    ("kind", "layers"), [("topk", (0, 1)), ("jumprelu", (0, 1)), ("topk", (0,)), ("relu", (0, 2))]
)
@pytest.mark.parametrize("project", [False, True], ids=["ablated", "projected"])
def test_first_order_effects_are_the_slope_of_the_margin(
    project: bool, kind: str, layers: tuple[int, ...]
) -> None:
    """Against finite differences: the stream is moved a little towards the changed one."""
    lens = planted_lens(dtype=torch.float64, kind=kind, layers=layers)
    images = planted_images((2, 2, 2, 2), seed=5)
    runs = GroupRuns(lens, images, layers, batch_size=3)
    keys = [(layers[0], WATER), (layers[-1], LAND), (layers[-1], BIRD)]
    batch = torch.stack([lens.tensor(image) for image in images.images])
    for given in ([], [(layers[0], LAND)]):
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
            if at not in lens.layers:
                continue
            sae = lens.replacement.sae(at)
            z, mean, sd = sae.encode_with_stats(stream)
            changes = [(feature, 1.0) for layer, feature in given if layer == at]
            for feature, part in changes + [(key[1], step)] * (key[0] == at):
                row = sae.W_dec[feature]
                size = z[..., feature, None] * sd
                if project:
                    size = (stream - mean - sae.b_dec * sd) @ row[:, None]
                stream = stream - part * size * row
        return margins(lens.vision.readout(stream), images.labels)


def test_features_of_other_layers_cannot_be_removed(lens: vitlens.Lens) -> None:
    runs = GroupRuns(lens, planted_images((4, 4, 4, 4)), [0])
    with pytest.raises(FeatureError, match="streams of layers"):
        runs.without([(1, WATER)])

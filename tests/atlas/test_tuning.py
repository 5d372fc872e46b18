"""Responses to the stimuli, and the tuning that they show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.builders import tiny_lens
from vitlens.atlas import stimuli, tuning
from vitlens.atlas.stimuli import N_STIMULI
from vitlens.atlas.tuning import respond, stimuli_of
from vitlens.errors import FeatureError


def test_responses_are_the_largest_activation_over_patches() -> None:
    lens = tiny_lens()
    said: list[float] = []
    found = respond(lens, batch_size=50, progress=lambda part, _: said.append(part))
    assert [tuple(r.shape) for r in found] == [(30, N_STIMULI)] * 3
    assert said[-1] == 1.0
    drawn = stimuli_of(lens)
    for number in (0, 133, N_STIMULI - 1):
        image = Image.fromarray(drawn.pixels(number))
        features = lens.trace(image).features  # the transform neither resizes nor crops here
        for layer, z in enumerate(features):
            expected = z[1:].amax(0)
            torch.testing.assert_close(found[layer][:, number], expected, atol=1e-5, rtol=1e-5)


def test_another_transform_gets_images() -> None:
    lens = tiny_lens()
    usual = respond(lens, progress=False)
    transform = lens.transform
    lens.transform = lambda image: transform(image)
    for one, other in zip(usual, respond(lens, progress=False), strict=True):
        torch.testing.assert_close(one, other)


def bump(angles: tuple[float, ...], at: float, *, turn: float) -> Tensor:
    """A smooth tuning curve about an angle."""
    off = (torch.tensor(angles, dtype=torch.float64) - at) * 2 * math.pi / turn
    return torch.exp(2 * (off.cos() - 1))


def planted() -> dict[str, Tensor]:
    """Responses of made-up features, [N] each."""
    rows = {name: torch.zeros(N_STIMULI, dtype=torch.float64) for name in (
        "oriented", "curve", "line", "hue", "texture", "flat", "one", "two", "dead"
    )}  # fmt: skip
    index = stimuli.indices
    oriented = bump(stimuli.ORIENTATIONS, 60, turn=180)
    rows["oriented"][index("edge")] = oriented.expand(2, 2, -1)
    rows["oriented"][index("grating")] = oriented.expand(2, 3, -1)
    by_radius = torch.tensor([0.3, 1, 0.8, 0.4, 0.2]).double()[:, None]
    towards = bump(stimuli.DIRECTIONS, 120, turn=360)
    rows["curve"][index("arc")] = (by_radius * towards).expand(2, 2, -1, -1)
    # A line bulges nowhere: it answers to both directions alike.
    straighter = torch.tensor([0.1, 0.1, 0.2, 0.3, 1]).double()[:, None]
    both = towards + bump(stimuli.DIRECTIONS, 300, turn=360)
    rows["line"][index("arc")] = (straighter * both).expand(2, 2, -1, -1)
    rows["hue"][index("hue")] = bump(stimuli.HUES, 30, turn=360).expand(2, 2, -1)
    rows["texture"][index("texture")[:, :, 3]] = 1
    rows["flat"] += 1
    for name in ("edge", "arc", "hue", "texture"):
        rows["one"][index(name).flatten()[5]] = 9
        rows["two"][index(name).flatten()[[5, 9]]] = 9
    return rows


def test_indices_find_what_was_planted_and_nothing_else() -> None:
    rows = planted()
    found = tuning.indices(torch.stack(list(rows.values())))
    of = {row: {name: float(found[name][i]) for name in found} for i, row in enumerate(rows)}
    for row, name in (
        ("oriented", "orientation"), ("curve", "curvature"), ("curve", "direction"),
        ("hue", "hue"), ("texture", "texture"),
    ):  # fmt: skip
        assert of[row].pop(name) > 0.5, (row, name)
    assert of["line"].pop("curvature") < -0.2
    for row, values in of.items():
        for name, value in values.items():
            assert abs(value) < 0.1, (row, name)


def test_the_index_is_one_minus_circular_variance_where_halves_agree() -> None:
    rows = planted()
    found = tuning.indices(rows["oriented"][None])["orientation"]
    curve = bump(stimuli.ORIENTATIONS, 60, turn=180).numpy()
    doubled = np.exp(2j * np.radians(stimuli.ORIENTATIONS))
    resultant = abs((curve * doubled).sum()) / curve.sum()
    each = np.tile(curve, 10)  # two halves of two sides and three periods
    effective = each.sum() ** 2 / (each**2).sum()
    assert float(found) == pytest.approx(resultant * (1 - 1 / effective))


def test_halves_that_disagree_give_nothing() -> None:
    row = torch.zeros(1, N_STIMULI)
    for half, at in ((0, 30), (1, 120)):
        curve = bump(stimuli.ORIENTATIONS, at, turn=180).float()
        row[0, stimuli.indices("edge")[half]] = curve.expand(2, -1)
    assert float(tuning.indices(row)["orientation"]) == 0


def test_tuned_features_are_above_chance_and_noise_is_at_it() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(600, N_STIMULI, generator=generator)
    noise = noise * (torch.rand(noise.shape, generator=generator) < 0.4)
    shuffled = tuning.shuffled_indices(noise.double())
    tuned = tuning.indices(torch.stack(list(planted().values())))
    rows = list(planted())
    for name, row in (
        ("orientation", "oriented"), ("direction", "curve"), ("hue", "hue"), ("texture", "texture")
    ):  # fmt: skip
        level = float(shuffled[name].quantile(0.99))
        assert float(tuned[name][rows.index(row)]) > level, name
        share = float((tuning.indices(noise)[name] > level).double().mean())
        assert share < 0.03, name
    assert len(shuffled["hue"]) == 8 * 600
    again = tuning.shuffled_indices(noise.double())
    assert all(torch.equal(again[name], shuffled[name]) for name in again)


def test_permuting_labels_keeps_a_features_responses() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(7, 2, 4, 12, generator=generator)
    moved = tuning._permuted(values, generator)
    assert torch.equal(moved.sort(-1).values, values.sort(-1).values)
    assert not torch.equal(moved, values)
    together = torch.stack([values[:, 0], values[:, 0]], dim=1)
    moved = tuning._permuted(together, generator)
    assert torch.equal(moved[:, 0], moved[:, 1])


def test_curves_are_means_over_repeats() -> None:
    responses = torch.rand(3, N_STIMULI, generator=torch.Generator().manual_seed(2))
    found = tuning.Tuning.of(tuning.curves(responses)[1], {"hue": 0.5})
    row = responses[1]
    index = stimuli.indices
    torch.testing.assert_close(found.orientation[0], row[index("edge")].mean((0, 1)))
    torch.testing.assert_close(found.orientation[1:], row[index("grating")].mean(0))
    torch.testing.assert_close(found.direction, row[index("arc")].mean((0, 1)))
    torch.testing.assert_close(found.hue, row[index("hue")].mean(0))
    torch.testing.assert_close(found.grey, row[index("grey")].mean(0))
    torch.testing.assert_close(found.texture, row[index("texture")].mean((0, 1)))
    assert found.blank == pytest.approx(float(row[-1])) and found.indices == {"hue": 0.5}
    with pytest.raises(FeatureError):
        tuning.Tuning.of(torch.zeros(5))
    with pytest.raises(FeatureError):
        tuning.indices(torch.zeros(2, 5))


def test_what_a_feature_prefers() -> None:
    rows = planted()
    found = tuning.curves(torch.stack(list(rows.values())))
    names = list(rows)
    oriented = tuning.Tuning.of(found[names.index("oriented")]).preferred
    assert oriented.orientation == pytest.approx(60, abs=1)
    curve = tuning.Tuning.of(found[names.index("curve")]).preferred
    assert (curve.radius, curve.direction) == (2.0, 97.5) or curve.direction == 142.5
    assert tuning.Tuning.of(found[names.index("hue")]).preferred.hue == pytest.approx(30, abs=1)
    assert tuning.Tuning.of(found[names.index("texture")]).preferred.texture == "labyrinth"

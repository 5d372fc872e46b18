"""The synthetic stimuli: what is drawn, how models get it, and what tuning makes of responses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tests.tiny import tiny_lens
from vitlens.atlas import drawing, stimuli, tuning
from vitlens.atlas.responses import respond, stimuli_of
from vitlens.atlas.stimuli import N_STIMULI, ORDER, Stimuli
from vitlens.errors import FeatureError, ImageError

DRAWN = Stimuli((96, 96), (12, 12))


def grey(number: int) -> np.ndarray:
    return DRAWN.picture(number)[..., 0].astype(float) / 255


def main_orientation(picture: np.ndarray) -> float:
    """Orientation along which a picture changes least, in degrees, by its structure tensor."""
    down, right = np.gradient(gaussian_filter(picture, 1.5))
    angle = 0.5 * math.atan2(2 * (right * -down).mean(), (right**2 - down**2).mean())
    return math.degrees(angle) % 180 + 90


def test_the_set_is_counted_and_in_order() -> None:
    assert len(DRAWN) == len(ORDER) == N_STIMULI == 377
    numbers = [stimuli.indices(name).flatten() for name in stimuli.SHAPES]
    assert torch.cat(numbers).tolist() == list(range(N_STIMULI))
    for name in stimuli.SHAPES:
        for number in stimuli.indices(name).flatten().tolist():
            assert ORDER[number].block == name
            assert stimuli.indices(name)[ORDER[number].place] == number
    assert str(ORDER[int(stimuli.indices("arc")[0, 1, 4, 0])]) == (
        "dark straight line towards 7.5°"
    )


@pytest.mark.parametrize("k", range(12))
def test_edges_and_gratings_have_their_orientation(k: int) -> None:
    edges, gratings = stimuli.indices("edge"), stimuli.indices("grating")
    for number in (edges[0, 0, k], edges[1, 1, k], gratings[0, 1, k], gratings[1, 2, k]):
        off = (main_orientation(grey(int(number))) - stimuli.ORIENTATIONS[k]) % 180
        assert min(off, 180 - off) < 3, str(ORDER[int(number)])


def test_the_sides_of_an_edge_change_places() -> None:
    one, other = (int(i) for i in stimuli.indices("edge")[0, :, 3])
    assert grey(one)[0, 0] > 0.8 and grey(other)[0, 0] < 0.2
    assert grey(one)[-1, -1] < 0.2 and grey(other)[-1, -1] > 0.8


@pytest.mark.parametrize("k", range(8))
def test_an_arc_bulges_in_its_direction(k: int) -> None:
    # The top of the arc lies ahead of its middle, by its sagitta less what the mean takes off.
    number = int(stimuli.indices("arc")[0, 0, 2, k])
    ink = grey(number) > 0.7
    rows, columns = np.nonzero(ink)
    x, y = (columns - 47.5) / 12, -(rows - 47.5) / 12
    turn = math.radians(stimuli.DIRECTIONS[k])
    ahead = x * math.cos(turn) + y * math.sin(turn)
    aside = -x * math.sin(turn) + y * math.cos(turn)
    middle = ahead[np.abs(aside - aside.mean()) < 0.5].mean()
    ends = ahead[np.abs(aside - aside.mean()) > 2.5].mean()
    assert middle - ends > 1


def test_arcs_of_all_radii_hold_about_as_much_line() -> None:
    wide = Stimuli((192, 192), (12, 12))
    length = [
        (np.abs(wide.picture(int(i))[..., 0] / 255 - 0.5) > 0.2).sum()
        / 12
        / 12
        / drawing.LINE_WIDTH
        for i in stimuli.indices("arc")[0, 0, :, 1]
    ]
    assert max(length) / min(length) < 1.2
    assert length[-1] == pytest.approx(drawing.LINE_LENGTH, rel=0.1)


def test_hues_share_one_lightness() -> None:
    # CIE 1976 L* as an outside measure; OKLab's lightness differs from it by a few units.
    def lightness(number: int) -> float:
        rgb = DRAWN.picture(number)[48, 48] / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return 116 * float(linear @ (0.2126, 0.7152, 0.0722)) ** (1 / 3) - 16

    found = [lightness(int(i)) for i in stimuli.indices("hue")[0].flatten()]
    assert max(found) - min(found) < 8
    for c, h in ((c, h) for c in stimuli.CHROMAS for h in stimuli.HUES):
        colour = drawing.oklch(stimuli.HUE_LIGHTNESS, c, h)
        assert colour.min() >= 0 and colour.max() <= 1, "out of sRGB"
    red = DRAWN.picture(int(stimuli.indices("hue")[0, 1, 1]))[0, 0]
    assert red[0] > red[1] > 0 and red[0] > red[2]


def test_halves_differ_and_drawing_repeats() -> None:
    for name, shape in stimuli.SHAPES.items():
        if name == "blank":
            assert (DRAWN.picture(N_STIMULI - 1) == 128).all()
            continue
        last = tuple(side - 1 for side in shape[1:])
        first, second = (int(stimuli.indices(name)[half][last]) for half in (0, 1))
        assert (DRAWN.picture(first) != DRAWN.picture(second)).any(), name
        assert (DRAWN.picture(first) == Stimuli((96, 96), (12, 12)).picture(first)).all()


def test_no_such_stimulus() -> None:
    for number in (-1, N_STIMULI):
        with pytest.raises(ImageError):
            DRAWN.picture(number)
    with pytest.raises(ImageError):
        Stimuli((8, 8), (16, 16))
    with pytest.raises(ImageError):
        Stimuli((8, 8), (1, 1))


def test_a_picture_that_is_not_square() -> None:
    wide = Stimuli((48, 96), (12, 8))
    assert all(wide.picture(i).shape == (48, 96, 3) for i in range(0, N_STIMULI, 20))


def test_responses_are_the_largest_activation_over_patches() -> None:
    lens = tiny_lens()
    said: list[float] = []
    found = respond(lens, batch_size=50, progress=lambda part, _: said.append(part))
    assert [tuple(r.shape) for r in found] == [(30, N_STIMULI)] * 3
    assert said[-1] == 1.0
    drawn = stimuli_of(lens)
    for number in (0, 133, N_STIMULI - 1):
        picture = Image.fromarray(drawn.picture(number))
        features = lens.trace(picture).features  # the transform neither resizes nor crops here
        for layer, z in enumerate(features):
            expected = z[1:].amax(0)
            torch.testing.assert_close(found[layer][:, number], expected, atol=1e-5, rtol=1e-5)


def test_another_transform_gets_pictures() -> None:
    lens = tiny_lens()
    usual = respond(lens, progress=False)
    transform = lens.transform
    lens.transform = lambda picture: transform(picture)
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

"""The synthetic stimuli: what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vitlens.atlas import stimuli
from vitlens.atlas.stimuli import N_STIMULI, ORDER, Stimuli
from vitlens.errors import ImageError

DRAWN = Stimuli((96, 96), (12, 12))


def grey(number: int) -> np.ndarray:
    return DRAWN.pixels(number)[..., 0].astype(float) / 255


def main_orientation(image: np.ndarray) -> float:
    """Orientation along which an image changes least, in degrees, by its structure tensor."""
    down, right = np.gradient(gaussian_filter(image, 1.5))
    angle = 0.5 * math.atan2(2 * (right * -down).mean(), (right**2 - down**2).mean())
    return math.degrees(angle) % 180 + 90


def test_the_set_is_counted_and_in_order() -> None:
    assert len(DRAWN) == len(ORDER) == N_STIMULI == 377
    numbers = [stimuli.indices(name).flatten() for name in stimuli.SHAPES]
    assert torch.cat(numbers).tolist() == list(range(N_STIMULI))
    for name in stimuli.SHAPES:
        for number in stimuli.indices(name).flatten().tolist():
            assert ORDER[number].block == name
            assert stimuli.indices(name)[ORDER[number].position] == number
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
        (np.abs(wide.pixels(int(i))[..., 0] / 255 - 0.5) > 0.2).sum() / 12 / 12 / stimuli.LINE_WIDTH
        for i in stimuli.indices("arc")[0, 0, :, 1]
    ]
    assert max(length) / min(length) < 1.2
    assert length[-1] == pytest.approx(stimuli.LINE_LENGTH, rel=0.1)


def test_hues_share_one_lightness() -> None:
    # CIE 1976 L* as an outside measure; OKLab's lightness differs from it by a few units.
    def lightness(number: int) -> float:
        rgb = DRAWN.pixels(number)[48, 48] / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return 116 * float(linear @ (0.2126, 0.7152, 0.0722)) ** (1 / 3) - 16

    found = [lightness(int(i)) for i in stimuli.indices("hue")[0].flatten()]
    assert max(found) - min(found) < 8
    for c, h in ((c, h) for c in stimuli.CHROMAS for h in stimuli.HUES):
        colour = stimuli.oklch(stimuli.HUE_LIGHTNESS, c, h)
        assert colour.min() >= 0 and colour.max() <= 1, "out of sRGB"
    red = DRAWN.pixels(int(stimuli.indices("hue")[0, 1, 1]))[0, 0]
    assert red[0] > red[1] > 0 and red[0] > red[2]


def test_halves_differ_and_drawing_repeats() -> None:
    for name, shape in stimuli.SHAPES.items():
        if name == "blank":
            assert (DRAWN.pixels(N_STIMULI - 1) == 128).all()
            continue
        last = tuple(side - 1 for side in shape[1:])
        first, second = (int(stimuli.indices(name)[half][last]) for half in (0, 1))
        assert (DRAWN.pixels(first) != DRAWN.pixels(second)).any(), name
        assert (DRAWN.pixels(first) == Stimuli((96, 96), (12, 12)).pixels(first)).all()


def test_no_such_stimulus() -> None:
    for number in (-1, N_STIMULI):
        with pytest.raises(ImageError):
            DRAWN.pixels(number)
    with pytest.raises(ImageError):
        Stimuli((8, 8), (16, 16))
    with pytest.raises(ImageError):
        Stimuli((8, 8), (1, 1))


def test_an_image_that_is_not_square() -> None:
    wide = Stimuli((48, 96), (12, 8))
    assert all(wide.pixels(i).shape == (48, 96, 3) for i in range(0, N_STIMULI, 20))

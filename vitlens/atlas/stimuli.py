"""Synthetic pictures that ask a feature for its orientation, curvature, hue and texture.

Every set has the same pictures in the same order, drawn for the model's input size; lengths are
in sides of a patch. Each condition is drawn at least twice, in two halves that differ in place,
phase or instance, so that only what both halves say needs to be believed (see `tuning`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitlens.atlas import drawing
from vitlens.errors import ImageError

#: Degrees from horizontal, counter-clockwise, along the edge. None is level or upright: such an
#: edge would meet all patches at the same place, and the others would not.
ORIENTATIONS = tuple(7.5 + 15.0 * k for k in range(12))
#: Periods of a grating, in patches. None divides the patch, so each patch sees another phase.
PERIODS = (0.43, 0.87, 1.73)
#: Radii of an arc, in patches; the last is a straight line.
RADII = (1.0, 2.0, 4.0, 8.0, float("inf"))
#: Where an arc bulges to, degrees from the right, counter-clockwise.
DIRECTIONS = tuple(7.5 + 45.0 * k for k in range(8))
#: Hue angles in OKLCh, degrees.
HUES = tuple(30.0 * k for k in range(12))
#: Chroma in OKLCh; both fit into sRGB for every hue at `HUE_LIGHTNESS`.
CHROMAS = (0.05, 0.1)
HUE_LIGHTNESS = 0.7
#: OKLab lightness of the grey fields.
GREYS = (0.15, 0.4, 0.6, 0.95)
TEXTURES = tuple(drawing.TEXTURES)


class Stimulus(NamedTuple):
    """What one picture shows: its block, and its place in it (see `BLOCKS`)."""

    block: str
    place: tuple[int, ...]

    def __str__(self) -> str:
        return _DESCRIBE[self.block](*self.place[1:])


#: Shape of each block of pictures; the first axis is always the half.
SHAPES = {
    "edge": (2, 2, len(ORIENTATIONS)),  # half, which side is light, orientation
    "grating": (2, len(PERIODS), len(ORIENTATIONS)),  # half, period, orientation
    "arc": (2, 2, len(RADII), len(DIRECTIONS)),  # half, light or dark, radius, direction
    "hue": (2, len(CHROMAS), len(HUES)),  # half, chroma, hue
    "grey": (2, len(GREYS)),  # half, lightness
    "texture": (2, 2, len(TEXTURES)),  # half, instance, texture
    "blank": (1,),
}

_SIZES = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
_STARTS = dict(zip(_SIZES, np.cumsum([0, *_SIZES.values()]).tolist(), strict=False))
#: How many pictures a set has.
N_STIMULI = sum(_SIZES.values())
ORDER = tuple(
    Stimulus(name, tuple(int(i) for i in place))
    for name, shape in SHAPES.items()
    for place in np.ndindex(*shape)
)

_DESCRIBE: dict[str, Callable[..., str]] = {
    "edge": lambda side, k: f"edge at {ORIENTATIONS[k]:g}°, {('light', 'dark')[side]} side first",
    "grating": lambda s, k: f"grating at {ORIENTATIONS[k]:g}°, period {PERIODS[s]:g} patches",
    "arc": lambda side, r, k: (
        f"{('light', 'dark')[side]} "
        + ("straight line" if r == len(RADII) - 1 else f"arc of radius {RADII[r]:g} patches")
        + f" towards {DIRECTIONS[k]:g}°"
    ),
    "hue": lambda c, k: f"hue {HUES[k]:g}°, chroma {CHROMAS[c]:g}",
    "grey": lambda k: f"grey, lightness {GREYS[k]:g}",
    "texture": lambda _, k: TEXTURES[k],
    "blank": lambda: "blank",
}


def indices(block: str) -> Int[Tensor, "*shape"]:
    """Numbers of a block's pictures within the set, in the block's shape."""
    start = _STARTS[block]
    return torch.arange(start, start + _SIZES[block]).reshape(SHAPES[block])


@dataclass(frozen=True)
class Stimuli:
    """The stimuli, drawn for one input size; a picture is made when it is asked for.

    Parameters
    ----------
    size
        (height, width) of the model's input, in pixels.
    patch
        (height, width) of a patch, in pixels.

    Raises
    ------
    ImageError
        If a patch is larger than the picture or smaller than 2 pixels.

    Notes
    -----
    Edges and gratings after the receptive-field mapping of Hubel and Wiesel (1962) and De Valois
    (1982); arcs after Cammarata et al., "Curve Detectors", Distill 2020. Every arc stimulus holds
    about the same length of line, 8.4 patches, whatever its radius. Hues share one OKLab
    lightness (Ottosson 2020), so that a feature of brightness is not taken for one of colour.
    """

    size: tuple[int, int]
    patch: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.patch) < 2 or any(p > s for p, s in zip(self.patch, self.size, strict=True)):
            raise ImageError(f"Patches of {self.patch} pixels do not fit a picture of {self.size}.")

    def __len__(self) -> int:
        return N_STIMULI

    def picture(self, number: int) -> UInt8[NDArray[np.uint8], "H W 3"]:
        """Draw one stimulus as sRGB pixels; the same every time.

        Raises
        ------
        ImageError
            If there is no such stimulus.
        """
        if not 0 <= number < N_STIMULI:
            raise ImageError(f"There are {N_STIMULI} stimuli, from 0; none is number {number}.")
        stimulus = ORDER[number]
        rng = np.random.default_rng((2020, number))
        canvas = drawing.Canvas(self.size, self.patch)
        drawn = _DRAW[stimulus.block](canvas, rng, *stimulus.place)
        return np.round(255 * np.clip(drawn, 0, 1)).astype(np.uint8)

    def image(self, number: int) -> Image.Image:
        """Draw one stimulus as a PIL image."""
        return Image.fromarray(self.picture(number))


def _edge(
    canvas: drawing.Canvas, rng: np.random.Generator, half: int, side: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    turn = 180.0 * side
    return canvas.grey(partial(drawing.edge, angle=ORIENTATIONS[k] + turn, centre=_jitter(rng)))


def _grating(
    canvas: drawing.Canvas, rng: np.random.Generator, half: int, s: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    phase = np.pi / 2 * half
    wave = partial(drawing.grating, angle=ORIENTATIONS[k], period=PERIODS[s], phase=phase)
    return canvas.grey(wave)


def _arc(
    canvas: drawing.Canvas, rng: np.random.Generator, half: int, side: int, r: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    arcs = drawing.arcs(RADII[r], direction=DIRECTIONS[k], centre=_jitter(rng), turn=half)
    return canvas.grey(partial(drawing.lines, arcs=arcs, sign=1 - 2 * side))


def _hue(
    canvas: drawing.Canvas, rng: np.random.Generator, half: int, c: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    return _field(canvas, rng, half, drawing.oklch(HUE_LIGHTNESS, CHROMAS[c], HUES[k]))


def _grey(
    canvas: drawing.Canvas, rng: np.random.Generator, half: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    return _field(canvas, rng, half, drawing.oklch(GREYS[k], 0.0, 0.0))


def _field(
    canvas: drawing.Canvas,
    rng: np.random.Generator,
    half: int,
    colour: Float[NDArray[np.floating], " 3"],
) -> Float[NDArray[np.floating], "H W 3"]:
    """The whole picture in a colour, or discs of it on grey of the hues' lightness."""
    ground = drawing.oklch(HUE_LIGHTNESS, 0.0, 0.0) if half else colour
    return canvas.coloured(partial(drawing.discs, centre=_jitter(rng)), ground, colour)


def _texture(
    canvas: drawing.Canvas, rng: np.random.Generator, half: int, instance: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    return drawing.TEXTURES[TEXTURES[k]](canvas, rng)


def _blank(
    canvas: drawing.Canvas, rng: np.random.Generator, half: int
) -> Float[NDArray[np.floating], "H W 3"]:
    return canvas.grey(lambda x, y: 0 * (x + y))


def _jitter(rng: np.random.Generator) -> tuple[float, float]:
    x, y = rng.uniform(-1, 1, 2)
    return float(x), float(y)


_DRAW: dict[str, Callable[..., Float[NDArray[np.floating], "H W 3"]]] = {
    "edge": _edge,
    "grating": _grating,
    "arc": _arc,
    "hue": _hue,
    "grey": _grey,
    "texture": _texture,
    "blank": _blank,
}


def model_input(
    picture: UInt8[NDArray[np.uint8], "H W 3"],
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "3 H W"]:
    """Pixels as a model's input: scaled to [0, 1] and normalised."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]

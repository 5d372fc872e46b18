"""Synthetic images that test a feature for orientation, curvature, hue and texture.

Every set has the same images in the same order, drawn for the model's input size; lengths are in
sides of a patch. Each condition is drawn at least twice, in two halves that differ in place, phase
or instance, so that only what both halves agree on counts (see `vitlens.atlas.tuning`).

A shape is a function of x (to the right) and y (upwards), in patches from the image's centre,
sampled finely and averaged to pixels; its value goes from -1 (dark) to 1 (light), 0 being the
ground. Angles are in degrees, counter-clockwise from the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitlens.errors import ImageError

Plane: TypeAlias = NDArray[np.floating]
Shape: TypeAlias = Callable[[Plane, Plane], Plane]
Rng: TypeAlias = np.random.Generator

GROUND = 0.5
CONTRAST = 0.4
LINE_WIDTH = 0.3
LINE_LENGTH = 8.4
_ARC = math.radians(120)  # of a circle, unless this is longer than LINE_LENGTH
_FINE = 3  # samples per pixel, along each side


class Canvas:
    """The pixels of an image, and their coordinates in patches.

    Parameters
    ----------
    size, patch
        (height, width) of the image and of a patch, in pixels.
    """

    def __init__(self, size: tuple[int, int], patch: tuple[int, int]) -> None:
        self.size = size
        self.patch = patch
        rows, columns = (
            ((np.arange(side * _FINE) + 0.5) / _FINE - side / 2) / unit
            for side, unit in zip(size, patch, strict=True)
        )
        # Single precision, and broadcast: a set of stimuli is drawn in half the time.
        self.x, self.y = columns.astype(np.float32)[None], -rows.astype(np.float32)[:, None]

    def sample(self, shape: Shape) -> Plane:
        """Mean of a shape over each pixel, [H, W]."""
        height, width = self.size
        fine = np.broadcast_to(shape(self.x, self.y), (height * _FINE, width * _FINE))
        pixels = sum(fine[i::_FINE, j::_FINE] for i in range(_FINE) for j in range(_FINE))
        return np.asarray(pixels) / _FINE**2

    def grey(self, shape: Shape) -> Float[Plane, "H W 3"]:
        """A shape in greys about the ground, as sRGB in [0, 1]."""
        return as_grey(self.sample(shape))

    def coloured(
        self, shape: Shape, ground: Float[Plane, " 3"], colour: Float[Plane, " 3"]
    ) -> Float[Plane, "H W 3"]:
        """A shape from 0 to 1 as a mixture of two colours."""
        part = self.sample(shape)[..., None]
        return ground * (1 - part) + colour * part


def as_grey(values: Float[Plane, "H W"]) -> Float[Plane, "H W 3"]:
    """Values from -1 to 1 as greys about the ground."""
    grey = GROUND + CONTRAST * np.clip(values, -1, 1)
    return np.repeat(grey[..., None], 3, axis=-1)


def across(x: Plane, y: Plane, angle: float) -> Plane:
    """Distance from a line through the centre at an angle, positive on its left."""
    turn = math.radians(angle)
    return y * math.cos(turn) - x * math.sin(turn)


def edge(x: Plane, y: Plane, *, angle: float, centre: tuple[float, float]) -> Plane:
    """Light on the left of a line at an angle, dark on its right."""
    return np.sign(across(x - centre[0], y - centre[1], angle))


def grating(x: Plane, y: Plane, *, angle: float, period: float, phase: float) -> Plane:
    """A sine wave whose crests lie at an angle."""
    return np.sin(2 * math.pi / period * across(x, y, angle) + phase)


def arcs(
    radius: float, *, direction: float, centre: tuple[float, float], turn: int
) -> list[tuple[float, float, float, float, float]]:
    """Copies of an arc which bulges in a direction, about `LINE_LENGTH` patches of line in all.

    Returns
    -------
    list
        (x, y, radius, direction, half the arc's angle) of each copy; x, y is the arc's top.
    """
    if math.isinf(radius):
        return [(*centre, radius, direction, LINE_LENGTH / 2)]
    half_angle = min(_ARC, LINE_LENGTH / radius) / 2
    copies = round(LINE_LENGTH / (2 * half_angle * radius))
    ring = 0.0 if copies == 1 else 1.6 * radius
    # The arc's bulk, not its top, lies at the centre.
    ahead = radius * (1 - math.cos(half_angle)) / 2
    placed = []
    for copy in range(copies):
        spot = math.radians(direction + 90 + 20 * turn + 360 * copy / copies)
        x = centre[0] + ring * math.cos(spot) + ahead * math.cos(math.radians(direction))
        y = centre[1] + ring * math.sin(spot) + ahead * math.sin(math.radians(direction))
        placed.append((x, y, radius, direction, half_angle))
    return placed


def lines(
    x: Plane, y: Plane, *, arcs: list[tuple[float, float, float, float, float]], sign: int
) -> Plane:
    """Arcs and straight lines, light (sign 1) or dark (-1)."""
    near = [
        _distance(x - top_x, y - top_y, radius, direction, half) < LINE_WIDTH / 2
        for top_x, top_y, radius, direction, half in arcs
    ]
    return sign * np.any(near, axis=0).astype(np.float32)


def _distance(x: Plane, y: Plane, radius: float, direction: float, half: float) -> Plane:
    turn = math.radians(direction)
    # Along the direction in which the arc bulges, and along its tangent there.
    ahead = x * math.cos(turn) + y * math.sin(turn)
    aside = np.abs(y * math.cos(turn) - x * math.sin(turn))
    if math.isinf(radius):
        return np.hypot(ahead, np.maximum(aside - half, 0))
    ahead = ahead + radius  # from the circle's centre
    to_circle = np.abs(np.hypot(ahead, aside) - radius)
    to_end = np.hypot(ahead - radius * math.cos(half), aside - radius * math.sin(half))
    within = aside * math.cos(half) <= ahead * math.sin(half)
    return np.where(within, to_circle, to_end)


def discs(x: Plane, y: Plane, *, centre: tuple[float, float]) -> Plane:
    """1 within three discs about the centre, 0 elsewhere."""
    near = []
    for angle in (math.radians(degrees) for degrees in (90, 210, 330)):
        x0, y0 = centre[0] + 4 * math.cos(angle), centre[1] + 4 * math.sin(angle)
        near.append(np.hypot(x - x0, y - y0) < 3)
    return np.any(near, axis=0).astype(np.float32)


def oklch(lightness: float, chroma: float, hue: float) -> Float[Plane, " 3"]:
    """A colour in OKLCh (Ottosson, "A perceptual color space for image processing", 2020) as sRGB.

    Parameters
    ----------
    lightness, chroma
        0 to 1; about 0 to 0.3.
    hue
        In degrees.
    """
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    cones = np.array(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    linear = (
        np.array(
            [
                [4.0767416621, -3.3077115913, 0.2309699292],
                [-1.2684380046, 2.6097574011, -0.3413193965],
                [-0.0041960863, -0.7034186147, 1.7076147010],
            ]
        )
        @ cones**3
    )
    bent = 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, bent)


def _noise(canvas: Canvas, rng: Rng, *, slope: float) -> Float[Plane, "H W 3"]:
    """Noise whose amplitude falls with the frequency to the power `slope`."""
    frequencies = _frequencies(canvas)
    amplitude = np.where(frequencies > 0, np.maximum(frequencies, 1e-9) ** -slope, 0.0)
    return as_grey(_filtered(rng, amplitude) / 2.5)


def _labyrinth(canvas: Canvas, rng: Rng) -> Float[Plane, "H W 3"]:
    """Winding stripes without a common orientation: noise of one frequency, made sharp."""
    amplitude = np.exp(-(((_frequencies(canvas) - 0.7) / 0.12) ** 2))
    return as_grey(np.tanh(4 * _filtered(rng, amplitude)))


def _frequencies(canvas: Canvas) -> Plane:
    """Frequencies of the image's Fourier transform, in cycles per patch."""
    rows, columns = (
        np.fft.fftfreq(side, 1 / unit) for side, unit in zip(canvas.size, canvas.patch, strict=True)
    )
    return np.hypot(rows[:, None], columns[None, :])


def _filtered(rng: Rng, amplitude: Plane) -> Plane:
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal(amplitude.shape)) * amplitude).real
    return noise / (noise.std() or 1.0)


def _turned(x: Plane, y: Plane, rng: Rng) -> tuple[Plane, Plane]:
    """Coordinates turned and moved at random."""
    angle = float(rng.uniform(0, 180))
    along = across(x, y, angle - 90)
    shift = rng.uniform(0, 5, 2)
    return along + float(shift[0]), across(x, y, angle) + float(shift[1])


def _checks(canvas: Canvas, rng: Rng, *, side: float) -> Float[Plane, "H W 3"]:
    def shape(x: Plane, y: Plane) -> Plane:
        u, v = _turned(x, y, rng)
        return 1.0 - 2.0 * ((np.floor(u / side) + np.floor(v / side)) % 2)

    return canvas.grey(shape)


def _stripes(canvas: Canvas, rng: Rng, *, period: float) -> Float[Plane, "H W 3"]:
    def shape(x: Plane, y: Plane) -> Plane:
        u, _ = _turned(x, y, rng)
        return 1.0 - 2.0 * (np.floor(2 * u / period) % 2)

    return canvas.grey(shape)


def _lattice(canvas: Canvas, rng: Rng, *, period: float) -> Float[Plane, "H W 3"]:
    """Thin dark lines, crossing."""

    def shape(x: Plane, y: Plane) -> Plane:
        u, v = _turned(x, y, rng)
        on_line = np.minimum(u % period, v % period) < LINE_WIDTH
        return np.where(on_line, np.float32(-1), np.float32(0.5))

    return canvas.grey(shape)


def _dots(canvas: Canvas, rng: Rng, *, radius: float) -> Float[Plane, "H W 3"]:
    """Dark dots on light, one per cell, each moved a little at random."""
    cell = 3.2 * radius

    def shape(x: Plane, y: Plane) -> Plane:
        u, v = _turned(x, y, rng)
        column, row = (np.floor(side / cell).astype(np.int32) for side in (u, v))
        moved = (rng.uniform(-0.15, 0.15, (2, 101, 101)) * cell).astype(np.float32)
        du = u - (column + 0.5) * cell - moved[0, row % 101, column % 101]
        dv = v - (row + 0.5) * cell - moved[1, row % 101, column % 101]
        return np.where(np.hypot(du, dv) < radius, np.float32(-1), np.float32(0.5))

    return canvas.grey(shape)


#: By name, the function that draws one instance of a texture; the orientation is random.
_DRAW_TEXTURE: dict[str, Callable[[Canvas, Rng], Float[Plane, "H W 3"]]] = {
    "white noise": partial(_noise, slope=0.0),
    "pink noise": partial(_noise, slope=1.0),
    "brown noise": partial(_noise, slope=2.0),
    "labyrinth": _labyrinth,
    "fine checks": partial(_checks, side=0.4),
    "coarse checks": partial(_checks, side=1.3),
    "fine dots": partial(_dots, radius=0.22),
    "coarse dots": partial(_dots, radius=0.7),
    "stripes": partial(_stripes, period=0.8),
    "lattice": partial(_lattice, period=1.6),
}


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
TEXTURES = tuple(_DRAW_TEXTURE)


class Stimulus(NamedTuple):
    """What one image shows: its block, and its position in it (see `SHAPES`)."""

    block: str
    position: tuple[int, ...]

    def __str__(self) -> str:
        return _DESCRIBE[self.block](*self.position[1:])


#: Shape of each block of images; the first axis is always the half.
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
#: Number of images in a set.
N_STIMULI = sum(_SIZES.values())
ORDER = tuple(
    Stimulus(name, tuple(int(i) for i in position))
    for name, shape in SHAPES.items()
    for position in np.ndindex(*shape)
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
    """Numbers of a block's images within the set, in the shape of the block."""
    start = _STARTS[block]
    return torch.arange(start, start + _SIZES[block]).reshape(SHAPES[block])


@dataclass(frozen=True)
class Stimuli:
    """The stimuli for one input size; an image is drawn when it is requested.

    Parameters
    ----------
    size
        (height, width) of the model's input, in pixels.
    patch
        (height, width) of a patch, in pixels.

    Raises
    ------
    ImageError
        If a patch is larger than the image or smaller than 2 pixels.

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
            raise ImageError(f"Patches of {self.patch} pixels do not fit an image of {self.size}.")

    def __len__(self) -> int:
        return N_STIMULI

    def pixels(self, number: int) -> UInt8[NDArray[np.uint8], "H W 3"]:
        """Draw one stimulus as sRGB pixels; the same every time.

        Raises
        ------
        ImageError
            If there is no such stimulus.
        """
        if not 0 <= number < N_STIMULI:
            raise ImageError(f"There are stimuli 0 to {N_STIMULI - 1}; there is no {number}.")
        stimulus = ORDER[number]
        rng = np.random.default_rng((2020, number))
        canvas = Canvas(self.size, self.patch)
        drawn = _DRAW[stimulus.block](canvas, rng, *stimulus.position)
        return np.round(255 * np.clip(drawn, 0, 1)).astype(np.uint8)

    def image(self, number: int) -> Image.Image:
        """Draw one stimulus as a PIL image."""
        return Image.fromarray(self.pixels(number))


def _edge(
    canvas: Canvas, rng: np.random.Generator, half: int, side: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    turn = 180.0 * side
    return canvas.grey(partial(edge, angle=ORIENTATIONS[k] + turn, centre=_jitter(rng)))


def _grating(
    canvas: Canvas, rng: np.random.Generator, half: int, s: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    phase = np.pi / 2 * half
    wave = partial(grating, angle=ORIENTATIONS[k], period=PERIODS[s], phase=phase)
    return canvas.grey(wave)


def _arc(
    canvas: Canvas, rng: np.random.Generator, half: int, side: int, r: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    copies = arcs(RADII[r], direction=DIRECTIONS[k], centre=_jitter(rng), turn=half)
    return canvas.grey(partial(lines, arcs=copies, sign=1 - 2 * side))


def _hue(
    canvas: Canvas, rng: np.random.Generator, half: int, c: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    return _field(canvas, rng, half, oklch(HUE_LIGHTNESS, CHROMAS[c], HUES[k]))


def _grey(
    canvas: Canvas, rng: np.random.Generator, half: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    return _field(canvas, rng, half, oklch(GREYS[k], 0.0, 0.0))


def _field(
    canvas: Canvas,
    rng: np.random.Generator,
    half: int,
    colour: Float[NDArray[np.floating], " 3"],
) -> Float[NDArray[np.floating], "H W 3"]:
    """The whole image in a colour, or discs of it on grey of the hues' lightness."""
    ground = oklch(HUE_LIGHTNESS, 0.0, 0.0) if half else colour
    return canvas.coloured(partial(discs, centre=_jitter(rng)), ground, colour)


def _texture(
    canvas: Canvas, rng: np.random.Generator, half: int, instance: int, k: int
) -> Float[NDArray[np.floating], "H W 3"]:
    return _DRAW_TEXTURE[TEXTURES[k]](canvas, rng)


def _blank(
    canvas: Canvas, rng: np.random.Generator, half: int
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
    pixels: UInt8[NDArray[np.uint8], "H W 3"],
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "3 H W"]:
    """Turn pixels into a model's input: scaled to [0, 1] and normalised."""
    scaled = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return (scaled - scaled.new_tensor(mean)[:, None, None]) / scaled.new_tensor(std)[:, None, None]

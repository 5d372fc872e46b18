"""Signed heat on a picture, as pixels: blue adds, orange takes away."""

from typing import Literal

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import ListedColormap, to_rgb
from numpy.typing import NDArray
from PIL import Image

#: Okabe and Ito's blue and vermilion, told apart with any colour vision.
POSITIVE = "#0072B2"
NEGATIVE = "#D55E00"

#: Blue and orange, or, for values without a sign, matplotlib's cividis.
Scale = Literal["heat", "cividis"]

COVER = 0.8  # opacity of the strongest heat: what lies beneath stays visible
_RISE = 0.6  # opacity grows with this power of the heat: weak heat would else not be seen
_PALE = 0.5  # contrast that is left of the picture
_EMPTY = 235  # grey of a picture that is not known


def heat_on_picture(
    picture: UInt8[NDArray[np.uint8], "H W 3"] | None,
    heat: Float[NDArray[np.float64], "rows columns"],
    *,
    size: tuple[int, int],
    scale: Scale = "heat",
    cover: float = COVER,
) -> UInt8[NDArray[np.uint8], "height width 3"]:
    """Return a picture, pale and grey, with the heat of its patches in colour.

    Parameters
    ----------
    picture
        [H, W, 3], or None for a plain ground.
    heat
        By patch, from -1 to 1; beyond that it is cut off.
    size
        Height and width of the result, in pixels.
    scale, cover
        Which colours, and the opacity of the strongest one.
    """
    ground = pale(picture, size)
    rows = np.arange(size[0]) * heat.shape[0] // size[0]
    columns = np.arange(size[1]) * heat.shape[1] // size[1]
    return blend(ground, heat[np.ix_(rows, columns)], scale=scale, cover=cover)


def blend(
    ground: Float[NDArray[np.float64], "*place 3"],
    heat: Float[NDArray[np.float64], "*place"],
    *,
    scale: Scale = "heat",
    cover: float = COVER,
) -> UInt8[NDArray[np.uint8], "*place 3"]:
    """Lay heat from -1 to 1 over a ground with values to 255; cividis shows only its size."""
    size = np.clip(np.abs(heat), 0, 1)
    if scale == "cividis":
        opacity, colour = np.array(cover), 255 * matplotlib.colormaps["cividis"](size)[..., :3]
    else:
        opacity = cover * size[..., None] ** _RISE
        colour = 255 * np.where(heat[..., None] < 0, to_rgb(NEGATIVE), to_rgb(POSITIVE))
    return np.round(ground * (1 - opacity) + colour * opacity).astype(np.uint8)


def colours(*, signed: bool = True, scale: Scale = "heat", cover: float = COVER) -> ListedColormap:
    """Return heat's colours on a plain ground, from -1 (or, unsigned, from 0) to 1."""
    heat = np.linspace(-1 if signed else 0, 1, 257)
    ground = np.full((257, 3), float(_EMPTY))
    return ListedColormap(blend(ground, heat, scale=scale, cover=cover) / 255, name=scale)


def pale(
    picture: UInt8[NDArray[np.uint8], "H W 3"] | None, size: tuple[int, int]
) -> Float[NDArray[np.float64], "height width 3"]:
    """Return the picture in pale greys, so that only heat has a colour."""
    if picture is None:
        return np.full((*size, 3), float(_EMPTY))
    grey = Image.fromarray(picture).convert("L").resize((size[1], size[0]), Image.Resampling.BOX)
    return np.repeat((255 - (255 - np.asarray(grey, np.float64)) * _PALE)[..., None], 3, axis=2)

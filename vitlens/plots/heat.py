"""Signed heat on a picture, as pixels: blue adds, orange takes away."""

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from numpy.typing import NDArray
from PIL import Image

#: Okabe and Ito's blue and vermilion, told apart with any colour vision.
POSITIVE = "#0072B2"
NEGATIVE = "#D55E00"

#: From what takes away to what adds, by way of near white.
DIVERGING = LinearSegmentedColormap.from_list("vitlens", [NEGATIVE, "#F4F4F4", POSITIVE])

_COVER = 0.75  # opacity of the strongest heat: what lies beneath stays visible
_EMPTY = 225  # grey of a picture that is not known


def heat_on_picture(
    picture: UInt8[NDArray[np.uint8], "H W 3"] | None,
    heat: Float[NDArray[np.float64], "rows columns"],
    *,
    size: tuple[int, int],
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
    """
    ground = pale(picture, size)
    rows = np.arange(size[0]) * heat.shape[0] // size[0]
    columns = np.arange(size[1]) * heat.shape[1] // size[1]
    return blend(ground, heat[np.ix_(rows, columns)])


def blend(
    ground: Float[NDArray[np.float64], "*place 3"], heat: Float[NDArray[np.float64], "*place"]
) -> UInt8[NDArray[np.uint8], "*place 3"]:
    """Lay heat from -1 to 1 over a ground with values to 255."""
    opacity = _COVER * np.clip(np.abs(heat), 0, 1)[..., None]
    colour = 255 * np.where(heat[..., None] < 0, to_rgb(NEGATIVE), to_rgb(POSITIVE))
    return np.round(ground * (1 - opacity) + colour * opacity).astype(np.uint8)


def pale(
    picture: UInt8[NDArray[np.uint8], "H W 3"] | None, size: tuple[int, int]
) -> Float[NDArray[np.float64], "height width 3"]:
    """Return the picture in pale greys, so that only heat has a colour."""
    if picture is None:
        return np.full((*size, 3), float(_EMPTY))
    grey = Image.fromarray(picture).convert("L").resize((size[1], size[0]), Image.Resampling.BOX)
    return np.repeat((255 - (255 - np.asarray(grey, np.float64)) * 0.7)[..., None], 3, axis=2)

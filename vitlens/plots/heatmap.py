"""Heatmaps on images: blue is above 0, orange below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitlens.errors import ImageError, check_choice
from vitlens.plots.style import (
    NEGATIVE,
    POSITIVE,
    AnyFigure,
    axes_for,
    literal,
    new_figure,
    root_of,
    styled,
    theme_of,
)

#: Blue and orange, or matplotlib's cividis for magnitudes.
Scale = Literal["heat", "cividis"]

COVER = 0.8  # opacity of the strongest heat: the image stays visible
_RISE = 0.6  # opacity grows with this power of the heat: otherwise weak heat is invisible
_PALE = 0.5  # contrast that is left of the image
_EMPTY = 235  # grey of an image that is not known
_PIXELS = 448  # of the longer side


@styled
def heatmap_figure(
    image: UInt8[Tensor, "H W 3"] | None,
    heat: Float[Tensor, "rows columns"],
    *,
    prefix: Sequence[float] | Float[Tensor, " P"] = (),
    prefix_names: Sequence[str] = (),
    label: str = "importance",
    title: str = "",
    limit: float | None = None,
    width: float = 4.6,
    ax: Axes | None = None,
) -> Figure:
    """Draw one value per patch on an image, with a colour bar.

    Parameters
    ----------
    image
        [H, W, 3] as the model saw it, from `Lens.pixels`; None for a plain background.
    heat
        One value per patch, such as `Circuit.heatmap(node)`.
    prefix, prefix_names
        Values and names of tokens that are not patches: squares to the left of the image.
    label
        Name of the values, for the colour bar.
    title
        Title above the image.
    limit
        The value with the strongest colour; by default the largest magnitude.
    width
        Width of a new figure, in inches.
    ax
        Axes to draw in; by default a new figure. The colour bar takes its room from these axes.

    Returns
    -------
    matplotlib.figure.Figure
        Blue is above 0, orange below. The bar shows both signs if there are values below 0.

    Raises
    ------
    ImageError
        When the heat is not a matrix, holds NaN or infinite values, or the numbers of prefix
        values and names differ.
    """
    maps = _Maps.of([image], [heat], [prefix], prefix_names, limit=limit)
    ax = axes_for(ax, width, width * maps.ratio)
    maps.draw([ax], label=label)
    ax.set_title(literal(title), fontsize=10)
    return root_of(ax)


@styled
def heatmaps_figure(
    images: Sequence[UInt8[Tensor, "H W 3"] | None],
    heats: Sequence[Float[Tensor, "rows columns"]] | Float[Tensor, "n rows columns"],
    *,
    prefix: Sequence[Sequence[float] | Float[Tensor, " P"]] | Float[Tensor, "n P"] = (),
    prefix_names: Sequence[str] = (),
    label: str = "importance",
    title: str = "",
    titles: Sequence[str] = (),
    limit: float | None = None,
    low: float | None = None,
    signed: bool | None = None,
    scale: Scale = "heat",
    opacity: float = COVER,
    width: float = 4.6,
    figure: AnyFigure | None = None,
) -> Figure:
    """Draw several heatmaps next to each other, on one scale.

    Parameters
    ----------
    images, heats, prefix
        As for `heatmap_figure`, one of each per image.
    title, titles
        Titles above the figure and above each image.
    prefix_names, label, limit, width
        See `heatmap_figure`; the width is that of one image.
    low
        The value with the weakest colour, also given to all values below it; for values of one
        sign.
    signed
        Whether the bar shows both signs; by default, whether a value is below 0.
    scale
        "heat", or "cividis", which shows magnitudes only.
    opacity
        Opacity of the strongest colour, 0 to 1.
    figure
        Figure or subfigure to draw in; by default a new figure.

    Raises
    ------
    ImageError
        See `heatmap_figure`.
    """
    maps = _Maps.of(
        images, heats, prefix, prefix_names,
        limit=limit, low=low, signed=signed, scale=scale, opacity=opacity,
    )  # fmt: skip
    n = len(maps.images)
    if figure is None:
        figure = new_figure(width * n, width * maps.ratio)
    row = list(figure.subplots(1, n, squeeze=False)[0])
    maps.draw(row, label=label)
    for axes, words in zip(row, titles, strict=False):
        axes.set_title(literal(words), fontsize=9)
    if title and n == 1 and not titles:
        row[0].set_title(literal(title), fontsize=10)
    elif title:
        figure.suptitle(literal(title), fontsize=10)
    return root_of(figure)


@dataclass(frozen=True)
class _Maps:
    """Checked heatmaps on one scale."""

    images: Sequence[UInt8[Tensor, "H W 3"] | None]
    heats: list[NDArray[np.float64]]
    prefix: list[NDArray[np.float64]]
    prefix_names: Sequence[str]
    weakest: float
    strongest: float
    least: float  # the relative value of the weakest colour: -1, or 0 without signs
    signed: bool
    scale: Scale
    opacity: float

    @classmethod
    def of(
        cls,
        images: Sequence[UInt8[Tensor, "H W 3"] | None],
        heats: Sequence[Float[Tensor, "rows columns"]] | Float[Tensor, "n rows columns"],
        prefix: Sequence[Sequence[float] | Float[Tensor, " P"]] | Float[Tensor, "n P"],
        prefix_names: Sequence[str],
        *,
        limit: float | None = None,
        low: float | None = None,
        signed: bool | None = None,
        scale: Scale = "heat",
        opacity: float = COVER,
    ) -> _Maps:
        check_choice("scale", scale, get_args(Scale))
        grids = [_matrix(heat) for heat in heats]
        before = [
            np.asarray([float(x) for x in values])
            for values in (prefix if len(prefix) else [()] * len(grids))
        ]
        if len(grids) != len(images) or len(grids) != len(before) or not grids:
            raise ImageError(
                "Give one heatmap and one set of prefix values per image, for at least one image."
            )
        if any(len(values) != len(prefix_names) for values in before):
            raise ImageError(
                f"{len(before[0])} prefix values need as many prefix names, not {prefix_names}."
            )
        values = np.concatenate([*(grid.ravel() for grid in grids), *before])
        if not np.isfinite(values).all():
            raise ImageError("A heatmap must be finite; this one holds NaN or infinite values.")
        return cls(
            images=images,
            heats=grids,
            prefix=before,
            prefix_names=prefix_names,
            weakest=low or 0.0,
            strongest=float(np.abs(values).max()) if limit is None else limit,
            least=-1.0 if low is None else 0.0,
            signed=low is None and bool((values < 0).any()) if signed is None else signed,
            scale=scale,
            opacity=opacity,
        )

    @property
    def ratio(self) -> float:
        """Height of one map over its width, colour bar and title included."""
        first = self.images[0]
        rows, columns = self.heats[0].shape if first is None else first.shape[:2]
        return 0.78 * rows / columns + 0.12

    def draw(self, row: Sequence[Axes], *, label: str) -> None:
        """Draw the maps in axes of one figure, and a colour bar."""
        weakest, strongest = self.weakest, self.strongest
        factor = 1.0 / (strongest - weakest) if strongest > weakest else 0.0
        for axes, image, heat, prefix in zip(
            row, self.images, self.heats, self.prefix, strict=True
        ):
            patches, squares = (
                np.maximum(self.least, (x - weakest) * factor) for x in (heat, prefix)
            )
            _draw(axes, image, patches, squares, self.prefix_names, self.scale, self.opacity)
        span = (-strongest if self.signed else weakest, strongest)
        norm = Normalize(*(span if factor else (weakest, weakest + 1)))
        ramp = colours(signed=self.signed, scale=self.scale, cover=self.opacity)
        bar = row[0].figure.colorbar(
            ScalarMappable(norm, ramp), ax=list(row), fraction=0.05 / len(row), pad=0.03
        )
        bar.set_label(literal(label), fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)


def _matrix(heat: Float[Tensor, "rows columns"]) -> NDArray[np.float64]:
    values = torch.as_tensor(heat).detach().cpu().double().numpy()
    if values.ndim != 2 or not values.size:
        raise ImageError(f"A heatmap must be [rows, columns], not {list(values.shape)}.")
    return values


def _draw(
    axes: Axes,
    image: UInt8[Tensor, "H W 3"] | None,
    heat: NDArray[np.float64],
    prefix: NDArray[np.float64],
    prefix_names: Sequence[str],
    scale: Scale,
    opacity: float,
) -> None:
    rows, columns = heat.shape if image is None else image.shape[:2]
    longer = max(rows, columns)
    size = (round(_PIXELS * rows / longer), round(_PIXELS * columns / longer))
    pixels = None if image is None else torch.as_tensor(image).cpu().numpy()
    drawn = heat_on_image(pixels, heat, size=size, scale=scale, cover=opacity)
    axes.imshow(drawn, interpolation="none")
    axes.set_axis_off()
    for number, (name, value) in enumerate(zip(prefix_names, prefix, strict=True)):
        side = min(size) / 12
        x, y = -1.6 * side, number * 2.1 * side
        colour = colours(scale=scale, cover=opacity)(0.5 + 0.5 * value)
        axes.add_patch(
            Rectangle((x, y), side, side, fc=colour, ec=theme_of(axes).quiet, lw=0.6, clip_on=False)
        )
        axes.text(x + side / 2, y + 1.15 * side, literal(name), fontsize=7, ha="center", va="top")


def heat_on_image(
    image: UInt8[NDArray[np.uint8], "H W 3"] | None,
    heat: Float[NDArray[np.float64], "rows columns"],
    *,
    size: tuple[int, int],
    scale: Scale = "heat",
    cover: float = COVER,
) -> UInt8[NDArray[np.uint8], "height width 3"]:
    """Return an image, pale and grey, with the heat of its patches in colour.

    Parameters
    ----------
    image
        [H, W, 3], or None for a plain background.
    heat
        One value per patch, from -1 to 1; values beyond are clipped.
    size
        Height and width of the result, in pixels.
    scale, cover
        Which colours, and the opacity of the strongest one.
    """
    ground = pale(image, size)
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
    """Blend heat from -1 to 1 into a background of values to 255; cividis shows magnitudes only."""
    size = np.clip(np.abs(heat), 0, 1)
    if scale == "cividis":
        opacity, colour = np.array(cover), 255 * matplotlib.colormaps["cividis"](size)[..., :3]
    else:
        opacity = cover * size[..., None] ** _RISE
        colour = 255 * np.where(heat[..., None] < 0, to_rgb(NEGATIVE), to_rgb(POSITIVE))
    return np.round(ground * (1 - opacity) + colour * opacity).astype(np.uint8)


def colours(*, signed: bool = True, scale: Scale = "heat", cover: float = COVER) -> ListedColormap:
    """Return heat's colours on a plain background, from -1 (or, unsigned, from 0) to 1."""
    heat = np.linspace(-1 if signed else 0, 1, 257)
    ground = np.full((257, 3), float(_EMPTY))
    return ListedColormap(blend(ground, heat, scale=scale, cover=cover) / 255, name=scale)


def pale(
    image: UInt8[NDArray[np.uint8], "H W 3"] | None, size: tuple[int, int]
) -> Float[NDArray[np.float64], "height width 3"]:
    """Return the image in pale greys, so that only heat has a colour."""
    if image is None:
        return np.full((*size, 3), float(_EMPTY))
    grey = Image.fromarray(image).convert("L").resize((size[1], size[0]), Image.Resampling.BOX)
    return np.repeat((255 - (255 - np.asarray(grey, np.float64)) * _PALE)[..., None], 3, axis=2)

"""Heatmaps on images."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from vitlens.errors import ImageError
from vitlens.plots.heat import COVER, Scale, colours, heat_on_picture
from vitlens.plots.page import QUIET, literal

_PIXELS = 448


def heatmap_figure(
    picture: UInt8[Tensor, "H W 3"] | None,
    heat: Float[Tensor, "rows columns"],
    *,
    prefix: Sequence[float] | Float[Tensor, " P"] = (),
    prefix_names: Sequence[str] = (),
    label: str = "importance",
    title: str = "",
    limit: float | None = None,
    width: float = 4.6,
) -> Figure:
    """Draw values by patch on an image, with a colour bar.

    Parameters
    ----------
    picture
        [H, W, 3] as the model saw it, such as `Circuit.picture`; None for a plain ground.
    heat
        One value a patch, such as `Circuit.heatmap(node)`.
    prefix, prefix_names
        Values and names of tokens that are no patches; squares to the left of the image.
    label
        What the values are, for the colour bar.
    title
        Above the image.
    limit
        The value of the strongest colour; by default the largest one, without its sign.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Blue is above 0, orange below. The bar shows both sides if there are values below 0.

    Raises
    ------
    ImageError
        When the heat is no matrix, holds NaN or infinite values, or the numbers of prefix values
        and names differ.
    """
    return heatmaps_figure(
        [picture],
        [heat],
        prefix=[prefix],
        prefix_names=prefix_names,
        label=label,
        title=title,
        limit=limit,
        width=width,
    )


def heatmaps_figure(
    pictures: Sequence[UInt8[Tensor, "H W 3"] | None],
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
) -> Figure:
    """Draw several heatmaps side by side, on one scale.

    Parameters
    ----------
    pictures, heats, prefix
        As for `heatmap_figure`, one of each for every image.
    title, titles
        Above everything, and above every image.
    prefix_names, label, limit, width
        As for `heatmap_figure`; the width is that of one image.
    low
        The value of the weakest colour, which those below it have, too; for values without a
        sign.
    signed
        Whether the bar shows both sides of 0; by default, whether a value is below it.
    scale
        "heat", or "cividis", which shows only sizes.
    opacity
        Of the strongest colour, 0 to 1.

    Raises
    ------
    ImageError
        As `heatmap_figure` does.
    """
    grids = [_matrix(heat) for heat in heats]
    before = [
        np.asarray([float(x) for x in values])
        for values in (prefix if len(prefix) else [()] * len(grids))
    ]
    if len(grids) != len(pictures) or len(grids) != len(before) or not grids:
        raise ImageError("Every image needs a heatmap and prefix values, and there must be one.")
    if any(len(values) != len(prefix_names) for values in before):
        raise ImageError(f"{len(before[0])} prefix values need as many names, not {prefix_names}.")
    everything = np.concatenate([*(grid.ravel() for grid in grids), *before])
    if not np.isfinite(everything).all():
        raise ImageError("A heatmap must be finite, and holds NaN or infinite values.")
    strongest = float(np.abs(everything).max()) if limit is None else limit
    if signed is None:
        signed = low is None and bool((everything < 0).any())
    weakest = low or 0.0
    factor = 1.0 / (strongest - weakest) if strongest > weakest else 0.0
    least = -1.0 if low is None else 0.0

    rows, columns = grids[0].shape if pictures[0] is None else pictures[0].shape[:2]
    figure = Figure(
        figsize=(width * len(grids), width * (0.78 * rows / columns + 0.12)),
        facecolor="white",
        layout="constrained",
    )
    every = figure.subplots(1, len(grids), squeeze=False)[0]
    for axes, picture, grid, values in zip(every, pictures, grids, before, strict=True):
        heat, squares = (np.maximum(least, (x - weakest) * factor) for x in (grid, values))
        _draw(axes, picture, heat, squares, prefix_names, scale, opacity)
    for axes, words in zip(every, titles, strict=False):
        axes.set_title(literal(words), fontsize=9)
    if title and len(grids) == 1 and not titles:
        every[0].set_title(literal(title), fontsize=10)
    elif title:
        figure.suptitle(literal(title), fontsize=10)
    span = (-strongest if signed else weakest, strongest) if factor else (weakest, weakest + 1)
    ramp = ScalarMappable(Normalize(*span), colours(signed=signed, scale=scale, cover=opacity))
    bar = figure.colorbar(ramp, ax=list(every), fraction=0.05 / len(grids), pad=0.03)
    bar.set_label(literal(label), fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def _matrix(heat: Float[Tensor, "rows columns"]) -> NDArray[np.float64]:
    values = torch.as_tensor(heat).detach().cpu().double().numpy()
    if values.ndim != 2 or not values.size:
        raise ImageError(f"A heatmap is [rows, columns], not {list(values.shape)}.")
    return values


def _draw(
    axes: Axes,
    picture: UInt8[Tensor, "H W 3"] | None,
    heat: NDArray[np.float64],
    prefix: NDArray[np.float64],
    prefix_names: Sequence[str],
    scale: Scale,
    opacity: float,
) -> None:
    rows, columns = heat.shape if picture is None else picture.shape[:2]
    longer = max(rows, columns)
    size = (round(_PIXELS * rows / longer), round(_PIXELS * columns / longer))
    pixels = None if picture is None else torch.as_tensor(picture).cpu().numpy()
    drawn = heat_on_picture(pixels, heat, size=size, scale=scale, cover=opacity)
    axes.imshow(drawn, interpolation="none")
    axes.set_axis_off()
    for number, (name, value) in enumerate(zip(prefix_names, prefix, strict=True)):
        side = min(size) / 12
        x, y = -1.6 * side, number * 2.1 * side
        colour = colours(scale=scale, cover=opacity)(0.5 + 0.5 * value)
        axes.add_patch(Rectangle((x, y), side, side, fc=colour, ec=QUIET, lw=0.6, clip_on=False))
        axes.text(x + side / 2, y + 1.15 * side, literal(name), fontsize=7, ha="center", va="top")

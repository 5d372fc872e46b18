"""One heatmap on an image."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from vitlens.errors import ImageError
from vitlens.plots.heat import colours, heat_on_picture
from vitlens.plots.page import QUIET

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
    values = torch.as_tensor(heat).detach().cpu().double().numpy()
    before = np.asarray([float(value) for value in prefix])
    if values.ndim != 2 or not values.size:
        raise ImageError(f"A heatmap is [rows, columns], not {list(values.shape)}.")
    if not (np.isfinite(values).all() and np.isfinite(before).all()):
        raise ImageError("A heatmap must be finite, and holds NaN or infinite values.")
    if len(before) != len(prefix_names):
        raise ImageError(f"{len(before)} prefix values need as many names, not {prefix_names}.")
    everything = np.concatenate([values.ravel(), before])
    strongest = float(np.abs(everything).max()) if limit is None else limit
    scale = 1.0 / strongest if strongest > 0 else 0.0
    signed = bool((everything < 0).any())

    rows, columns = values.shape if picture is None else picture.shape[:2]
    longer = max(rows, columns)
    size = (round(_PIXELS * rows / longer), round(_PIXELS * columns / longer))
    pixels = None if picture is None else torch.as_tensor(picture).cpu().numpy()
    figure = Figure(
        figsize=(width, width * (0.78 * rows / columns + 0.12)),
        facecolor="white",
        layout="constrained",
    )
    axes = figure.add_subplot()
    axes.imshow(heat_on_picture(pixels, values * scale, size=size), interpolation="none")
    axes.set_axis_off()
    for number, (name, value) in enumerate(zip(prefix_names, before, strict=True)):
        side = min(size) / 12
        x, y = -1.6 * side, number * 2.1 * side
        colour = colours()(0.5 + 0.5 * value * scale)
        axes.add_patch(Rectangle((x, y), side, side, fc=colour, ec=QUIET, lw=0.6, clip_on=False))
        axes.text(x + side / 2, y + 1.15 * side, name, fontsize=7, ha="center", va="top")
    if title:
        axes.set_title(title, fontsize=10)
    bounds = Normalize(-strongest if signed else 0, strongest) if strongest else Normalize(0, 1)
    ramp = ScalarMappable(bounds, colours(signed=signed))
    bar = figure.colorbar(ramp, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure

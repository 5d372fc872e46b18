"""The map of all features of an atlas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vitlens.errors import FeatureError
from vitlens.plots.page import INK, QUIET, literal

# Okabe and Ito's colours, the pale ones darker, as the widget has them.
_KINDS = {
    "position": "#0072b2",
    "class": "#d55e00",
    "orientation": "#009e73",
    "curve": "#b85d92",
    "hue": "#c08300",
    "texture": "#4a4aa8",
}
_NONE = "#b4b9bf"


def map_figure(
    points: Float[NDArray[np.float32], "N 2"],
    values: Float[NDArray[np.float32], " N"] | Sequence[str],
    *,
    name: str,
    chosen: Bool[NDArray[np.bool_], " N"] | None = None,
    logarithmic: bool = False,
    title: str = "",
    width: float = 6.5,
) -> Figure:
    """Draw features as points, coloured by a value or by a kind.

    Parameters
    ----------
    points
        Where they lie, [N, 2]; see `Atlas.layout`.
    values
        A number each, [N], NaN for none; or the name of each one's kind.
    name
        What the values are.
    chosen
        Features that stand out, [N].
    logarithmic
        Whether colours follow the logarithm; values of 0 have none then.
    title
        Above the map.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot.

    Raises
    ------
    FeatureError
        When there is not one value a point.
    """
    if len(points) != len(values):
        raise FeatureError(f"{len(values)} values do not fit {len(points)} points.")
    figure = Figure(figsize=(width, 0.8 * width), facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_title(literal(title), fontsize=10, loc="left", color=INK)
    x, y = np.asarray(points, dtype=float).T
    size = 6.0 if len(points) < 20_000 else 2.0
    if values is not None and isinstance(values[0] if len(values) else "", str):
        kinds = np.asarray(values)
        for kind in ("none", *sorted(set(kinds.tolist()) - {"none"})):
            some = kinds == kind
            words = "none above chance" if kind == "none" else kind
            axes.scatter(
                x[some], y[some], s=size, c=_KINDS.get(kind, _NONE), lw=0, label=literal(words)
            )
        axes.legend(
            fontsize=7, markerscale=2, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
        )
    else:
        numbers = np.asarray(values, dtype=float)
        known = np.isfinite(numbers) & ((numbers > 0) | (not logarithmic))
        axes.scatter(x[~known], y[~known], s=size, c=_NONE, lw=0)
        shade = np.log10(numbers[known]) if logarithmic else numbers[known]
        drawn = axes.scatter(x[known], y[known], s=size, c=shade, cmap="viridis", lw=0)
        words = f"{name}, log10" if logarithmic else name
        figure.colorbar(drawn, ax=axes, shrink=0.6, label=literal(words))
    if chosen is not None and chosen.any():
        axes.scatter(x[chosen], y[chosen], s=4 * size, facecolors="none", edgecolors=QUIET, lw=0.6)
    return figure

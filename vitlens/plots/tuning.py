"""What a feature responds to among synthetic stimuli."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from vitlens.atlas import stimuli
from vitlens.atlas.tuning import Tuning
from vitlens.plots.heat import POSITIVE, colours
from vitlens.plots.page import INK, QUIET, literal

# Edges, then gratings from fine to coarse: told apart by dash and marker as well. None is dotted,
# as the response to the blank is.
_LINES = (
    ("edges", "#000000", "o", "-"),
    ("fine gratings", "#56B4E9", "v", (0, (4, 1, 1, 1, 1, 1))),
    ("middle gratings", "#0072B2", "s", "--"),
    ("coarse gratings", "#009E73", "^", "-."),
)


def tuning_figure(tuning: Tuning, *, title: str = "", width: float = 11.0) -> Figure:
    """Draw a feature's mean responses to the synthetic stimuli.

    Parameters
    ----------
    tuning
        The feature's responses and indices.
    title
        Above the figure.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot. Orientations of edges and gratings, radii and directions of arcs,
        hues in their own colours beside greys, and textures; the response to a blank is the
        dotted line. Radii are in patches.
    """
    figure = Figure(figsize=(width, 0.27 * width), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.1, 1, 1.25, 1))
    draw_orientation(axes[0], tuning)
    draw_arcs(axes[1], tuning)
    draw_hues(axes[2], tuning)
    draw_textures(axes[3], tuning)
    axes[0].legend(fontsize=6.5, frameon=False)
    headings = {
        "orientation": ("orientation",),
        "arcs": ("direction", "curvature"),
        "hue": ("hue",),
        "texture": ("texture",),
    }
    for one, (heading, names) in zip(axes, headings.items(), strict=True):
        figures = [f"{name} {tuning.indices[name]:.2f}" for name in names if name in tuning.indices]
        one.set_title((", ".join(figures) or heading).replace("-", "−"), fontsize=9)
    figure.suptitle(literal(title), fontsize=11, x=0.01, ha="left")
    return figure


def draw_orientation(axes: Axes, tuning: Tuning, *, size: float = 8) -> None:
    """Draw the response by orientation, a line for edges and one for each grating.

    Without a legend; as in the other panels, `size` is that of the words, in points.
    """
    # The first point again at the end: orientations are a circle.
    angles = [*stimuli.ORIENTATIONS, 180 + stimuli.ORIENTATIONS[0]]
    for row, (name, colour, marker, dash) in zip(_numbers(tuning.orientation), _LINES, strict=True):
        axes.plot(
            angles, [*row, row[0]], color=colour, marker=marker, ls=dash, ms=2.5, lw=1.1, label=name
        )
    _frame(axes, tuning, size)
    axes.set_xlim(0, 195)
    axes.set_xticks((0, 45, 90, 135, 180), [f"{a}°" for a in (0, 45, 90, 135, 180)])
    axes.set_xlabel("orientation", fontsize=size, labelpad=1)
    axes.set_ylabel("activation", fontsize=size)


def draw_arcs(axes: Axes, tuning: Tuning, *, size: float = 8) -> None:
    """Draw the response by radius and direction of an arc, the last row straight lines."""
    axes.imshow(_numbers(tuning.direction), cmap=colours(signed=False), vmin=0, aspect="auto")
    radii = [f"{radius:g}" for radius in stimuli.RADII[:-1]]
    axes.set_yticks(range(len(stimuli.RADII)), [*radii, "line"])
    arrows = ("→", "↗", "↑", "↖", "←", "↙", "↓", "↘")
    axes.set_xticks(range(len(stimuli.DIRECTIONS)), arrows)
    axes.tick_params(labelsize=size - 1, length=0, pad=2)
    scale = f"blue up to {float(tuning.direction.max()):.2g}"
    axes.set_xlabel(f"arc bulges towards ({scale})", fontsize=size, labelpad=1)
    axes.set_ylabel("radius in patches", fontsize=size)


def draw_hues(axes: Axes, tuning: Tuning, *, size: float = 8) -> None:
    """Draw the response to hues, strong beside pale, and to greys, as bars in their colours."""
    pale, strong = _numbers(tuning.hue)
    spots = np.arange(len(stimuli.HUES))
    for shift, values, chroma in (
        (0.0, pale, stimuli.CHROMAS[0]),
        (0.4, strong, stimuli.CHROMAS[1]),
    ):
        shades = [stimuli.oklch(stimuli.HUE_LIGHTNESS, chroma, hue) for hue in stimuli.HUES]
        axes.bar(spots + shift, values, width=0.4, align="edge", color=shades, ec=QUIET, lw=0.3)
    greys = [stimuli.oklch(grey, 0, 0) for grey in stimuli.GREYS]
    where = len(spots) + 0.8 + 0.9 * np.arange(len(greys))
    axes.bar(where, _numbers(tuning.grey), width=0.8, align="edge", color=greys, ec=QUIET, lw=0.3)
    _frame(axes, tuning, size)
    names = ["hues, pale then strong", "grey"]
    axes.set_xticks([6.0, float(where.mean()) + 0.4], names, fontsize=size)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("activation", fontsize=size)


def draw_textures(axes: Axes, tuning: Tuning, *, size: float = 8) -> None:
    """Draw the response to each texture as a bar."""
    values = _numbers(tuning.texture)
    axes.barh(range(len(values)), values, color=POSITIVE)
    axes.invert_yaxis()
    axes.set_yticks(range(len(values)), stimuli.TEXTURES)
    axes.set_xlim(0, max(float(values.max()), tuning.blank) * 1.05 or 1.0)
    axes.axvline(tuning.blank, color=INK, ls=":", lw=0.8)
    axes.tick_params(labelsize=size - 1, length=2, pad=2)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("activation", fontsize=size, labelpad=1)


def _frame(axes: Axes, tuning: Tuning, size: float) -> None:
    axes.set_ylim(0, axes.get_ylim()[1] or 1.0)
    axes.axhline(tuning.blank, color=INK, ls=":", lw=0.8, label="blank")
    axes.tick_params(labelsize=size - 1, length=2, pad=2)
    axes.spines[["top", "right"]].set_visible(False)


def _numbers(values: Float[Tensor, "*shape"]) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.detach().cpu().double().numpy()
    return numbers

"""One feature on one image, and a table of features."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from vitlens.errors import FeatureError
from vitlens.plots.heat import NEGATIVE, POSITIVE, colours, heat_on_picture
from vitlens.plots.page import INK, QUIET, literal

_PIXELS = 336
_BINS = 20
_CLASSES = 5
_HEADS = ("feature", "name", "importance", "max", "mean", "tokens")
_PLACES = (0.0, 0.12, 0.42, 0.76, 0.87, 1.0)  # of the columns, as parts of the table's width


def feature_figure(
    picture: UInt8[Tensor, "H W 3"] | None,
    *,
    activation: Float[Tensor, " T"],
    importance: Float[Tensor, " T"],
    effects: Float[Tensor, " C"],
    grid: tuple[int, int],
    prefix_names: Sequence[str] = (),
    class_names: Sequence[str],
    title: str = "",
    subtitle: str = "",
    width: float = 10.0,
) -> Figure:
    """Draw one feature: where it is active, where it matters, how strongly, what it says.

    Parameters
    ----------
    picture
        [H, W, 3] as the model saw it; None for a plain ground.
    activation, importance
        By token, [T], prefix tokens first.
    effects
        What the feature does to each logit by itself, [C]; see `Lens.logit_lens`.
    grid, prefix_names
        Rows and columns of patches, and the names of the tokens before them.
    class_names
        One a class.
    title, subtitle
        Above the figure.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot. Blue is above 0, orange below.

    Raises
    ------
    FeatureError
        When the numbers of tokens or classes do not fit each other.
    """
    tokens = len(prefix_names) + grid[0] * grid[1]
    if not len(activation) == len(importance) == tokens:
        raise FeatureError(
            f"The image has {tokens} tokens, not {len(activation)} activations and "
            f"{len(importance)} importances."
        )
    if len(effects) != len(class_names):
        raise FeatureError(f"{len(effects)} effects do not fit {len(class_names)} classes.")
    figure = Figure(figsize=(width, 0.36 * width), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.15, 1.15, 1, 1))
    _draw_heat(axes[0], picture, _numbers(activation), grid, prefix_names, "activation")
    _draw_heat(axes[1], picture, _numbers(importance), grid, prefix_names, "importance")
    _draw_histogram(axes[2], _numbers(activation))
    _draw_effects(axes[3], _numbers(effects), class_names)
    heading = "\n".join(line for line in (title, subtitle) if line)
    figure.suptitle(literal(heading), fontsize=11, x=0.01, ha="left")
    return figure


def features_figure(
    table: Float[NDArray[np.float32], "4 n"],
    *,
    names: Sequence[str],
    labels: Sequence[str],
    positive: float,
    title: str = "",
    width: float = 7.0,
) -> Figure:
    """Draw a table of features, a bar for each one's importance.

    Parameters
    ----------
    table
        [4, n]: importance, largest and mean activation, and active tokens of n features.
    names, labels
        Number and given name of each, "" for none.
    positive
        The layer's positive importance, of which shares are parts.
    title
        Above the table.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot.
    """
    n = len(names)
    height = 0.24 * (n + 1) + 0.5
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.03, 0.1 / height, 0.94, 1 - 0.45 / height))
    axes.set(xlim=(0, 1), ylim=(n + 0.7, -0.7))
    axes.set_axis_off()
    axes.set_title(literal(title), fontsize=10, loc="left")
    for place, (x, words) in enumerate(zip(_PLACES, _HEADS, strict=True)):
        side = "left" if place < 3 else "right"
        axes.text(x, 0, words, fontsize=8, weight="bold", ha=side, va="center", color=INK)
    importance = table[0].astype(float)
    widest = float(np.abs(importance).max(initial=0.0)) or 1.0
    for row in range(n):
        share = importance[row] / positive if positive > 0 else 0.0
        cells = (names[row], labels[row][:32], _percent(share))
        numbers = (*(f"{value:.3g}" for value in table[1:3, row]), f"{table[3, row]:.0f}")
        for place, (x, words) in enumerate(zip(_PLACES, (*cells, *numbers), strict=True)):
            right = place >= 2
            axes.text(
                x + 0.07 if place == 2 else x,
                row + 1,
                literal(words),
                fontsize=8,
                ha="right" if right else "left",
                va="center",
                color=INK,
            )
        bar = abs(importance[row]) / widest * 0.16
        colour = NEGATIVE if importance[row] < 0 else POSITIVE
        axes.add_patch(Rectangle((_PLACES[2] + 0.085, row + 0.72), bar, 0.56, fc=colour, lw=0))
    return figure


def _percent(share: float) -> str:
    if 0 < abs(share) < 0.0005:
        return "<0.1%" if share > 0 else ">−0.1%"
    return f"{share:.1%}".replace("-", "−")


def _draw_heat(
    axes: Axes,
    picture: UInt8[Tensor, "H W 3"] | None,
    values: NDArray[np.float64],
    grid: tuple[int, int],
    prefix_names: Sequence[str],
    name: str,
) -> None:
    strongest = float(np.abs(values).max()) or 1.0
    values = values / strongest
    n = len(prefix_names)
    longer = max(grid)
    size = (round(_PIXELS * grid[0] / longer), round(_PIXELS * grid[1] / longer))
    pixels = None if picture is None else torch.as_tensor(picture).cpu().numpy()
    axes.imshow(heat_on_picture(pixels, values[n:].reshape(grid), size=size), interpolation="none")
    axes.set_axis_off()
    axes.set_title(f"{name}, up to {strongest:.3g}", fontsize=9)
    side = size[0] / 12
    for number, token in enumerate(prefix_names):
        x, y = -1.5 * side, number * 1.9 * side
        colour = colours()(0.5 + 0.5 * values[number])
        axes.add_patch(Rectangle((x, y), side, side, fc=colour, ec=QUIET, lw=0.6, clip_on=False))
        axes.text(-0.4 * side, y + 1.1 * side, literal(token), fontsize=6, ha="right", va="top")


def _draw_histogram(axes: Axes, activation: NDArray[np.float64]) -> None:
    active = activation[activation > 0]
    axes.set_title(f"active on {len(active)} of {len(activation)} tokens", fontsize=9)
    if not len(active):
        axes.set_axis_off()
        return
    axes.hist(active, bins=_BINS, range=(0, float(active.max())), color=POSITIVE)
    axes.set_xlabel("activation", fontsize=8)
    axes.set_ylabel("tokens", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _draw_effects(axes: Axes, effects: NDArray[np.float64], class_names: Sequence[str]) -> None:
    order = np.argsort(-effects, kind="stable")
    up = [i for i in order[:_CLASSES] if effects[i] > 0]
    down = [i for i in order[::-1][:_CLASSES] if effects[i] < 0][::-1]
    shown = [*up, *down]
    axes.set_title("logit lens", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(3))  # more labels would touch
    if not shown:
        axes.set_axis_off()
        return
    bars = [POSITIVE if effects[i] > 0 else NEGATIVE for i in shown]
    axes.barh(range(len(shown)), effects[shown], color=bars)
    names = [literal(class_names[i][:24]) for i in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color=QUIET, lw=0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _numbers(values: Tensor) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.detach().cpu().double().numpy()
    return numbers

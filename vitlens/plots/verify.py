"""Predicted against measured changes of the target, one point per edge."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vitlens.circuits.curves import Array
from vitlens.circuits.verify import Verification
from vitlens.plots.style import (
    AnyFigure,
    literal,
    new_figure,
    root_of,
    set_heading,
    styled,
    theme_of,
)

_COLOURS = "viridis"
_DECADES = 3  # whole ones, on each side


@styled
def verification_figure(
    checked: Verification | Mapping[str, Verification],
    *,
    notes: Mapping[str, str] | None = None,
    width: float = 10.5,
    title: str | None = None,
    figure: AnyFigure | None = None,
) -> Figure:
    """Draw predicted changes (x) against measured ones (y); on the line both are equal.

    Parameters
    ----------
    checked
        One verification, drawn next to that of the other protocol and to its control, where it has
        them; or several, by name.
    notes
        What to write below a panel's name instead of its rank correlation.
    width
        Width of a new figure, in inches.
    title
        Title above the figure; by default the target and the error nodes.
    figure
        Figure or subfigure to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        Scales are linear around zero and logarithmic beyond, the same in all panels; the colour
        is the layer of the edge's source.
    """
    if isinstance(checked, Verification):
        panels = {"edges of the circuit": checked}
        if checked.running is not None:
            panels["active features chosen again"] = checked.running
        if checked.control is not None:
            panels["random edges"] = checked.control
        first = checked
    else:
        panels = dict(checked)
        first = next(iter(panels.values()))
    if figure is None:
        figure = new_figure(width, 0.9 * width / max(len(panels), 2) + 1.1)
    row = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    values = np.concatenate([_values(side) for v in panels.values() for side in _sides(v)])
    scale, limit = _scale(values)
    sources = sorted({edge[0][0] for v in panels.values() for edge in v.edges})
    points = None
    for axes, (name, one) in zip(row, panels.items(), strict=True):
        predicted, measured = _sides(one)
        layers = [edge[0][0] for edge in one.edges]
        points = axes.scatter(
            predicted,
            measured,
            c=layers,
            cmap=_COLOURS,
            vmin=0,
            vmax=sources[-1],
            s=12,
            alpha=0.65,
            lw=0,
        )
        _frame(axes, scale, limit)
        note = (notes or {}).get(name) or f"rank correlation {one.rank_correlation}"
        axes.set_title(literal(f"{name}: {len(one)} edges\n{note}"), fontsize=9)
        axes.set_xlabel("predicted change (weight of the edge)", fontsize=9)
    row[0].set_ylabel("measured change (edge cut)", fontsize=9)
    assert points is not None
    bar = figure.colorbar(points, ax=list(row), shrink=0.8, pad=0.015)
    bar.set_label("layer of the edge's source", fontsize=9)
    bar.set_ticks(sources if len(sources) < 9 else sources[::2])
    error_nodes = first.settings.get("error_nodes", "?")
    set_heading(figure, title, f"target: {first.target}, error nodes: {error_nodes}")
    return root_of(figure)


def _sides(verification: Verification) -> tuple[Array, Array]:
    return verification.predicted.numpy(), verification.measured.numpy()


def _values(side: Array) -> Array:
    return np.abs(side[np.isfinite(side)])


def _scale(sizes: Array) -> tuple[float, float]:
    """Return where the linear part ends, a power of ten, and the end of the axes."""
    largest = float(sizes.max(initial=0.0)) or 1.0
    return float(10.0 ** (np.floor(np.log10(largest)) - _DECADES)), 1.4 * largest


def _frame(axes: Axes, linear: float, limit: float) -> None:
    decades = [linear * 10**i for i in range(_DECADES + 2) if linear * 10**i <= limit]
    # Left out are the ends of the linear part, which are too close to zero, and next to each other
    # every second number.
    named = {"x": decades[:0:-2], "y": decades[1:]}

    def name(value: float, which: str) -> str:
        return f"{value:.3g}".replace("-", "−") if abs(value) in (0, *named[which]) else ""

    for which in ("x", "y"):
        getattr(axes, f"set_{which}scale")("symlog", linthresh=linear, linscale=0.5)
        getattr(axes, f"set_{which}lim")(-limit, limit)
        axis = getattr(axes, f"{which}axis")
        axis.set_major_locator(FixedLocator([*(-d for d in reversed(decades)), 0, *decades]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _, which=which: name(value, which)))
    axes.tick_params(labelsize=8)
    axes.plot([-limit, limit], [-limit, limit], color=theme_of(axes).quiet, lw=0.8, zorder=1)
    axes.axhline(0, color=theme_of(axes).faint, lw=0.8, zorder=0)
    axes.axvline(0, color=theme_of(axes).faint, lw=0.8, zorder=0)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)

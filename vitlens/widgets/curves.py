"""Insertion and deletion curves in a cell, with a marker at a number of nodes per layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import traitlets as t
from jaxtyping import Float

from vitlens.circuits.curves import Array, Axis, Band, Curves, Direction, Metric
from vitlens.errors import FeatureError, near_matches
from vitlens.widgets.base import Choice, Widget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class CurvesPart(t.HasTraits):
    """The traits of a plot of curves; see `CurvePlot`."""

    curves = t.Dict().tag(sync=True)
    curve_data = t.Bytes(b"").tag(sync=True)
    axis = Choice(("log", "linear"), "log").tag(sync=True)
    direction = Choice((*_DIRECTIONS, "both"), "both").tag(sync=True)
    hidden_methods = t.List(t.Unicode()).tag(sync=True)
    nodes_per_layer = t.Int(8, min=1).tag(sync=True)

    _measured: Curves | None = None
    _metric: Metric = "target"

    def show_curves(self, curves: Curves | None, *, metric: Metric = "target") -> None:
        """Show curves, or none.

        Parameters
        ----------
        curves
            The result of `Lens.faithfulness`.
        metric
            "target", "logit", "probability", "top1" or "divergence".

        Raises
        ------
        OptionError
            When there is no such metric.
        """
        payload, data = ({}, b"") if curves is None else _payload(curves, metric)
        self._measured, self._metric = curves, metric
        with self.hold_trait_notifications():
            self.curve_data, self.curves = data, payload

    @t.validate("hidden_methods")
    def _known_methods(self, proposal: dict[str, Any]) -> list[str]:
        known = self.curves.get("methods")
        for name in proposal["value"]:
            if known is not None and name not in known:
                raise t.TraitError(
                    f"These curves have no method {name!r}, only {', '.join(known)}."
                    f"{near_matches(name, known)}"
                )
        return proposal["value"]

    def curves_figure(self) -> Figure:
        """Return the curves as a matplotlib figure.

        Raises
        ------
        FeatureError
            When no curves are shown.
        """
        from vitlens.plots import curves_figure

        if self._measured is None:
            raise FeatureError("There are no curves yet.")
        axis = cast(Axis, self.axis)  # as the trait allows
        return curves_figure(self._measured, metric=self._metric, axis=axis)


class CurvePlot(CurvesPart, Widget, bundle="curves"):
    """Insertion and deletion curves, with a marker at the size of a circuit.

    Parameters
    ----------
    curves
        The result of `Lens.faithfulness`.
    metric
        "target", "logit", "probability", "top1" or "divergence".
    axis, direction, hidden_methods, nodes_per_layer
        First values of the attributes.

    Attributes
    ----------
    nodes_per_layer
        The marker on the curves, as a number of nodes per layer; link it with that of a
        `CircuitDiagram`.
    axis
        "log" (linear near 0) or "linear" in the share of features.
    direction
        "insertion", "deletion" or "both".
    hidden_methods
        Methods that are hidden with the legend.

    Raises
    ------
    OptionError
        When there is no such metric.
    """

    def __init__(
        self,
        curves: Curves,
        *,
        metric: Metric = "target",
        axis: Axis = "log",
        direction: Direction | Literal["both"] = "both",
        hidden_methods: Iterable[str] = (),
        nodes_per_layer: int = 8,
    ):
        super().__init__(
            {
                "axis": axis,
                "direction": direction,
                "hidden_methods": list(hidden_methods),
                "nodes_per_layer": nodes_per_layer,
            }
        )
        self.show_curves(curves, metric=metric)

    def figure(self) -> Figure:
        """Return the curves as a matplotlib figure."""
        return self.curves_figure()


def _payload(curves: Curves, metric: Metric) -> tuple[dict[str, Any], bytes]:
    """Return the description of the curves, and the numbers that the view draws.

    The numbers are float32 [direction, method, (mean, low, high), q]; low and high are NaN where
    there is no interval.
    """
    is_share = not np.isnan(curves.band("insertion", curves.methods[0], metric).mean).any()
    bands = np.array(
        [
            [_band(curves, direction, method, metric, is_share) for method in curves.methods]
            for direction in _DIRECTIONS
        ],
        dtype=np.float32,
    )
    payload = {
        "methods": list(curves.methods),
        "directions": list(_DIRECTIONS),
        "q": list(curves.q),
        "counts": list(curves.counts),
        "dictionary_size": curves.counts[-1],
        "n_images": len(curves.images),
        "metric": metric,
        "is_share": is_share,
        "target": curves.target,
        "errors": curves.error_nodes,
        "areas": {axis: _areas(curves, metric, axis) for axis in get_args(Axis)},
    }
    return payload, bands.tobytes()


def _band(
    curves: Curves, direction: Direction, method: str, metric: Metric, is_share: bool
) -> Float[Array, "3 q"]:
    """Return a curve with its interval; without one where shares are undefined."""
    if is_share:
        return np.stack(curves.band(direction, method, metric))
    mean = curves.mean(direction, method, metric)
    return np.stack(Band(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)))


def _areas(curves: Curves, metric: Metric, axis: Axis) -> dict[str, dict[str, float | None]]:
    """Return the area under each curve by direction and method; None where it is undefined."""
    areas: dict[str, dict[str, float | None]] = {}
    for direction in _DIRECTIONS:
        values = {
            method: curves.area(direction, method, metric=metric, axis=axis).value
            for method in curves.methods
        }
        areas[direction] = {m: None if np.isnan(v) else float(v) for m, v in values.items()}
    return areas

"""Insertion and deletion curves in a cell, tied to the number of nodes a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import traitlets
from jaxtyping import Float

from vitlens.circuits.curves import Array, Axis, Band, Curves, Direction, Metric
from vitlens.errors import FeatureError, near_matches
from vitlens.widgets.base import Widget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class CurvesPart(traitlets.HasTraits):
    """The traits behind a plot of curves; see `CurvePlot`."""

    curves = traitlets.Dict().tag(sync=True)
    curve_data = traitlets.Bytes(b"").tag(sync=True)
    axis = traitlets.Enum(("log", "linear"), "log").tag(sync=True)
    direction = traitlets.Enum((*_DIRECTIONS, "both"), "both").tag(sync=True)
    hidden_methods = traitlets.List(traitlets.Unicode()).tag(sync=True)
    nodes_per_layer = traitlets.Int(8, min=1).tag(sync=True)

    _measured: Curves | None = None
    _metric: Metric = "target"

    def show_curves(self, curves: Curves | None, *, metric: Metric = "target") -> None:
        """Show curves, or none.

        Parameters
        ----------
        curves
            What `Lens.faithfulness` measured.
        metric
            "target", "logit", "probability" or "top1".

        Raises
        ------
        FeatureError
            When there is no such metric.
        """
        described, data = ({}, b"") if curves is None else _packed(curves, metric)
        self._measured, self._metric = curves, metric
        with self.hold_trait_notifications():
            self.curve_data, self.curves = data, described

    @traitlets.validate("hidden_methods")
    def _known_methods(self, proposal: dict[str, Any]) -> list[str]:
        known = self.curves.get("methods")
        for name in proposal["value"]:
            if known is not None and name not in known:
                raise traitlets.TraitError(
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
            raise FeatureError("There are no curves to draw yet.")
        axis = cast(Axis, self.axis)  # as the trait allows
        return curves_figure(self._measured, metric=self._metric, axis=axis)


class CurvePlot(CurvesPart, Widget, bundle="curves"):
    """Insertion and deletion curves, with a point that says where a circuit stands on them.

    Parameters
    ----------
    curves
        What `Lens.faithfulness` measured.
    metric
        "target", "logit", "probability" or "top1".
    traits
        First values of the traits.

    Attributes
    ----------
    nodes_per_layer
        The point on the curves, as a number of nodes a layer; link it with a
        `CircuitDiagram`'s to tie both.
    axis
        "log" (a short linear piece holds 0) or "linear" in the share of features.
    direction
        "insertion", "deletion" or "both".
    hidden_methods
        Methods that the legend has switched off.

    Raises
    ------
    FeatureError
        When there is no such metric.
    """

    def __init__(self, curves: Curves, *, metric: Metric = "target", **traits: Any):
        super().__init__(**traits)
        self.show_curves(curves, metric=metric)

    def figure(self) -> Figure:
        """Return the curves as a matplotlib figure."""
        return self.curves_figure()


def _packed(curves: Curves, metric: Metric) -> tuple[dict[str, Any], bytes]:
    """Return what the view is told of curves, and the numbers it draws.

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
    described = {
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
    return described, bands.tobytes()


def _band(
    curves: Curves, direction: Direction, method: str, metric: Metric, is_share: bool
) -> Float[Array, "3 q"]:
    """Return a curve with its interval; as measured where shares would mean nothing."""
    if is_share:
        return np.stack(curves.band(direction, method, metric))
    mean = curves.mean(direction, method, metric)
    return np.stack(Band(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)))


def _areas(curves: Curves, metric: Metric, axis: Axis) -> dict[str, dict[str, float | None]]:
    """Return the area under each curve by direction and method, None where there is none."""
    areas: dict[str, dict[str, float | None]] = {}
    for direction in _DIRECTIONS:
        values = {
            method: curves.area(direction, method, metric=metric, axis=axis).value
            for method in curves.methods
        }
        areas[direction] = {m: None if np.isnan(v) else float(v) for m, v in values.items()}
    return areas

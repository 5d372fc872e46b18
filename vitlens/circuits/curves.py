"""Insertion and deletion curves: measured values, areas with bootstrap intervals, and their file.

Source: docs/method.md, "Faithfulness".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitlens.errors import CheckpointError, FeatureError, check_choice, near_matches
from vitlens.io import read_result, write_tensors
from vitlens.repr import ShapeRepr
from vitlens.tables import text_table

Array: TypeAlias = NDArray[np.float64]
Axis: TypeAlias = Literal["linear", "log"]
Direction: TypeAlias = Literal["insertion", "deletion"]
Metric: TypeAlias = Literal["target", "logit", "probability", "top1", "divergence"]

#: What is recorded of every run, in the order of the last axis of stored arrays.
METRICS: tuple[Metric, ...] = get_args(Metric)

#: Resamples of the images behind every interval.
N_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)

_SHOWN_SHARES = (0.02, 0.1)
_KEPT_HEADING = (
    "What is kept, its mean distance from 1 (above is as wrong as below), and the class "
    "probabilities:"
)

_FORMAT = "vitlens.curves"
_VERSION = 3


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over images; NaN ends where one image gives no interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Band(NamedTuple):
    """A mean curve with its 95 % interval over images, each [q]."""

    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False, repr=False)
class Curves(ShapeRepr):
    """The output that remains when only some features are kept, or some are removed.

    Attributes
    ----------
    methods
        Names of the rankings.
    q
        Shares of the largest layer's dictionary, ascending from 0 to 1.
    counts
        The same as numbers of features per layer; a smaller layer is used up earlier.
    insertion
        By metric, [method, image, q]: the top features kept, all others at their baseline.
        Metrics are ``target`` (what was explained), ``logit`` and ``probability`` of the class,
        ``top1`` (1 where the class is first, else 0), and ``divergence`` (Kullback-Leibler
        divergence of the class probabilities from the untouched model's, in nats, low is good).
    deletion
        Likewise, with the top features at their baseline and all others kept.
    untouched
        By metric, [image]: the model itself.
    images
        Which of the given images were measured; misclassified ones are left out.
    n_given
        Number of images that were given.
    error_nodes
        Values of the error nodes: "clean", "free", "baseline" or "zero".
    target
        The target that was explained.
    settings
        All other settings; anything that JSON can hold.
    """

    methods: tuple[str, ...]
    q: tuple[float, ...]
    counts: tuple[int, ...]
    insertion: Mapping[str, Float[Tensor, "method image q"]]
    deletion: Mapping[str, Float[Tensor, "method image q"]]
    untouched: Mapping[str, Float[Tensor, " image"]]
    images: tuple[int, ...]
    n_given: int
    error_nodes: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that were recorded."""
        return tuple(metric for metric in METRICS if metric in self.insertion)

    def values(
        self, direction: Direction, method: str, metric: Metric = "target"
    ) -> Float[Array, "image q"]:
        """Return what was measured, by image and step.

        Raises
        ------
        FeatureError
            When there is no such method.
        OptionError
            When there is no such direction or metric, or the metric was not recorded.
        """
        check_choice("direction", direction, get_args(Direction))
        check_choice("metric", metric, self.metrics)
        if method not in self.methods:
            raise FeatureError(
                f"These curves have no method {method!r}, only {', '.join(self.methods)}."
                f"{near_matches(method, self.methods)}"
            )
        curves = self.insertion if direction == "insertion" else self.deletion
        return curves[metric][self.methods.index(method)].double().numpy()

    def mean(
        self, direction: Direction, method: str, metric: Metric = "target"
    ) -> Float[Array, " q"]:
        """Return the mean curve over images, in the metric's own units."""
        return self.values(direction, method, metric).mean(axis=0)

    def band(self, direction: Direction, method: str, metric: Metric = "target") -> Band:
        """Return the adjusted mean curve (empty model 0, full model 1) with its interval.

        All values are NaN if the full model is not significantly better than the empty one: above
        it, or for "divergence" below it.
        """
        values = self._upward(direction, method, metric)
        return self._band(*adjusted(values, *self._ends(metric), self._draws))

    def distance(self, direction: Direction, method: str, metric: Metric = "target") -> Band:
        """Return how far the curves are from the full model, with the interval.

        Parameters
        ----------
        direction, method, metric
            As for `values`.

        Returns
        -------
        Band
            The mean over images of the distance from the full model, above or below, on the scale
            of `band`. 0 is the full model's answer on every image; images above it do not make up
            for images below it.

        Raises
        ------
        FeatureError
            When there is no such method.
        OptionError
            When there is no such direction or metric, or the metric was not recorded.
        """
        empty, full = self._ends(metric)
        apart = np.abs(self._upward(direction, method, metric) - full[:, None])
        return self._band(*adjusted(apart + empty[:, None], empty, full, self._draws))

    def area(
        self,
        direction: Direction,
        method: str,
        *,
        metric: Metric = "target",
        axis: Axis = "linear",
    ) -> Estimate:
        """Return the area under the adjusted mean curve.

        Parameters
        ----------
        direction
            "insertion" (faithfulness: high is good) or "deletion" (completeness: low is good).
        method
            One of `methods`.
        metric
            Metric to measure.
        axis
            "linear" in the share of features, or "log": every step of q counts the same.

        Returns
        -------
        Estimate
            The area under the mean of the curves, the empty model (every feature replaced)
            counting 0 and the full one (none replaced) 1, so that 1 is the best insertion and 0
            the best deletion; values outside are possible. With the 95 % bootstrap interval
            over images (2,000 resamples). NaN where the full model is not above the empty one
            with confidence.

        Raises
        ------
        FeatureError
            When there is no such method.
        OptionError
            When there is no such direction, metric or axis.
        """
        value, resampled = self._area(direction, method, metric, axis)
        return interval(float(value), resampled, len(self.images))

    def ratio(
        self,
        method: str,
        other: str = "cla",
        *,
        direction: Direction = "insertion",
        metric: Metric = "target",
        axis: Axis = "linear",
    ) -> Estimate:
        """Return one method's area over another's, with a paired bootstrap interval."""
        mine, my_draws = self._area(direction, method, metric, axis)
        theirs, their_draws = self._area(direction, other, metric, axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            return interval(float(mine / theirs), my_draws / their_draws, len(self.images))

    def span(self, metric: Metric = "target") -> Estimate:
        """Return how far the full model is above the empty one, in the metric's own units.

        For "divergence", how far it is below.
        """
        empty, full = self._ends(metric)
        spans = full - empty
        return interval(float(spans.mean()), self._draws @ spans, len(self.images))

    def table(self, *, metric: Metric = "target", axis: Axis = "linear") -> str:
        """Return a text table of the areas of every method.

        Columns are the areas, how much is kept with 2 % and 10 % of the features where those are
        among the steps, and the insertion area as a multiple of CLA's where that was measured.
        `kept_table` says how far from the full model what is kept is.
        """
        shares = [q for q in _SHOWN_SHARES if q in self.q]
        show_ratio = "cla" in self.methods
        header = ["method", "insertion ↑", "deletion ↓"]
        header += [f"kept with {100 * q:.0f} %" for q in shares]
        header += ["insertion / CLA's"] * show_ratio
        rows = []
        for method in self.methods:
            cells = [method]
            for direction in get_args(Direction):
                cells.append(str(self.area(direction, method, metric=metric, axis=axis)))
            band = self.band("insertion", method, metric)
            for at in map(self.q.index, shares):
                cells.append(str(Estimate(band.mean[at], band.low[at], band.high[at])))
            if show_ratio:
                other = method != "cla"
                cells.append(str(self.ratio(method, metric=metric, axis=axis)) if other else "1")
            rows.append(cells)
        return text_table(header, rows)

    def kept_table(self) -> str:
        """Return a text table of what the top 2 % and 10 % of the features keep.

        For each of these shares that is among the steps, columns are the share of the target that
        is kept (1 is the full model's), its distance from 1 (see `distance`), the divergence of
        the class probabilities in nats, where it was recorded, and the part of the images on
        which the class stays first.
        """
        shares = [q for q in _SHOWN_SHARES if q in self.q]
        nats = "divergence" in self.metrics
        header = ["method"]
        for q in shares:
            header += [f"kept with {100 * q:.0f} %", "from 1"]
            header += ["nats"] * nats + ["class first"]
        rows = []
        for method in self.methods:
            kept, apart = (f("insertion", method) for f in (self.band, self.distance))
            cells = [method]
            for at in map(self.q.index, shares):
                cells += [f"{kept.mean[at]:.3f}", f"{apart.mean[at]:.3f}"]
                if nats:
                    cells.append(f"{self.mean('insertion', method, 'divergence')[at]:.3f}")
                cells.append(f"{self.mean('insertion', method, 'top1')[at]:.0%}")
            rows.append(cells)
        return text_table(header, rows)

    def __str__(self) -> str:
        n, skipped = len(self.images), self.n_given - len(self.images)
        head = f"{n} image{'s' * (n != 1)}"
        if skipped:
            head += f" ({skipped} misclassified and left out)"
        baselines = self.settings.get("baselines", "?")
        head += f", target: {self.target}, error nodes: {self.error_nodes}, baselines: {baselines}"
        head += ", 95 % intervals over images"
        span = f"full model above empty model: {self.span()}"
        if np.isnan(self.area("insertion", self.methods[0]).value):
            span += "; too small for meaningful areas"
        parts = [
            f"{head}\n{span}",
            f"Linear in the share of features:\n{self.table()}",
            f"Logarithmic in the share of features:\n{self.table(axis='log')}",
        ]
        if any(q in self.q for q in _SHOWN_SHARES):
            parts.append(f"{_KEPT_HEADING}\n{self.kept_table()}")
        return "\n\n".join(parts)

    def save(self, path: str | Path) -> None:
        """Write the curves to one safetensors file, atomically.

        Raises
        ------
        VitlensError
            When the file cannot be written.
        """
        parts = {
            "insertion": self.insertion,
            "deletion": self.deletion,
            "untouched": self.untouched,
        }
        tensors = {f"{part}.{m}": values[m] for part, values in parts.items() for m in self.metrics}
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "methods": list(self.methods),
            "metrics": list(self.metrics),
            "q": list(self.q),
            "counts": list(self.counts),
            "images": list(self.images),
            "n_given": self.n_given,
            "error_nodes": self.error_nodes,
            "target": self.target,
            "settings": dict(self.settings),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read curves that `save` wrote. Nothing in the file is ever executed.

        Raises
        ------
        CheckpointError
            When the file is missing, damaged, a pickle, or holds something else.
        """
        tensors, metadata = read_result(path, what="curves", format=_FORMAT, version=_VERSION)
        try:
            metrics = [metric for metric in METRICS if metric in metadata["metrics"]]
            curves = cls(
                methods=tuple(metadata["methods"]),
                q=tuple(metadata["q"]),
                counts=tuple(metadata["counts"]),
                insertion={m: tensors[f"insertion.{m}"] for m in metrics},
                deletion={m: tensors[f"deletion.{m}"] for m in metrics},
                untouched={m: tensors[f"untouched.{m}"] for m in metrics},
                images=tuple(metadata["images"]),
                n_given=metadata["n_given"],
                error_nodes=metadata["error_nodes"],
                target=metadata["target"],
                settings=metadata["settings"],
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} holds damaged curves: {error!r}.") from error
        whole = (len(curves.methods), len(curves.images), len(curves.q))
        expected = {
            name: whole[1:2] if name.startswith("untouched.") else whole for name in tensors
        }
        for name, shape in expected.items():
            if tensors[name].shape != shape:
                raise CheckpointError(
                    f"{path} holds damaged curves: {name} of shape {tuple(tensors[name].shape)} "
                    f"where {shape} is expected."
                )
        return curves

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Curves):
            return NotImplemented
        tensors = ("insertion", "deletion", "untouched")
        plain = (
            "methods",
            "metrics",
            "q",
            "counts",
            "images",
            "n_given",
            "error_nodes",
            "target",
            "settings",
        )
        return all(getattr(self, name) == getattr(other, name) for name in plain) and all(
            torch.equal(getattr(self, name)[m], getattr(other, name)[m])
            for name in tensors
            for m in self.metrics
        )

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _draws(self) -> Float[Array, "n_resamples image"]:
        return resamples(len(self.images))

    def _ends(self, metric: Metric) -> tuple[Array, Array]:
        """Return each image's value of the empty and of the full model, any method's."""
        values = self._upward("insertion", self.methods[0], metric)
        return values[:, 0], values[:, -1]

    def _upward(self, direction: Direction, method: str, metric: Metric) -> Array:
        """Return the values so that more is nearer to the model: divergence counts as negative."""
        values = self.values(direction, method, metric)
        return -values if metric == "divergence" else values

    def _band(self, mean: Array, resampled: Array) -> Band:
        if len(self.images) < 2 or np.isnan(mean).any():
            return Band(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
        low, high = np.percentile(resampled, _PERCENTILES, axis=0)
        return Band(mean, low, high)

    def _area(
        self, direction: Direction, method: str, metric: Metric, axis: Axis
    ) -> tuple[Array, Array]:
        heights = self._upward(direction, method, metric) @ trapezoid_weights(
            np.array(self.q), axis
        )
        return adjusted(heights, *self._ends(metric), self._draws)


def trapezoid_weights(q: Float[Array, " n"], axis: Axis) -> Float[Array, " n"]:
    """Return weights that turn a curve into its mean height by the trapezoid rule.

    Parameters
    ----------
    q
        Ascending shares of features, from 0 to 1.
    axis
        "linear": over q. "log": the given steps are equally far apart, which for the usual
        steps is about logarithmic and gives small circuits most of the weight.

    Returns
    -------
    Array
        One weight per step; they sum to 1.

    Raises
    ------
    OptionError
        When there is no such axis.
    """
    check_choice("axis", axis, get_args(Axis))
    positions = q if axis == "linear" else np.linspace(0.0, 1.0, len(q))
    widths = np.diff(positions)
    weights = np.zeros(len(q))
    weights[:-1] += widths / 2
    weights[1:] += widths / 2
    return weights / weights.sum()


def resamples(n_images: int, seed: int = 0) -> Float[Array, "n_resamples n_images"]:
    """Return how often each bootstrap resample draws each image, as shares that sum to 1."""
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(n_images, np.full(n_images, 1 / n_images), N_RESAMPLES)
    return draws / n_images


def adjusted(
    values: Float[Array, "n_images *steps"],
    empty: Float[Array, " n_images"],
    full: Float[Array, " n_images"],
    draws: Float[Array, "n_resamples n_images"],
) -> tuple[Float[Array, " *steps"], Float[Array, "n_resamples *steps"]]:
    """Put means over images on a scale where the empty model is 0 and the full one 1.

    The ratio is taken of means, not the mean of ratios: an image on which the empty and the
    full model hardly differ then counts little, and not without bound.

    Parameters
    ----------
    values
        Per image: one number or a curve.
    empty, full
        Per image: the value with every feature replaced, and with none.
    draws
        From `resamples`.

    Returns
    -------
    value
        Over all images; NaN where the full model is not above the empty one with confidence:
        a share of no span would mean nothing.
    resampled
        The same for each resample.
    """
    span = full.mean() - empty.mean()
    spans = draws @ full - draws @ empty
    if span <= 0 or np.percentile(spans, _PERCENTILES[0]) <= 0:
        return np.full(values.shape[1:], np.nan), np.full((len(draws), *values.shape[1:]), np.nan)
    above = (values.T - empty).T
    scale = spans.reshape(-1, *[1] * (values.ndim - 1))
    return above.mean(axis=0) / span, draws @ above / scale


def interval(value: float, resampled: Float[Array, " n_resamples"], n_images: int) -> Estimate:
    """Return a value with the 95 % percentile interval of its resamples."""
    if n_images < 2 or np.isnan(value):
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.nanpercentile(resampled, _PERCENTILES)
    return Estimate(float(value), float(low), float(high))

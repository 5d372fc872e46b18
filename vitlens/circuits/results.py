"""Insertion and deletion curves: the measured values, their means, areas and file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.circuits.areas import (
    Array,
    Axis,
    Estimate,
    adjusted,
    interval,
    resamples,
    trapezoid_weights,
)
from vitlens.errors import CheckpointError, FeatureError, near_matches
from vitlens.io import read_result, write_tensors
from vitlens.repr import ShapeRepr

Direction: TypeAlias = Literal["insertion", "deletion"]
Metric: TypeAlias = Literal["target", "logit", "probability", "top1"]

#: What is recorded of every run, in the order of the last axis of stored arrays.
METRICS: tuple[Metric, ...] = get_args(Metric)

_SHOWN_SHARES = (0.02, 0.1)

_FORMAT = "vitlens.curves"
_VERSION = 1


class Band(NamedTuple):
    """A mean curve with its 95 % interval over images, each [q]."""

    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False, repr=False)
class Curves(ShapeRepr):
    """What is left of the output when only some features are kept, or some are taken away.

    Attributes
    ----------
    methods
        Who ranked the features.
    q
        Shares of the largest layer's dictionary, ascending from 0 to 1.
    counts
        The same as numbers of features a layer; a smaller layer is used up earlier.
    insertion
        By metric, [method, image, q]: the top features kept, all others at their baseline.
        Metrics are ``target`` (what was explained), ``logit`` and ``probability`` of the class,
        ``top1`` (1 where the class is first, else 0).
    deletion
        Likewise, with the top features at their baseline and all others kept.
    untouched
        By metric, [image]: the model itself.
    images
        Which of the given images were measured; misclassified ones are left out.
    n_given
        How many images were given.
    errors
        What error nodes held: "clean", "free" or "baseline".
    target
        What was explained.
    settings
        The rest of how the curves were made; anything that JSON can hold.
    """

    methods: tuple[str, ...]
    q: tuple[float, ...]
    counts: tuple[int, ...]
    insertion: Mapping[str, Float[Tensor, "method image q"]]
    deletion: Mapping[str, Float[Tensor, "method image q"]]
    untouched: Mapping[str, Float[Tensor, " image"]]
    images: tuple[int, ...]
    n_given: int
    errors: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def values(
        self, direction: Direction, method: str, metric: Metric = "target"
    ) -> Float[Array, "image q"]:
        """Return what was measured, by image and step.

        Raises
        ------
        FeatureError
            When there is no such direction, method or metric.
        """
        for what, name, known in (
            ("direction", direction, get_args(Direction)),
            ("method", method, self.methods),
            ("metric", metric, METRICS),
        ):
            if name not in known:
                raise FeatureError(
                    f"These curves have no {what} {name!r}, only {', '.join(known)}."
                    f"{near_matches(name, known)}"
                )
        curves = self.insertion if direction == "insertion" else self.deletion
        return curves[metric][self.methods.index(method)].double().numpy()

    def mean(
        self, direction: Direction, method: str, metric: Metric = "target"
    ) -> Float[Array, " q"]:
        """Return the mean curve over images, in the metric's own units."""
        return self.values(direction, method, metric).mean(axis=0)

    def band(self, direction: Direction, method: str, metric: Metric = "target") -> Band:
        """Return the adjusted mean curve, empty model 0 and full model 1, with its interval.

        All NaN where the full model is not above the empty one with confidence.
        """
        values = self.values(direction, method, metric)
        mean, resampled = adjusted(values, *self._ends(metric), self._draws)
        if len(self.images) < 2 or np.isnan(mean).any():
            return Band(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
        low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
        return Band(mean, low, high)

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
            What to follow.
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
            When there is no such direction, method, metric or axis.
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
        """Return how far the full model is above the empty one, in the metric's own units."""
        empty, full = self._ends(metric)
        spans = full - empty
        return interval(float(spans.mean()), self._draws @ spans, len(self.images))

    def table(self, *, metric: Metric = "target", axis: Axis = "linear") -> str:
        """Return a markdown table of the areas of every method.

        Columns are the areas, how much is kept with 2 % and 10 % of the features where those are
        among the steps, and the insertion area as a multiple of CLA's where that was measured.
        """
        shares = [q for q in _SHOWN_SHARES if q in self.q]
        show_ratio = "cla" in self.methods
        head = ["method", "insertion ↑", "deletion ↓"]
        head += [f"kept with {100 * q:.0f} %" for q in shares] + ["insertion / CLA's"] * show_ratio
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
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
            lines.append(cells)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def __str__(self) -> str:
        n, skipped = len(self.images), self.n_given - len(self.images)
        head = f"{n} image{'s' * (n != 1)}"
        if skipped:
            head += f" ({skipped} misclassified and left out)"
        head += f", target: {self.target}, error nodes: {self.errors}, 95 % intervals over images"
        span = f"full model above empty model: {self.span()}"
        if np.isnan(self.area("insertion", self.methods[0]).value):
            span += "; too little for areas to mean anything"
        return "\n\n".join(
            [
                f"{head}\n{span}",
                f"Share of features linear:\n{self.table()}",
                f"Share of features logarithmic:\n{self.table(axis='log')}",
            ]
        )

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
        tensors = {f"{part}.{m}": values[m] for part, values in parts.items() for m in METRICS}
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "methods": list(self.methods),
            "q": list(self.q),
            "counts": list(self.counts),
            "images": list(self.images),
            "n_given": self.n_given,
            "errors": self.errors,
            "target": self.target,
            "settings": dict(self.settings),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Curves:
        """Read curves that `save` wrote. Nothing in the file is ever executed.

        Raises
        ------
        CheckpointError
            When the file is missing, damaged, a pickle, or holds something else.
        """
        tensors, metadata = read_result(path, what="curves", format=_FORMAT, version=_VERSION)
        try:
            curves = cls(
                methods=tuple(metadata["methods"]),
                q=tuple(metadata["q"]),
                counts=tuple(metadata["counts"]),
                insertion={m: tensors[f"insertion.{m}"] for m in METRICS},
                deletion={m: tensors[f"deletion.{m}"] for m in METRICS},
                untouched={m: tensors[f"untouched.{m}"] for m in METRICS},
                images=tuple(metadata["images"]),
                n_given=metadata["n_given"],
                errors=metadata["errors"],
                target=metadata["target"],
                settings=metadata["settings"],
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} holds damaged curves: {error!r}.") from error
        whole = (len(curves.methods), len(curves.images), len(curves.q))
        due = {name: whole[1:2] if name.startswith("untouched.") else whole for name in tensors}
        for name, shape in due.items():
            if tensors[name].shape != shape:
                raise CheckpointError(
                    f"{path} holds damaged curves: {name} of shape {tuple(tensors[name].shape)} "
                    f"where {shape} is due."
                )
        return curves

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Curves):
            return NotImplemented
        tensors = ("insertion", "deletion", "untouched")
        plain = ("methods", "q", "counts", "images", "n_given", "errors", "target", "settings")
        return all(getattr(self, name) == getattr(other, name) for name in plain) and all(
            torch.equal(getattr(self, name)[m], getattr(other, name)[m])
            for name in tensors
            for m in METRICS
        )

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _draws(self) -> Float[Array, "n_resamples image"]:
        return resamples(len(self.images))

    def _ends(self, metric: Metric) -> tuple[Array, Array]:
        """Return each image's value of the empty and of the full model, any method's."""
        values = self.values("insertion", self.methods[0], metric)
        return values[:, 0], values[:, -1]

    def _area(
        self, direction: Direction, method: str, metric: Metric, axis: Axis
    ) -> tuple[Array, Array]:
        heights = self.values(direction, method, metric) @ trapezoid_weights(np.array(self.q), axis)
        return adjusted(heights, *self._ends(metric), self._draws)

"""Areas under curves, with confidence intervals over images: arithmetic on arrays."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vitlens.errors import FeatureError

Axis: TypeAlias = Literal["linear", "log"]
Array: TypeAlias = NDArray[np.float64]

#: Resamples of the images behind every interval.
N_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)


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
        One weight a step; they sum to 1.

    Raises
    ------
    FeatureError
        When there is no such axis.
    """
    if axis not in get_args(Axis):
        raise FeatureError(f"axis must be one of {', '.join(get_args(Axis))}, not {axis!r}.")
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

"""What a circuit carries: the answer that its features give alone, and the answer without them.

With r(S) the target of a replaced run that keeps the features S and puts all others at their
baselines, C the circuit's features, and error nodes held as stated::

    alone   = (r(C) - r(empty)) / (r(all) - r(empty))                              (42)
    without = (r(all but C) - r(empty)) / (r(all) - r(empty))

1 is the full model's own answer; above 1 is as wrong as below. A circuit explains an image only if
the same features do not give the same answer for any other image. So its features are kept on an
image j of another class, and the change is measured on the scale of the circuit's own image::

    alone_j = (r_j(C) - r_j(empty)) / (r(all) - r(empty))                          (46)

Source: docs/method.md, "What a circuit carries" and "Specificity".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitlens.circuits.curves import Estimate, interval, resamples
from vitlens.errors import FeatureError
from vitlens.method.importance import Target
from vitlens.method.replacement import (
    BaselineKind,
    ErrorNodes,
    KeepFeatures,
    ReplacementModel,
    Trace,
)

#: Ratios of `Specificity` below which a circuit is specific, and from which it explains nothing.
SPECIFIC, NO_EXPLANATION = 0.2, 0.5

#: A circuit that carries less than this alone does not give the answer for its own image.
LEAST_ANSWER = 0.1

# A distance of the full from the empty model that is smaller than this part of the logits' spread
# is no scale to measure shares on.
_LEAST_SPAN = 1e-4


@dataclass(frozen=True)
class Carried:
    """How much of the answer a circuit carries.

    Shares are NaN where the full model's target is not clearly above the empty model's.

    Attributes
    ----------
    alone, without
        The target with only the circuit's features kept, and with all others kept, as shares
        between the empty model (0) and the full one (1).
    errors
        The error nodes' own part: the target with no feature kept, on a scale where 0 has the
        error nodes at their baselines as well. None where error nodes are not "clean", and where
        the full model is not clearly above that.
    divergence
        Kullback-Leibler divergence of the class probabilities of the circuit alone from the
        model's, in nats.
    top1
        Whether the explained class comes first in the circuit alone.
    empty, full
        The target of the empty and of the full model.
    n_features
        Features kept, by site.
    error_nodes
        Values of the error nodes in all runs.
    baselines
        Kind of the baselines.
    """

    alone: float
    without: float
    errors: float | None
    divergence: float
    top1: bool
    empty: float
    full: float
    n_features: tuple[int, ...]
    error_nodes: ErrorNodes
    baselines: BaselineKind

    @property
    def distance(self) -> float:
        """How far `alone` is from 1, above or below."""
        return abs(self.alone - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN as None."""
        values = {**asdict(self), "n_features": list(self.n_features)}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Carried:
        """Read what `to_dict` gave."""
        found = dict(values) | {"n_features": tuple(values["n_features"])}
        for name in ("alone", "without"):
            found[name] = math.nan if found[name] is None else found[name]
        return cls(**found)

    def __str__(self) -> str:
        protocol = f"error nodes: {self.error_nodes}, baselines: {self.baselines}"
        if math.isnan(self.alone):
            return (
                f"alone and without: no share, as the full model's target ({self.full:.3f}) is not "
                f"clearly above the empty model's ({self.empty:.3f}); {protocol}"
            )
        own = "" if self.errors is None else f"; error nodes by themselves {self.errors:z.2f}"
        return (
            f"alone {self.alone:z.2f} ({self.distance:.2f} from the full answer), without "
            f"{self.without:z.2f}{own}\n"
            f"class {'stays' if self.top1 else 'does not stay'} first alone, divergence "
            f"{self.divergence:.2f} nats; {protocol}"
        )


def carried(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    masks: Sequence[Bool[Tensor, " F"]],
    *,
    error_nodes: ErrorNodes = "clean",
) -> Carried:
    """Measure what features carry, equation (42): three replaced runs, four with clean errors.

    Parameters
    ----------
    replacement, trace, target
        The model, the trace of one image, and the target.
    masks
        By site, True for the circuit's features, [F_i].
    error_nodes
        Values of the error nodes.

    Raises
    ------
    OptionError
        If `error_nodes` is unknown.
    """
    rows = [torch.stack([mask, ~mask, torch.zeros_like(mask)]) for mask in masks]
    full_logits = trace.logits
    if error_nodes in ("baseline", "zero"):
        rows = [torch.cat([row, torch.ones_like(row[:1])]) for row in rows]
    logits = replacement.run(trace, KeepFeatures(rows), error_nodes=error_nodes)
    if error_nodes in ("baseline", "zero"):
        full_logits = logits[3]
    alone, without, empty = (float(target.function(row)) for row in logits[:3])
    full = float(target.function(full_logits))
    own = None
    if error_nodes == "clean":
        nothing = KeepFeatures([torch.zeros_like(mask) for mask in masks])
        bare = replacement.run(trace, nothing, error_nodes="baseline")[0]
        lowest = float(target.function(bare))
        own = _share(empty, lowest, full, full_logits)
        own = None if math.isnan(own) else own
    index = int(trace.logits.argmax()) if target.index is None else target.index
    return Carried(
        alone=_share(alone, empty, full, full_logits),
        without=_share(without, empty, full, full_logits),
        errors=own,
        divergence=float(divergence(trace.logits, logits[0])),
        top1=int(logits[0].argmax()) == index,
        empty=empty,
        full=full,
        n_features=tuple(int(mask.sum()) for mask in masks),
        error_nodes=error_nodes,
        baselines=replacement.baselines.kind,
    )


def divergence(model: Float[Tensor, " C"], logits: Float[Tensor, "*n C"]) -> Float[Tensor, "*n"]:
    """Kullback-Leibler divergence of runs' class probabilities from the model's, in nats.

    Parameters
    ----------
    model
        Logits of the model, [C].
    logits
        Logits of the runs, [..., C].
    """
    log_p, log_q = model.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)  # not below 0 by rounding


@dataclass(frozen=True)
class Specificity:
    """Whether a circuit gives this answer for this image, or for any.

    Attributes
    ----------
    alone
        What the circuit carries alone on its own image.
    others
        The same features on images of other classes, equation (46), one number per image.
    random
        Random sets of as many active features per site, alone on the circuit's own image.
    top1_others
        Share of the other images on which the explained class comes first in the circuit alone.
    images
        Which of the given images were of another class.
    target
        The explained target.
    error_nodes, baselines
        The protocol.
    """

    alone: float
    others: tuple[float, ...]
    random: tuple[float, ...]
    top1_others: float
    images: tuple[int, ...]
    target: str
    error_nodes: ErrorNodes
    baselines: BaselineKind

    @property
    def mean_other(self) -> Estimate:
        """Mean over the other images, with its 95 % bootstrap interval."""
        values = np.array(self.others)
        return interval(float(values.mean()), resamples(len(values)) @ values, len(values))

    @property
    def ratio(self) -> float:
        """Mean of the others, divided by `alone`; NaN where that is below 0.1."""
        return self.mean_other.value / self.alone if self.alone >= LEAST_ANSWER else math.nan

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if math.isnan(self.alone):
            return "No verdict: the full model's target is not clearly above the empty model's."
        if math.isnan(self.ratio):
            return "The circuit does not give the answer for its own image."
        if self.ratio >= NO_EXPLANATION:
            return "The circuit gives the answer for any image: it is no explanation."
        if self.ratio >= SPECIFIC:
            return "The circuit is partly specific: it gives some of the answer for other images."
        return "The circuit is specific to its image."

    def __str__(self) -> str:
        n = len(self.others)
        own = "" if math.isnan(self.ratio) else f" ({self.ratio:z.2f} of its own)"
        lines = [
            f"{self.target}: alone {self.alone:z.2f} on its own image",
            f"{n} image{'s' * (n != 1)} of other classes: {self.mean_other}{own}; "
            f"class first on {self.top1_others:.0%}",
        ]
        if self.random:
            mean = sum(self.random) / len(self.random)
            lines.append(f"{len(self.random)} random sets of the same size: {mean:z.2f}")
        lines.append(f"{self.verdict} Error nodes: {self.error_nodes}, baselines: {self.baselines}")
        return "\n".join(lines)


def specificity(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    masks: Sequence[Bool[Tensor, " F"]],
    others: Iterable[tuple[int, Trace]],
    *,
    n_random: int = 8,
    seed: int = 0,
    error_nodes: ErrorNodes = "clean",
    batch_size: int = 8,
) -> Specificity:
    """Keep a circuit's features on images of other classes, equation (46).

    Parameters
    ----------
    replacement, trace, target, masks, error_nodes
        As for `carried`.
    others
        Images of other classes, at least one: their numbers, for the result, and their traces.
    n_random
        Number of random sets of the same size on the circuit's own image.
    seed
        Seed of the random sets.
    batch_size
        Runs per batch.

    Raises
    ------
    FeatureError
        If there is no other image, or `n_random` or `batch_size` is out of range.
    """
    if n_random < 0:
        raise FeatureError(f"n_random must be at least 0, not {n_random}.")
    if batch_size < 1:
        raise FeatureError(f"The batch size must be at least 1, not {batch_size}.")
    own = carried(replacement, trace, target, masks, error_nodes=error_nodes)
    index = int(trace.logits.argmax()) if target.index is None else target.index
    numbers, shares, first = [], [], []
    for number, other in others:
        numbers.append(number)
        rows = KeepFeatures([torch.stack([mask, torch.zeros_like(mask)]) for mask in masks])
        kept, empty = replacement.run(other, rows, error_nodes=error_nodes)
        change = float(target.function(kept)) - float(target.function(empty))
        shares.append(_share(change, 0.0, own.full - own.empty, trace.logits))
        first.append(int(kept.argmax()) == index)
    if not numbers:
        raise FeatureError(
            f"There is no image of another class than {target.name!r} among those given; "
            "specificity needs at least one."
        )
    random = []
    for start in range(0, n_random, batch_size):
        seeds = [(seed, number) for number in range(start, min(start + batch_size, n_random))]
        sets = _random_sets(trace, masks, seeds)
        logits = replacement.run(trace, KeepFeatures(sets), error_nodes=error_nodes)
        random += [
            _share(float(target.function(row)), own.empty, own.full, trace.logits) for row in logits
        ]
    return Specificity(
        alone=own.alone,
        others=tuple(shares),
        random=tuple(random),
        top1_others=sum(first) / len(first),
        images=tuple(numbers),
        target=target.name,
        error_nodes=error_nodes,
        baselines=replacement.baselines.kind,
    )


def _random_sets(
    trace: Trace, masks: Sequence[Bool[Tensor, " F"]], seeds: Sequence[tuple[int, int]]
) -> list[Bool[Tensor, "n F"]]:
    """Random sets of as many features as each mask has, among those active on the image.

    Each set has its own seed, so that it does not depend on the batch it is in.
    """
    generators = [np.random.default_rng(seed) for seed in seeds]
    sets = []
    for features, mask in zip(trace.features, masks, strict=True):
        active = (features > 0).any(0).nonzero()[:, 0].cpu().numpy()
        size = min(int(mask.sum()), len(active))
        rows = mask.new_zeros(len(seeds), len(mask))
        for row, generator in zip(rows, generators, strict=True):
            row[torch.from_numpy(generator.choice(active, size, replace=False))] = True
        sets.append(rows)
    return sets


def _share(value: float, low: float, high: float, logits: Float[Tensor, " C"]) -> float:
    """Where a value is between two others; NaN where these are not apart."""
    spread = float(logits.double().std(unbiased=False))
    if not high - low > _LEAST_SPAN * max(spread, 1e-12):
        return math.nan
    return (value - low) / (high - low)

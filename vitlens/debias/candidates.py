"""Features that may carry the attribute and not the class, with the evidence for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.debias.groups import GroupedImages
from vitlens.errors import FeatureError
from vitlens.saes.base import FeatureId

DIFFERENCE, CIRCUIT, PICKED = "activation difference", "circuit", "picked"


@dataclass(frozen=True)
class Candidate:
    """A feature that may carry the attribute.

    Attributes
    ----------
    layer, feature
        The feature.
    sources
        Where the candidate comes from: "activation difference", "circuit", "picked".
    attribute
        The attribute value on which it is more active; "not x" for a feature that is more active
        on all of three or more values except x.
    effect
        Cohen's d of its mean activation on images of this value against the others, within
        class, averaged over the classes with at least two images of either; 0 without such a class.
    auc
        Probability that an image of this value has the higher activation, within class, averaged
        over classes; .5 is chance.
    p_value
        P-value of the stratified rank sum test, not corrected, and as if images were independent:
        those that share an object or a background are not.
    q_value
        The p-value with the false discovery rate controlled over all features of all layers
        (Benjamini and Hochberg 1995).
    class_effect
        Cohen's d for the class, within attribute value.
    share
        With "circuit", mean share of the node in the circuits; otherwise 0.
    relief
        First-order change of the margin, in logits, when the feature is removed; mean over the
        images that are classified wrongly. `debias` ranks candidates by it.
    """

    layer: int
    feature: int
    sources: tuple[str, ...]
    attribute: str
    effect: float
    auc: float
    p_value: float
    q_value: float
    class_effect: float
    share: float = 0.0
    relief: float = 0.0

    @property
    def key(self) -> FeatureId:
        """(layer, feature)."""
        return self.layer, self.feature

    @property
    def score(self) -> float:
        """Effect of the attribute minus effect of the class, in standard deviations."""
        return abs(self.effect) - abs(self.class_effect)


@dataclass(frozen=True)
class Differences:
    """How activations differ between the values of one variable, within strata of another.

    Attributes
    ----------
    effect, auc, p_value
        See `Candidate`; [F].
    value
        The value that differs most from the others, [F].
    without
        Whether the other values are higher than this one, and the figures are those of the
        others, [F]; always false for two values, of which the higher one is named.
    """

    effect: Float[np.ndarray, " F"]
    auc: Float[np.ndarray, " F"]
    p_value: Float[np.ndarray, " F"]
    value: Int[np.ndarray, " F"]
    without: Bool[np.ndarray, " F"]


def differences(
    activations: Float[Tensor, "n F"], values: Int[Tensor, " n"], strata: Int[Tensor, " n"]
) -> Differences:
    """Compare each value with all others, stratum by stratum, and keep the one that differs most.

    Two values give one comparison; with more, p-values are multiplied by their number
    (Bonferroni). The largest difference counts, whether it is higher or lower.

    Parameters
    ----------
    activations
        One number per image and feature, [n, F].
    values
        The variable of interest, [n].
    strata
        The variable that is held fixed, [n].

    Notes
    -----
    Rank sums are combined over strata with weights 1 / (n + 1) (van Elteren 1960), corrected for
    ties. Ranks count in every stratum with both sides, Cohen's d only where both sides have two
    images or more: one image has no spread, and a gap over almost no spread would outweigh all
    other strata.
    """
    x, v, s = activations.double().numpy(), values.numpy(), strata.numpy()
    levels = np.unique(v)
    found = [
        _one_against_others(x, v == level, s)
        for level in (levels[1:] if len(levels) == 2 else levels)
    ]
    effect, auc, p = (np.stack([part[i] for part in found]) for i in range(3))
    best = np.abs(effect).argmax(0)
    take = (best, np.arange(x.shape[1]))
    up, two = effect[take] > 0, len(levels) == 2
    return Differences(
        np.abs(effect[take]),
        np.where(up, auc[take], 1 - auc[take]),
        np.minimum(1, p[take] * len(found)),
        np.where(up, levels[1], levels[0]) if two else levels[best],
        np.zeros_like(up) if two else ~up,
    )


def _one_against_others(
    x: Float[np.ndarray, "n F"], chosen: np.ndarray, strata: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cohen's d, AUC and p-value of every column; strata with one side only are left out."""
    from scipy.stats import norm, rankdata

    n_columns = x.shape[1]
    effects, aucs = [], []
    statistic, variance = np.zeros(n_columns), np.zeros(n_columns)
    for stratum in np.unique(strata):
        part, side = x[strata == stratum], chosen[strata == stratum]
        n_in, n = int(side.sum()), len(side)
        if not 0 < n_in < n:
            continue
        if 2 <= n_in <= n - 2:
            effects.append(_cohens_d(part[side], part[~side]))
        ranks = rankdata(part, axis=0)
        u = ranks[side].sum(0) - n_in * (n_in + 1) / 2
        aucs.append(u / (n_in * (n - n_in)))
        # Variance of a rank sum with ties: n_in n_out / n times the variance of the ranks.
        tied = n_in * (n - n_in) / n * ranks.var(0, ddof=1)
        weight = 1 / (n + 1)
        statistic += weight * (u - n_in * (n - n_in) / 2)
        variance += weight**2 * tied
    if not aucs:
        return np.zeros(n_columns), np.full(n_columns, 0.5), np.ones(n_columns)
    effect = np.mean(effects, 0) if effects else np.zeros(n_columns)
    z = np.divide(statistic, np.sqrt(variance), out=np.zeros(n_columns), where=variance > 0)
    return effect, np.mean(aucs, 0), 2 * norm.sf(np.abs(z))


def _cohens_d(a: Float[np.ndarray, "p F"], b: Float[np.ndarray, "q F"]) -> np.ndarray:
    """Difference of the means over the pooled standard deviation, [F]."""
    gap = a.mean(0) - b.mean(0)
    pooled = (a.var(0) * len(a) + b.var(0) * len(b)) / (len(a) + len(b) - 2)
    # A feature that is constant on both sides would differ by 0 or by infinity.
    spread = np.sqrt(np.maximum(pooled, (1e-3 * np.abs(gap)) ** 2))
    return np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)


def find_candidates(
    activations: Mapping[int, Float[Tensor, "n F"]],
    groups: GroupedImages,
    *,
    alpha: float = 0.01,
    at_most: int | None = None,
    circuits: Mapping[FeatureId, float] | None = None,
    picks: Iterable[FeatureId] = (),
) -> tuple[Candidate, ...]:
    """Rank the features that depend more on the attribute than on the class.

    Parameters
    ----------
    activations
        For each layer, mean activation over tokens of every image and feature, [n, F_l].
    groups
        The images.
    alpha
        False discovery rate over all features of all these layers.
    at_most
        Most candidates by activation difference; by default all.
    circuits
        Features found in circuits, with their mean shares.
    picks
        Features to add in any case.

    Returns
    -------
    tuple of Candidate
        By `Candidate.score`, the highest first. Features of circuits that depend more on the
        class are left out, picks never.

    Raises
    ------
    GroupError
        If a group is empty, or the attribute is identical to the class.
    FeatureError
        If a picked feature does not exist in these layers.
    """
    from scipy.stats import false_discovery_control

    groups.check()
    circuits = circuits or {}
    chosen = _checked_picks(picks, activations)
    layers = sorted(activations)
    of_attribute = [differences(activations[x], groups.attributes, groups.labels) for x in layers]
    of_class = [differences(activations[x], groups.labels, groups.attributes) for x in layers]
    adjusted = false_discovery_control(np.concatenate([found.p_value for found in of_attribute]))
    everything: dict[FeatureId, Candidate] = {}
    start = 0
    for layer, found, other in zip(layers, of_attribute, of_class, strict=True):
        for feature in range(len(found.effect)):
            value = groups.attribute_names[int(found.value[feature])]
            everything[layer, feature] = Candidate(
                layer,
                feature,
                (),
                f"not {value}" if found.without[feature] else value,
                float(found.effect[feature]),
                float(found.auc[feature]),
                float(found.p_value[feature]),
                float(adjusted[start + feature]),
                float(other.effect[feature]),
                circuits.get((layer, feature), 0.0),
            )
        start += len(found.effect)
    different = [c for c in everything.values() if c.q_value <= alpha and c.score > 0]
    different.sort(key=lambda c: -c.score)
    sources: dict[FeatureId, list[str]] = {c.key: [DIFFERENCE] for c in different[:at_most]}
    for key in circuits:
        if key in everything and everything[key].score > 0:
            sources.setdefault(key, []).append(CIRCUIT)
    for key in chosen:
        sources.setdefault(key, []).append(PICKED)
    ranked = [replace(everything[key], sources=tuple(names)) for key, names in sources.items()]
    return tuple(sorted(ranked, key=lambda c: -c.score))


def _checked_picks(
    picks: Iterable[FeatureId], activations: Mapping[int, Float[Tensor, "n F"]]
) -> Sequence[FeatureId]:
    chosen = [(int(layer), int(feature)) for layer, feature in picks]
    for layer, feature in chosen:
        if layer not in activations or not 0 <= feature < activations[layer].shape[1]:
            raise FeatureError(
                f"Layers {', '.join(map(str, sorted(activations)))} have no feature "
                f"{layer}/{feature}. Does it belong to another lens?"
            )
    return list(dict.fromkeys(chosen))


def conflicting(
    groups: GroupedImages, logits: Float[Tensor, "n C"], *, n: int
) -> Int[Tensor, " m"]:
    """Indices of the most wrong images of the group with the lowest accuracy, at most `n`."""
    right = (logits.argmax(1) == groups.labels).double()
    accuracy = torch.stack(
        [right[groups.groups == g].mean() for g in range(len(groups.group_names))]
    )
    members = (groups.groups == int(accuracy.nan_to_num(2.0).argmin())).nonzero().squeeze(1)
    own = logits[members].gather(1, groups.labels[members, None]).squeeze(1)
    return members[(own - logits[members].logsumexp(1)).argsort()[:n]]

"""Group accuracies for one choice of features after another, as an interactive view asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.debias.groups import GroupedImages
from vitlens.debias.removal import Removal
from vitlens.debias.report import GroupReport, TradeOff, group_report
from vitlens.debias.runs import ABLATED, GroupRuns
from vitlens.errors import FeatureError
from vitlens.interventions.kinds import FeatureId
from vitlens.lens_base import LensBase

#: Told the figures of the images so far, and their share, 0 to 1; what it raises ends the work.
Watch = Callable[[GroupReport, float], None]

_FIRST = 4  # images before the first figures


class LiveReports:
    """Accuracy by group without the chosen features; what was asked before is remembered.

    Parameters
    ----------
    lens
        The classifier.
    groups
        Images to report on; they are run once, here.
    layers
        Layers whose features can be chosen.
    removal
        How features are taken out.
    settings
        As for `GroupRuns`.

    Raises
    ------
    GroupError
        If a group is empty, or attribute and class are the same.
    FeatureError
        If there is no such layer.
    """

    def __init__(
        self,
        lens: LensBase,
        groups: GroupedImages,
        layers: Sequence[int],
        *,
        removal: Removal = ABLATED,
        **settings: Any,
    ):
        groups.check()
        self.removal, self.groups = removal, groups
        self.runs = GroupRuns(lens, groups, layers, **settings)
        self.before = group_report("nothing", self.runs.logits, groups)
        self._known: dict[frozenset[FeatureId], GroupReport] = {frozenset(): self.before}
        self._order = _evenly(groups)

    def check(self, feature: FeatureId) -> None:
        """Raise `FeatureError` unless this is a feature of a layer that is kept."""
        layer, column = feature
        if layer not in self.runs.layers:
            raise FeatureError(
                f"There are features of layers {', '.join(map(str, self.runs.layers))} to choose "
                f"from, not of layer {layer}."
            )
        size = self.runs.lens.saes[layer].n_features
        if not 0 <= column < size:
            raise FeatureError(f"Layer {layer} has features 0 to {size - 1}; there is no {column}.")

    def known(self, chosen: Iterable[FeatureId]) -> GroupReport | None:
        """Return the report of a choice that was evaluated before, or None."""
        return self._known.get(frozenset(chosen))

    def learn(self, path: Sequence[FeatureId], curve: TradeOff) -> bool:
        """Take over reports along a path, if they are of these images; say whether they are.

        Parameters
        ----------
        path, curve
            Of a `Debiasing`.
        """
        first = curve.reports[0]
        if first.n_features or not _same(first, self.before):
            return False
        for report in curve.reports:
            self._known.setdefault(frozenset(path[: report.n_features]), report)
        return True

    def evaluate(self, chosen: Iterable[FeatureId], *, watch: Watch | None = None) -> GroupReport:
        """Report on all images without the chosen features.

        Parameters
        ----------
        chosen
            (layer, feature) of each.
        watch
            Called after every batch.

        Raises
        ------
        FeatureError
            If a feature does not exist, or is of a layer that is not kept.
        """
        features = tuple(dict.fromkeys(chosen))
        found = self.known(features)
        if found is not None:
            return found
        logits = torch.empty_like(self.runs.logits)
        done = 0
        parts = self.runs.without_in_parts(
            features, self._order, removal=self.removal, first=_FIRST
        )
        for index, part in parts:
            logits[index] = part
            done += len(index)
            if watch is not None:
                seen = self._order[:done]
                so_far = self._report(logits[seen], self.groups.subset(seen), features)
                watch(so_far, done / len(self.groups))
        report = self._report(logits, self.groups, features)
        self._known[frozenset(features)] = report
        return report

    def _report(
        self, logits: Float[Tensor, "m C"], groups: GroupedImages, features: Sequence[FeatureId]
    ) -> GroupReport:
        return group_report("removed", logits, groups, n_features=len(features))


def _evenly(groups: GroupedImages) -> Int[Tensor, " n"]:
    """An order in which the images so far have all groups in about the proportions of all.

    One image of every group comes first, so that there are figures of every group at once.
    """
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(groups), generator=generator)
    of = groups.groups[shuffled]
    earlier = torch.nn.functional.one_hot(of, len(groups.counts)).cumsum(0)
    rank = earlier.gather(1, of[:, None]).squeeze(1) - 1
    return shuffled[(rank / groups.counts[of]).argsort(stable=True)]


def _same(a: GroupReport, b: GroupReport) -> bool:
    return (
        a.group_names == b.group_names
        and torch.equal(a.count, b.count)
        and torch.equal(a.right, b.right)
    )


def wilson(right: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927), by scipy; as if images independent.

    Parameters
    ----------
    right, count
        Images classified correctly, and images; at least one.
    """
    from scipy.stats import binomtest

    found = binomtest(round(right), round(count)).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)

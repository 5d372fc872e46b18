"""Accuracy by group, and how it changes with the number of features removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.debias.groups import GroupedImages
from vitlens.tables import text_table


@dataclass(frozen=True)
class GroupReport:
    """Accuracy of a classifier on every group.

    Attributes
    ----------
    name
        What was done to the classifier.
    group_names, class_names
        Names of the G groups and C classes, in order.
    right, count
        Images classified correctly, and all images, in every group, [G]; means over several runs
        have fractions.
    n_features
        Number of features removed.
    """

    name: str
    group_names: tuple[str, ...]
    class_names: tuple[str, ...]
    right: Float[Tensor, " G"]
    count: Float[Tensor, " G"]
    n_features: int = 0

    @property
    def accuracy(self) -> Float[Tensor, " G"]:
        """Accuracy of every group, NaN for an empty one, [G]."""
        return self.right / self.count

    @property
    def average(self) -> float:
        """Accuracy over all images."""
        return float(self.right.sum() / self.count.sum())

    @property
    def worst(self) -> float:
        """Accuracy of the worst group."""
        return float(self.accuracy[self.count > 0].min())

    @property
    def worst_group(self) -> str:
        """The group with the lowest accuracy."""
        return self.group_names[int(self.accuracy.nan_to_num(2.0).argmin())]

    def change(self, before: GroupReport) -> Float[Tensor, " G"]:
        """Accuracy of every group minus that of another report, [G]."""
        return self.accuracy - before.accuracy

    def collateral(self, before: GroupReport) -> dict[str, float]:
        """Groups that lost accuracy, and by how much; the largest loss first."""
        lost = zip(self.group_names, self.change(before).tolist(), strict=True)
        return dict(sorted(((name, x) for name, x in lost if x < 0), key=lambda item: item[1]))

    def by_class(self) -> dict[str, float]:
        """Accuracy of every class, over the images of all its groups."""
        shape = len(self.class_names), -1
        right, count = self.right.reshape(shape).sum(1), self.count.reshape(shape).sum(1)
        return dict(zip(self.class_names, (right / count).tolist(), strict=True))

    def __str__(self) -> str:
        return table([self])


def group_report(
    name: str, logits: Float[Tensor, "n C"], groups: GroupedImages, *, n_features: int = 0
) -> GroupReport:
    """Count the images classified correctly in every group.

    Parameters
    ----------
    logits
        Logits of the images of `groups`, in the same order.
    """
    right = logits.argmax(1).cpu() == groups.labels
    n_groups = len(groups.group_names)
    return GroupReport(
        name,
        groups.group_names,
        groups.class_names,
        torch.bincount(groups.groups[right], minlength=n_groups).double(),
        groups.counts.double(),
        n_features,
    )


def mean_report(reports: Sequence[GroupReport], name: str) -> GroupReport:
    """Average reports on the same images.

    `worst` of the result is the lowest group mean, which is at least the mean of each report's own
    `worst`.
    """
    first = reports[0]
    right = torch.stack([report.right for report in reports]).mean(0)
    return GroupReport(
        name, first.group_names, first.class_names, right, first.count, first.n_features
    )


def table(reports: Sequence[GroupReport]) -> str:
    """Lay out reports as rows: average, worst group, every group; accuracies in per cent."""
    header = ["", "features", "average", "worst", *reports[0].group_names]
    rows = [
        [
            report.name,
            str(report.n_features),
            *(f"{100 * x:.1f}" for x in (report.average, report.worst, *report.accuracy.tolist())),
        ]
        for report in reports
    ]
    return text_table(header, rows)


def wilson(right: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927), as if images were independent.

    Parameters
    ----------
    right, count
        Images classified correctly, and all images; at least one. Computed by scipy.
    """
    from scipy.stats import binomtest

    found = binomtest(round(right), round(count)).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class TradeOff:
    """Reports along a growing set of removed features; the first one is without any.

    Attributes
    ----------
    reports
        One report per number of features, in increasing order.
    """

    reports: tuple[GroupReport, ...]

    @property
    def n_features(self) -> Int[Tensor, " k"]:
        """Numbers of features removed, [k]."""
        return torch.tensor([report.n_features for report in self.reports])

    @property
    def average(self) -> Float[Tensor, " k"]:
        """Accuracy over all images, [k]."""
        return torch.tensor([report.average for report in self.reports], dtype=torch.float64)

    @property
    def worst(self) -> Float[Tensor, " k"]:
        """Accuracy of the worst group, [k]."""
        return torch.tensor([report.worst for report in self.reports], dtype=torch.float64)

    def best(self, *, max_drop: float = 0.02) -> int:
        """Position of the best worst group among those whose average drops by at most `max_drop`.

        Ties go to the highest average, then to the fewest features.
        """
        allowed = self.average >= self.average[0] - max_drop - 1e-9
        order = [
            (-round(float(worst), 9), -round(float(average), 9), i)
            for i, (worst, average) in enumerate(zip(self.worst, self.average, strict=True))
            if allowed[i]
        ]
        return min(order)[2]

    def __str__(self) -> str:
        return table(self.reports)

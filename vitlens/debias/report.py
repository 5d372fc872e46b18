"""Accuracy by group, what a change does to it, and how it goes with the number of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.debias.groups import GroupedImages


@dataclass(frozen=True)
class GroupReport:
    """How a classifier does on every group.

    Attributes
    ----------
    name
        What was done to the classifier.
    group_names, class_names
        Groups [G] and classes [C] in order.
    right, count
        Images classified correctly, and images, in every group, [G]; means over several runs
        have fractions.
    n_features
        Features changed.
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
        """Share of all images that are classified correctly."""
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
        """Groups that lost accuracy, and by how much; the greatest loss first."""
        lost = zip(self.group_names, self.change(before).tolist(), strict=True)
        return dict(sorted(((name, x) for name, x in lost if x < 0), key=lambda item: item[1]))

    def by_class(self) -> dict[str, float]:
        """Accuracy of every class, its groups' images together."""
        shape = len(self.class_names), -1
        right, count = self.right.reshape(shape).sum(1), self.count.reshape(shape).sum(1)
        return dict(zip(self.class_names, (right / count).tolist(), strict=True))

    def __str__(self) -> str:
        return table([self])


def group_report(
    name: str, logits: Float[Tensor, "n C"], groups: GroupedImages, *, n_features: int = 0
) -> GroupReport:
    """Count what is right in every group.

    Parameters
    ----------
    logits
        Of the images of `groups`, in their order.
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
    """Mean of reports on the same images.

    Its `worst` is that of the group means: at least as high as the mean of the reports' own.
    """
    first = reports[0]
    right = torch.stack([report.right for report in reports]).mean(0)
    return GroupReport(
        name, first.group_names, first.class_names, right, first.count, first.n_features
    )


def table(reports: Sequence[GroupReport]) -> str:
    """Reports as rows: average, worst group, every group; accuracies in per cent."""
    head = ["", "features", "average", "worst", *reports[0].group_names]
    rows = [
        [
            report.name,
            str(report.n_features),
            *(f"{100 * x:.1f}" for x in (report.average, report.worst, *report.accuracy.tolist())),
        ]
        for report in reports
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    )


@dataclass(frozen=True)
class TradeOff:
    """Reports along a growing set of features, the first without any.

    Attributes
    ----------
    reports
        One a number of features, in rising order.
    """

    reports: tuple[GroupReport, ...]

    @property
    def n_features(self) -> Int[Tensor, " k"]:
        """Features changed, [k]."""
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

        Of equally good ones, the one with the highest average, then the one with the fewest
        features.
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

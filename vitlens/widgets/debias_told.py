"""Reports as the debiasing panel tells them: plain numbers, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitlens.debias.report import GroupReport, TradeOff, wilson
from vitlens.interventions.kinds import FeatureId


def told(report: GroupReport, before: GroupReport, chosen: Sequence[FeatureId]) -> dict[str, Any]:
    """Return a report beside the one of the untouched model.

    Returns
    -------
    dict
        ``chosen``; ``groups`` in order, each with ``name``, ``count``, ``right``, ``accuracy``
        and its 95 % interval ``low`` to ``high`` (None without images), the same of the
        untouched model under ``before``, and ``change``; ``average`` likewise; ``worst``, the
        worst group's; ``collateral``, the groups that lost, worst first, with the change;
        ``n_images``.
    """
    rows = [
        _row(name, *now, *was)
        for name, now, was in zip(
            report.group_names,
            zip(report.right.tolist(), report.count.tolist(), strict=True),
            zip(before.right.tolist(), before.count.tolist(), strict=True),
            strict=True,
        )
    ]
    average = _row("average", *_sums(report), *_sums(before))
    known = [row for row in rows if row["accuracy"] is not None]
    lost = [row for row in known if row["change"] is not None and row["change"] < 0]
    return {
        "chosen": [list(key) for key in chosen],
        "groups": rows,
        "average": average,
        "worst": min(known, key=lambda row: row["accuracy"]),
        "worst_before": min(
            (row for row in rows if row["before"]["accuracy"] is not None),
            key=lambda row: row["before"]["accuracy"],
        ),
        "collateral": [
            [row["name"], row["change"]] for row in sorted(lost, key=lambda row: row["change"])
        ],
        "n_images": round(float(report.count.sum())),
    }


def told_curve(curve: TradeOff, order: Sequence[FeatureId], *, source: str) -> dict[str, Any]:
    """Return a trade-off curve along an order of features, and where it comes from."""
    return {
        "order": [list(key) for key in order],
        "n": curve.n_features.tolist(),
        "average": curve.average.tolist(),
        "worst": curve.worst.tolist(),
        "worst_group": [report.worst_group for report in curve.reports],
        "source": source,
    }


def _row(name: str, right: float, count: float, was_right: float, was_count: float) -> Any:
    now, was = _proportion(right, count), _proportion(was_right, was_count)
    known = now["accuracy"] is not None and was["accuracy"] is not None
    change = now["accuracy"] - was["accuracy"] if known else None
    return {"name": name, **now, "before": was, "change": change}


def _proportion(right: float, count: float) -> dict[str, Any]:
    numbers = {"right": round(right), "count": round(count)}
    if not count:
        return {**numbers, "accuracy": None, "low": None, "high": None}
    low, high = wilson(right, count)
    return {**numbers, "accuracy": right / count, "low": low, "high": high}


def _sums(report: GroupReport) -> tuple[float, float]:
    return float(report.right.sum()), float(report.count.sum())

"""Insertion and deletion curves of one image, method by method, so that they can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitlens.attribution.targets import TargetLike
from vitlens.circuits.results import Curves
from vitlens.images import ImageLike
from vitlens.lens import Lens

#: Fewer steps than a full measurement takes, small circuits among them.
Q = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)


def image_curves(
    lens: Lens,
    image: ImageLike,
    *,
    target: TargetLike,
    methods: Sequence[str],
    report: Callable[[float, str], None],
) -> Curves:
    """Measure curves on one image; see `Lens.faithfulness`.

    Parameters
    ----------
    methods
        Names of the methods.
    report
        Told how far it is, 0 to 1, and what is done, before each method; what it raises ends the
        work.
    """
    found = []
    for number, method in enumerate(methods):
        report(number / len(methods), f"curves: {method}")
        found.append(
            lens.faithfulness([image], methods=(method,), target=target, q=Q, progress=False)
        )
    return replace(
        found[0],
        methods=tuple(methods),
        insertion=_joined([curves.insertion for curves in found]),
        deletion=_joined([curves.deletion for curves in found]),
    )


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {metric: torch.cat([part[metric] for part in parts]) for metric in parts[0]}

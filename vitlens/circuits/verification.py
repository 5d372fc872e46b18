"""What came of checking edges: predicted and measured changes, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitlens.circuits.areas import N_RESAMPLES, Array, Estimate, interval
from vitlens.circuits.circuit import ERROR, TARGET
from vitlens.circuits.marks import FeatureId
from vitlens.repr import ShapeRepr

#: The nodes of an edge, or of a path: (layer, feature); feature -1 is an error node, -2 the target.
Link: TypeAlias = tuple[FeatureId, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Verification(ShapeRepr):
    """Predicted and measured changes of the target, edge by edge.

    Attributes
    ----------
    edges
        Both ends of each, (layer, feature); or the nodes of paths.
    predicted
        The edges' importances, [n], in units of the target.
    measured
        How much lower the target is when the edge alone is cut, [n], in the same units (see
        `vitlens.circuits.verify.measure_edges`).
    n_given
        How many edges there were to draw these from.
    target
        What was explained.
    settings
        How both were made; anything that JSON can hold.
    control
        The same for random edges in the same layers, or None.
    """

    edges: tuple[Link, ...]
    predicted: Float[Tensor, " n"]
    measured: Float[Tensor, " n"]
    n_given: int
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: Verification | None = None

    @cached_property
    def rank_correlation(self) -> Estimate:
        """Spearman's, with its 95 % bootstrap interval over edges; NaN where a side is constant."""
        predicted, measured = self.predicted.numpy(), self.measured.numpy()
        value = float(rank_correlation(predicted, measured))
        return interval(
            value, rank_correlation(predicted[self._draws], measured[self._draws]), len(self)
        )

    @cached_property
    def sign_agreement(self) -> Estimate:
        """Share of edges whose two changes have the same sign, with its bootstrap interval."""
        same = (self.predicted.sign() == self.measured.sign()).double().numpy()
        return interval(float(same.mean()), same[self._draws].mean(axis=1), len(self))

    def by_edge(self) -> dict[Link, tuple[float, float]]:
        """Predicted and measured change of each edge."""
        values = zip(self.predicted.tolist(), self.measured.tolist(), strict=True)
        return dict(zip(self.edges, values, strict=True))

    def by_layer(self) -> dict[int, tuple[int, float, float]]:
        """By the edges' first layer: how many, rank correlation, and sign agreement."""
        layers = np.array([edge[0][0] for edge in self.edges])
        found = {}
        for layer in sorted(set(layers.tolist())):
            mine = torch.from_numpy(layers == layer)
            p, m = self.predicted[mine], self.measured[mine]
            same = float((p.sign() == m.sign()).double().mean())
            found[layer] = (len(p), float(rank_correlation(p.numpy(), m.numpy())), same)
        return found

    @cached_property
    def _draws(self) -> NDArray[np.int64]:
        generator = np.random.default_rng(0)
        return generator.integers(len(self), size=(N_RESAMPLES, len(self)))

    def __len__(self) -> int:
        return len(self.edges)

    def __str__(self) -> str:
        lines = [
            f"{len(self)} of {self.n_given} edges, target: {self.target}, "
            f"error nodes: {self.settings.get('error_nodes', '?')}, 95 % intervals over edges",
            f"rank correlation of predicted and measured change: {self.rank_correlation}",
            f"same sign: {self.sign_agreement}",
        ]
        if self.control is not None:
            lines.append(
                f"random edges: {self.control.rank_correlation}, same sign: "
                f"{self.control.sign_agreement}; mean size {_size(self.control):.2g} where these "
                f"have {_size(self):.2g}"
            )
        lines += ["", f"{'edge':>22}  predicted  measured"]
        order = self.predicted.abs().argsort(descending=True)[:10].tolist()
        for i in order:
            name = " → ".join(_name(layer, feature) for layer, feature in self.edges[i])
            lines.append(f"{name:>22}  {self.predicted[i]:+9.3f}  {self.measured[i]:+8.3f}")
        return "\n".join(lines)


def rank_correlation(a: Float[Array, "*rows n"], b: Float[Array, "*rows n"]) -> Any:
    """Spearman's rank correlation over the last axis, [*rows]; NaN where a side is constant."""
    from scipy.stats import rankdata

    x, y = (rankdata(side, axis=-1) - (side.shape[-1] + 1) / 2 for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def _size(verification: Verification) -> float:
    return float(verification.measured.abs().mean())


def _name(layer: int, feature: int) -> str:
    if feature == TARGET:
        return "target"
    return f"{layer}/{'error' if feature == ERROR else feature}"

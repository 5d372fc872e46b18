"""The model's output before and after interventions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.interventions.kinds import Interventions
from vitlens.method.importance import TargetLike, resolve_target
from vitlens.method.replacement import BaselineKind, ErrorNodes
from vitlens.repr import ShapeRepr
from vitlens.tables import text_table

_N_SHOWN = 5
_FEW = 10  # with no more classes than this, all are printed


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(ShapeRepr):
    """The output for one image, before and after interventions.

    Attributes
    ----------
    before, after
        Logits, [C].
    class_names
        One name per class.
    interventions
        The interventions.
    error_nodes
        Value of each site's error node.
    baselines
        Kind of the baselines.
    """

    before: Float[Tensor, " C"]
    after: Float[Tensor, " C"]
    class_names: tuple[str, ...]
    interventions: Interventions
    error_nodes: tuple[ErrorNodes, ...]
    baselines: BaselineKind

    @property
    def probabilities(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Probabilities before and after."""
        return self.before.softmax(-1), self.after.softmax(-1)

    @property
    def change(self) -> Float[Tensor, " C"]:
        """Logits after minus logits before."""
        return self.after - self.before

    @property
    def top(self) -> tuple[str, str]:
        """The predicted class, before and after."""
        return self.ranking(after=False)[0][0], self.ranking()[0][0]

    @property
    def flipped(self) -> bool:
        """Whether another class is predicted."""
        return bool(self.before.argmax() != self.after.argmax())

    def ranking(self, *, after: bool = True) -> list[tuple[str, float]]:
        """Class names and probabilities, best first."""
        ordered = self.probabilities[int(after)].sort(descending=True)
        return [
            (self.class_names[i], value)
            for i, value in zip(ordered.indices.tolist(), ordered.values.tolist(), strict=True)
        ]

    def effect(self, target: TargetLike = None) -> float:
        """Change of a target: after minus before.

        Parameters
        ----------
        target
            See `Lens.importances`; by default the class predicted before: its logit minus the
            mean of all logits.

        Raises
        ------
        TargetError
            If there is no such class, or the function gives no scalar.
        """
        resolved = resolve_target(target, self.before, self.class_names)
        return float(resolved.function(self.after) - resolved.function(self.before))

    def __str__(self) -> str:
        before, after = self.probabilities
        indices = _best(self.before, self.after)
        rows = [
            (
                self.class_names[i],
                f"{before[i]:.1%} → {after[i]:6.1%}",
                f"{self.before[i]:.2f} → {self.after[i]:6.2f}",
                f"{self.change[i]:+.2f}",
            )
            for i in indices
        ]
        lines = [
            f"{self.interventions} ({_settings(self.error_nodes, self.baselines)})",
            text_table(("class", "probability", "logit", "change"), rows),
        ]
        if len(indices) < len(self.before):
            lines.append(f"and {len(self.before) - len(indices)} more classes")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class BatchOutcome(ShapeRepr):
    """The output for several images, before and after interventions; iterating gives `Outcome`s.

    Attributes
    ----------
    before, after
        Logits, [n, C].
    class_names, interventions, error_nodes, baselines
        As in `Outcome`.
    """

    before: Float[Tensor, "n C"]
    after: Float[Tensor, "n C"]
    class_names: tuple[str, ...]
    interventions: Interventions
    error_nodes: tuple[ErrorNodes, ...]
    baselines: BaselineKind

    @property
    def probabilities(self) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n C"]]:
        """Probabilities before and after."""
        return self.before.softmax(-1), self.after.softmax(-1)

    @property
    def change(self) -> Float[Tensor, "n C"]:
        """Logits after minus logits before."""
        return self.after - self.before

    @property
    def predicted(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Predicted classes before and after."""
        return self.before.argmax(-1), self.after.argmax(-1)

    @property
    def flipped(self) -> Bool[Tensor, " n"]:
        """Where another class is predicted."""
        before, after = self.predicted
        return before != after

    def __len__(self) -> int:
        return len(self.before)

    def __getitem__(self, index: int) -> Outcome:
        return Outcome(
            self.before[index],
            self.after[index],
            self.class_names,
            self.interventions,
            self.error_nodes,
            self.baselines,
        )

    def __iter__(self) -> Iterator[Outcome]:
        return (self[index] for index in range(len(self)))

    def __str__(self) -> str:
        n_flipped = int(self.flipped.sum())
        lines = [
            f"{self.interventions} ({_settings(self.error_nodes, self.baselines)})",
            f"{len(self)} images; another class is predicted for {n_flipped}.",
        ]
        counts = torch.stack([p.bincount(minlength=len(self.class_names)) for p in self.predicted])
        most = counts.sum(0).argsort(descending=True, stable=True)[: 2 * _N_SHOWN].tolist()
        rows = [
            (self.class_names[i], *map(str, counts[:, i].tolist()))
            for i in most
            if counts[:, i].any()
        ]
        lines.append(text_table(("predicted class", "before", "after"), rows))
        return "\n".join(lines)


def _best(before: Tensor, after: Tensor) -> list[int]:
    """Return the best classes of both, in the order before; all of a few."""
    order = before.argsort(descending=True).tolist()
    if len(order) <= _FEW:
        return order
    best = {*order[:_N_SHOWN], *after.topk(_N_SHOWN).indices.tolist()}
    return [i for i in order if i in best]


def _settings(error_nodes: tuple[ErrorNodes, ...], baselines: BaselineKind) -> str:
    held = error_nodes[:1] if len(set(error_nodes)) == 1 else error_nodes
    return f"error nodes: {', '.join(held)}; baselines: {baselines}"

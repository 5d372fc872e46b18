"""What became of the output: before and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.attribution.targets import TargetLike, resolve_target
from vitlens.interventions.kinds import Interventions
from vitlens.replacement import ErrorNodes
from vitlens.repr import ShapeRepr

_SHOWN = 5
_FEW = 10  # classes: with no more, all are told


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(ShapeRepr):
    """The output for one image, before and after interventions.

    Attributes
    ----------
    before, after
        Logits, [C].
    class_names
        A name a class.
    interventions
        What was changed.
    errors
        What each layer's error node held.
    """

    before: Float[Tensor, " C"]
    after: Float[Tensor, " C"]
    class_names: tuple[str, ...]
    interventions: Interventions
    errors: tuple[ErrorNodes, ...]

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
        """How far a target rose: after minus before.

        Parameters
        ----------
        target
            As for `Lens.importances`; by default the class predicted before: its logit minus the
            mean of all logits.

        Raises
        ------
        TargetError
            If there is no such class, or the function gives no scalar.
        """
        resolved = resolve_target(target, self.before, self.class_names)
        return float(resolved.function(self.after) - resolved.function(self.before))

    def __str__(self) -> str:
        shown = _union(self.before, self.after)
        width = max(len(self.class_names[i]) for i in shown)
        before, after = self.probabilities
        lines = [
            f"{self.interventions} (error nodes: {_held(self.errors)})",
            f"{'':{width}}  {'probability':^17}  {'logit':^17}  change",
        ]
        for i in shown:
            lines.append(
                f"{self.class_names[i]:{width}}  {before[i]:7.1%} → {after[i]:7.1%}  "
                f"{self.before[i]:7.2f} → {self.after[i]:7.2f}  {self.change[i]:+6.2f}"
            )
        if len(shown) < len(self.before):
            lines.append(f"and {len(self.before) - len(shown)} more classes")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class BatchOutcome(ShapeRepr):
    """The output for several images, before and after interventions; iterating gives `Outcome`s.

    Attributes
    ----------
    before, after
        Logits, [n, C].
    class_names, interventions, errors
        As in `Outcome`.
    """

    before: Float[Tensor, "n C"]
    after: Float[Tensor, "n C"]
    class_names: tuple[str, ...]
    interventions: Interventions
    errors: tuple[ErrorNodes, ...]

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
            self.errors,
        )

    def __iter__(self) -> Iterator[Outcome]:
        return (self[index] for index in range(len(self)))

    def __str__(self) -> str:
        n_flipped = int(self.flipped.sum())
        lines = [
            f"{self.interventions} (error nodes: {_held(self.errors)})",
            f"{len(self)} images; another class is predicted for {n_flipped}.",
        ]
        counts = torch.stack([p.bincount(minlength=len(self.class_names)) for p in self.predicted])
        shown = counts.sum(0).argsort(descending=True, stable=True)[: 2 * _SHOWN].tolist()
        width = max(len(self.class_names[i]) for i in shown)
        for i in shown:
            if counts[:, i].any():
                before, after = counts[:, i].tolist()
                lines.append(f"{self.class_names[i]:{width}}  predicted {before:4} → {after:4}")
        return "\n".join(lines)


def _union(before: Tensor, after: Tensor) -> list[int]:
    """Return the best classes of both, in the order before; all of a few."""
    order = before.argsort(descending=True).tolist()
    if len(order) <= _FEW:
        return order
    best = {*order[:_SHOWN], *after.topk(_SHOWN).indices.tolist()}
    return [i for i in order if i in best]


def _held(errors: tuple[ErrorNodes, ...]) -> str:
    return errors[0] if len(set(errors)) == 1 else ", ".join(errors)

"""How features are taken out of a classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vitlens.errors import FeatureError
from vitlens.interventions.kinds import Ablate, FeatureId, Project, ProjectTo


@dataclass(frozen=True)
class Removal:
    """One way to take features out, for any features.

    Attributes
    ----------
    to
        "baseline" or "zero"; see `vitlens.interventions.kinds.Ablate`.
    project
        Take out all that the stream holds along the features' decoder directions, as `Project`
        does; else only what the features themselves add to it, as `Ablate` does.

    Raises
    ------
    FeatureError
        If `to` or `project` is something else.
    """

    to: ProjectTo = "baseline"
    project: bool = False

    def __post_init__(self) -> None:
        if self.to not in ("baseline", "zero"):
            raise FeatureError(f'Features are taken to "baseline" or "zero", not {self.to!r}.')
        if not isinstance(self.project, bool):
            raise FeatureError(f"`project` is True or False, not {self.project!r}.")

    def of(self, features: Iterable[FeatureId]) -> Ablate | Project:
        """The intervention on some features, at least one."""
        return (Project if self.project else Ablate)(tuple(features), self.to)

    def __str__(self) -> str:
        return f"{'projected out' if self.project else 'ablated'}, to {self.to}"

"""How scores change through the layers of a model, compared with controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitlens.atlas.scores import KINDS, LOWEST_LEVEL, Scores
from vitlens.errors import CheckpointError, FeatureError
from vitlens.io import finite_values
from vitlens.tables import text_table

Quartiles = tuple[float, float, float]


@dataclass(frozen=True)
class Course:
    """Scores by layer, of an atlas or of a control.

    Attributes
    ----------
    n_features, n_live
        By layer, the number of features, and of those that were ever active. The attributes below
        are of live features.
    quartiles
        By name of the score and layer, first quartile, median and third quartile; NaN where no
        feature has the score.
    above
        By name of the score and layer, the share of features above the chance level.
    kinds
        By kind and layer, the share of features of that kind (see
        `vitlens.atlas.scores.Scores.of_kind`).
    """

    n_features: tuple[int, ...]
    n_live: tuple[int, ...]
    quartiles: Mapping[str, tuple[Quartiles, ...]]
    above: Mapping[str, tuple[float, ...]]
    kinds: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Evolution:
    """How the scores of an atlas change through the layers.

    Attributes
    ----------
    layers
        Numbers of the layers.
    course
        Course of the atlas.
    chance
        By name of the score and layer, the chance level.
    controls
        The same course of controls: "shuffled", the atlas's own features on shuffled data (1 % are
        above chance by construction); "untrained", an untrained model with SAEs trained in the
        same way, against its own chance levels.
    """

    layers: tuple[int, ...]
    course: Course
    chance: Mapping[str, tuple[float, ...]]
    controls: Mapping[str, Course] = field(default_factory=dict)

    def with_control(self, name: str, other: Evolution) -> Evolution:
        """Add the course of another evolution as a control.

        Raises
        ------
        FeatureError
            If the other has different layers.
        """
        if other.layers != self.layers:
            raise FeatureError(
                f"The control has layers {list(other.layers)}, the atlas {list(self.layers)}."
            )
        return replace(self, controls={**self.controls, name: other.course})

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; NaN and infinity become None."""
        return finite_values(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evolution:
        """The evolution whose `to_dict` this is, also after a round trip through JSON.

        Raises
        ------
        CheckpointError
            If something is missing.
        """
        try:
            return cls(
                layers=tuple(values["layers"]),
                course=_course(values["course"]),
                chance={k: tuple(_number(v) for v in row) for k, row in values["chance"].items()},
                controls={name: _course(part) for name, part in values["controls"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"This is not the evolution of an atlas: {error!r}.") from error

    def __str__(self) -> str:
        """A table: medians by layer, then shares above chance with those of the controls."""
        return "\n\n".join((self._medians(), self._shares()))

    def _medians(self) -> str:
        names = list(self.course.quartiles)
        head = ["layer", "live", *names]
        rows = [
            [
                str(layer),
                f"{self.course.n_live[i]}/{self.course.n_features[i]}",
                *(f"{self.course.quartiles[name][i][1]:.3f}" for name in names),
            ]
            for i, layer in enumerate(self.layers)
        ]
        return "Median of live features\n" + text_table(head, rows, align="r" * len(head))

    def _shares(self) -> str:
        kinds = list(self.course.kinds)
        courses = (self.course, *self.controls.values())
        rows = [
            [str(layer), *(" ".join(_percent(c, kind, i) for c in courses) for kind in kinds)]
            for i, layer in enumerate(self.layers)
        ]
        controls = "".join(f", {name}" for name in self.controls)
        title = f"Share of live features per kind, above the 99 % chance level (atlas{controls})\n"
        return title + text_table(["layer", *kinds], rows, align="r" * (1 + len(kinds)))


def evolution(scores: Sequence[Scores]) -> Evolution:
    """How the scores of an atlas's layers change; with the control "shuffled" where it is known.

    Parameters
    ----------
    scores
        One per layer, in order; with their shuffled columns for the control.

    Raises
    ------
    FeatureError
        If there is none.
    """
    if not scores:
        raise FeatureError("An evolution needs the scores of at least one layer.")
    names = [name for name in scores[0].names if all(name in one.values for one in scores)]
    levels = [name for name in names if all(name in one.chance for one in scores)]
    drawn = [name for name in levels if all(name in one.shuffled for one in scores)]
    return Evolution(
        layers=tuple(one.layer for one in scores),
        course=_summary(scores, lambda one, name: one[name][one.live], names, levels),
        chance={name: tuple(one.chance[name] for one in scores) for name in levels},
        controls={"shuffled": _summary(scores, _live_shuffled, drawn, drawn)} if drawn else {},
    )


def _live_shuffled(scores: Scores, name: str) -> Float[Tensor, " n"]:
    column = scores.shuffled[name]
    return column[scores.live.repeat(len(column) // len(scores))]


def _summary(
    scores: Sequence[Scores],
    column: Callable[[Scores, str], Float[Tensor, " n"]],
    names: Sequence[str],
    levels: Sequence[str],
) -> Course:
    def above(one: Scores, name: str) -> Bool[Tensor, " n"]:
        return column(one, name) > one.chance[name]

    def of_kind(one: Scores, kind: str) -> Bool[Tensor, " n"]:
        first, *further = KINDS[kind]
        found = above(one, first) & (column(one, first) > LOWEST_LEVEL)
        for name in further:
            found = found & (column(one, name) > 0)
        return found

    kinds = [kind for kind, needed in KINDS.items() if set(needed) <= set(levels)]
    return Course(
        n_features=tuple(len(one) for one in scores),
        n_live=tuple(int(one.live.sum()) for one in scores),
        quartiles={n: tuple(_quartiles(column(one, n)) for one in scores) for n in names},
        above={name: tuple(_share(above(one, name)) for one in scores) for name in levels},
        kinds={kind: tuple(_share(of_kind(one, kind)) for one in scores) for kind in kinds},
    )


def _share(found: Bool[Tensor, " n"]) -> float:
    return float(found.double().mean())


def _quartiles(column: Float[Tensor, " n"]) -> Quartiles:
    if not len(column):
        return math.nan, math.nan, math.nan
    low, middle, high = column.double().nanquantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return float(low), float(middle), float(high)


def _percent(course: Course, kind: str, i: int) -> str:
    return f"{course.kinds[kind][i]:.1%}" if kind in course.kinds else "–"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _course(values: Mapping[str, Any]) -> Course:
    return Course(
        n_features=tuple(values["n_features"]),
        n_live=tuple(values["n_live"]),
        quartiles={
            name: tuple((_number(a), _number(b), _number(c)) for a, b, c in rows)
            for name, rows in values["quartiles"].items()
        },
        above={n: tuple(_number(v) for v in row) for n, row in values["above"].items()},
        kinds={n: tuple(_number(v) for v in row) for n, row in values["kinds"].items()},
    )

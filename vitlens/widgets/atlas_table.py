"""What an atlas knows of all features of a layer, as columns to sort, filter and colour by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas

#: Columns of an atlas, by the names of its scores.
ATLAS_COLUMNS = (
    "frequency",
    "trust",
    "position",
    "orientation",
    "curvature",
    "hue",
    "selectivity",
    "class_information",
    "monosemanticity",
)


def columns_of(atlas: Atlas, layer: int) -> dict[str, Float[NDArray[np.float32], " F"]]:
    """Return `ATLAS_COLUMNS` of a layer; NaN for what was not measured."""
    values = atlas.scores(layer).values
    missing = np.full(atlas.sizes[layer], np.nan, np.float32)
    return {
        name: values[name].numpy().astype(np.float32) if name in values else missing
        for name in ATLAS_COLUMNS
    }


def chance_of(atlas: Atlas, layer: int) -> dict[str, float]:
    """Return the chance level of each of `ATLAS_COLUMNS` that has one."""
    chance = atlas.scores(layer).chance
    # Where no feature is live the level is infinite, which JSON does not know.
    return {name: chance[name] for name in ATLAS_COLUMNS if math.isfinite(chance.get(name, np.inf))}


def texts_of(atlas: Atlas, layer: int) -> list[str]:
    """Return what a program would call each feature of a layer, "" for nothing."""
    return [
        ", ".join(proposal.text for proposal in atlas.proposals(layer, feature))
        for feature in range(atlas.sizes[layer])
    ]


def most_trusted(atlas: Atlas, layer: int) -> tuple[int, int]:
    """Return the feature of a layer whose pictures can be trusted most."""
    trust = columns_of(atlas, layer)["trust"]
    return layer, int(np.nan_to_num(trust, nan=-1.0).argmax())


def kinds_of(atlas: Atlas, layer: int) -> list[str]:
    """Return the name of each feature's kind; see `vitlens.atlas.scores.kind_of`."""
    from vitlens.atlas.scores import KINDS, kind_of

    scores = atlas.scores(layer)
    needed = {name for names in KINDS.values() for name in names} & set(scores.values)
    columns = {name: scores.values[name].tolist() for name in needed}
    return [
        kind_of({name: column[feature] for name, column in columns.items()}, scores.chance).name
        for feature in range(atlas.sizes[layer])
    ]


def kind_words(atlas: Atlas, node: tuple[int, int]) -> str:
    """Return a feature's kind with its figures, such as "curve, curvature 0.62, chance 0.21"."""
    from vitlens.atlas.scores import KINDS

    layer, feature = node
    if feature < 0:
        return ""
    scores = atlas.scores(layer)
    kind = scores.kind(feature)
    if kind.name == "none":
        return "no score above chance"
    score, *_ = KINDS[kind.name]  # what the kind is named after; others only have to be there
    figures = f"{float(scores[score][feature]):.2f}, chance {scores.chance[score]:.2f}"
    return f"{kind.name}, {'' if score == kind.name else score + ' '}{figures}"

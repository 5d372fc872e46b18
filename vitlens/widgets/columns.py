"""Columns of an atlas: values of all features of a layer, to sort, filter and colour by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vitlens.errors import CheckpointError

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.scores import Scores

#: Columns of an atlas, named after its scores.
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
#: Columns of a map, with the scores that define the kinds of features.
MAP_COLUMNS = (*ATLAS_COLUMNS, "direction", "texture")


def scores_of(atlas: Atlas, layer: int) -> tuple[Scores, str]:
    """Return a layer's scores and "", or NaN and the reason why its file cannot be read."""
    try:
        return atlas.scores(layer), ""
    except CheckpointError as error:
        import torch

        from vitlens.atlas.scores import NAMES, Scores

        sizes = dict(zip(atlas.layers, atlas.sizes, strict=True))
        missing = torch.full((sizes[layer],), torch.nan)
        return (
            Scores(layer, dict.fromkeys(NAMES, missing)),
            f"The atlas cannot be read for layer {layer}. {error}",
        )


def columns_of(
    scores: Scores, names: Sequence[str] = ATLAS_COLUMNS
) -> dict[str, Float[NDArray[np.float32], " F"]]:
    """Return columns of a layer; NaN for values that were not measured."""
    missing = np.full(len(scores), np.nan, np.float32)
    return {
        name: scores[name].numpy().astype(np.float32) if name in scores.values else missing
        for name in names
    }


def chance_of(scores: Scores, names: Sequence[str] = ATLAS_COLUMNS) -> dict[str, float]:
    """Return the chance level of each of these columns that has one."""
    chance = scores.chance
    # Where no feature is live the level is infinite, which JSON cannot hold.
    return {name: chance[name] for name in names if math.isfinite(chance.get(name, np.inf))}


def texts_of(atlas: Atlas, layer: int) -> list[str]:
    """Return the proposed names of each feature of a layer, "" for none."""
    sizes = dict(zip(atlas.layers, atlas.sizes, strict=True))
    return [
        ", ".join(proposal.text for proposal in atlas.proposals(layer, feature))
        for feature in range(sizes[layer])
    ]


def most_trusted(atlas: Atlas, layer: int) -> tuple[int, int]:
    """Return the feature of a layer with the highest trust."""
    scores, _ = scores_of(atlas, layer)
    return layer, int(np.nan_to_num(columns_of(scores)["trust"], nan=-1.0).argmax())


def kinds_of(scores: Scores) -> list[str]:
    """Return the name of each feature's kind; see `vitlens.atlas.scores.kind_of`."""
    from vitlens.atlas.scores import KINDS, kind_of

    needed = {name for names in KINDS.values() for name in names} & set(scores.values)
    columns = {name: scores.values[name].tolist() for name in needed}
    return [
        kind_of({name: column[feature] for name, column in columns.items()}, scores.chance).name
        for feature in range(len(scores))
    ]


def kind_texts(atlas: Atlas, nodes: Sequence[tuple[int, int]]) -> list[str]:
    """Return each node's kind with its figures, such as "curve, direction 0.62, chance 0.21"."""
    read = {layer: scores_of(atlas, layer) for layer in {layer for layer, f in nodes if f >= 0}}
    return ["" if feature < 0 else _kind(*read[layer], feature) for layer, feature in nodes]


def _kind(scores: Scores, unreadable: str, feature: int) -> str:
    from vitlens.atlas.scores import KINDS

    if unreadable:
        return "the atlas cannot be read for this layer"
    kind = scores.kind(feature)
    if kind.name == "none":
        return "no score above chance"
    score, *_ = KINDS[kind.name]  # the first score defines the kind; the others are conditions
    figures = f"{float(scores[score][feature]):.2f}, chance {scores.chance[score]:.2f}"
    return f"{kind.name}, {'' if score == kind.name else score + ' '}{figures}"

"""Scores of a layer's features: one row per feature, one column per measure, with chance levels.

Features have no fixed type. They have scores, and each score has a chance level: the 99th
percentile of the same measure over the layer's features on shuffled data: the patches of every
image shuffled, the images dealt to classes of the same sizes (`vitlens.atlas.exact.deal`), the
labels of the stimuli permuted, the embeddings of the images exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.atlas import measures, tuning
from vitlens.atlas.exact import IMAGE_SQUARE_UNIT, SQUARE_UNIT, UNIT, bin_edges, deal
from vitlens.errors import FeatureError, near_matches

if TYPE_CHECKING:
    from vitlens.atlas.state import LayerSums


#: The meaning of every score.
MEANING = {
    "frequency": "share of tokens on which the feature is active",
    "image_frequency": "share of images in which it is active",
    "extent": "mean share of patches active, where the image is",
    "prefix_share": "share of its activation on prefix tokens (CLS, registers)",
    "position": "share of its variance over patches that the position explains (omega-squared)",
    "selectivity": "class selectivity index (Morcos et al. 2018)",
    "class_information": "share of its variance over images that the class explains"
    " (omega-squared)",
    "orientation": "1 - circular variance over orientations of edges and gratings",
    "curvature": "arcs over straight lines, -1 to 1",
    "direction": "1 - circular variance over the directions of arcs",
    "hue": "1 - circular variance over hues of equal lightness",
    "texture": "best texture over the mean of all textures, 0 to 1",
    "response": "largest response to any stimulus, over the 99th percentile of its activation",
    "monosemanticity": "how much more alike its top images are than random ones",
    "monosemanticity_given": "the same, in another embedding of the images",
    "trust": "how far its images can be trusted to show what the feature represents",
}
NAMES = tuple(MEANING)
#: The scores behind each kind: the first must be above chance, a second one above 0.
#: (The chance level of curvature is near 1, since a feature with few responses easily misses the
#: 8 straight lines among 40 arcs and lines.)
KINDS: dict[str, tuple[str, ...]] = {
    "position": ("position",),
    "class": ("class_information",),
    "orientation": ("orientation",),
    "curve": ("direction", "curvature"),
    "hue": ("hue",),
    "texture": ("texture",),
}
#: Percentile of the shuffled features' scores that is the chance level.
CHANCE_PERCENTILE = 99.0

#: Least score of a kind: on many images, the smallest effect is above chance.
LOWEST_LEVEL = 0.01


@dataclass(frozen=True)
class Scores:
    """Scores of all features of a layer.

    Attributes
    ----------
    layer
        Number of the layer.
    values
        By name of the score (see `MEANING`), [F]; NaN where a feature has none.
    chance
        By name, the level that 1 % of the layer's shuffled features exceed. Only for scores with
        a shuffled control.
    shuffled
        By name, the scores of shuffled features, [n], n a multiple of F; empty once stored.
    """

    layer: int
    values: Mapping[str, Float[Tensor, " F"]]
    chance: Mapping[str, float] = field(default_factory=dict)
    shuffled: Mapping[str, Float[Tensor, " n"]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        sizes = {name: tuple(column.shape) for name, column in self.values.items()}
        if len(set(sizes.values())) != 1 or len(next(iter(sizes.values()))) != 1:
            raise FeatureError(f"Scores are columns of one length, not {sizes}.")

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, name: str) -> Float[Tensor, " F"]:
        if name not in self.values:
            raise FeatureError(
                f"There is no score {name!r}; there are {', '.join(self.values)}."
                f"{near_matches(name, self.values)}"
            )
        return self.values[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores."""
        return tuple(self.values)

    @property
    def live(self) -> Bool[Tensor, " F"]:
        """Features that were active on some token."""
        return self["frequency"] > 0

    def of(self, feature: int) -> dict[str, float]:
        """Scores of one feature by name.

        Raises
        ------
        FeatureError
            If there is no such feature.
        """
        if not 0 <= feature < len(self):
            raise FeatureError(f"Layer {self.layer} has {len(self)} features, not {feature}.")
        return {name: float(column[feature]) for name, column in self.values.items()}

    def above(self, name: str) -> Bool[Tensor, " F"]:
        """True for the live features whose score is above chance.

        Raises
        ------
        FeatureError
            If the score is unknown or has no chance level.
        """
        column = self[name]
        if name not in self.chance:
            raise FeatureError(f"The score {name!r} has no shuffled control.")
        return self.live & (column > self.chance[name])

    def of_kind(self, kind: str) -> Bool[Tensor, " F"]:
        """True for the live features of a kind: above chance, and 0.01, in its score.

        See `KINDS`; `kind_of` uses the same levels.

        Raises
        ------
        FeatureError
            If the kind is unknown, or its scores were not measured.
        """
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise FeatureError(f"There is no kind {kind!r}; there are {known}.")
        first, *further = KINDS[kind]
        found = self.above(first) & (self[first] > LOWEST_LEVEL)
        for name in further:
            found = found & (self[name] > 0)
        return found

    def kind(self, feature: int) -> Kind:
        """Kind of one feature; see `kind_of`."""
        return kind_of(self.of(feature), self.chance)

    def with_columns(
        self,
        columns: Mapping[str, Float[Tensor, " F"]],
        shuffled: Mapping[str, Float[Tensor, " n"]] | None = None,
    ) -> Scores:
        """These scores with more columns; their chance levels are taken from `shuffled`."""
        added = dict(shuffled or {})
        values = {**self.values, **{name: column.float() for name, column in columns.items()}}
        return replace(
            self,
            values=values,
            chance={**self.chance, **_chance_levels(added, self.live)},
            shuffled={**self.shuffled, **added},
        )


class Kind(NamedTuple):
    """The kind of a feature, and how far it is above chance."""

    name: str
    ratio: float

    def __str__(self) -> str:
        return self.name if self.name == "none" else f"{self.name} ×{self.ratio:.1f}"


def kind_of(values: Mapping[str, float], chance: Mapping[str, float]) -> Kind:
    """The kind in which a feature is most above chance.

    Parameters
    ----------
    values
        Scores of one feature by name.
    chance
        Chance levels by name. Levels below 0.01 count as 0.01.

    Returns
    -------
    Kind
        One of `KINDS` with its first score over the chance level; or "none" with the largest ratio,
        when it is not above 1. Ratios of different kinds compare different things: show the
        number with the name.
    """
    ratios = {"none": 0.0}
    for kind, (first, *further) in KINDS.items():
        value = values.get(first, math.nan)
        if first in chance and value > 0 and all(values.get(name, 0.0) > 0 for name in further):
            ratios[kind] = value / max(chance[first], LOWEST_LEVEL)
    best = max(ratios, key=lambda kind: ratios[kind])
    ratio = ratios[best]
    return Kind(best, ratio) if ratio > 1 else Kind("none", ratio)


def layer_scores(
    layer: int,
    sums: LayerSums,
    *,
    n_images: int,
    per_class: Int[Tensor, " C"],
    per_bucket: Int[Tensor, " B"],
    n_prefix: int,
    responses: Float[Tensor, "F N"] | None = None,
    seed: int = 0,
) -> Scores:
    """Score the features of a layer from its sums and its responses to the stimuli.

    Parameters
    ----------
    layer
        Number of the layer.
    sums
        Sums of the pass over the images.
    n_images, per_class, per_bucket
        Number of images: in total, by class, and by bucket.
    n_prefix
        Tokens before the patches.
    responses
        See `vitlens.atlas.tuning.respond`; without them the scores of stimuli are left out.
    seed
        Seed of the permutations of the stimuli.

    Raises
    ------
    FeatureError
        If there were no images.
    """
    tokens = len(sums.position)
    patches_active = sums.n_active - sums.prefix_active.sum(0)
    values = {
        "frequency": measures.frequency(sums.n_active, n_images * tokens),
        "image_frequency": measures.frequency(sums.n_images, n_images),
        "extent": measures.extent(patches_active, sums.n_images, n_patches=tokens - n_prefix),
        "prefix_share": measures.prefix_share(sums.position, n_prefix=n_prefix),
    }
    values |= _from_sums(sums.position, sums.class_mean, per_class, sums, n_images, n_prefix)
    of_bucket = deal(per_bucket, per_class)
    shuffled = _from_sums(
        sums.position_shuffled,
        torch.zeros_like(sums.class_mean).index_add_(0, of_bucket, sums.bucket_mean),
        torch.zeros_like(per_class).index_add_(0, of_bucket, per_bucket),
        sums,
        n_images,
        n_prefix,
    )
    if responses is not None:
        values |= tuning.indices(responses)
        values["response"] = measures.relative(responses.max(1).values, _percentile_99(sums))
        shuffled |= tuning.shuffled_indices(responses, seed=seed)
    columns = {name: column.float().cpu() for name, column in values.items()}
    shuffled = {name: column.float().cpu() for name, column in shuffled.items()}
    live = columns["frequency"] > 0
    return Scores(layer, columns, _chance_levels(shuffled, live), shuffled)


def _from_sums(
    position: Int[Tensor, "T F"],
    class_mean: Int[Tensor, "C F"],
    per_class: Int[Tensor, " C"],
    sums: LayerSums,
    n_images: int,
    n_prefix: int,
) -> dict[str, Float[Tensor, " F"]]:
    """The measures that are also taken on shuffled data."""
    by_class = class_mean.double() * UNIT
    return {
        "position": measures.position_share(
            position.double() * UNIT,
            sums.squares.double() * SQUARE_UNIT,
            n_images=n_images,
            n_prefix=n_prefix,
        ),
        "selectivity": measures.class_selectivity(by_class, per_class),
        "class_information": measures.class_information(
            by_class,
            per_class,
            total=sums.image_mean.double() * UNIT,
            squares=sums.image_squares.double() * IMAGE_SQUARE_UNIT,
            n_images=n_images,
        ),
    }


def _percentile_99(sums: LayerSums) -> Float[Tensor, " F"]:
    """Upper edge of the bin which holds the 99th percentile of the activation, [F]."""
    counts = sums.histogram.double().cumsum(1)
    reached = (counts >= 0.99 * counts[:, -1:]).double().argmax(1)
    edges = bin_edges().to(counts.device).double()[1:]
    return torch.where(counts[:, -1] > 0, edges[reached], 0.0)


def _chance_levels(
    shuffled: Mapping[str, Float[Tensor, " n"]], live: Bool[Tensor, " F"]
) -> dict[str, float]:
    """The percentile over live features; infinite where there is none."""
    levels = {}
    for name, column in shuffled.items():
        known = column[live.repeat(len(column) // len(live))]
        known = known[~known.isnan()].double()
        level = known.quantile(CHANCE_PERCENTILE / 100) if len(known) else torch.tensor(torch.inf)
        levels[name] = float(level)
    return levels

"""Profile, neighbours and lineage of one feature of an atlas.

Neighbours are features with similar decoder rows, by cosine. Matching features of successive layers
by their decoders follows Balagansky et al., "Mechanistic permutability: match features across
layers" (arXiv 2410.07656).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.atlas.exact import bin_edges
from vitlens.atlas.measures import Trust, trust
from vitlens.atlas.proposals import Proposal, from_class
from vitlens.atlas.store import Header, LayerTable
from vitlens.atlas.tuning import INDICES, Tuning
from vitlens.errors import FeatureError
from vitlens.saes.base import SAE, FeatureId


class Histogram(NamedTuple):
    """Histogram of a feature's activation over its active tokens.

    Attributes
    ----------
    edges
        [BINS + 1], in units of activation, growing by a constant factor; the first and the last
        bin also count values beyond them.
    counts
        [BINS], active tokens.
    """

    edges: Float[Tensor, " E"]
    counts: Int[Tensor, " B"]


class ClassResponse(NamedTuple):
    """How a feature responds to the images of one class.

    Attributes
    ----------
    name
        Name of the class.
    mean
        Mean activation over all tokens of all images of the class.
    share
        Share of the class's images in which the feature is active, 0 to 1.
    """

    name: str
    mean: float
    share: float


@dataclass(frozen=True)
class FeatureProfile:
    """All that an atlas holds about one feature.

    Attributes
    ----------
    layer, feature
        Which feature.
    name
        The name people gave it (the latest, if there are several), "" without a name.
    proposals
        Computed names, best first; never mixed with people's names.
    frequency, image_frequency
        Share of all tokens, and of all images, in which it is active, 0 to 1.
    token_kinds
        Share of its active tokens by kind: the names of the prefix tokens ("CLS", "register 1",
        ...) and "patch".
    histogram
        Histogram of its activation.
    mean_map
        Mean activation by position, [T], prefix tokens first. Stored with 8 bits below the
        feature's largest value; in an atlas without its sums, to one standard error or 4 bits.
    logit_lens
        (class, effect) best first: effect of one unit of the feature on each logit through the
        model's own read-out, less the mean over classes; see `vitlens.atlas.finalize`.
    classes
        Responses by class, the strongest mean first.
    best_class
        The first of `classes`, "" when the feature is never active.
    scores
        Measures by name (see `vitlens.atlas.scores`); NaN for what was not measured.
    chance
        By name of score, its 99 % level over the layer's shuffled features.
    tuning
        Responses to synthetic stimuli, None when they were not measured.
    neighbours
        By "before", "same" and "after", the features of that SAE with the most similar decoder
        rows, as ((layer, feature), cosine), best first. Empty without a lens.
    trust
        How far its images can be trusted to show what the feature represents, and why.
    """

    layer: int
    feature: int
    name: str
    proposals: tuple[Proposal, ...]
    frequency: float
    image_frequency: float
    token_kinds: Mapping[str, float]
    histogram: Histogram
    mean_map: Float[Tensor, " T"]
    logit_lens: tuple[tuple[str, float], ...]
    classes: tuple[ClassResponse, ...]
    best_class: str
    scores: Mapping[str, float]
    chance: Mapping[str, float]
    tuning: Tuning | None
    neighbours: Mapping[str, tuple[tuple[FeatureId, float], ...]]
    trust: Trust

    def __str__(self) -> str:
        name = self.name or (f"{self.proposals[0].text}?" if self.proposals else "no name")
        return (
            f"feature {self.layer}/{self.feature} ({name}): active in {self.image_frequency:.1%} "
            f"of images, {self.frequency:.2%} of tokens, trust {self.trust.value:.2f}"
        )


def describe(
    header: Header,
    table: LayerTable,
    layer: int,
    feature: int,
    *,
    name: str,
    words: Sequence[Proposal],
    neighbours: Mapping[str, tuple[tuple[FeatureId, float], ...]],
) -> FeatureProfile:
    """Make a feature's profile from its layer's table.

    Parameters
    ----------
    header, table
        Header of the atlas and table of the layer.
    layer, feature
        The feature; it must exist.
    name, words, neighbours
        Facts that are not in the table.
    """
    tokens, images = int(table.n_active[feature]), int(table.n_images[feature])
    scores = {score: float(values[feature]) for score, values in table.scores.items()}
    scores["frequency"] = tokens / (header.n_images * header.n_tokens)
    scores["image_frequency"] = images / header.n_images
    responses = _classes(header, table, feature)
    return FeatureProfile(
        layer=layer,
        feature=feature,
        name=name,
        proposals=(*class_proposals(header, table, feature), *words),
        frequency=scores["frequency"],
        image_frequency=scores["image_frequency"],
        token_kinds=_token_kinds(header, table, feature),
        histogram=Histogram(bin_edges(), table.histogram[feature]),
        mean_map=table.mean_map[:, feature],
        logit_lens=tuple(
            (header.name_of_logit(index), value)
            for index, value in zip(
                table.effect_classes[feature].tolist(), table.effects[feature].tolist(), strict=True
            )
        ),
        classes=responses,
        best_class=_best(responses),
        scores=scores,
        chance=dict(table.chance),
        tuning=_tuning(table, feature, scores),
        neighbours=neighbours,
        trust=_trust(header, table, layer, feature, scores),
    )


def class_proposals(header: Header, table: LayerTable, feature: int) -> tuple[Proposal, ...]:
    """The class of a feature, if one stands out; see `vitlens.atlas.proposals.from_class`."""
    if "class_information" not in table.chance:
        return ()
    return from_class(
        header.class_names,
        table.class_mean[:, feature],
        header.per_class,
        information=float(table.scores["class_information"][feature]),
        chance=table.chance["class_information"],
    )


def _classes(header: Header, table: LayerTable, feature: int) -> tuple[ClassResponse, ...]:
    """Responses to the classes that had images, the strongest mean first."""
    found = [
        ClassResponse(
            name, float(table.class_mean[index, feature]), float(table.class_share[index, feature])
        )
        for index, name in enumerate(header.class_names)
        if header.per_class[index]
    ]
    return tuple(sorted(found, key=lambda response: -response.mean))


def _best(responses: Sequence[ClassResponse]) -> str:
    return responses[0].name if responses and responses[0].mean > 0 else ""


def _token_kinds(header: Header, table: LayerTable, feature: int) -> dict[str, float]:
    total = int(table.n_active[feature])
    if not total:
        return {}
    prefix = table.prefix_active[:, feature].tolist()
    kinds = {name: count / total for name, count in zip(header.prefix_names, prefix, strict=True)}
    return {**kinds, "patch": 1 - sum(prefix) / total}


def _tuning(table: LayerTable, feature: int, scores: Mapping[str, float]) -> Tuning | None:
    if table.curves is None:
        return None
    return Tuning.of(table.curves[feature], {name: scores[name] for name in INDICES})


def _trust(
    header: Header, table: LayerTable, layer: int, feature: int, scores: Mapping[str, float]
) -> Trust:
    one = slice(feature, feature + 1)
    similarity = header.random_similarity
    return trust(
        monosemanticity=torch.tensor([scores["monosemanticity"]]),
        random_similarity=0.0 if similarity is None else similarity,
        n_images=table.n_images[one],
        frequency=torch.tensor([scores["frequency"]]),
        n_top=header.n_top,
        health=header.health[header.position(layer)],
    )[0]


def neighbours(
    saes: Sequence[SAE], layers: Sequence[int], layer: int, feature: int, *, n: int = 5
) -> dict[str, tuple[tuple[FeatureId, float], ...]]:
    """Features of the same and the adjacent layers with the most similar decoder rows.

    Parameters
    ----------
    saes, layers
        The SAEs, and the block number of each.
    layer, feature
        The feature.
    n
        Largest number per layer.

    Returns
    -------
    dict
        For "before", "same" and "after" (the previous SAE, the feature's own and the next one):
        ((layer, feature), cosine), best first; empty where there is no such SAE. The feature
        itself is not among them.

    Raises
    ------
    FeatureError
        If there is no such feature, or `n` is below 1.
    """
    position = _position(saes, layers, layer, feature)
    if n < 1:
        raise FeatureError(f"n must be 1 or more, not {n}.")
    found: dict[str, tuple[tuple[FeatureId, float], ...]] = {}
    for relation, other in (("before", position - 1), ("same", position), ("after", position + 1)):
        if not 0 <= other < len(saes):
            found[relation] = ()
            continue
        cosines = _cosines(saes, position, feature, other)
        if other == position:
            cosines[feature] = -2
        count = min(n, len(cosines) - (other == position))
        best = cosines.sort(descending=True, stable=True).indices[:count].tolist()
        found[relation] = tuple(((layers[other], i), float(cosines[i])) for i in best)
    return found


def lineage(
    saes: Sequence[SAE], layers: Sequence[int], layer: int, feature: int
) -> list[tuple[FeatureId, float]]:
    """A feature through depth: from SAE to SAE the most similar one, both ways.

    Parameters
    ----------
    saes, layers, layer, feature
        See `neighbours`.

    Returns
    -------
    list
        ((layer, feature), cosine) for every layer, first to last; the cosine is that with the
        next step towards `layer`, and 1 for the feature itself. The search is greedy: a low cosine
        is a break in the line.

    Raises
    ------
    FeatureError
        If there is no such feature.
    """
    position = _position(saes, layers, layer, feature)

    def walk(positions: range) -> list[tuple[FeatureId, float]]:
        steps, here, current = [], position, feature
        for other in positions:
            cosines = _cosines(saes, here, current, other)
            here, current = other, int(cosines.argmax())
            steps.append(((layers[here], current), float(cosines[current])))
        return steps

    before, after = walk(range(position - 1, -1, -1)), walk(range(position + 1, len(saes)))
    return [*reversed(before), ((layer, feature), 1.0), *after]


def _position(saes: Sequence[SAE], layers: Sequence[int], layer: int, feature: int) -> int:
    """Position of the SAE of a layer that has this feature; `FeatureError` without one."""
    if feature == -1:
        raise FeatureError(
            "An error node is not a feature: it has no direction and no atlas entry."
        )
    if layer not in layers:
        known = ", ".join(map(str, layers))
        raise FeatureError(f"There are SAEs after blocks {known}; there is none after {layer}.")
    position = list(layers).index(layer)
    last = saes[position].n_features - 1
    if not 0 <= feature <= last:
        raise FeatureError(f"Layer {layer} has features 0 to {last}; there is no {feature}.")
    return position


def _cosines(
    saes: Sequence[SAE], position: int, feature: int, other: int
) -> Float[Tensor, " F_other"]:
    row = F.normalize(saes[position].W_dec[feature].float(), dim=0)
    return F.normalize(saes[other].W_dec.float(), dim=1) @ row

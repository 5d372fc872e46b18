"""The profile of one feature, read off its layer's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from vitlens.atlas.bins import bin_edges
from vitlens.atlas.profile import ClassResponse, FeatureProfile, Histogram, Node
from vitlens.atlas.proposals import Proposal, from_class
from vitlens.atlas.quality import Trust, trust
from vitlens.atlas.store import Header
from vitlens.atlas.table import LayerTable
from vitlens.atlas.tuning import INDICES, Tuning


def describe(
    header: Header,
    table: LayerTable,
    layer: int,
    feature: int,
    *,
    name: str,
    words: Sequence[Proposal],
    neighbours: Mapping[str, tuple[tuple[Node, float], ...]],
) -> FeatureProfile:
    """Make a feature's profile.

    Parameters
    ----------
    header, table
        Of the atlas and the layer.
    layer, feature
        Which feature; it must exist.
    name, words, neighbours
        What is not in the table.
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
    """The class a feature stands for, if one stands out; see `proposals.from_class`."""
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
    """Of the classes that had images, the strongest mean first."""
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
        health=header.health[layer],
    )[0]

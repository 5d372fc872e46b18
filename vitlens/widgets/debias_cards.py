"""What the debiasing panel tells of its candidates: figures, and examples of every group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.debias.candidates import Candidate, find_candidates
from vitlens.debias.runs import LiveReports
from vitlens.debias.search import Debiasing
from vitlens.interventions.kinds import FeatureId
from vitlens.widgets.buffers import encode_strip, to_bytes

EXAMPLES = ("most active", "median")
_SIDE = 112  # pixels of an example: twice its size in the view


@dataclass(frozen=True)
class Card:
    """A candidate with examples of every group.

    Attributes
    ----------
    candidate
        Its figures.
    means
        Mean activation over tokens and over the images of every group, [G].
    images
        Index of the image where it is most active on average over tokens, and of the median
        one, for every group, [G, 2].
    heats
        Its activation by patch on them, [G, 2, P].
    """

    candidate: Candidate
    means: Float[Tensor, " G"]
    images: Int[Tensor, "G 2"]
    heats: Float[Tensor, "G 2 P"]


def make_cards(
    live: LiveReports, candidates: Sequence[Candidate], *, n_prefix: int
) -> tuple[Card, ...]:
    """Look up where candidates are active.

    Parameters
    ----------
    n_prefix
        Tokens before the patches.
    """
    return tuple(_card(live, candidate, n_prefix) for candidate in candidates)


def _card(live: LiveReports, candidate: Candidate, n_prefix: int) -> Card:
    runs, groups = live.runs, live.groups.groups
    layer, feature = candidate.key
    activity = runs.activations[layer][:, feature]
    means, images = [], []
    for group in range(len(live.groups.group_names)):
        members = (groups == group).nonzero().squeeze(1)
        order = members[activity[members].argsort(descending=True, stable=True)]
        means.append(activity[members].mean())
        images.append(torch.stack([order[0], order[len(order) // 2]]))
    index = torch.stack(images)
    heats = runs.activations_of(candidate.key, index.flatten().tolist())[:, n_prefix:]
    return Card(candidate, torch.stack(means), index, heats.reshape(*index.shape, -1))


def candidates_of(
    live: LiveReports, found: Debiasing | Sequence[Candidate] | None, n_cards: int
) -> tuple[Candidate, ...]:
    """Return the candidates to show: those that a search added first, then by their score."""
    if found is None:
        return find_candidates(live.runs.activations, live.groups, at_most=n_cards)
    if not isinstance(found, Debiasing):
        return tuple(found)
    by_key = {candidate.key: candidate for candidate in found.candidates}
    first = [by_key[key] for key in found.path if key in by_key]
    rest = [candidate for candidate in found.candidates if candidate not in first]
    return tuple([*first, *rest][:n_cards])


def picked(live: LiveReports, keys: Sequence[FeatureId]) -> tuple[Candidate, ...]:
    """Return the figures of features that somebody picked."""
    return find_candidates(live.runs.activations, live.groups, at_most=0, picks=keys)


def described(cards: Sequence[Card], path: Sequence[FeatureId]) -> list[dict[str, Any]]:
    """Return what the view is told of cards; `images` are places in the strip of `pictures`.

    Parameters
    ----------
    path
        Features in the order in which a search added them.
    """
    place = {image: i for i, image in enumerate(_images(cards))}
    return [
        {
            "node": list(card.candidate.key),
            "sources": list(card.candidate.sources),
            "step": path.index(card.candidate.key) + 1 if card.candidate.key in path else None,
            "attribute": card.candidate.attribute,
            "effect": card.candidate.effect,
            "auc": card.candidate.auc,
            "q": card.candidate.q_value,
            "class_effect": card.candidate.class_effect,
            "share": card.candidate.share,
            "means": card.means.tolist(),
            "limit": float(card.heats.max()),
            "images": [[place[image] for image in row] for row in card.images.tolist()],
        }
        for card in cards
    ]


def pictures(live: LiveReports, cards: Sequence[Card]) -> bytes:
    """Return all examples, each once, side by side."""
    lens, images = live.runs.lens, live.groups.images
    return encode_strip([lens.pixels(images[i]) for i in _images(cards)], side=_SIDE)


def heats(cards: Sequence[Card]) -> bytes:
    """Return the heat of all examples, float16 [cards, G, 2, P]."""
    if not cards:
        return b""
    return to_bytes(torch.stack([card.heats for card in cards]), "float16")


def _images(cards: Sequence[Card]) -> list[int]:
    return sorted({image for card in cards for image in card.images.flatten().tolist()})

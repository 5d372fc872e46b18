"""What a feature card says of a feature over the atlas's images, as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitlens.widgets.scene import Node
from vitlens.widgets.tasks import Check

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.gallery import FeatureImage
    from vitlens.atlas.profile import FeatureProfile
    from vitlens.atlas.tuning import Tuning

_TOP = 8
_LOWER = 4
_CLASSES = 6
_EFFECTS = 5
_NEIGHBOURS = 4
_PROPOSALS = 4

NO_ATLAS = (
    "This lens has no atlas of many images, so nothing is known of this feature on other images: "
    "no top images, no frequency, no scores. Atlas.build(lens, images) makes one."
)


def describe(atlas: Atlas, node: Node) -> dict[str, Any]:
    """Return what the atlas says of a feature; every number is plain, NaN is None.

    Returns
    -------
    dict
        ``n_images``, ``labels_from``; ``frequency`` and ``image_frequency``; ``token_kinds``,
        [name, share] of the active tokens; ``active`` tokens of ``n_tokens``; ``histogram``,
        ``edges`` and ``counts``; ``up`` and ``down``, [class, effect]
        of the logit lens; ``classes``, [class, mean activation, share of its images]; ``scores``,
        [name, value, chance level]; ``tuning`` (see `tuning_curves`); ``neighbours``, [layer,
        feature, cosine] by "before", "same" and "after"; ``proposals``, [text, score, source];
        ``trust`` and ``why_trust``.
    """
    profile = atlas.feature(*node)
    up = [[name, effect] for name, effect in profile.logit_lens if effect > 0]
    down = [[name, effect] for name, effect in profile.logit_lens if effect < 0]
    return {
        "n_images": atlas.n_images,
        "labels_from": atlas.labels_from,
        "frequency": profile.frequency,
        "image_frequency": profile.image_frequency,
        "token_kinds": [[name, share] for name, share in profile.token_kinds.items()],
        "active": int(profile.histogram.counts.sum()),
        "n_tokens": atlas.n_images * len(profile.mean_map),
        "histogram": _histogram(profile),
        "up": up[:_EFFECTS],
        "down": down[::-1][:_EFFECTS],
        "classes": [[c.name, c.mean, c.share] for c in profile.classes[:_CLASSES] if c.mean > 0],
        "scores": [
            [name, _plain(value), _plain(profile.chance.get(name, math.nan))]
            for name, value in profile.scores.items()
        ],
        "tuning": None if profile.tuning is None else tuning_curves(profile.tuning),
        "neighbours": {
            where: [[*other, cosine] for other, cosine in near[:_NEIGHBOURS]]
            for where, near in profile.neighbours.items()
        },
        "proposals": [[p.text, _plain(p.score), p.source] for p in profile.proposals[:_PROPOSALS]],
        "trust": _plain(profile.trust.value),
        "why_trust": str(profile.trust),
    }


def shown_images(atlas: Atlas, node: Node) -> tuple[tuple[FeatureImage, bool], ...]:
    """Return the images a card shows: those of highest peak, then some of lower quantiles.

    Returns
    -------
    tuple
        Of each image what is shown of it, and whether it is there for its lower quantile.
    """
    top = atlas.top(*node, n=_TOP)
    seen = {shown.key for shown in top}
    lower = [shown for shown in atlas.sampled(*node, n=2 * _LOWER) if shown.key not in seen]
    return (*((one, False) for one in top), *((one, True) for one in spread(lower, _LOWER)))


def spread(shown: Sequence[FeatureImage], n: int) -> tuple[FeatureImage, ...]:
    """Return at most `n` of the images, at spread quantiles, the highest first."""
    ordered = sorted(shown, key=lambda one: -one.quantile)
    if len(ordered) <= n:
        return tuple(ordered)
    places = np.linspace(0, len(ordered) - 1, n).round().astype(int)
    return tuple(ordered[place] for place in places)


def describe_images(
    shown: Sequence[tuple[FeatureImage, bool]], prefix_names: Sequence[str]
) -> dict[str, Any]:
    """Return the card's ``top_images``.

    Returns
    -------
    dict
        ``available`` and ``items``: ``label``, ``activation`` (its peak), ``quantile``, ``lower``
        (whether it is one of the lower quantiles), ``token`` (the name of the prefix token of the
        peak, "" for a patch), ``patch`` (the patch of the peak, or -1), ``title``.
    """
    n_prefix = len(prefix_names)
    items = [
        {
            "label": one.label,
            "activation": one.peak,
            "quantile": one.quantile,
            "lower": lower,
            "token": prefix_names[one.token] if one.token < n_prefix else "",
            "patch": max(-1, one.token - n_prefix),
            "title": "\n".join(part for part in (one.path or one.key, one.credit) if part),
        }
        for one, lower in shown
    ]
    return {"available": True, "items": items}


def pictures(shown: Sequence[tuple[FeatureImage, bool]]) -> list[NDArray[np.uint8] | None]:
    """Return the pictures, [H, W, 3] each; None where there is none."""
    found = [one.image for one, _ in shown]
    return [None if picture is None else np.asarray(picture.convert("RGB")) for picture in found]


def heats(
    shown: Sequence[tuple[FeatureImage, bool]], n_prefix: int, n_patches: int, check: Check
) -> Float[Tensor, "n P"]:
    """Return activations by patch; NaN where neither heat nor a picture is stored."""
    rows = []
    for one, _ in shown:
        check()
        heat = one.heatmap
        rows.append(torch.full((n_patches,), torch.nan) if heat is None else heat[n_prefix:].cpu())
    return torch.stack(rows) if rows else torch.zeros(0, n_patches)


def tuning_curves(tuning: Tuning) -> dict[str, Any]:
    """Return the responses to synthetic stimuli, in units of activation.

    Returns
    -------
    dict
        ``orientation``, ``angles`` and ``values``, the mean over edges and gratings; ``arcs``,
        ``directions``, ``radii`` (None for a straight line) and ``values`` by radius and
        direction; ``hue``, ``angles`` and ``values``, the mean over both chromas; ``texture``,
        ``names`` and ``values``; ``blank``, the response to a plain grey picture.
    """
    from vitlens.atlas import stimuli

    return {
        "orientation": {
            "angles": list(stimuli.ORIENTATIONS),
            "values": tuning.orientation.mean(0).tolist(),
        },
        "arcs": {
            "directions": list(stimuli.DIRECTIONS),
            "radii": [_plain(radius) for radius in stimuli.RADII],
            "values": tuning.direction.tolist(),
        },
        "hue": {"angles": list(stimuli.HUES), "values": tuning.hue.mean(0).tolist()},
        "texture": {"names": list(stimuli.TEXTURES), "values": tuning.texture.tolist()},
        "blank": tuning.blank,
    }


def _histogram(profile: FeatureProfile) -> dict[str, list[float]]:
    """The bins between the first and the last that is not empty."""
    counts = profile.histogram.counts.tolist()
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return {"edges": [], "counts": []}
    first, last = filled[0], filled[-1]
    edges = profile.histogram.edges.tolist()
    return {"edges": edges[first : last + 2], "counts": counts[first : last + 1]}


def _plain(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)

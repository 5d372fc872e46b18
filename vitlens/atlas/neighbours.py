"""Which features write nearly the same thing: cosine similarity of decoder rows.

Source of the idea: features of neighbouring layers matched by their decoders, Balagansky et al.,
"Mechanistic permutability: match features across layers" (arXiv 2410.07656).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitlens.atlas.profile import Node
from vitlens.attribution.logit_lens import check_node
from vitlens.errors import FeatureError
from vitlens.saes.topk import TopKSAE


def neighbours(
    saes: Sequence[TopKSAE], layer: int, feature: int, *, n: int = 5
) -> dict[str, tuple[tuple[Node, float], ...]]:
    """Features of the same and the adjacent layers with the most similar decoder rows.

    Parameters
    ----------
    layer, feature
        Whose neighbours.
    n
        At most how many of each layer.

    Returns
    -------
    dict
        For "before", "same" and "after": ((layer, feature), cosine), best first; empty where
        there is no such layer. The feature itself is no neighbour.

    Raises
    ------
    FeatureError
        If there is no such feature, or `n` is below 1.
    """
    check_feature(saes, layer, feature)
    if n < 1:
        raise FeatureError(f"n must be 1 or more, not {n}.")
    found: dict[str, tuple[tuple[Node, float], ...]] = {}
    for place, other in (("before", layer - 1), ("same", layer), ("after", layer + 1)):
        if not 0 <= other < len(saes):
            found[place] = ()
            continue
        cosines = _cosines(saes, layer, feature, other)
        if other == layer:
            cosines[feature] = -2
        count = min(n, len(cosines) - (other == layer))
        best = cosines.sort(descending=True, stable=True).indices[:count].tolist()
        found[place] = tuple(((other, i), float(cosines[i])) for i in best)
    return found


def lineage(saes: Sequence[TopKSAE], layer: int, feature: int) -> list[tuple[Node, float]]:
    """A feature through depth: from layer to layer the most similar one, both ways.

    Returns
    -------
    list
        ((layer, feature), cosine) for every layer, first to last; the cosine is that with the
        next step towards `layer`, and 1 for the feature itself. It is greedy: a low cosine is a
        break in the line, not a relative.

    Raises
    ------
    FeatureError
        If there is no such feature.
    """
    check_feature(saes, layer, feature)
    before = _walk(saes, layer, feature, range(layer - 1, -1, -1))
    after = _walk(saes, layer, feature, range(layer + 1, len(saes)))
    return [*reversed(before), ((layer, feature), 1.0), *after]


def check_feature(saes: Sequence[TopKSAE], layer: int, feature: int) -> None:
    """Raise `FeatureError` unless the layer has this feature; an error node is none."""
    if feature == -1:
        raise FeatureError("An error node is no feature: it has no direction and no atlas entry.")
    check_node(saes, layer, feature)


def _walk(
    saes: Sequence[TopKSAE], layer: int, feature: int, layers: range
) -> list[tuple[Node, float]]:
    steps = []
    for other in layers:
        cosines = _cosines(saes, layer, feature, other)
        best = int(cosines.argmax())
        steps.append(((other, best), float(cosines[best])))
        layer, feature = other, best
    return steps


def _cosines(
    saes: Sequence[TopKSAE], layer: int, feature: int, other: int
) -> Float[Tensor, " F_other"]:
    row = F.normalize(saes[layer].W_dec[feature].float(), dim=0)
    return F.normalize(saes[other].W_dec.float(), dim=1) @ row

"""From a token to its features."""

from collections.abc import Mapping
from typing import Any

from vitlens.replacement import Trace

_RANKED = 12  # features a layer; a patch has dozens, and the first tell most


def token_features(
    trace: Trace, token: int, labels: Mapping[tuple[int, int], str]
) -> dict[str, Any]:
    """Return the features active at a token, by layer, most active first.

    Parameters
    ----------
    trace
        Of the image.
    token
        Those before the patches come first, then the patches row by row.
    labels
        Names of features, by (layer, feature).

    Returns
    -------
    dict
        "layers": for each layer a list of [feature, activation, label]; "counts": how many
        features are active there, of which the list holds the first 12.
    """
    layers, counts = [], []
    for layer, features in enumerate(trace.features):
        active = int((features[token] > 0).sum())
        values, indices = features[token].topk(min(_RANKED, active))
        ranked = zip(indices.tolist(), values.tolist(), strict=True)
        layers.append([[f, z, labels.get((layer, f), "")] for f, z in ranked])
        counts.append(active)
    return {"layers": layers, "counts": counts}

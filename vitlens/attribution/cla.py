"""Cross-Layer Attribution, the baseline to beat (Rajaram et al., arXiv 2404.14349)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.attribution.edges import Engine, compute_edges
from vitlens.attribution.pair import LayerPair
from vitlens.models.vision import VisionModel
from vitlens.replacement import Trace
from vitlens.saes.topk import TopKSAE


def cla_edges(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    layer: int,
    *,
    targets: Int[Tensor, " n"] | None = None,
    engine: Engine = "closed_form",
) -> Float[Tensor, "F n"]:
    """|a_m| |d a_n / d a_m| of features m of a layer and n of the next, with plain gradients.

    A feature's activation a is its sum over the tokens, and it moves in proportion on all
    tokens of the image where it is active. CLA scores m by the sum over the kept n.

    Parameters
    ----------
    layer
        The lower layer, 0 ... B-3.
    targets
        Only these features n of the next layer; all by default.
    """
    size = saes[layer + 1].n_features
    active = trace.features[layer + 1] > 0
    pair = LayerPair(
        vision=vision,
        block=vision.embed(trace.image[None]).blocks[layer + 1],
        gradient="plain",
        stream=trace.residuals[layer],
        coefficients=trace.features[layer] * trace.stds[layer],
        directions=saes[layer].W_dec,
        error=torch.zeros_like(trace.errors[layer]),
        sae=saes[layer + 1],
        weights=active.to(trace.residuals[layer].dtype),
        active=active,
        targets=torch.arange(size, device=vision.device) if targets is None else targets,
    )
    return compute_edges(pair, engine)[:-1].abs()

"""The edges of a single node, without those of its layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution.edges import compute_edges
from vitlens.attribution.importances import Importances, layer_pair
from vitlens.attribution.logit_lens import check_node
from vitlens.models.vision import VisionModel
from vitlens.replacement import Baselines, Trace
from vitlens.saes.topk import TopKSAE


def edges_into(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    nodes: Importances,
    layer: int,
    feature: int,
) -> Float[Tensor, " F+1"]:
    """Edges from every node of the layer before into one feature: one reverse pass.

    Parameters
    ----------
    nodes
        Importances of the image, whose settings count; their edges are not looked at.
    layer, feature
        The feature; nothing leads into an error node or into layer 0.

    Returns
    -------
    Tensor
        Column `feature` of the edges of layer `layer` - 1, [F_{l-1} + 1], the error node last;
        empty for layer 0.

    Raises
    ------
    FeatureError
        If there is no such feature.
    """
    check_node(saes, layer, feature)
    if layer == 0:
        return trace.logits.new_zeros(0)
    if feature == -1:
        return trace.logits.new_zeros(saes[layer - 1].n_features + 1)
    wanted = torch.tensor([feature], device=vision.device)
    pair = layer_pair(vision, saes, trace, baselines, nodes, layer - 1, targets=wanted)
    return compute_edges(pair, "vjp")[:, 0]


def edges_out_of(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    nodes: Importances,
    layer: int,
    feature: int,
) -> Float[Tensor, " G"]:
    """Edges from one node to every feature of the next layer: one forward-mode pass.

    Parameters
    ----------
    nodes
        As for `edges_into`.
    layer, feature
        The node; feature -1 is the error node.

    Returns
    -------
    Tensor
        Row `feature` of the edges of layer `layer`, [F_{l+1}]; empty for the last layer, which
        leads to the target alone.

    Raises
    ------
    FeatureError
        If there is no such node.
    """
    check_node(saes, layer, feature)
    if layer == len(saes) - 1:
        return trace.logits.new_zeros(0)
    pair = layer_pair(vision, saes, trace, baselines, nodes, layer)
    alone = [] if feature == -1 else [feature]
    pair = replace(
        pair, coefficients=pair.coefficients[:, alone], directions=pair.directions[alone]
    )
    with torch.no_grad():
        return compute_edges(pair, "jvp")[-1 if feature == -1 else 0]

"""What a feature card says about a node on one image, as plain values."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.circuits.circuit import ERROR, TARGET
from vitlens.widgets.scene import Link, Node, Scene

_BINS = 20
_CLASSES = 5
_EDGES = 6


def describe(scene: Scene, node: Node) -> dict[str, Any]:
    """Return what the `card` trait says of a node on the scene's image.

    Returns
    -------
    dict
        ``node`` and ``kind`` ("feature", "error" or "target"); ``importance``, ``share``, and the
        ``target`` these are of; ``active``, tokens on which it is active, of ``n_tokens``;
        ``peak``, its largest activation; ``histogram`` of the activations of active tokens,
        ``edges`` and ``counts``; ``up`` and ``down``, [class, effect] of its logit lens, most
        extreme first; ``edges_in`` and ``edges_out``, [layer, feature, weight, share].

    Raises
    ------
    FeatureError
        When there is no such node.
    """
    if node == (scene.n_layers, TARGET):
        return _describe_target(scene)
    activation = scene.activation(node)
    up, down = _strongest_classes(scene, node)
    return {
        "node": list(node),
        "kind": "error" if node[1] == ERROR else "feature",
        "n_features": scene.lens.saes[node[0]].n_features,
        "importance": scene.importance(node),
        "share": scene.share(node),
        "target": scene.importances.target,
        "n_tokens": len(activation),
        "active": int((activation > 0).sum()),
        "peak": float(activation.max()),
        "histogram": _histogram(activation),
        "up": up,
        "down": down,
        "edges_in": _listed(scene.strongest_in(node, _EDGES)),
        "edges_out": _listed(scene.strongest_out(node, _EDGES)),
    }


def heats(scene: Scene, node: Node) -> Float[Tensor, "2 T"]:
    """Return the node's activation and importance by token; the target has neither, [2, 0]."""
    if node[1] == TARGET:
        return torch.zeros(2, 0)
    return torch.stack([scene.activation(node), scene.token_importance(node)])


def _describe_target(scene: Scene) -> dict[str, Any]:
    target = (scene.n_layers, TARGET)
    return {
        "node": list(target),
        "kind": "target",
        "target": scene.importances.target,
        "importance": scene.importances.target_value,
        "edges_in": _listed(scene.strongest_in(target, 2 * _EDGES)),
    }


def _histogram(activation: Float[Tensor, " T"]) -> dict[str, list[float]]:
    active = activation[activation > 0].cpu().double()
    if not len(active):
        return {"edges": [], "counts": []}
    top = float(active.max())
    counts = torch.histc(active, _BINS, 0.0, top)
    return {"edges": torch.linspace(0, top, _BINS + 1).tolist(), "counts": counts.tolist()}


def _strongest_classes(
    scene: Scene, node: Node
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the classes pushed up and those pushed down, with the effect on their logit."""
    effects = scene.logit_lens(node)
    names = scene.class_names
    order = effects.argsort(descending=True).tolist()
    ranked = [(names[i], float(effects[i])) for i in order]
    up = [(name, effect) for name, effect in ranked if effect > 0]
    down = [(name, effect) for name, effect in reversed(ranked) if effect < 0]
    return up[:_CLASSES], down[:_CLASSES]


def _listed(links: tuple[Link, ...]) -> list[list[float]]:
    return [[*link.node, link.weight, link.share] for link in links]

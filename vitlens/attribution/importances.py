"""Importances of nodes and edges for one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from vitlens.attribution.edges import Engine, compute_edges
from vitlens.attribution.gradients import (
    ErrorPaths,
    Gradient,
    feature_gradients,
    stream_gradients,
)
from vitlens.attribution.pair import LayerPair
from vitlens.attribution.targets import Target
from vitlens.errors import ModelError
from vitlens.models.vision import VisionModel
from vitlens.progress import Progress, StepReporter, steps
from vitlens.replacement import Baselines, Trace
from vitlens.repr import ShapeRepr
from vitlens.saes.topk import TopKSAE


@dataclass(frozen=True, eq=False, repr=False)
class Importances(ShapeRepr):
    """How much every feature, error node and edge adds to the target on one image.

    Attributes
    ----------
    nodes
        A tensor [F_l + 1] a layer, the error node last.
    edges
        A tensor [F_l + 1, F_{l+1}] for each pair of layers l and l+1.
    tokens
        The node importances before the sum over tokens, [T, F_l + 1] a layer.
    gradients
        The target's gradient at every feature, G_l, [T, F_l] a layer.
    target, target_index, target_value
        What was explained, its class (None for a function), and its value on the image.
    residual
        Conservation residual a layer: the target's value minus the sum of the nodes, [B-1].
    gradient, errors, engine
        The settings.
    """

    nodes: tuple[Float[Tensor, " F+1"], ...]
    edges: tuple[Float[Tensor, "F+1 G"], ...]
    tokens: tuple[Float[Tensor, "T F+1"], ...]
    gradients: tuple[Float[Tensor, "T F"], ...]
    target: str
    target_index: int | None
    target_value: float
    residual: Float[Tensor, " L"]
    gradient: Gradient
    errors: ErrorPaths
    engine: Engine


def importances(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    target: Target,
    *,
    gradient: Gradient = "libragrad",
    errors: ErrorPaths = "leaf",
    engine: Engine = "closed_form",
    edges: bool = True,
    progress: Progress = False,
) -> Importances:
    """Node and edge importances of one image (METHOD "Importances"; RRM paper, section 3).

    Parameters
    ----------
    trace
        The image's trace.
    target
        What to explain.
    gradient
        "libragrad" or "plain".
    errors
        "leaf": error nodes take in no gradient; "through": the model's ordinary gradient.
    engine
        "closed_form", "jvp" or "vjp"; they agree.
    edges
        Compute the edges, or leave `Importances.edges` empty.
    progress
        Show a progress bar over the layers, or call this function (see `vitlens.progress`).

    Raises
    ------
    ModelError
        If a setting is unknown, or the engine does not know the model's blocks.
    """
    _check_choice("gradient", gradient, get_args(Gradient))
    _check_choice("errors", errors, get_args(ErrorPaths))
    _check_choice("engine", engine, get_args(Engine))
    grads = stream_gradients(vision, saes, trace, target, gradient=gradient, errors=errors)
    feature_grads, tokens = [], []
    with torch.no_grad():
        for layer, (sae, grad) in enumerate(zip(saes, grads, strict=True)):
            feature_grads.append(feature_gradients(sae, trace.stds[layer], grad))
            moved = trace.features[layer] - baselines.features[layer]
            error = (grad * (trace.errors[layer] - baselines.errors[layer])).sum(1, keepdim=True)
            tokens.append(torch.cat([feature_grads[-1] * moved, error], dim=1))
    nodes = tuple(t.sum(0) for t in tokens)
    value = target.function(trace.logits).detach()
    result = Importances(
        nodes=nodes,
        edges=(),
        tokens=tuple(tokens),
        gradients=tuple(feature_grads),
        target=target.name,
        target_index=target.index,
        target_value=float(value),
        residual=value - torch.stack([n.sum() for n in nodes]),
        gradient=gradient,
        errors=errors,
        engine=engine,
    )
    if not edges:
        return result
    layers = steps(range(len(saes) - 1), "edges", progress)
    found = tuple(layer_edges(vision, saes, trace, baselines, result, layer) for layer in layers)
    return Importances(**{**vars(result), "edges": found})


def layer_edges(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    nodes: Importances,
    layer: int,
    *,
    targets: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "F+1 n"]:
    """Edges from layer `layer` to the next, with the settings of `nodes`.

    Parameters
    ----------
    nodes
        Importances of the image; their edges are not looked at.
    targets
        Only these features of the next layer; all by default.
    """
    pair = layer_pair(vision, saes, trace, baselines, nodes, layer, targets=targets)
    return compute_edges(pair, nodes.engine)


def edges_on_demand(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    nodes: Importances,
    *,
    progress: Progress = False,
) -> Callable[[int, Int[Tensor, " n"]], Float[Tensor, "F+1 n"]]:
    """Edges into the features that are asked for, computed when they are.

    For engines whose cost grows with the number of target features.

    Parameters
    ----------
    nodes
        Importances of the image; their edges are not looked at.
    progress
        As for `importances`; a layer counts when it is first asked for.

    Returns
    -------
    Callable
        From a layer l and features of layer l + 1 to these columns of the layer's edges; those
        asked for first are kept.
    """
    reporter = StepReporter(progress, total=len(saes) - 1)
    bar = tqdm(total=reporter.total, desc="edges", disable=progress is not True, leave=False)
    known: dict[int, tuple[Tensor, Tensor]] = {}

    def columns(layer: int, features: Tensor) -> Tensor:
        features = features.to(vision.device)
        if layer in known:
            have, found = known[layer]
            same = have == features[:, None]
            if same.any(1).all():
                return found[:, same.int().argmax(1)]
        reporter.report("edges")
        found = layer_edges(vision, saes, trace, baselines, nodes, layer, targets=features)
        if layer not in known:
            known[layer] = features, found
            reporter.done += 1
            bar.update()
            if reporter.done == reporter.total:
                reporter.report("edges")
                bar.close()
        return found

    return columns


def layer_pair(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    nodes: Importances,
    layer: int,
    *,
    targets: Int[Tensor, " n"] | None = None,
) -> LayerPair:
    """What an engine needs for the edges from layer `layer` to the next; see `layer_edges`."""
    size = saes[layer + 1].n_features
    active = trace.features[layer + 1] > 0
    return LayerPair(
        vision=vision,
        block=vision.embed(trace.image[None]).blocks[layer + 1],
        gradient=nodes.gradient,
        stream=trace.residuals[layer],
        coefficients=(trace.features[layer] - baselines.features[layer]) * trace.stds[layer],
        directions=saes[layer].W_dec,
        error=trace.errors[layer] - baselines.errors[layer],
        sae=saes[layer + 1],
        weights=torch.where(active, nodes.gradients[layer + 1], 0),
        active=active,
        targets=torch.arange(size, device=vision.device) if targets is None else targets,
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")

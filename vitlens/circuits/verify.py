"""Checking edges causally: path patching, the predicted change against the measured one.

An edge from node f of layer l to feature f' of layer l+1 is cut alone: f goes to its baseline on
all tokens, block l+1 runs, its output is encoded, and only f' takes the activations it has there;
all else at layer l+1 is as on the untouched model, features and error node. From there the model
runs on, encoding the stream anew at every layer.

Which features are active stays as on the untouched model, unless asked otherwise: importances take
it as constant. Where the top k are chosen anew while error nodes are held, a feature that falls
just behind another takes its whole contribution with it, which the held error node does not make up
for: then a very small change anywhere can move the target by a jump that is not the edge's.

After Goldowsky-Dill et al., "Localizing model
behavior with path patching", arXiv 2304.05969; edges as in Kim et al., arXiv 2509.17401, section 3.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution.importances import Importances, importances, layer_edges
from vitlens.attribution.targets import Target
from vitlens.circuits.circuit import ERROR, TARGET, Circuit, Edge
from vitlens.circuits.verification import Link, Verification
from vitlens.errors import FeatureError
from vitlens.models.adapter import Block, ViT
from vitlens.progress import Progress, steps
from vitlens.replacement import Baselines, ErrorNodes, Trace
from vitlens.saes.topk import Encoded, TopKSAE

# Error nodes that are leaves of the gradient are held in the run, and the other way round.
_ERRORS: dict[str, ErrorNodes] = {"leaf": "clean", "through": "free"}
_HOW = ("gradient", "errors", "engine")

#: Which features may be active once an edge is cut.
Active = Literal["clean", "running"]


def verify_circuit(
    vit: ViT,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    target: Target,
    circuit: Circuit,
    *,
    n: int | None = None,
    errors: ErrorNodes | None = None,
    active: Active = "clean",
    control: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = False,
) -> Verification:
    """Cut a circuit's edges one by one, and compare with their importances; see `Lens.verify`.

    Raises
    ------
    FeatureError
        If the circuit has no edges or is of another image, or `n`, `errors` or `active` is out of
        range.
    """
    held: ErrorNodes = errors or _ERRORS[circuit.settings.get("errors", "leaf")]
    if held not in get_args(ErrorNodes):
        raise FeatureError(f"errors must be one of {get_args(ErrorNodes)}, not {errors!r}.")
    if active not in get_args(Active):
        raise FeatureError(f"active must be one of {get_args(Active)}, not {active!r}.")
    value = float(target.function(trace.logits))
    if abs(value - circuit.target_value) > 1e-3 * max(1.0, abs(value)):
        raise FeatureError(
            f"The circuit explains {circuit.target} = {circuit.target_value:.3f}, and on this "
            f"image it is {value:.3f}: the circuit is of another image, or of another target."
        )
    chosen = _draw(circuit, n, seed)
    edges = tuple((edge.source, edge.target) for edge in chosen)
    settings = {**circuit.settings, "error_nodes": held, "active": active, "n": n, "seed": seed}

    def measured(edges: Sequence[Link]) -> Tensor:
        return measure_edges(
            vit,
            saes,
            trace,
            baselines,
            target,
            edges,
            errors=held,
            active=active,
            batch_size=batch_size,
            progress=progress,
        )

    beside = None
    if control:
        every = [(edge.source, edge.target) for edge in circuit.edges]
        others = random_edges(trace, edges, known=every, seed=seed)
        nodes = importances(
            vit,
            saes,
            trace,
            baselines,
            target,
            **{k: circuit.settings[k] for k in _HOW if k in circuit.settings},
            edges=False,
        )
        predicted = predict_edges(vit, saes, trace, baselines, nodes, others)
        beside = Verification(
            others, predicted, measured(others), len(others), circuit.target, settings
        )
    weights = torch.tensor([edge.weight for edge in chosen], dtype=torch.float64)
    return Verification(
        edges, weights, measured(edges), len(circuit.edges), circuit.target, settings, beside
    )


def _draw(circuit: Circuit, n: int | None, seed: int) -> list[Edge]:
    """Some edges by chance, in the circuit's order."""
    if n is not None and n < 1:
        raise FeatureError(f"n, the number of edges to check, must be at least 1, not {n}.")
    if not circuit.edges:
        raise FeatureError("The circuit has no edges to check.")
    if n is None or n >= len(circuit.edges):
        return list(circuit.edges)
    order = torch.randperm(len(circuit.edges), generator=torch.Generator().manual_seed(seed))
    return [circuit.edges[i] for i in sorted(order[:n].tolist())]


def measure_edges(
    vit: ViT,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    target: Target,
    edges: Sequence[Link],
    *,
    errors: ErrorNodes = "clean",
    active: Active = "clean",
    batch_size: int = 16,
    progress: Progress = False,
) -> Float[Tensor, " n"]:
    """How much lower the target is when one edge alone is cut, for each edge.

    Parameters
    ----------
    trace
        The image's trace.
    target
        What to measure.
    edges
        From features or error nodes of a layer to features of the next, or from the last layer to
        the target; the source of an edge to the target goes to its baseline itself.
    errors
        What error nodes hold after the edge: "clean" (the untouched model's), "free", "baseline".
    active
        Which features may be active: "clean", those that are on the untouched model; "running", the
        top k of the running stream.
    batch_size
        How many edges run at once.
    progress
        See `vitlens.progress`.

    Returns
    -------
    Tensor
        The target on the untouched model minus the target with the edge cut, float64: the sign of
        an importance, so that an edge that helps has a positive number.

    Raises
    ------
    FeatureError
        If an edge does not go from a node to one of the next layer.
    """
    for edge in edges:
        _check_edge(saes, edge)
    # Neighbours in a batch share layers, and mostly sources.
    order = sorted(range(len(edges)), key=lambda i: edges[i])
    batches: list[list[int]] = []
    for i in order:
        fits = batches and len(batches[-1]) < batch_size
        if fits and edges[batches[-1][0]][0][0] == edges[i][0][0]:
            batches[-1].append(i)
        else:
            batches.append([i])
    value = float(target.function(trace.logits))
    measured = torch.empty(len(edges), dtype=torch.float64)
    with torch.no_grad():
        blocks = vit.embed(trace.image[None]).blocks
        for batch in steps(batches, "edges", progress):
            layer, streams = _cut(saes, trace, baselines, blocks, [edges[i] for i in batch], active)
            streams = _run_on(saes, trace, baselines, blocks, streams, layer, errors, active)
            for i, logits in zip(batch, vit.readout(streams), strict=True):
                measured[i] = value - float(target.function(logits))
    return measured


def predict_edges(
    vit: ViT,
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    nodes: Importances,
    edges: Sequence[Link],
) -> Float[Tensor, " n"]:
    """Importances of some edges, float64.

    Parameters
    ----------
    nodes
        Importances of the image; their edges are not looked at.
    edges
        As for `measure_edges`.
    """
    predicted = torch.empty(len(edges), dtype=torch.float64)
    for layer in sorted({source[0] for source, _ in edges}):
        mine = [i for i, (source, _) in enumerate(edges) if source[0] == layer]
        if layer == len(saes) - 1:
            for i in mine:  # an error node, -1, is the last entry
                predicted[i] = float(nodes.nodes[layer][edges[i][0][1]])
            continue
        ends = sorted({edges[i][1][1] for i in mine})
        targets = torch.tensor(ends, device=vit.device)
        columns = layer_edges(vit, saes, trace, baselines, nodes, layer, targets=targets)
        for i in mine:
            (_, source), (_, end) = edges[i]
            predicted[i] = float(columns[source, ends.index(end)])
    return predicted


def random_edges(
    trace: Trace, edges: Sequence[Link], *, known: Collection[Link] = (), seed: int = 0
) -> tuple[Link, ...]:
    """Draw as many other edges in the same layers, among features active on the image.

    Parameters
    ----------
    edges
        The edges to go beside; none of them is drawn, nor any edge twice, nor an error node. Fewer
        come back where a layer has no more.
    known
        More edges that are not drawn.
    """
    taken = {*edges, *known}
    generator = torch.Generator().manual_seed(seed)
    active = [z.gt(0).any(0).nonzero().squeeze(1).tolist() for z in trace.features]
    drawn: list[Link] = []
    for layer in sorted({source[0] for source, _ in edges}):
        wanted = sum(source[0] == layer for source, _ in edges)
        last = layer == len(active) - 1
        ends = [TARGET] if last else active[layer + 1]
        for number in torch.randperm(len(active[layer]) * len(ends), generator=generator).tolist():
            if not wanted:
                break
            source, end = active[layer][number // len(ends)], ends[number % len(ends)]
            edge = ((layer, source), (layer + 1, end))
            if edge not in taken:
                drawn.append(edge)
                wanted -= 1
    return tuple(drawn)


def _check_edge(saes: Sequence[TopKSAE], edge: Link) -> None:
    (layer, source), (next_layer, end) = edge
    top = len(saes) - 1
    exists = (
        0 <= layer <= top
        and ERROR <= source < saes[layer].size
        and next_layer == layer + 1
        and (end == TARGET if layer == top else 0 <= end < saes[next_layer].size)
    )
    if not exists:
        raise FeatureError(
            f"{edge} is no edge: one goes from a feature (or the error node, -1) of a layer to a "
            f"feature of the next, and from layer {top} to the target, ({top + 1}, {TARGET})."
        )


def _without(
    saes: Sequence[TopKSAE], trace: Trace, baselines: Baselines, layer: int, source: int
) -> Float[Tensor, "T D"]:
    """The stream after a layer with one node at its baseline."""
    if source == ERROR:
        return trace.residuals[layer] - (trace.errors[layer] - baselines.errors[layer])
    moved = trace.features[layer][:, source] - baselines.features[layer][:, source]
    step = moved[:, None] * trace.stds[layer] * saes[layer].W_dec[source]
    return trace.residuals[layer] - step


def _cut(
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    blocks: Sequence[Block],
    edges: Sequence[Link],
    active: Active,
) -> tuple[int, Float[Tensor, "n T D"]]:
    """The layer that the edges' cuts reach, and the stream after it for each."""
    layer = edges[0][0][0]
    sources = sorted({source for (_, source), _ in edges})
    without = torch.stack([_without(saes, trace, baselines, layer, s) for s in sources])
    rows = torch.tensor([sources.index(source) for (_, source), _ in edges])
    if layer == len(saes) - 1:
        return layer, without[rows]
    sae, reached = saes[layer + 1], layer + 1
    ends = torch.tensor([end for _, (_, end) in edges], device=without.device)
    patched = _encode(sae, trace, reached, blocks[reached](without), active).features
    patched = patched[rows, :, ends]
    moved = patched - trace.features[reached][:, ends].T
    step = moved[:, :, None] * trace.stds[reached] * sae.W_dec[ends][:, None]
    return reached, trace.residuals[reached] + step


def _run_on(
    saes: Sequence[TopKSAE],
    trace: Trace,
    baselines: Baselines,
    blocks: Sequence[Block],
    streams: Float[Tensor, "n T D"],
    layer: int,
    errors: ErrorNodes,
    active: Active,
) -> Float[Tensor, "n T D"]:
    """Streams after the last block, from streams after a layer."""
    for following in range(layer + 1, len(saes)):
        streams = blocks[following](streams)
        if errors == "free":
            continue
        sae = saes[following]
        held = trace.errors if errors == "clean" else baselines.errors
        streams = sae.decode(*_encode(sae, trace, following, streams, active)) + held[following]
    return blocks[-1](streams)


def _encode(
    sae: TopKSAE, trace: Trace, layer: int, streams: Float[Tensor, "n T D"], active: Active
) -> Encoded:
    among = trace.features[layer] > 0 if active == "clean" else None
    return sae.encode_with_stats(streams, among=among)

"""Checking edges causally: path patching, the predicted change against the measured one.

An edge from node f of a layer to feature f' of the next one is cut alone: f goes to its baseline on
all tokens, the blocks between run, their output is encoded, and only f' takes the activations it
has there; all else at that layer is as on the untouched model, features and error node. From there
the model runs on, encoding the stream again at every layer (docs/method.md, "Checking an edge").

Which features are active stays as on the untouched model, unless asked otherwise: importances take
it as constant. Where the top k are chosen again while error nodes are held, a feature that falls
just behind another takes its whole contribution with it, and the held error node does not make up
for it: then a very small change anywhere can move the target by a jump that is not the edge's.

After Goldowsky-Dill et al., "Localizing model behavior with path patching", arXiv 2304.05969; edges
as in Kim et al., arXiv 2509.17401, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.circuits.circuit import ERROR, TARGET, Circuit, Edge, node_name
from vitlens.circuits.curves import N_RESAMPLES, Array, Estimate, interval
from vitlens.errors import FeatureError, check_choice
from vitlens.method.derivatives import pushforward
from vitlens.method.engines import EdgeColumns
from vitlens.method.importance import Importances, Target, node_importances
from vitlens.method.libragrad import backward_rules
from vitlens.method.logit_lens import contribution
from vitlens.method.patching import HeldClean, PatchedEdges
from vitlens.method.replacement import Active, ErrorNodes, FromSite, ReplacementModel, Trace
from vitlens.models.vision import Stem
from vitlens.progress import Progress, steps
from vitlens.repr import ShapeRepr
from vitlens.saes.base import FeatureId
from vitlens.tables import text_table

#: The nodes of an edge, or of a path: (layer, feature); feature -1 is an error node, -2 the target.
Link: TypeAlias = tuple[FeatureId, ...]

#: Which features may be active once an edge is cut: one protocol, or both.
Protocols = Literal["both", "clean", "running"]


@dataclass(frozen=True)
class Agreement:
    """How far predicted changes agree with measured ones, with 95 % intervals over edges.

    Attributes
    ----------
    n
        Number of edges.
    rank_correlation
        Spearman's; NaN where a side is constant.
    sign_agreement
        Share of edges whose two changes have the same sign.
    slope
        Least squares through the origin of measured on predicted changes, ``sum(p m) / sum(p p)``:
        below 1 where predictions are too large. The largest edges decide it.
    within_two
        Share of edges with the same sign, the larger change at most twice the smaller.
    """

    n: int
    rank_correlation: Estimate
    sign_agreement: Estimate
    slope: Estimate
    within_two: Estimate

    @classmethod
    def of(cls, predicted: Float[Array, " n"], measured: Float[Array, " n"]) -> Agreement:
        """Compare changes of the same edges; intervals are of 2,000 bootstrap resamples."""
        n = len(predicted)
        draws = np.random.default_rng(0).integers(n, size=(N_RESAMPLES, n))

        def estimate(statistic: Callable[[Any, Any], Any]) -> Estimate:
            value = float(statistic(predicted, measured))
            return interval(value, statistic(predicted[draws], measured[draws]), n)

        return cls(n, *map(estimate, (rank_correlation, sign_agreement, origin_slope, within_two)))

    @property
    def cells(self) -> tuple[str, ...]:
        """The numbers of one line of a table, as `AGREEMENT_COLUMNS` names them."""
        estimates = (self.rank_correlation, self.sign_agreement, self.slope, self.within_two)
        return str(self.n), *map(str, estimates)


#: Titles of `Agreement.cells`.
AGREEMENT_COLUMNS = ("edges", "rank correlation", "same sign", "slope", "within a factor of 2")


@dataclass(frozen=True, eq=False, repr=False)
class Verification(ShapeRepr):
    """Predicted and measured changes of the target, edge by edge.

    Attributes
    ----------
    edges
        Both ends of each, (layer, feature); or the nodes of paths.
    predicted
        The edges' importances, [n], in units of the target.
    measured
        Decrease of the target when only this edge is cut, [n], in the same units (see
        `vitlens.circuits.verify.measure_edges`).
    n_given
        Number of edges from which these were drawn.
    target
        The target that was explained.
    settings
        Settings of both; anything that JSON can hold.
    control
        The same for random edges in the same layers, or None.
    running
        With both protocols: the same edges, measured with the active features chosen again. The
        other numbers are then those with active features held.
    """

    edges: tuple[Link, ...]
    predicted: Float[Tensor, " n"]
    measured: Float[Tensor, " n"]
    n_given: int
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: Verification | None = None
    running: Verification | None = None

    @cached_property
    def agreement(self) -> Agreement:
        """How far both sides agree, over all edges."""
        return Agreement.of(self.predicted.numpy(), self.measured.numpy())

    @property
    def rank_correlation(self) -> Estimate:
        """See `Agreement`."""
        return self.agreement.rank_correlation

    @property
    def sign_agreement(self) -> Estimate:
        """See `Agreement`."""
        return self.agreement.sign_agreement

    @property
    def slope(self) -> Estimate:
        """See `Agreement`."""
        return self.agreement.slope

    @property
    def within_two(self) -> Estimate:
        """See `Agreement`."""
        return self.agreement.within_two

    def by_edge(self) -> dict[Link, tuple[float, float]]:
        """Predicted and measured change of each edge."""
        values = zip(self.predicted.tolist(), self.measured.tolist(), strict=True)
        return dict(zip(self.edges, values, strict=True))

    def by_layer(self) -> dict[int, Agreement]:
        """Agreement of both sides by the edges' first layer."""
        layers = np.array([edge[0][0] for edge in self.edges])
        predicted, measured = self.predicted.numpy(), self.measured.numpy()
        return {
            layer: Agreement.of(predicted[layers == layer], measured[layers == layer])
            for layer in sorted(set(layers.tolist()))
        }

    def __len__(self) -> int:
        return len(self.edges)

    def __str__(self) -> str:
        of = " between supernodes" if self.settings.get("supernodes") else ""
        made = self.settings
        head = (
            f"{len(self)} of {self.n_given} edges{of}, target: {self.target}, "
            f"edges: {made.get('edges', 'gradient')}, error nodes: {made.get('error_nodes', '?')}, "
            f"baselines: {made.get('baselines', '?')}, 95 % intervals over edges"
        )
        rows = [
            (f"{name}, {_ACTIVE[active]}", *found.agreement.cells, f"{found._mean_size:.2g}")
            for name, first in (("circuit", self), ("random edges", self.control))
            for active, found in _by_protocol(first)
        ]
        overall = text_table(("", *AGREEMENT_COLUMNS, "mean change"), rows)
        layers = [(str(layer), *found.cells) for layer, found in self.by_layer().items()]
        by_layer = text_table(("layer", *AGREEMENT_COLUMNS), layers)
        order = self.predicted.abs().argsort(descending=True)[:10].tolist()
        rows = [
            (
                " → ".join(node_name(key) for key in self.edges[i]),
                f"{self.predicted[i]:+.3f}",
                f"{self.measured[i]:+.3f}",
            )
            for i in order
        ]
        largest = text_table(("edge", "predicted", "measured"), rows)
        return "\n\n".join((head, overall, by_layer, largest))

    @property
    def _mean_size(self) -> float:
        return float(self.measured.abs().mean())


_ACTIVE = {"clean": "active features held", "running": "chosen again"}


def _by_protocol(checked: Verification | None) -> list[tuple[str, Verification]]:
    """A verification with its protocol, and the one with the other protocol if there is one."""
    if checked is None:
        return []
    found = [(str(checked.settings.get("active", "clean")), checked)]
    return found if checked.running is None else [*found, ("running", checked.running)]


def rank_correlation(a: Float[Array, "*rows n"], b: Float[Array, "*rows n"]) -> Any:
    """Spearman's rank correlation over the last axis, [*rows]; NaN where a side is constant."""
    from scipy.stats import rankdata

    x, y = (rankdata(side, axis=-1) - (side.shape[-1] + 1) / 2 for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def sign_agreement(a: Float[Array, "*rows n"], b: Float[Array, "*rows n"]) -> Any:
    """Share of pairs with the same sign over the last axis, [*rows]."""
    return (np.sign(a) == np.sign(b)).mean(-1)


def origin_slope(a: Float[Array, "*rows n"], b: Float[Array, "*rows n"]) -> Any:
    """Least squares through the origin of b on a over the last axis, [*rows]; NaN for a = 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / (a * a).sum(-1)


def within_two(a: Float[Array, "*rows n"], b: Float[Array, "*rows n"]) -> Any:
    """Share of pairs of the same sign, neither more than twice the other, [*rows]."""
    close = (np.abs(a) <= 2 * np.abs(b)) & (np.abs(b) <= 2 * np.abs(a))
    return (close & (np.sign(a) == np.sign(b))).mean(-1)


# Error nodes that are leaves of the gradient are held in the run, and the other way round.
_ERROR_NODES: dict[str, HeldClean] = {"leaf": "clean", "through": "free"}
_SETTINGS = ("gradient", "error_gradients", "engine")


def verify_circuit(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    circuit: Circuit,
    *,
    n: int | None = None,
    paths: Sequence[Link] | None = None,
    supernodes: bool = False,
    error_nodes: ErrorNodes | None = None,
    active: Protocols = "both",
    control: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = False,
) -> Verification:
    """Cut a circuit's edges one by one, and compare with their importances; see `Lens.verify`.

    Raises
    ------
    FeatureError
        If the circuit has no edges or is of another image, a path is not of the circuit's nodes,
        paths are given with `supernodes`, or `n` is out of range.
    OptionError
        If `error_nodes` or `active` is unknown.
    """
    if supernodes and paths is not None:
        raise FeatureError("Give paths, or ask for the edges between supernodes; not both.")
    by_default = _ERROR_NODES[circuit.settings.get("error_gradients", "leaf")]
    held: ErrorNodes = by_default if error_nodes is None else error_nodes
    check_choice("error_nodes", held, get_args(ErrorNodes))
    check_choice("active", active, get_args(Protocols))
    check_explains(circuit, target, trace)
    settings = {
        **circuit.settings,
        "error_nodes": held,
        "baselines": replacement.baselines.kind,
        "n": n,
        "seed": seed,
    }
    protocols: tuple[Active, ...] = ("clean", "running") if active == "both" else (active,)
    known = replacement, trace, target
    measuring: dict[str, Any] = {
        "error_nodes": held,
        "batch_size": batch_size,
        "progress": progress,
    }

    def check(
        links: tuple[Link, ...],
        predicted: Tensor,
        n_given: int,
        measure: Callable[[Active], Tensor],
        control: Verification | None = None,
    ) -> Verification:
        controls = dict(_by_protocol(control))
        found = [
            Verification(
                links,
                predicted,
                measure(each),
                n_given,
                circuit.target,
                {**settings, "active": each},
                controls.get(each),
            )
            for each in protocols
        ]
        return replace(found[0], running=found[1] if len(found) > 1 else None)

    def cut(links: Sequence[Link]) -> Callable[[Active], Tensor]:
        return lambda each: measure_edges(*known, links, active=each, **measuring)

    if supernodes:
        merged = circuit.supernodes()
        between = [edge for node in merged for edge in node.edges]
        chosen = _draw(between, n, seed)
        members = {node.key: node.members for node in merged}
        bundles = [(members[edge.source], members.get(edge.target, ())) for edge in chosen]
        settings["supernodes"] = True
        return check(
            tuple((edge.source, edge.target) for edge in chosen),
            _weights(chosen),
            len(between),
            lambda each: measure_bundles(*known, bundles, active=each, **measuring),
        )
    made = {name: circuit.settings[name] for name in _SETTINGS if name in circuit.settings}
    if paths is not None:
        links = tuple(_of_circuit(circuit, path) for path in paths)
        if not links:
            raise FeatureError("There is no path to check.")
        nodes = node_importances(*known, **made)
        predicted = predict_edges(replacement, trace, nodes, links)
        return check(links, predicted, len(links), cut(links))
    chosen = _draw(circuit.edges, n, seed)
    links = tuple((edge.source, edge.target) for edge in chosen)
    comparison = None
    if control:
        every = [(edge.source, edge.target) for edge in circuit.edges]
        others = random_edges(trace, links, known=every, seed=seed)
        if circuit.settings.get("edges") == "patched":
            predicted = predict_patched(*known, others, error_nodes=by_default)
        else:
            nodes = node_importances(*known, **made)
            predicted = predict_edges(replacement, trace, nodes, others)
        comparison = check(others, predicted, len(others), cut(others))
    return check(links, _weights(chosen), len(circuit.edges), cut(links), comparison)


def _weights(edges: Sequence[Edge]) -> Float[Tensor, " n"]:
    return torch.tensor([edge.weight for edge in edges], dtype=torch.float64)


def check_explains(circuit: Circuit, target: Target, trace: Trace) -> None:
    """Raise `FeatureError` where the target has another value than the circuit's."""
    value = float(target.function(trace.logits))
    if abs(value - circuit.target_value) > 1e-3 * max(1.0, abs(value)):
        raise FeatureError(
            f"The circuit explains {circuit.target} = {circuit.target_value:.3f}, and on this "
            f"image it is {value:.3f}: the circuit was made for another image, or for another "
            "target."
        )


def _of_circuit(circuit: Circuit, path: Link) -> Link:
    """Return a path, all of whose nodes are in the circuit."""
    for layer, feature in path:
        if (layer, feature) != circuit.target_key:
            circuit.node(layer, feature)
    return tuple((int(layer), int(feature)) for layer, feature in path)


def _draw(edges: Sequence[Edge], n: int | None, seed: int) -> list[Edge]:
    """Return some edges at random, in their order."""
    if n is not None and n < 1:
        raise FeatureError(f"n, the number of edges to check, must be at least 1, not {n}.")
    if not edges:
        raise FeatureError("The circuit has no edges to check.")
    if n is None or n >= len(edges):
        return list(edges)
    order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(seed))
    return [edges[i] for i in sorted(order[:n].tolist())]


def measure_edges(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    edges: Sequence[Link],
    *,
    error_nodes: ErrorNodes = "clean",
    active: Active = "clean",
    part: float = 1.0,
    batch_size: int = 16,
    progress: Progress = False,
) -> Float[Tensor, " n"]:
    """Measure how much lower the target is when one edge alone is cut, for each edge.

    Parameters
    ----------
    replacement
        The model, with its baselines.
    trace
        The image's trace.
    target
        The target to measure.
    edges
        From features or error nodes of a layer to features of the next one that has an SAE, or
        from the last layer to the target; the source of an edge to the target goes to its baseline
        itself. Or paths of several edges: then at every layer on the way only the path's feature
        changes.
    error_nodes
        Values of the error nodes after the edge: "clean" (the untouched model's), "free",
        "baseline", "zero".
    active
        Which features may be active: "clean", those that are in the untouched model; "running",
        those of the running stream.
    part
        How much of the change of the edge's end is made: 1 for all of it. Where half of it does
        not give about half of the effect, no local prediction can be right.
    batch_size
        Number of edges per batch.
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
        _check_path(replacement, edge)

    def layers(edge: Link) -> tuple[int, int]:
        return edge[0][0], len(edge)

    # Neighbours in a batch share layers, and mostly sources.
    order = sorted(range(len(edges)), key=lambda i: (layers(edges[i]), edges[i]))
    batches: list[list[int]] = []
    for i in order:
        fits = batches and len(batches[-1]) < batch_size
        if fits and layers(edges[batches[-1][0]]) == layers(edges[i]):
            batches[-1].append(i)
        else:
            batches.append([i])

    def cut(model: ReplacementModel, stem: Stem, batch: list[int]) -> tuple[int, Tensor]:
        position, streams = _cut(model, trace, stem, [edges[i] for i in batch], active)
        clean = trace.residuals[position]
        return position, streams if part == 1 else clean + part * (streams - clean)

    return _measure(
        replacement, trace, target, batches, cut, "edges", error_nodes, active, progress
    )


def _measure(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    batches: Sequence[list[int]],
    cut: Callable[[ReplacementModel, Stem, list[int]], tuple[int, Tensor]],
    what: str,
    error_nodes: ErrorNodes,
    active: Active,
    progress: Progress,
) -> Float[Tensor, " n"]:
    """Measure how much lower the target is after each cut.

    `batches` has the numbers of all cuts; `cut` returns the position that the cuts of a batch
    reach, and the stream there for each.
    """
    value = float(target.function(trace.logits))
    measured = torch.empty(sum(map(len, batches)), dtype=torch.float64)
    # With several reference images as baselines, the mean of the runs with each.
    models = [
        ReplacementModel(replacement.vision, replacement.saes, replacement.layers, baselines)
        for baselines in replacement.baselines.runs
    ]
    with torch.no_grad():
        stem = replacement.vision.embed(trace.image[None])
        for batch in steps(batches, what, progress):
            runs = []
            for model in models:
                position, streams = cut(model, stem, batch)
                start = FromSite(position, streams, changed=True, clean=trace)
                runs.append(model.run(start, error_nodes=error_nodes, active=active))
            for i, logits in zip(batch, torch.stack(runs).mean(0), strict=True):
                measured[i] = value - float(target.function(logits))
    return measured


def predict_edges(
    replacement: ReplacementModel, trace: Trace, nodes: Importances, edges: Sequence[Link]
) -> Float[Tensor, " n"]:
    """Return the importances of some edges, float64.

    Parameters
    ----------
    replacement, trace
        See `measure_edges`.
    nodes
        Importances of the image; their edges are not looked at.
    edges
        See `measure_edges`.
    """
    predicted = torch.empty(len(edges), dtype=torch.float64)
    for i, edge in enumerate(edges):
        _check_path(replacement, edge)
        if len(edge) > 2:
            predicted[i] = _predict_path(replacement, trace, nodes, edge)
    columns = EdgeColumns(replacement, trace, nodes)
    for layer in sorted({edge[0][0] for edge in edges if len(edge) == 2}):
        position = replacement.position(layer)
        mine = [i for i, edge in enumerate(edges) if edge[0][0] == layer and len(edge) == 2]
        if layer == replacement.layers[-1]:
            for i in mine:  # an error node, -1, is the last entry
                predicted[i] = float(nodes.nodes[position][edges[i][0][1]])
            continue
        ends = sorted({edges[i][1][1] for i in mine})
        block = columns(position, torch.tensor(ends))
        for i in mine:
            (_, source), (_, end) = edges[i]
            predicted[i] = float(block[source, ends.index(end)])
    return predicted


def predict_patched(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    edges: Sequence[Link],
    *,
    error_nodes: HeldClean = "clean",
    active: Active = "clean",
) -> Float[Tensor, " n"]:
    """Return patched edges, equation (48), float64.

    Parameters
    ----------
    replacement, trace, target, edges
        See `measure_edges`; no paths.
    error_nodes, active
        See `vitlens.method.patching.PatchedEdges`.

    Raises
    ------
    FeatureError
        If an edge does not go from a node to one of the next layer.
    """
    sizes = [sae.n_features for sae in replacement.saes]
    kept: list[set[int]] = [set() for _ in sizes]
    for edge in edges:
        _check_path(replacement, edge)
        if len(edge) > 2:
            raise FeatureError(f"{edge} is a path; only single edges are patched.")
        for layer, feature in edge:
            if feature != TARGET:
                position = replacement.position(layer)
                kept[position].add(sizes[position] if feature == ERROR else feature)
    nodes = [torch.tensor(sorted(features), dtype=torch.int64) for features in kept]
    found = PatchedEdges(replacement, trace, target, nodes, error_nodes=error_nodes, active=active)
    predicted = torch.empty(len(edges), dtype=torch.float64)
    for i, ((layer, source), (_, end)) in enumerate(edges):
        position = replacement.position(layer)
        column = found.to_target() if end == TARGET else found(position, torch.tensor([end]))[:, 0]
        predicted[i] = float(column[source])  # an error node, -1, is the last entry
    return predicted


def _predict_path(
    replacement: ReplacementModel, trace: Trace, nodes: Importances, path: Link
) -> float:
    """Return a node's importance through one feature per layer, in forward mode."""
    (layer, source), *way = [node for node in path if node[1] != TARGET]
    with torch.no_grad():
        stem = replacement.vision.embed(trace.image[None])
    position = replacement.position(layer)
    step = trace.residuals[position] - _without(replacement, trace, position, source)
    for at, feature in way:
        position = replacement.position(at)

        def activation(stream: Tensor, position: int = position, feature: int = feature) -> Tensor:
            with backward_rules(replacement.vision.module, nodes.gradient):
                out = replacement.advance(stem, position)(stream)
            mask = trace.features[position] > 0
            return replacement.saes[position].encode(out, active=mask)[0, :, feature]

        with torch.no_grad():
            moved: Tensor = pushforward(activation, trace.residuals[position - 1][None], step[None])
        step = moved[:, None] * trace.stds[position] * replacement.saes[position].W_dec[feature]
    last, feature = way[-1]
    gradients = nodes.gradients[replacement.position(last)]
    return float((moved * gradients[:, feature]).sum())


def random_edges(
    trace: Trace, edges: Sequence[Link], *, known: Collection[Link] = (), seed: int = 0
) -> tuple[Link, ...]:
    """Draw as many other edges in the same layers, among features active on the image.

    Parameters
    ----------
    trace
        The image's trace.
    edges
        The edges that set how many are drawn per layer; none of them is drawn, nor any edge twice,
        nor an error node. Fewer come back where a layer has no more.
    known
        More edges that are not drawn.
    seed
        Seed of the random order.
    """
    taken = {*edges, *known}
    generator = torch.Generator().manual_seed(seed)
    active = [z.gt(0).any(0).nonzero().squeeze(1).tolist() for z in trace.features]
    drawn: list[Link] = []
    for layer in sorted({edge[0][0] for edge in edges}):
        missing = sum(edge[0][0] == layer for edge in edges)
        position = trace.layers.index(layer)
        if position == len(active) - 1:
            ends = [(layer + 1, TARGET)]
        else:
            ends = [(trace.layers[position + 1], f) for f in active[position + 1]]
        sources = active[position]
        order = torch.randperm(len(sources) * len(ends), generator=generator)
        for number in order[: missing + len(taken)].tolist():
            if not missing:
                break
            edge = ((layer, sources[number // len(ends)]), ends[number % len(ends)])
            if edge not in taken:
                drawn.append(edge)
                missing -= 1
    return tuple(drawn)


def _check_path(replacement: ReplacementModel, path: Link) -> None:
    layers = replacement.layers
    target = (layers[-1] + 1, TARGET)
    following: dict[int, int] = dict(zip(layers, (*layers[1:], target[0]), strict=True))
    exists = len(path) > 1
    for number, (layer, feature) in enumerate(path):
        if number and layer != following.get(path[number - 1][0]):
            exists = False
        if number == len(path) - 1 and (layer, feature) == target:
            continue
        least = ERROR if number == 0 else 0
        exists = exists and layer in layers and least <= feature < replacement.sae(layer).n_features
    if not exists:
        raise FeatureError(
            f"{path} is not an edge. An edge goes from a feature (or the error node, -1) of one "
            "layer to a feature of the next layer that has an SAE, or from the last layer to the "
            f"target, {target}. A path is several edges, end to end."
        )


def _without(
    replacement: ReplacementModel, trace: Trace, position: int, source: int
) -> Float[Tensor, "T D"]:
    """Return the stream at a site with one node at its baseline."""
    step = contribution(replacement, trace, replacement.layers[position], source)
    return trace.residuals[position] - step


def _cut(
    replacement: ReplacementModel,
    trace: Trace,
    stem: Stem,
    edges: Sequence[Link],
    active: Active,
) -> tuple[int, Float[Tensor, "n T D"]]:
    """Return the position that the edges' cuts reach, and the stream there for each edge."""
    ways = [[feature for _, feature in edge if feature != TARGET] for edge in edges]
    position = replacement.position(edges[0][0][0])
    sources = sorted({way[0] for way in ways})
    streams = torch.stack([_without(replacement, trace, position, s) for s in sources])
    rows = torch.tensor([sources.index(way[0]) for way in ways], device=streams.device)
    for number in range(1, len(ways[0])):
        position += 1
        sae = replacement.saes[position]
        ends = torch.tensor([way[number] for way in ways], device=streams.device)
        running = replacement.advance(stem, position)(streams)
        mask = trace.features[position] > 0 if active == "clean" else None
        patched = sae.encode(running, active=mask)
        moved = patched[rows, :, ends] - trace.features[position][:, ends].T
        step = moved[:, :, None] * trace.stds[position] * sae.W_dec[ends][:, None]
        streams = trace.residuals[position] + step
        rows = torch.arange(len(ways), device=streams.device)
    return position, streams[rows]


def measure_bundles(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    bundles: Sequence[tuple[Sequence[FeatureId], Sequence[FeatureId]]],
    *,
    error_nodes: ErrorNodes = "clean",
    active: Active = "clean",
    batch_size: int = 16,
    progress: Progress = False,
) -> Float[Tensor, " n"]:
    """Measure how much lower the target is when all edges between two groups are cut together.

    As `measure_edges`, with all sources of a bundle at their baselines at once, and all its ends
    taking the activations they then have. Importances predict the sum of the edges' weights.

    Parameters
    ----------
    replacement, trace, target, error_nodes, active, batch_size, progress
        See `measure_edges`.
    bundles
        Sources, of one layer, and ends, features of the next; no ends for the edges to the target.

    Returns
    -------
    Tensor
        Decrease of the target by each cut, float64.
    """
    by_layer: dict[tuple[int, bool], list[int]] = {}
    for i, (sources, ends) in enumerate(bundles):
        by_layer.setdefault((sources[0][0], bool(ends)), []).append(i)
    batches = [
        mine[first : first + batch_size]
        for _, mine in sorted(by_layer.items())
        for first in range(0, len(mine), batch_size)
    ]

    def cut(model: ReplacementModel, stem: Stem, batch: list[int]) -> tuple[int, Tensor]:
        return _cut_bundles(model, trace, stem, [bundles[i] for i in batch], active)

    what = "edges between supernodes"
    return _measure(replacement, trace, target, batches, cut, what, error_nodes, active, progress)


def _cut_bundles(
    replacement: ReplacementModel,
    trace: Trace,
    stem: Stem,
    bundles: Sequence[tuple[Sequence[FeatureId], Sequence[FeatureId]]],
    active: Active,
) -> tuple[int, Float[Tensor, "n T D"]]:
    """Return the position that the cuts of some bundles reach, and the stream there for each."""
    position = replacement.position(bundles[0][0][0][0])
    streams = torch.stack(
        [
            trace.residuals[position]
            - sum(contribution(replacement, trace, *source) for source in sources)
            for sources, _ in bundles
        ]
    )
    if not bundles[0][1]:
        return position, streams
    position += 1
    sae, clean = replacement.saes[position], trace.features[position]
    mask = clean > 0 if active == "clean" else None
    patched = sae.encode(replacement.advance(stem, position)(streams), active=mask)
    taken = torch.zeros(len(bundles), clean.shape[1], dtype=torch.bool, device=clean.device)
    for row, (_, ends) in enumerate(bundles):
        taken[row, [feature for _, feature in ends if feature != ERROR]] = True
    moved = torch.where(taken[:, None], patched - clean, 0.0)
    return position, trace.residuals[position] + trace.stds[position] * (moved @ sae.W_dec)

"""A circuit in a cell: layers in columns, pruned in the browser, with nodes to ablate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import traitlets as t
from jaxtyping import Float
from torch import Tensor

from vitlens.circuits.circuit import ERROR, TARGET, Circuit
from vitlens.circuits.graph import AttributionGraph
from vitlens.errors import FeatureError, TargetError
from vitlens.images import ImageLike
from vitlens.interventions.kinds import Ablate, Clamp, Interventions, interventions
from vitlens.lens import Lens
from vitlens.method.importance import Engine, ErrorGradients, TargetLike
from vitlens.method.libragrad import Gradient
from vitlens.method.replacement import ErrorNodes
from vitlens.saes.base import FeatureId
from vitlens.widgets.base import (
    Groups,
    ImageTraits,
    MeasuredEdges,
    NodeList,
    encode_strip,
    to_bytes,
)
from vitlens.widgets.columns import kind_texts
from vitlens.widgets.scene import Scene, ScenePart
from vitlens.widgets.tasks import Check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: (layer, feature, value), where the value None stands for a node at its baseline.
Ablation: TypeAlias = tuple[int, int, float | None]

_FEW = 20  # classes: up to this many, all are reported
_TOP = 8  # classes reported before and after, where there are more
_LONGEST = 50  # history

_RULES = ("nodes_per_layer", "node_share", "edge_share")


class DiagramPart(ImageTraits, ScenePart):
    """The traits of a circuit's diagram and of its ablations; see `CircuitDiagram`."""

    graph_info = t.Dict().tag(sync=True)
    node_features = t.Bytes(b"").tag(sync=True)
    node_importances = t.Bytes(b"").tag(sync=True)
    edge_weights = t.Bytes(b"").tag(sync=True)
    node_heat = t.Bytes(b"").tag(sync=True)
    node_activations = t.Bytes(b"").tag(sync=True)
    nodes_per_layer = t.Int(8, min=1).tag(sync=True)
    node_share = t.Float(0.0, min=0.0).tag(sync=True)
    edge_share = t.Float(0.0, min=0.0).tag(sync=True)
    pinned = NodeList()
    groups = Groups()
    measured = MeasuredEdges()
    ablations = t.Any(()).tag(sync=True)
    outcome = t.Dict().tag(sync=True)
    history = t.List(t.Dict()).tag(sync=True)
    can_ablate = t.Bool(False).tag(sync=True)

    _graph: AttributionGraph | None = None

    @property
    def graph(self) -> AttributionGraph:
        """The graph of which the sliders show circuits.

        Raises
        ------
        FeatureError
            When nothing is shown yet.
        """
        if self._graph is None:
            raise FeatureError("There is no circuit yet.")
        return self._graph

    @property
    def circuit(self) -> Circuit:
        """The visible circuit with pins, groups and labels; set it to show one of the same image.

        Setting it takes the thresholds from the circuit's settings, where it has them, and its
        pins, groups and labels.

        Raises
        ------
        FeatureError
            When nothing is shown yet, the circuit is of another image, target or model, or nodes of
        the graph were removed from it by hand.
        """
        return self.graph.prune(
            min(self.nodes_per_layer, self.graph_info["max_count"]),
            node_share=self.node_share,
            edge_share=self.edge_share,
            pinned=self.pinned,
            groups=self.groups,
            labels=self.labels,
        )

    @circuit.setter
    def circuit(self, circuit: Circuit) -> None:
        _check_same(self.graph, circuit)
        rules = {name: circuit.settings[name] for name in _RULES if name in circuit.settings}
        if "nodes_per_layer" in rules:
            rules = {"node_share": 0.0, "edge_share": 0.0, **rules}
        # Its names may be another person's: they are shown but not saved to the atlas.
        with self.without_saving(), self.hold_trait_notifications():
            for name, value in rules.items():
                setattr(self, name, value)
            self.pinned = circuit.pinned
            self.groups = circuit.groups
            self.labels = {**self.labels, **circuit.labels}

    def show_scene(self, scene: Scene) -> None:
        """Show another scene, and its circuit if it is computed; ablations are removed."""
        super().show_scene(scene)
        self.background("ablation").cancel()
        with self.hold_sync():
            self.ablations, self.outcome, self.history = (), {}, []
            self.can_ablate = True
        if scene.graph is not None:
            self.show_graph(scene.graph)

    def show_graph(self, graph: AttributionGraph) -> None:
        """Show the circuits of a graph; pins that are not among its nodes are removed."""
        keys = set(graph.keys)
        self._graph = graph
        payload = _graph_payload(graph)
        if self.atlas is not None:
            payload["graph_info"]["kinds"] = kind_texts(self.atlas, graph.keys)
        with self.hold_sync(), self.hold_trait_notifications():
            self.pinned = tuple(node for node in self.pinned if node in keys)
            self.hovered = None
            self.measured = {}
            for name, value in payload.items():
                setattr(self, name, value)

    def logits_with(self, ablations: Iterable[Ablation]) -> Float[Tensor, " C"]:
        """Return the logits of the model with these ablations.

        They are those of ``lens.run_with`` with `Ablate` and `Clamp`. Error nodes are clean, except
        those that are switched off.

        Raises
        ------
        FeatureError
            When nothing is shown yet, or a node does not exist.
        """
        return _logits(self.scene, tuple(ablations))

    def diagram_figure(self) -> Figure:
        """Return the visible circuit as a matplotlib figure."""
        from vitlens.plots import circuit_figure

        return circuit_figure(self.circuit)

    def _check_node(self, node: FeatureId) -> None:
        super()._check_node(node)
        if self._scene is None and self._graph is not None:
            self._check_graph_node(node)

    def _check_graph_node(self, node: FeatureId) -> None:
        graph, (layer, feature) = self.graph, node
        if node == (graph.layers[-1] + 1, TARGET) or node in graph.keys:
            return
        sizes = dict(zip(graph.layers, graph.n_features or (), strict=False))
        if not -1 <= feature < sizes.get(layer, -1):
            raise FeatureError(f"There is no node {node} here.")

    @t.validate("node_share", "edge_share")
    def _finite(self, proposal: Any) -> Any:
        if not math.isfinite(proposal.value):
            raise t.TraitError(
                f"{type(self).__name__}.{proposal.trait.name} must be a finite number."
            )
        return proposal.value

    @t.validate("pinned")
    def _pinned_exist(self, proposal: Any) -> Any:
        if self._graph is not None:
            known = set(self._graph.keys)
            for node in proposal.value:
                if node not in known:
                    limit = self._graph.at_most
                    reach = f" of circuits of up to {limit} nodes per layer" if limit else ""
                    raise t.TraitError(
                        f"{type(self).__name__}.pinned: {node} is not among the nodes{reach}."
                    )
        return proposal.value

    @t.validate("ablations")
    def _ablations_exist(self, proposal: Any) -> tuple[Ablation, ...]:
        try:
            wanted = tuple(_ablation(item) for item in proposal.value)
        except (TypeError, ValueError) as error:
            raise t.TraitError(
                f"{type(self).__name__}.ablations must be a list of (layer, feature, value or "
                f"None), not {proposal.value!r}."
            ) from error
        if wanted and self._scene is None:
            raise t.TraitError("Ablations need a lens and an image: use CircuitDiagram.of.")
        try:
            for layer, feature, value in wanted:
                self.scene.check((layer, feature))
                if feature == ERROR and value is not None:
                    raise FeatureError("an error node can be switched off, but not set to a value.")
            _interventions(wanted)
        except FeatureError as error:
            raise t.TraitError(f"{type(self).__name__}.ablations: {error}") from error
        return wanted

    @t.observe("ablations")
    def _ablate(self, change: Any) -> None:
        wanted: tuple[Ablation, ...] = change.new
        worker = self.background("ablation")
        if not wanted:
            worker.cancel()
            self.outcome = {}
            return
        scene = self.scene

        def work(check: Check) -> dict[str, Any]:
            check()
            return _outcome_payload(scene, wanted)

        worker.run(work, self._show_outcome)

    def _show_outcome(self, outcome: dict[str, Any]) -> None:
        entry = {name: outcome[name] for name in ("ablations", "top", "target")}
        earlier = [e for e in self.history if e["ablations"] != entry["ablations"]]
        with self.hold_sync():
            self.outcome = outcome
            self.history = [*earlier, entry][-_LONGEST:]


class CircuitDiagram(DiagramPart, bundle="diagram"):
    """A circuit, from the image to the target, to prune, follow and annotate.

    The sliders act in the browser, on the importances of all nodes that they can reach.

    Parameters
    ----------
    source
        A graph (`Lens.attribute`), or a circuit, which can then be pruned further.
    lens, image
        The lens and the image of the graph; with both, nodes can be ablated.
    target
        See `Lens.attribute`.
    nodes_per_layer, node_share, edge_share, selected, pinned, groups, labels, ablations, measured
        First values of the attributes; by default those of `source`, where it is a circuit.

    Attributes
    ----------
    nodes_per_layer, node_share, edge_share
        The values of the sliders; see `Lens.circuit`.
    selected, hovered
        (layer, feature) or None, with the number of the block; feature -1 is an error node, -2 the
        target, which is one layer after the last.
    pinned
        Nodes that stay visible, ((layer, feature), ...).
    groups
        Supernodes, {name: ((layer, feature), ...)}.
    labels
        {(layer, feature): text}.
    measured
        Measured effects of cutting edges, {(node, node): (predicted, measured)}, shown next to
        the edges: ``diagram.measured = checked.by_edge()`` of a `Verification`. Empty again for
        another image.
    ablations
        Nodes that are switched off or set to a value, ((layer, feature, value or None), ...).
        None puts a feature, or the error node -1, at its baseline; a number is set at every token
        where the feature is active. Setting the attribute, in Python or in the browser, runs the
        model again; the latest request wins.
    outcome
        The output with these ablations: ``ablations``; ``classes`` with their ``indices``;
        ``before`` and ``after``, each with ``logits`` and ``probabilities`` of these classes.
        Empty without ablations.
    history
        Earlier ablations, oldest first: ``ablations``, ``top`` (name and probability of the class
        then predicted) and ``target`` (the target's value).
    can_ablate
        Whether there are a lens and an image to run.

    Raises
    ------
    FeatureError
        When the circuit has no nodes, or only one of lens and image is given.

    Examples
    --------
    >>> lens = vitlens.load("everyday")
    >>> diagram = CircuitDiagram.of(lens, lens.samples[0].path)
    >>> diagram.nodes_per_layer = 4
    >>> diagram.circuit.save("circuit.safetensors")
    """

    def __init__(
        self,
        source: AttributionGraph | Circuit,
        *,
        lens: Lens | None = None,
        image: ImageLike | None = None,
        target: TargetLike = None,
        nodes_per_layer: int | None = None,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        selected: FeatureId | None = None,
        pinned: Iterable[FeatureId] | None = None,
        groups: Mapping[str, Iterable[FeatureId]] | None = None,
        labels: Mapping[FeatureId, str] | None = None,
        ablations: Iterable[Ablation] = (),
        measured: Mapping[tuple[FeatureId, FeatureId], tuple[float, float]] | None = None,
    ):
        graph = AttributionGraph.from_circuit(source) if isinstance(source, Circuit) else source
        super().__init__()
        if (lens is None) != (image is None):
            raise FeatureError("Nodes can be ablated with a lens and an image; give both.")
        if lens is None or image is None:
            self.show_graph(graph)
        else:
            if target is None and graph.target_index is not None:
                target = graph.target_index
            self.show_scene(_scene(lens, image, target, graph))
        first: dict[str, Any] = {"node_share": node_share, "edge_share": edge_share}
        if isinstance(source, Circuit):
            first |= _annotations_of(source, graph)
        given = {
            "nodes_per_layer": nodes_per_layer,
            "selected": selected,
            "pinned": pinned,
            "groups": groups,
            "labels": labels,
            "measured": measured,
        }
        first |= {name: value for name, value in given.items() if value is not None}
        first["labels"] = {**self.labels, **first.get("labels", {})}
        with self.without_saving():
            for name, value in first.items():
                setattr(self, name, value)
        self.ablations = tuple(ablations)

    @classmethod
    def of(
        cls,
        lens: Lens,
        image: ImageLike,
        *,
        target: TargetLike = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
        at_most: int = 64,
        progress: bool = False,
        nodes_per_layer: int | None = None,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        selected: FeatureId | None = None,
        pinned: Iterable[FeatureId] | None = None,
        groups: Mapping[str, Iterable[FeatureId]] | None = None,
        labels: Mapping[FeatureId, str] | None = None,
        ablations: Iterable[Ablation] = (),
    ) -> CircuitDiagram:
        """Compute the graph of an image and show it; nodes can be ablated.

        Parameters
        ----------
        target, gradient, error_gradients, engine, at_most, progress
            See `Lens.attribute`.
        nodes_per_layer, node_share, edge_share, selected, pinned, groups, labels, ablations
            First values of the attributes.

        Raises
        ------
        ImageError, TargetError, ModelError, FeatureError
            See `Lens.attribute`.
        """
        graph = lens.attribute(
            image,
            target=target,
            gradient=gradient,
            error_gradients=error_gradients,
            engine=engine,
            at_most=at_most,
            progress=progress,
        )
        return cls(
            graph,
            lens=lens,
            image=image,
            target=target,
            nodes_per_layer=nodes_per_layer,
            node_share=node_share,
            edge_share=edge_share,
            selected=selected,
            pinned=pinned,
            groups=groups,
            labels=labels,
            ablations=ablations,
        )

    def figure(self) -> Figure:
        """Return the visible circuit as a matplotlib figure."""
        return self.diagram_figure()


def _graph_payload(graph: AttributionGraph) -> dict[str, Any]:
    """Return the traits that hold a graph."""
    counts = [len(features) for features in graph.features]
    activations = graph.activations
    name, probability = graph.prediction
    return {
        "node_features": to_bytes([f for fs in graph.features for f in fs], "int32"),
        "node_importances": to_bytes(torch.cat(graph.nodes)),
        "edge_weights": to_bytes(
            torch.cat([torch.zeros(0), *(edges.cpu().flatten() for edges in graph.edges)])
        ),
        "node_heat": to_bytes(torch.cat(graph.tokens, dim=1).T, "float16"),
        "node_activations": (
            b"" if activations is None else to_bytes(torch.cat(activations, dim=1).T, "float16")
        ),
        "image_strip": encode_strip([graph.image]),
        "n_images": 1,
        "grid": graph.grid,
        "prefix_names": graph.prefix_names,
        "graph_info": {
            "layers": list(graph.layers),
            "counts": counts,
            "positive": list(graph.positive),
            "target": {
                "name": graph.target,
                "index": graph.target_index,
                "value": graph.target_value,
            },
            "prediction": [name, probability],
            "max_count": min(graph.at_most or max(counts), max(counts)),
            "total": sum(counts),
        },
    }


def _annotations_of(circuit: Circuit, graph: AttributionGraph) -> dict[str, Any]:
    """Return the traits that show a circuit unchanged."""
    return {
        "nodes_per_layer": graph.at_most,
        "pinned": circuit.pinned,
        "groups": circuit.groups,
        "labels": circuit.labels,
    }


def _scene(lens: Lens, image: ImageLike, target: TargetLike, graph: AttributionGraph) -> Scene:
    if graph.model and graph.model != lens.fingerprint:
        raise FeatureError(
            "This graph was made with another model or other SAEs than those of the lens."
        )
    settings = {
        name: graph.settings[name]
        for name in ("gradient", "error_gradients", "engine")
        if name in graph.settings
    }
    scene = Scene.of(lens, image, target=target, graph=graph, **settings)
    if scene.target != graph.target:
        raise TargetError(f"This graph is for the target {graph.target!r}; give it as target=.")
    return scene


def _check_same(graph: AttributionGraph, circuit: Circuit) -> None:
    """Raise `FeatureError` unless the circuit's nodes are those of the graph, on the same image."""
    values = torch.cat(graph.nodes).tolist()
    known = dict(zip(graph.keys, values, strict=True))
    scale = max(map(abs, values), default=0.0)
    for node in circuit.nodes:
        value = known.get(node.key)
        if value is None or abs(value - node.importance) > 1e-4 * scale:
            raise FeatureError(
                "This circuit was made for another image, target or model than the diagram. "
                "CircuitDiagram(circuit) shows it."
            )
    back = [key for key in map(tuple, circuit.settings.get("removed", ())) if key in known]
    if back:
        raise FeatureError(
            f"Node {back[0]} was removed from this circuit, and the diagram's rules would show it "
            "again. CircuitDiagram(circuit) shows it without that node."
        )


def _ablation(item: Any) -> Ablation:
    layer, feature, value = item
    if any(isinstance(x, bool | str) or int(x) != x for x in (layer, feature)):
        raise TypeError("layer and feature must be whole numbers")
    if layer < 0 or feature <= TARGET:
        raise ValueError("there is no such node")
    if value is not None and not math.isfinite(value):
        raise ValueError("a value must be finite")
    return int(layer), int(feature), None if value is None else float(value)


def _interventions(ablations: tuple[Ablation, ...]) -> Interventions:
    return interventions(
        Ablate((layer, feature)) if value is None else Clamp((layer, feature), value)
        for layer, feature, value in dict.fromkeys(ablations)
        if feature != ERROR
    )


def _logits(scene: Scene, ablations: tuple[Ablation, ...]) -> Float[Tensor, " C"]:
    off = {layer for layer, feature, _ in ablations if feature == ERROR}
    error_nodes: list[ErrorNodes] = [
        "baseline" if layer in off else "clean" for layer in scene.layers
    ]
    plan = scene.lens.plan(_interventions(ablations), error_nodes=error_nodes)
    return plan.logits_of(scene.trace)


def _outcome_payload(scene: Scene, ablations: tuple[Ablation, ...]) -> dict[str, Any]:
    before, after = scene.trace.logits, _logits(scene, ablations)
    names, index = scene.class_names, scene.target_index
    classes = _classes_to_report(before, after, index)
    best = int(after.argmax())
    target = None if index is None else float(after[index] - after.mean())
    return {
        "ablations": [list(ablation) for ablation in ablations],
        "indices": classes,
        "classes": [names[i] for i in classes],
        "before": _class_values(before, classes),
        "after": _class_values(after, classes),
        "top": [names[best], float(after.softmax(-1)[best])],
        "target": target,
    }


def _classes_to_report(before: Tensor, after: Tensor, target: int | None) -> list[int]:
    """Return class indices, most probable before first: all of a few, else the top of both."""
    order = before.argsort(descending=True).tolist()
    if len(order) <= _FEW:
        return order
    best = {*order[:_TOP], *after.topk(_TOP).indices.tolist()}
    return [i for i in order if i in best or i == target]


def _class_values(logits: Tensor, classes: list[int]) -> dict[str, list[float]]:
    probabilities = torch.softmax(logits, -1)
    return {"logits": logits[classes].tolist(), "probabilities": probabilities[classes].tolist()}

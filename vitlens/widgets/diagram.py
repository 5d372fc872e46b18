"""A circuit in a cell: layers in columns, pruned at once in the browser."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import traitlets as t

from vitlens.attribution.targets import TargetLike
from vitlens.circuits.circuit import TARGET, Circuit
from vitlens.circuits.graph import AttributionGraph
from vitlens.errors import FeatureError, TargetError
from vitlens.images import ImageLike
from vitlens.lens import Lens
from vitlens.widgets.ablation import AblationPart
from vitlens.widgets.atlas_table import kind_words
from vitlens.widgets.buffers import encode_strip, to_bytes
from vitlens.widgets.part import ScenePart
from vitlens.widgets.scene import Scene
from vitlens.widgets.traits import FeatureId, Groups, ImageTraits, MeasuredEdges, NodeList

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RULES = ("nodes_per_layer", "node_share", "edge_share")


class DiagramPart(ImageTraits, ScenePart):
    """The traits behind a circuit's diagram; see `CircuitDiagram`."""

    graph = t.Dict().tag(sync=True)
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

    _candidates: AttributionGraph | None = None

    @property
    def candidates(self) -> AttributionGraph:
        """The nodes that the sliders can reach.

        Raises
        ------
        FeatureError
            When nothing is shown yet.
        """
        if self._candidates is None:
            raise FeatureError("There is no circuit to look at yet.")
        return self._candidates

    @property
    def circuit(self) -> Circuit:
        """What is visible, with pins, groups and labels; set it to show one of the same image.

        Setting takes the thresholds of the circuit's settings, where it has some, and its marks.

        Raises
        ------
        FeatureError
            When nothing is shown yet, or the circuit is of another image, target or model.
        """
        return self.candidates.prune(
            min(self.nodes_per_layer, self.graph["max_count"]),
            node_share=self.node_share,
            edge_share=self.edge_share,
            pinned=self.pinned,
            groups=self.groups,
            labels=self.labels,
        )

    @circuit.setter
    def circuit(self, circuit: Circuit) -> None:
        _check_same(self.candidates, circuit)
        rules = {name: circuit.settings[name] for name in _RULES if name in circuit.settings}
        if "nodes_per_layer" in rules:
            rules = {"node_share": 0.0, "edge_share": 0.0, **rules}
        # Its names are shown, but may be somebody else's: the atlas does not get them.
        with self.only_shown(), self.hold_trait_notifications():
            for name, value in rules.items():
                setattr(self, name, value)
            self.pinned = circuit.pinned
            self.groups = circuit.groups
            self.labels = {**self.labels, **circuit.labels}

    def look_at(self, scene: Scene) -> None:
        """Show another scene; its circuit once its candidates are known."""
        super().look_at(scene)
        if scene.candidates is not None:
            self.show_candidates(scene.candidates)

    def show_candidates(self, candidates: AttributionGraph) -> None:
        """Show the circuits of these candidates; pins that are not among them are let go."""
        keys = set(candidates.keys)
        self._candidates = candidates
        packed = _packed(candidates)
        if self.atlas is not None:
            packed["graph"]["kinds"] = kind_words(self.atlas, candidates.keys)
        with self.hold_sync(), self.hold_trait_notifications():
            self.pinned = tuple(node for node in self.pinned if node in keys)
            self.hovered = None
            self.measured = {}
            for name, value in packed.items():
                setattr(self, name, value)

    def diagram_figure(self) -> Figure:
        """Return what is visible as a matplotlib figure."""
        from vitlens.plots import circuit_figure

        return circuit_figure(self.circuit)

    def _check_node(self, node: FeatureId) -> None:
        super()._check_node(node)
        if self._scene is None and self._candidates is not None:
            self._check_candidate(node)

    def _check_candidate(self, node: FeatureId) -> None:
        candidates = self.candidates
        layer, feature = node
        if node == (len(candidates.features), TARGET) or node in candidates.keys:
            return
        size = None if candidates.n_features is None else candidates.n_features[layer : layer + 1]
        if not size or not -1 <= feature < size[0]:
            raise FeatureError(f"There is no node {node} here.")

    @t.validate("node_share", "edge_share")
    def _finite(self, proposal: Any) -> Any:
        if not math.isfinite(proposal.value):
            raise t.TraitError(f"{type(self).__name__}.{proposal.trait.name} is a finite number.")
        return proposal.value

    @t.validate("pinned")
    def _pinned_exist(self, proposal: Any) -> Any:
        if self._candidates is not None:
            known = set(self._candidates.keys)
            for node in proposal.value:
                if node not in known:
                    raise t.TraitError(
                        f"{type(self).__name__}.pinned: node {node} is not among those that up to "
                        f"{self._candidates.at_most} nodes a layer reach."
                    )
        return proposal.value


class CircuitDiagram(DiagramPart, AblationPart, bundle="diagram"):
    """A circuit, from the image to the target, to prune, walk through and mark.

    The sliders act in the browser, on the importances of every node that they can reach.

    Parameters
    ----------
    source
        AttributionGraph (`Lens.attribute`), or a circuit, which can then be pruned further.
    lens, image
        What the candidates are of; with both, nodes can be ablated.
    target
        As for `Lens.attribute`.
    traits
        First values of the traits.

    Attributes
    ----------
    nodes_per_layer, node_share, edge_share
        What the sliders say; see `Lens.circuit`.
    selected, hovered
        (layer, feature) or None; feature -1 is an error node, -2 the target.
    pinned
        Nodes that stay visible, ((layer, feature), ...).
    groups
        Supernodes, {name: ((layer, feature), ...)}.
    labels
        {(layer, feature): text}.
    measured
        What cutting edges changed, {(node, node): (predicted, measured)}, to be shown beside
        them: ``diagram.measured = checked.by_edge()`` of a `Verification`. Another image
        empties it.
    ablations
        Nodes that are switched off or set to a value, ((layer, feature, value or None), ...).
    outcome
        Logits and probabilities before and after.

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
        **traits: Any,
    ):
        is_graph = isinstance(source, AttributionGraph)
        candidates = source if is_graph else AttributionGraph.from_circuit(source)
        marks = {} if is_graph else _marks(source, candidates)
        super().__init__()
        if (lens is None) != (image is None):
            raise FeatureError("Nodes can be ablated with a lens and an image; give both.")
        if lens is None or image is None:
            self.show_candidates(candidates)
        else:
            if target is None and candidates.target_index is not None:
                target = candidates.target_index
            self.look_at(_scene(lens, image, target, candidates))
        first = {**marks, **traits}
        unknown = sorted(name for name in first if not self.has_trait(name))
        if unknown:
            raise t.TraitError(f"{type(self).__name__} has no trait {', '.join(unknown)}.")
        names = self.labels
        with self.only_shown():
            for name, value in first.items():
                setattr(self, name, value)
            self.labels = {**names, **self.labels}

    @classmethod
    def of(
        cls,
        lens: Lens,
        image: ImageLike,
        *,
        target: TargetLike = None,
        at_most: int = 64,
        progress: bool = False,
        **traits: Any,
    ) -> CircuitDiagram:
        """Compute the candidates of an image and show them; nodes can be ablated.

        Parameters
        ----------
        target, at_most, progress
            As for `Lens.attribute`.
        traits
            First values of the traits.

        Raises
        ------
        ImageError, TargetError, ModelError, FeatureError
            As `Lens.attribute` does.
        """
        candidates = lens.attribute(image, target=target, at_most=at_most, progress=progress)
        return cls(candidates, lens=lens, image=image, target=target, **traits)

    def figure(self) -> Figure:
        """Return what is visible as a matplotlib figure."""
        return self.diagram_figure()


def _packed(candidates: AttributionGraph) -> dict[str, Any]:
    """Return what the view is told of candidates, by trait."""
    counts = [len(features) for features in candidates.features]
    activations = candidates.activations
    name, probability = candidates.prediction
    return {
        "node_features": to_bytes([f for fs in candidates.features for f in fs], "int32"),
        "node_importances": to_bytes(torch.cat(candidates.nodes)),
        "edge_weights": to_bytes(
            torch.cat([torch.zeros(0), *map(torch.flatten, candidates.edges)])
        ),
        "node_heat": to_bytes(torch.cat(candidates.tokens, dim=1).T, "float16"),
        "node_activations": (
            b"" if activations is None else to_bytes(torch.cat(activations, dim=1).T, "float16")
        ),
        "picture": encode_strip([candidates.image]),
        "n_images": 1,
        "grid": candidates.grid,
        "prefix_names": candidates.prefix_names,
        "graph": {
            "n_layers": len(counts),
            "counts": counts,
            "sizes": None if candidates.n_features is None else list(candidates.n_features),
            "positive": list(candidates.positive),
            "target": {
                "name": candidates.target,
                "index": candidates.target_index,
                "value": candidates.target_value,
            },
            "prediction": [name, probability],
            "max_count": min(candidates.at_most or max(counts), max(counts)),
            "total": sum(counts),
        },
    }


def _marks(circuit: Circuit, candidates: AttributionGraph) -> dict[str, Any]:
    """Return the traits that show a circuit as it is."""
    return {
        "nodes_per_layer": candidates.at_most,
        "pinned": circuit.pinned,
        "groups": circuit.groups,
        "labels": circuit.labels,
    }


def _scene(lens: Lens, image: ImageLike, target: TargetLike, candidates: AttributionGraph) -> Scene:
    settings = {
        name: candidates.settings[name]
        for name in ("gradient", "errors", "engine")
        if name in candidates.settings
    }
    if candidates.model and candidates.model != lens.fingerprint:
        raise FeatureError("These candidates are of another model or SAEs than the lens.")
    scene = Scene.of(lens, image, target=target, candidates=candidates, **settings)
    if scene.importances.target != candidates.target:
        raise TargetError(
            f"These candidates are for the target {candidates.target!r}; give it as target=."
        )
    return scene


def _check_same(candidates: AttributionGraph, circuit: Circuit) -> None:
    """Raise `FeatureError` unless the circuit's nodes are these candidates, on the same image."""
    known = {
        (layer, feature): float(value)
        for layer, features in enumerate(candidates.features)
        for feature, value in zip(features, candidates.nodes[layer].tolist(), strict=True)
    }
    scale = max((abs(value) for value in known.values()), default=0.0)
    for node in circuit.nodes:
        value = known.get(node.key)
        if value is None or abs(value - node.importance) > 1e-4 * scale:
            raise FeatureError(
                "This circuit is of another image, target or model than the diagram; "
                "CircuitDiagram(circuit) shows it."
            )

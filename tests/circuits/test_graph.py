"""Attribution graphs: pruning one gives the circuits of the lens; annotations; files."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.builders import KINDS, lens_with, tiny_image, tiny_lens
from tests.circuits.alike import assert_alike
from tests.circuits.conftest import ReferenceCase
from vitlens.circuits.circuit import ERROR, TARGET, Circuit, Explanation
from vitlens.circuits.graph import AttributionGraph, Scores, build_circuit
from vitlens.circuits.prune import walk
from vitlens.errors import CheckpointError, FeatureError
from vitlens.io import read_tensors, write_tensors
from vitlens.method import engines
from vitlens.method.replacement import Baselines


def rules(seed: int, at_most: int) -> list[dict[str, float]]:
    """Thirty settings: counts alone, then with least shares, some of them large."""
    drawn = random.Random(seed)
    counts = [1, 2, 3, at_most, *(drawn.randint(1, at_most) for _ in range(26))]
    settings: list[dict[str, float]] = []
    for number, count in enumerate(counts):
        rule: dict[str, float] = {"nodes_per_layer": count}
        if number % 3:
            rule["node_share"] = drawn.choice([0.001, 0.02, 0.1, 0.4, 2.0])
        if number % 2:
            rule["edge_share"] = drawn.choice([1e-4, 0.005, 0.02, 0.2, 1.5])
        settings.append(rule)
    return settings


@pytest.mark.parametrize("seed", range(4))
def test_a_graph_within_reach_gives_the_circuits_of_the_lens(seed: int) -> None:
    lens = tiny_lens(seed, features=(20, 30, 120, 90)[seed], depth=4 + seed % 2)
    image = tiny_image(seed)
    at_most = (12, 16, 64, 24)[seed]
    graph = lens.attribute(image, at_most=at_most)
    for rule in rules(seed, at_most):
        assert_alike(graph.prune(**rule), lens.circuit(image, **rule, select="walk"))


@pytest.mark.parametrize(("gradient", "errors"), [("plain", "leaf"), ("libragrad", "through")])
def test_a_graph_has_the_settings_of_the_lens(gradient: str, errors: str) -> None:
    lens, image = tiny_lens(5), tiny_image(5)
    settings = {"target": "fruit", "gradient": gradient, "error_gradients": errors, "engine": "jvp"}
    graph = lens.attribute(image, at_most=6, **settings)
    expected = lens.circuit(image, nodes_per_layer=5, edge_share=0.01, **settings, select="walk")
    assert_alike(graph.prune(5, edge_share=0.01), expected)


def test_a_graph_holds_what_the_walk_reaches_and_no_more() -> None:
    lens, image = tiny_lens(1, features=60), tiny_image(1)
    found = lens.importances(image)
    trace = lens.trace(image)
    graph = lens.attribute(image, at_most=5)
    reached: list[set[int]] = [set() for _ in found.nodes]
    for count in range(1, 6):
        for layer, indices in enumerate(walk(found.nodes, found.edges, count=count)):
            reached[layer] |= {ERROR if i == 60 else i for i in indices.tolist()}
    assert [set(features) for features in graph.features] == reached
    for layer, features in enumerate(graph.features):
        for place, feature in enumerate(features):
            index = 60 if feature == ERROR else feature
            assert torch.equal(graph.tokens[layer][:, place], found.tokens[layer][:, index])
            active = (
                trace.errors[layer].norm(dim=1)
                if feature == ERROR
                else trace.features[layer][:, feature]
            )
            assert torch.equal(graph.activations[layer][:, place], active)


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_graph_gives_every_circuit_of_the_lens(seed: int) -> None:
    lens, image = tiny_lens(seed, features=(20, 60, 90)[seed]), tiny_image(seed)
    if seed == 2:  # most nodes are then neither active nor in the graph
        zero = [torch.zeros_like(z) for z in lens.baselines.features]
        lens.baselines = Baselines(zero, lens.baselines.errors)
    graph = lens.attribute(image)
    assert graph.at_most is None
    everything = sum(sae.n_features + 1 for sae in lens.saes)
    assert (len(graph.keys) < everything) == (seed == 2)
    rules: list[dict[str, float]] = [
        *({"nodes_per_layer": count} for count in (1, 8, 1000)),
        *({"share": share} for share in (0.02, 0.3, 1.0)),
        *({"threshold": threshold} for threshold in (0.2, 0.9, 1.0)),
        {"threshold": 0.9, "node_share": 0.05, "edge_share": 0.02},
    ]
    for rule in rules:
        assert_alike(graph.prune(**rule), lens.circuit(image, **rule, select="walk"))
    assert_alike(graph.prune(), lens.circuit(image, select="walk"))


def test_a_graph_survives_a_file(tmp_path: Path) -> None:
    lens, image, path = tiny_lens(2), tiny_image(2), tmp_path / "graph.safetensors"
    for graph in (
        lens.attribute(image),
        lens.attribute(image, at_most=5),
        AttributionGraph.from_circuit(lens.circuit(image, nodes_per_layer=5, select="walk")),
    ):
        graph.save(path)
        again = AttributionGraph.load(path)
        assert again.keys == graph.keys
        assert again.at_most == graph.at_most
        assert again.prune(4, edge_share=0.01) == graph.prune(4, edge_share=0.01)
        assert (again.activations is None) == (graph.activations is None)
        for mine, theirs in zip(again.activations or (), graph.activations or (), strict=True):
            assert torch.equal(mine, theirs)


def test_damaged_graphs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    tiny_lens().attribute(tiny_image(), at_most=3).save(path)
    tensors, metadata = read_tensors(path)
    for name in ("1.nodes", "0.edges", "2.tokens", "1.activations", "0.features"):
        write_tensors(path, {**tensors, name: tensors[name][:-1].clone()}, metadata)
        with pytest.raises(CheckpointError, match="damaged attribution graph"):
            AttributionGraph.load(path)
    write_tensors(path, tensors, {**metadata, "positive": [1.0]})
    with pytest.raises(CheckpointError, match="damaged attribution graph"):
        AttributionGraph.load(path)
    write_tensors(path, tensors, {"format": "vitlens.circuit", "version": 2})
    with pytest.raises(CheckpointError, match="does not hold an attribution graph"):
        AttributionGraph.load(path)


def test_a_graph_refuses_what_it_does_not_hold() -> None:
    graph = tiny_lens().attribute(tiny_image(), at_most=4)
    with pytest.raises(FeatureError, match="1 to 4 nodes per layer"):
        graph.prune(5)
    for count in (0, 2.0, "3"):
        with pytest.raises(FeatureError, match="nodes_per_layer must be a whole number"):
            graph.prune(count)
    with pytest.raises(FeatureError, match=r"Node \(0, 99\) is not in this graph for up to 4"):
        graph.prune(2, pinned=[(0, 99)])
    with pytest.raises(FeatureError, match="node_share must be"):
        graph.prune(2, node_share=-0.1)
    with pytest.raises(FeatureError, match="edge_share must be"):
        graph.prune(2, edge_share=float("nan"))
    with pytest.raises(FeatureError, match="needs the graph of all nodes"):
        graph.prune(share=0.5)
    with pytest.raises(FeatureError, match=r"Node \(0, 99\) is not in this graph"):
        graph.prune(2, removed=[(0, 99)])
    for at_most in (0, 2.5, "3"):
        with pytest.raises(FeatureError, match="at_most must be a whole number"):
            tiny_lens().attribute(tiny_image(), at_most=at_most)


def test_a_pinned_node_stays_with_its_edges() -> None:
    lens, image = tiny_lens(2), tiny_image(2)
    graph = lens.attribute(image, at_most=8)
    plain = graph.prune(2, node_share=0.2, edge_share=0.5)
    hidden = [key for key in graph.keys if key not in {n.key for n in plain.nodes}]
    pins = hidden[-2:]  # of the last layer: there is an edge to the target
    pinned = graph.prune(2, node_share=0.2, edge_share=0.5, pinned=pins)
    assert pinned.pinned == tuple(pins)
    assert {n.key for n in pinned.nodes} == {n.key for n in plain.nodes} | set(pins)
    assert set(plain.edges) <= set(pinned.edges)
    touching = [e for e in pinned.edges if {e.source, e.target} & set(pins)]
    assert touching
    assert set(pinned.edges) == set(plain.edges) | set(touching)


def test_annotations_survive_a_file(tmp_path: Path) -> None:
    graph = tiny_lens(3).attribute(tiny_image(3), at_most=6)
    keys = [node.key for node in graph.prune(3).nodes]
    made = graph.prune(
        3,
        pinned=[keys[0]],
        groups={"ears": [keys[0], keys[4]], "gone": [(0, 10_000)]},
        labels={keys[1]: "left ear", (2, 10_000): "elsewhere"},
    )
    assert made.groups == {"ears": (keys[0], keys[4])}
    assert made.labels == {keys[1]: "left ear"}
    made.save(tmp_path / "circuit.safetensors")
    assert Circuit.load(tmp_path / "circuit.safetensors") == made
    assert Circuit.load(tmp_path / "circuit.safetensors") != graph.prune(3)
    graph = made.to_networkx()
    assert graph.nodes[keys[0]]["pinned"]
    assert graph.nodes[keys[4]]["group"] == "ears"
    assert graph.nodes[keys[1]]["label"] == "left ear"
    assert graph.nodes[keys[1]]["pinned"] is False


def test_annotations_must_fit_the_circuit() -> None:
    graph = tiny_lens().attribute(tiny_image(), at_most=3)
    made = graph.prune(2)
    values = vars(made)
    key = made.nodes[0].key
    with pytest.raises(FeatureError, match="cannot be labelled"):
        Circuit(**{**values, "labels": {(0, 999): "x"}})
    with pytest.raises(FeatureError, match="appears twice in the groups"):
        Circuit(**{**values, "groups": {"a": (key,), "b": (key,)}})
    with pytest.raises(FeatureError, match="needs a name"):
        Circuit(**{**values, "groups": {"": (key,)}})


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_circuit_can_be_pruned_further(count: int) -> None:
    lens, image = tiny_lens(4), tiny_image(4)
    made = lens.circuit(image, nodes_per_layer=5, select="walk")
    again = AttributionGraph.from_circuit(made)
    assert again.at_most == 5
    pruned, direct = again.prune(count), lens.circuit(image, nodes_per_layer=count, select="walk")
    # The weakest of five walks may have other nodes than a walk with fewer, but not in general.
    assert {n.key for n in again.prune(5).nodes} == {n.key for n in made.nodes}
    assert len(pruned.nodes) == len(direct.nodes)
    for mine, theirs in zip(again.prune(5).nodes, made.nodes, strict=True):
        assert mine.share == pytest.approx(theirs.share)


def test_progress_is_reported_and_can_cancel() -> None:
    reported: list[tuple[float, str]] = []
    tiny_lens().attribute(tiny_image(), at_most=2, progress=lambda *done: reported.append(done))
    assert reported == [(0.0, "edges"), (0.5, "edges"), (1.0, "edges")]

    def cancel(done: float, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_lens().attribute(tiny_image(), progress=cancel)


def whole(case: ReferenceCase) -> Circuit:
    nodes, vision = case.nodes, case.model.replacement.vision
    explanation = Explanation(
        layers=nodes.layers,
        grid=vision.grid,
        prefix_names=vision.prefix_names,
        target=nodes.target,
        target_index=nodes.target_index,
        target_value=nodes.target_value,
        prediction=("class 3", 0.5),
    )
    kept = walk(nodes.nodes, case.edges, share=1.0)
    return build_circuit(explanation, Scores.of_all(nodes.nodes, nodes.tokens, case.edges), kept)


def test_with_every_node_kept_nothing_is_lost(case: ReferenceCase) -> None:
    # Error nodes are leaves: what leaves a node is what the node is worth.
    circuit, found = whole(case), case.nodes
    assert len(circuit.nodes) == sum(len(scores) for scores in found.nodes)
    for node, heat in zip(circuit.nodes, circuit.heatmaps, strict=True):
        assert node.kept_importance == pytest.approx(node.importance, rel=1e-9, abs=1e-12)
        assert float(heat.sum()) == pytest.approx(node.importance, rel=1e-9, abs=1e-12)
        expected = found.nodes[node.layer][node.feature]  # -1 is the error node, and the last
        assert node.importance == float(expected)
    for layer in range(circuit.n_layers):
        shares = [n.share for n in circuit.nodes if n.layer == layer and n.share > 0]
        assert sum(shares) == pytest.approx(1)


def test_edges_are_those_of_the_reference(case: ReferenceCase) -> None:
    circuit = whole(case)
    assert not [e for e in circuit.edges if e.target[1] == ERROR]
    for layer in range(circuit.n_layers - 1):
        expected = case.data[f"image0.libragrad.leaf.edges.{layer}"]
        made = torch.zeros_like(expected)
        for edge in circuit.edges:
            if edge.source[0] == layer:
                made[edge.source[1], edge.target[1]] = edge.weight
        torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-12)


def test_round_trip_of_a_real_circuit(case: ReferenceCase, tmp_path: Path) -> None:
    circuit = whole(case)
    circuit.save(tmp_path / "circuit.safetensors")
    assert Circuit.load(tmp_path / "circuit.safetensors") == circuit
    graph = circuit.to_networkx()
    assert graph.number_of_nodes() == len(circuit.nodes) + 1
    assert graph.number_of_edges() == len(circuit.edges)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sae_kind_at_some_layers(kind: str, tmp_path: Path) -> None:
    lens = lens_with(kind, layers=(1, 3, 4), depth=6, seed=3, dtype=torch.float64)
    image = tiny_image(3, torch.float64)
    whole, within = lens.attribute(image), lens.attribute(image, at_most=6, engine="vjp")
    assert whole.layers == within.layers == (1, 3, 4)
    assert whole.settings["baselines"] == "custom"
    whole.save(tmp_path / "graph.safetensors")
    whole = AttributionGraph.load(tmp_path / "graph.safetensors")
    found = lens.importances(image, engine="vjp")
    for position, numbers in enumerate(whole.features):
        indices = [30 if f == ERROR else f for f in numbers]
        torch.testing.assert_close(whole.nodes[position], found.nodes[position][indices])
        if position < 2:
            ends = [f for f in whole.features[position + 1] if f != ERROR]
            expected = found.edges[position][indices][:, ends]
            block = whole.edges[position][:, : len(ends)]
            torch.testing.assert_close(block, expected, rtol=1e-9, atol=1e-12)
    for rule in ({"nodes_per_layer": 2}, {"nodes_per_layer": 6, "edge_share": 0.01}):
        made = lens.circuit(image, engine="jvp", **rule, select="walk")
        for graph in (whole, within):
            pruned = replace(graph.prune(**rule), settings=made.settings)
            assert_alike(pruned, made)
        assert made.target_key == (5, TARGET)
        assert {edge.target[0] for edge in made.edges} == {3, 4, 5}
        assert {edge.source[0] for edge in made.edges} == {1, 3, 4}
        assert all(made.features(layer) for layer in made.layers)
    for share in (0.1, 1.0):
        assert_alike(whole.prune(share=share), lens.circuit(image, share=share, select="walk"))
    made.save(tmp_path / "circuit.safetensors")
    assert Circuit.load(tmp_path / "circuit.safetensors") == made
    again = AttributionGraph.from_circuit(made).prune(6)
    assert {node.key for node in again.nodes} == {node.key for node in made.nodes}


def test_a_circuit_of_one_layer_has_only_edges_to_the_target() -> None:
    lens, image = lens_with(layers=(2,)), tiny_image(3)
    made = lens.circuit(image, nodes_per_layer=4, select="walk")
    assert [edge.source for edge in made.edges] == [node.key for node in made.nodes]
    assert {edge.target for edge in made.edges} == {(3, TARGET)}
    assert_alike(lens.attribute(image).prune(4), made)


def test_only_the_columns_that_the_walk_needs_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    lens, image = tiny_lens(1, features=60), tiny_image(1)
    asked: list[int] = []
    real = engines.compute_edges

    def counted(pair: engines.SitePair, engine: engines.Engine) -> torch.Tensor:
        asked.append(len(pair.targets))
        return real(pair, engine)

    monkeypatch.setattr(engines, "compute_edges", counted)
    for engine in ("closed_form", "jvp", "vjp"):
        asked.clear()
        lens.circuit(image, nodes_per_layer=4, engine=engine, select="walk")
        assert len(asked) == 2 and max(asked) <= 4
        asked.clear()
        graph = lens.attribute(image, at_most=4, engine=engine)
        assert len(asked) == 2
        held = [sum(f != ERROR for f in graph.features[p]) for p in (2, 1)]
        assert all(n <= most for n, most in zip(asked, held, strict=True))

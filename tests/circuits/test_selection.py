"""Selections: planted circuits are found, budgets are met, and every feature is connected."""

from __future__ import annotations

import math

import pytest
import torch

import vitlens
from tests.builders import tiny_image, tiny_lens
from tests.planted import BIRD, LAND, MAMMAL, WATER, planted_images, planted_lens
from vitlens.circuits.circuit import ERROR
from vitlens.circuits.selection import (
    Ranking,
    active_features,
    eliminate,
    learn_gates,
    rank_by_path,
    schedule,
)
from vitlens.errors import FeatureError, OptionError
from vitlens.method.importance import resolve_target
from vitlens.method.path_importance import path_importances

DOUBLE = torch.float64


@pytest.mark.parametrize("select", ["path", "eliminate"])
@pytest.mark.parametrize(
    ("group", "target", "circuit"), [(0, "bird", {BIRD, WATER}), (3, "mammal", {MAMMAL, LAND})]
)
def test_the_planted_circuit_is_found(select, group, target, circuit) -> None:
    lens = planted_lens(dtype=DOUBLE, shortcut=0.05)
    counts = [0, 0, 0, 0]
    counts[group] = 4
    for image in planted_images(tuple(counts)).images:
        image = image.to(DOUBLE)
        one = lens.circuit(image, target=target, select=select, nodes_per_layer=2)
        two = lens.circuit(image, target=target, select=select, nodes_per_layer=3)
        strongest = min(circuit)  # the object; the place adds less
        assert [one.features(layer) for layer in lens.layers] == [(strongest,)] * 2
        assert [set(two.features(layer)) for layer in lens.layers] == [circuit] * 2


def test_elimination_keeps_what_a_single_look_at_the_full_model_removes() -> None:
    """A planted AND: with a saturating answer the full model's gradient sees nothing."""
    lens, image, target = tiny_lens(dtype=DOUBLE), tiny_image(3, DOUBLE), 2
    empty = lens.run_with(image, keep=[[]] * 3)
    low = float(empty[target] - empty.mean())
    high = float(lens.trace(image).logits[target] - lens.trace(image).logits.mean())

    def saturated(logits: torch.Tensor) -> torch.Tensor:
        # Flat at the full model, so that a gradient taken there ranks by rounding errors.
        share = ((logits[target] - logits.mean()) - low) / (high - low)
        return 1 - (1 - share).clamp(min=0).square()

    trace = lens.trace(image)
    gradient = lens.importances(image, target=saturated, gradient="plain").nodes
    assert max(float(nodes.abs().max()) for nodes in gradient) < 1e-9
    ranking = eliminate(lens.replacement, trace, resolve_target(saturated, trace.logits), down_to=4)
    kept = saturated(lens.run_with(image, keep=ranking.keep(4)))
    n = 50
    generator = torch.Generator().manual_seed(0)
    active = active_features(trace)
    random = [
        saturated(
            lens.run_with(
                image,
                keep=[
                    mask.nonzero()[:, 0][torch.randperm(int(mask.sum()), generator=generator)[:4]]
                    for mask in active
                ],
            )
        )
        for _ in range(n)
    ]
    assert sum(float(kept) > float(other) for other in random) >= 0.9 * n


def test_the_first_round_removes_the_smallest_path_importances() -> None:
    lens, image = tiny_lens(dtype=DOUBLE), tiny_image(1, DOUBLE)
    trace = lens.trace(image)
    target = resolve_target(1, trace.logits)
    active = active_features(trace)
    scores = path_importances(lens.replacement, trace, target, steps=3, within=active)
    count = min(int(mask.sum()) for mask in active) // 2
    ranking = eliminate(lens.replacement, trace, target, down_to=count, drop=0.9, steps=3)
    for mask, score, kept in zip(active, scores, ranking.keep(count), strict=True):
        expected = torch.where(mask, score, -torch.inf).argsort(descending=True)[:count]
        assert kept.tolist() == expected.tolist()
    assert ranking.n_active == tuple(int(mask.sum()) for mask in active)


def test_rankings_are_nested_and_hold_active_features_only() -> None:
    lens, image = tiny_lens(dtype=DOUBLE), tiny_image(1, DOUBLE)
    trace = lens.trace(image)
    target = resolve_target(1, trace.logits)
    active = active_features(trace)
    for make in (
        lambda: eliminate(lens.replacement, trace, target, down_to=2),
        lambda: eliminate(lens.replacement, trace, target, down_to=9, floor=2),
        lambda: rank_by_path(lens.replacement, trace, target),
        lambda: learn_gates(lens.replacement, trace, target, steps=3),
    ):
        ranking = make()
        few, all_ = ranking.keep(3), ranking.keep(1000)
        for some, every, mask in zip(few, all_, active, strict=True):
            assert some.tolist() == every.tolist()[:3]
            assert set(every.tolist()) == set(mask.nonzero()[:, 0].tolist())


def test_one_budget_for_all_layers_respects_the_floor() -> None:
    scores = (
        torch.tensor([5.0, 4.0, -math.inf, 3.0]),
        torch.tensor([1.0, 0.5, 0.2, 0.1]),
        torch.tensor([-math.inf, 2.0, -math.inf, -math.inf]),
    )
    ranking = Ranking(scores)
    kept = [k.tolist() for k in ranking.keep_total(5, floor=1)]
    assert kept == [[0, 1, 3], [0], [1]]
    # The third layer has one active feature only; its place goes to the best of the others.
    kept = [k.tolist() for k in ranking.keep_total(6, floor=2)]
    assert kept == [[0, 1, 3], [0, 1], [1]]
    with pytest.raises(FeatureError, match="below the floor: 2 for each of 3 layers are 6"):
        ranking.keep_total(5, floor=2)


def test_rounds_shrink_evenly_and_end_exactly() -> None:
    assert schedule(64, 8, 0.5) == [32, 16, 8]
    assert schedule(8, 8, 0.5) == []
    assert schedule(100, 30, 0.5)[-1] == 30 and len(schedule(100, 30, 0.5)) == 2
    lens, image = tiny_lens(), tiny_image(1)
    trace = lens.trace(image)
    passes = []
    eliminate(
        lens.replacement,
        trace,
        resolve_target(1, trace.logits),
        down_to=4,
        progress=lambda done, what: passes.append((done, what)),
    )
    most = max(int(mask.sum()) for mask in active_features(trace))
    rounds = len(schedule(most, 4, 0.5))
    assert [done for done, _ in passes] == pytest.approx([r / rounds for r in range(rounds + 1)])
    assert f"{3 * rounds} forward and backward passes" in passes[0][1]


def test_error_nodes_count_as_nodes_where_they_have_the_images_values() -> None:
    lens, image = tiny_lens(), tiny_image(1)
    for error_nodes, n_features in (("clean", 4), ("free", 4), ("baseline", 5), ("zero", 5)):
        circuit = lens.circuit(image, nodes_per_layer=5, error_nodes=error_nodes)
        for layer in lens.layers:
            nodes = [node for node in circuit.nodes if node.layer == layer]
            assert len(nodes) == 5 and len(circuit.features(layer)) == n_features
    circuit = lens.circuit(image, nodes=18, floor=3)
    assert len(circuit.nodes) == 18
    assert all(len(circuit.features(layer)) >= 2 for layer in lens.layers)
    assert circuit.settings["select"] == "eliminate" and circuit.settings["floor"] == 3


@pytest.mark.parametrize("select", ["path", "eliminate"])
def test_every_feature_reaches_the_image_and_the_target(select: str) -> None:
    lens, image = tiny_lens(), tiny_image(1)
    circuit = lens.circuit(image, select=select, nodes_per_layer=4, edge_share=1e9)
    assert circuit.edges
    graph = circuit.to_networkx()
    import networkx

    first = [(lens.layers[0], f) for f in circuit.features(lens.layers[0])]
    reached = set().union(*(networkx.descendants(graph, node) for node in first), first)
    leading = networkx.ancestors(graph, circuit.target_key)
    for node in circuit.nodes:
        if node.feature != ERROR:
            assert node.key in reached and node.key in leading
    # The walk keeps no edge of so small a share.
    assert not lens.circuit(image, select="walk", nodes_per_layer=4, edge_share=1e9).edges


def test_features_without_any_edge_are_left_out() -> None:
    from dataclasses import replace

    from vitlens.circuits.graph import Scores, build_circuit

    lens, image = tiny_lens(), tiny_image(1)
    explanation = lens.circuit(image, select="walk").explanation()
    from vitlens.circuits.circuit import Explanation

    nodes = [torch.tensor([3.0, 2.0, 1.0])] * 3
    edges = [torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]), torch.ones(3, 2)]
    tokens = [torch.ones(10, 3) / 10] * 3
    scores = Scores.of_all(nodes, tokens, edges)
    kept = [[0, 1, 2]] * 3
    whole = build_circuit(Explanation(**explanation), scores, kept)
    linked = build_circuit(Explanation(**explanation), scores, kept, connected=True)
    assert whole.features(0) == whole.features(1) == (0, 1)
    # Feature 1 of layer 0 leads nowhere; nothing but an error node leads into 1 of layer 1.
    assert (
        linked.features(0) == (0,) and linked.features(1) == (0,) and linked.features(2) == (0, 1)
    )
    assert {node.feature for node in linked.nodes if node.layer == 0} == {0, ERROR}
    assert replace(linked).edges


def test_bad_input() -> None:
    lens, image = tiny_lens(), tiny_image(1)
    for rules, message in (
        ({"nodes_per_layer": 1}, "nodes_per_layer must be at least 2: one node per layer is its"),
        ({"nodes": 5, "floor": 3}, "below the floor"),
        ({"nodes": 20, "floor": 1}, "floor must be at least 2"),
        ({"nodes": 20, "nodes_per_layer": 4}, "not both"),
        ({"nodes": 2.5}, "nodes must be a whole number"),
        ({"select": "walk", "nodes": 20}, "A walk needs a number per layer"),
        ({"threshold": 0.5}, 'threshold needs select="walk"'),
    ):
        with pytest.raises(FeatureError, match=message):
            lens.circuit(image, **rules)
    with pytest.raises(OptionError, match="select"):
        lens.circuit(image, select="greedy")
    with pytest.raises(OptionError, match="error_nodes"):
        lens.circuit(image, error_nodes="held")
    trace = lens.trace(image)
    target = resolve_target(1, trace.logits)
    for wrong in ({"drop": 0.0}, {"drop": 1.0}, {"down_to": 0}, {"steps": 0}):
        with pytest.raises(FeatureError):
            eliminate(lens.replacement, trace, target, **{"down_to": 4, **wrong})


def test_a_share_counts_by_layer_and_small_layers_keep_what_is_active() -> None:
    lens, image = tiny_lens(), tiny_image(1)
    circuit = lens.circuit(image, share=0.1)
    assert [len(circuit.features(layer)) for layer in lens.layers] == [3, 3, 3]
    everything = lens.circuit(image, nodes_per_layer=1000)
    active = active_features(lens.trace(image))
    for layer, mask in zip(lens.layers, active, strict=True):
        assert set(everything.features(layer)) <= set(mask.nonzero()[:, 0].tolist())


def test_selection_stops_when_progress_raises() -> None:
    class CancelledError(Exception):
        pass

    def cancel(done: float, what: str) -> None:
        if done > 0:
            raise CancelledError

    with pytest.raises(CancelledError):
        tiny_lens().circuit(tiny_image(1), progress=cancel)


def test_selected_circuits_are_saved_with_their_rules(tmp_path) -> None:
    circuit = tiny_lens().circuit(tiny_image(1), nodes_per_layer=4)
    circuit.save(tmp_path / "circuit.safetensors")
    loaded = vitlens.Circuit.load(tmp_path / "circuit.safetensors")
    assert loaded.nodes == circuit.nodes and loaded.settings == circuit.settings
    assert loaded.settings["select"] == "eliminate"

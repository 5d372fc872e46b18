"""Pruning among candidates is pruning; filters by share; marks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_image, tiny_lens
from vitlens.circuits.candidates import Candidates
from vitlens.circuits.circuit import ERROR, Circuit
from vitlens.circuits.prune import filter_shares, keeps_edge, walk
from vitlens.errors import CheckpointError, FeatureError
from vitlens.io import read_tensors, write_tensors


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
def test_candidates_give_the_circuits_of_the_lens(seed: int) -> None:
    lens = tiny_lens(seed, features=(20, 30, 120, 90)[seed], depth=4 + seed % 2)
    image = tiny_image(seed)
    at_most = (12, 16, 64, 24)[seed]
    candidates = lens.candidates(image, at_most=at_most)
    for rule in rules(seed, at_most):
        assert candidates.circuit(**rule) == lens.circuit(image, **rule), rule


@pytest.mark.parametrize(("gradient", "errors"), [("plain", "leaf"), ("libragrad", "through")])
def test_candidates_take_the_settings_of_the_lens(gradient: str, errors: str) -> None:
    lens, image = tiny_lens(5), tiny_image(5)
    settings = {"target": "fruit", "gradient": gradient, "errors": errors, "engine": "jvp"}
    candidates = lens.candidates(image, at_most=6, **settings)
    assert candidates.circuit(5, edge_share=0.01) == lens.circuit(
        image, nodes_per_layer=5, edge_share=0.01, **settings
    )


def test_candidates_hold_what_the_walk_reaches_and_no_more() -> None:
    lens, image = tiny_lens(1, features=60), tiny_image(1)
    found = lens.importances(image)
    trace = lens.trace(image)
    candidates = lens.candidates(image, at_most=5)
    reached: list[set[int]] = [set() for _ in found.nodes]
    for count in range(1, 6):
        for layer, indices in enumerate(walk(found.nodes, found.edges, count=count)):
            reached[layer] |= {ERROR if i == 60 else i for i in indices.tolist()}
    assert [set(features) for features in candidates.features] == reached
    for layer, features in enumerate(candidates.features):
        for place, feature in enumerate(features):
            index = 60 if feature == ERROR else feature
            assert torch.equal(candidates.tokens[layer][:, place], found.tokens[layer][:, index])
            active = (
                trace.errors[layer].norm(dim=1)
                if feature == ERROR
                else trace.features[layer][:, feature]
            )
            assert torch.equal(candidates.activations[layer][:, place], active)


def test_candidates_refuse_what_they_do_not_know() -> None:
    candidates = tiny_lens().candidates(tiny_image(), at_most=4)
    with pytest.raises(FeatureError, match="1 to 4 nodes a layer"):
        candidates.circuit(5)
    for count in (0, 2.0, "3"):
        with pytest.raises(FeatureError, match="nodes_per_layer must be a whole number"):
            candidates.circuit(count)
    with pytest.raises(FeatureError, match=r"Node \(0, 99\) is not among"):
        candidates.circuit(2, pinned=[(0, 99)])
    with pytest.raises(FeatureError, match="node_share must be"):
        candidates.circuit(2, node_share=-0.1)
    with pytest.raises(FeatureError, match="edge_share must be"):
        candidates.circuit(2, edge_share=float("nan"))
    for at_most in (0, 2.5, "3"):
        with pytest.raises(FeatureError, match="at_most must be a whole number"):
            tiny_lens().candidates(tiny_image(), at_most=at_most)


def test_shares_by_hand() -> None:
    kept = (torch.tensor([2, 0, 1]), torch.tensor([1, 0]))
    shares = [[0.3, 0.05, -0.2], [0.1, 0.2]]
    assert [k.tolist() for k in filter_shares(kept, shares, node_share=0)] == [[2, 0, 1], [1, 0]]
    # The first of a layer stays, however small; the others need the share, exactly or more.
    assert [k.tolist() for k in filter_shares(kept, shares, node_share=0.1)] == [[2, 0], [1, 0]]
    assert [k.tolist() for k in filter_shares(kept, shares, node_share=9)] == [[2], [1]]


def test_edges_by_share() -> None:
    assert keeps_edge(1.0, 0.1, edge_share=0.1, pinned=False)
    assert keeps_edge(-1.0, -0.1, edge_share=0.1, pinned=False)
    assert not keeps_edge(1.0, 0.0999, edge_share=0.1, pinned=False)
    assert keeps_edge(1.0, 0.0999, edge_share=0.1, pinned=True)
    assert not keeps_edge(0.0, 0.0, edge_share=0.0, pinned=True)


def test_a_pinned_node_stays_with_its_edges() -> None:
    lens, image = tiny_lens(2), tiny_image(2)
    candidates = lens.candidates(image, at_most=8)
    plain = candidates.circuit(2, node_share=0.2, edge_share=0.5)
    hidden = [key for key in candidates.keys if key not in {n.key for n in plain.nodes}]
    pins = hidden[-2:]  # of the last layer: there is an edge to the target
    pinned = candidates.circuit(2, node_share=0.2, edge_share=0.5, pinned=pins)
    assert pinned.pinned == tuple(pins)
    assert {n.key for n in pinned.nodes} == {n.key for n in plain.nodes} | set(pins)
    assert set(plain.edges) <= set(pinned.edges)
    touching = [e for e in pinned.edges if {e.source, e.target} & set(pins)]
    assert touching
    assert set(pinned.edges) == set(plain.edges) | set(touching)


def test_marks_round_trip(tmp_path: Path) -> None:
    candidates = tiny_lens(3).candidates(tiny_image(3), at_most=6)
    keys = [node.key for node in candidates.circuit(3).nodes]
    made = candidates.circuit(
        3,
        pinned=[keys[0]],
        groups={"ears": [keys[0], keys[4]], "gone": [(0, 10_000)]},
        labels={keys[1]: "left ear", (2, 10_000): "elsewhere"},
    )
    assert made.groups == {"ears": (keys[0], keys[4])}
    assert made.labels == {keys[1]: "left ear"}
    made.save(tmp_path / "circuit.safetensors")
    assert Circuit.load(tmp_path / "circuit.safetensors") == made
    assert Circuit.load(tmp_path / "circuit.safetensors") != candidates.circuit(3)
    graph = made.to_networkx()
    assert graph.nodes[keys[0]]["pinned"]
    assert graph.nodes[keys[4]]["group"] == "ears"
    assert graph.nodes[keys[1]]["label"] == "left ear"
    assert graph.nodes[keys[1]]["pinned"] is False


def test_files_without_marks_still_load(tmp_path: Path) -> None:
    made = tiny_lens().circuit(tiny_image(), nodes_per_layer=2)
    made.save(tmp_path / "new.safetensors")
    tensors, metadata = read_tensors(tmp_path / "new.safetensors")
    for mark in ("pinned", "groups", "labels"):
        del metadata[mark]
    write_tensors(tmp_path / "old.safetensors", tensors, metadata)
    assert Circuit.load(tmp_path / "old.safetensors") == made
    write_tensors(tmp_path / "bad.safetensors", tensors, {**metadata, "pinned": [[0, 10_000]]})
    with pytest.raises(CheckpointError, match="damaged circuit"):
        Circuit.load(tmp_path / "bad.safetensors")


def test_marks_must_fit_the_circuit() -> None:
    candidates = tiny_lens().candidates(tiny_image(), at_most=3)
    made = candidates.circuit(2)
    values = vars(made)
    key = made.nodes[0].key
    with pytest.raises(FeatureError, match="cannot be labelled"):
        Circuit(**{**values, "labels": {(0, 999): "x"}})
    with pytest.raises(FeatureError, match="in a group twice"):
        Circuit(**{**values, "groups": {"a": (key,), "b": (key,)}})
    with pytest.raises(FeatureError, match="needs a name"):
        Circuit(**{**values, "groups": {"": (key,)}})


@pytest.mark.parametrize("count", [1, 3, 5])
def test_candidates_of_a_circuit(count: int) -> None:
    lens, image = tiny_lens(4), tiny_image(4)
    made = lens.circuit(image, nodes_per_layer=5)
    again = Candidates.of(made)
    assert again.at_most == 5
    pruned, direct = again.circuit(count), lens.circuit(image, nodes_per_layer=count)
    # The weakest of five walks may have other nodes than a walk with fewer, but not in general.
    assert {n.key for n in again.circuit(5).nodes} == {n.key for n in made.nodes}
    assert len(pruned.nodes) == len(direct.nodes)
    for mine, theirs in zip(again.circuit(5).nodes, made.nodes, strict=True):
        assert mine.share == pytest.approx(theirs.share)


def test_progress_is_told_and_can_cancel() -> None:
    told: list[tuple[float, str]] = []
    tiny_lens().candidates(tiny_image(), at_most=2, progress=lambda *done: told.append(done))
    assert told == [(0.0, "edges"), (0.5, "edges"), (1.0, "edges")]

    def cancel(done: float, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_lens().candidates(tiny_image(), progress=cancel)

"""The circuit's diagram in Python, and its pruning in JavaScript against Python's."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets

from tests.tiny import tiny_image, tiny_lens
from vitlens.circuits.graph import AttributionGraph
from vitlens.circuits.circuit import ERROR, TARGET, Circuit
from vitlens.errors import FeatureError, TargetError
from vitlens.widgets import CircuitDiagram
from vitlens.widgets.buffers import from_bytes

PROGRAM = Path(__file__).parent / "js" / "prune.mjs"
Key = tuple[int, int]


@pytest.fixture(scope="module")
def candidates() -> AttributionGraph:
    return tiny_lens(1).attribute(tiny_image(1), at_most=10)


@pytest.fixture
def diagram(candidates: AttributionGraph) -> CircuitDiagram:
    return CircuitDiagram(candidates, nodes_per_layer=3)


def cases(candidates: AttributionGraph, seed: int) -> Iterator[dict[str, Any]]:
    """Thirty settings of the sliders, every third with pinned nodes."""
    drawn = random.Random(seed)
    for number in range(30):
        yield {
            "nodes_per_layer": drawn.randint(1, candidates.at_most),
            "node_share": drawn.choice([0, 0, 0.001, 0.02, 0.1, 0.6]),
            "edge_share": drawn.choice([0, 0, 0.0005, 0.01, 0.05, 0.3]),
            "pinned": drawn.sample(candidates.keys, 3) if number % 3 == 0 else [],
        }


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
@pytest.mark.parametrize(("seed", "features", "at_most"), [(0, 30, 12), (1, 120, 64), (2, 60, 20)])
def test_the_browser_prunes_as_python_does(seed: int, features: int, at_most: int) -> None:
    lens, image = tiny_lens(seed, features=features, depth=5), tiny_image(seed)
    candidates = lens.attribute(image, at_most=at_most)
    diagram = CircuitDiagram(candidates)
    rules = list(cases(candidates, seed))
    number = {key: i for i, key in enumerate(candidates.keys)}
    number[len(candidates.features), TARGET] = len(number)
    found = run_node(
        {
            "graph": {
                "counts": diagram.graph["counts"],
                "positive": diagram.graph["positive"],
                "features": from_bytes(diagram.node_features, "int32").tolist(),
                "importances": from_bytes(diagram.node_importances).tolist(),
                "weights": from_bytes(diagram.edge_weights).tolist(),
            },
            "rules": [
                {
                    "count": rule["nodes_per_layer"],
                    "nodeShare": rule["node_share"],
                    "edgeShare": rule["edge_share"],
                    "pinned": [number[key] for key in rule["pinned"]],
                }
                for rule in rules
            ],
        }
    )
    for rule, kept in zip(rules, found, strict=True):
        circuit = candidates.prune(**rule)
        assert [i for layer in kept["nodes"] for i in layer] == sorted(
            number[node.key] for node in circuit.nodes
        )
        edges = {(number[e.source], number[e.target]): (e.weight, e.share) for e in circuit.edges}
        drawn = zip(kept["source"], kept["target"], kept["weight"], kept["share"], strict=True)
        assert {(source, target): values for source, target, *values in drawn} == {
            ends: list(values) for ends, values in edges.items()
        }
        if not rule["pinned"]:
            del rule["pinned"]
            assert circuit == lens.circuit(image, **rule)


def run_node(given: dict[str, Any]) -> list[dict[str, list[Any]]]:
    result = subprocess.run(
        ["node", str(PROGRAM)], input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_view_gets_the_candidates(candidates: AttributionGraph, diagram: CircuitDiagram) -> None:
    total = len(candidates.keys)
    assert diagram.graph["total"] == total
    assert diagram.graph["max_count"] == 10
    assert diagram.graph["positive"] == list(candidates.positive)
    assert diagram.grid == (3, 3)
    features = from_bytes(diagram.node_features, "int32").tolist()
    assert features == [f for layer in candidates.features for f in layer]
    heat = from_bytes(diagram.node_heat, "float16", (total, 10))
    expected = torch.cat(candidates.tokens, dim=1).T.numpy()
    np.testing.assert_allclose(heat, expected, rtol=2e-3, atol=1e-6)
    active = from_bytes(diagram.node_activations, "float16", (total, 10))
    assert candidates.activations is not None
    np.testing.assert_allclose(
        active, torch.cat(candidates.activations, dim=1).T.numpy(), rtol=2e-3, atol=1e-6
    )
    json.dumps(diagram.graph, allow_nan=False)


def test_the_circuit_is_what_is_visible(candidates: AttributionGraph, diagram: CircuitDiagram) -> None:
    assert diagram.circuit == candidates.prune(3)
    hidden = next(key for key in candidates.keys if key not in keys(diagram.circuit))
    shown = diagram.circuit.nodes[0].key
    diagram.nodes_per_layer, diagram.node_share, diagram.edge_share = 5, 0.01, 0.02
    diagram.pinned = [hidden]
    diagram.groups = {"ears": [shown, hidden]}
    diagram.labels = {shown: " left ear ", (0, 29): "elsewhere"}
    made = diagram.circuit
    assert made == candidates.prune(
        5,
        node_share=0.01,
        edge_share=0.02,
        pinned=[hidden],
        groups={"ears": [shown, hidden]},
        labels={shown: "left ear"},
    )
    diagram.nodes_per_layer = 1000  # more than there are: all of them
    diagram.node_share = 0
    assert len(diagram.circuit.nodes) == 3 * 10 + (hidden not in keys(candidates.prune(10)))


def test_a_circuit_comes_back(diagram: CircuitDiagram, tmp_path: Path) -> None:
    first = diagram.circuit.nodes[0].key
    diagram.edge_share, diagram.pinned, diagram.labels = 0.03, [first], {first: "fur"}
    diagram.groups = {"parts": [first]}
    diagram.circuit.save(tmp_path / "one.safetensors")
    loaded = Circuit.load(tmp_path / "one.safetensors")

    other = CircuitDiagram(diagram.candidates, node_share=0.5)
    other.circuit = loaded
    assert other.circuit == loaded
    assert (other.nodes_per_layer, other.node_share, other.edge_share) == (3, 0.0, 0.03)

    alone = CircuitDiagram(loaded)
    assert alone.pinned == (first,)
    assert alone.labels == {first: "fur"}
    assert keys(alone.circuit) == keys(loaded)
    assert alone.circuit.edges == loaded.edges
    assert alone.graph["max_count"] == 3
    alone.nodes_per_layer, alone.pinned = 1, ()
    assert len(alone.circuit.nodes) == 3


def test_a_circuit_of_another_image_is_refused(diagram: CircuitDiagram) -> None:
    other = tiny_lens(1).circuit(tiny_image(5), nodes_per_layer=3)
    with pytest.raises(FeatureError, match="another image"):
        diagram.circuit = other


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("nodes_per_layer", 0, "less than 1"),
        ("nodes_per_layer", "many", "int"),
        ("node_share", -0.1, "less than 0"),
        ("edge_share", float("nan"), "finite"),
        ("pinned", [(0, 500)], r"node \(0, 500\) is not among those that up to 10"),
        ("pinned", [(0,)], "list of"),
        ("selected", (7, 0), r"no node \(7, 0\)"),
        ("selected", (0, 30), r"no node \(0, 30\)"),
        ("selected", "ear", "or None"),
        ("groups", {"a": [(0, 1)], "b": [(0, 1)]}, "one group at most"),
        ("labels", {(0, 1): 5}, "text"),
        ("ablations", [(0, 1, None)], "lens and an image"),
    ],
)
def test_nonsense_is_refused(diagram: CircuitDiagram, name: str, value: Any, words: str) -> None:
    before = getattr(diagram, name)
    with pytest.raises(traitlets.TraitError, match=words):
        setattr(diagram, name, value)
    assert getattr(diagram, name) == before


def test_unknown_traits_and_half_a_lens_are_refused(candidates: AttributionGraph) -> None:
    with pytest.raises(traitlets.TraitError, match="no trait count"):
        CircuitDiagram(candidates, count=3)
    with pytest.raises(FeatureError, match="give both"):
        CircuitDiagram(candidates, lens=tiny_lens(1))
    with pytest.raises(FeatureError, match="another model"):
        CircuitDiagram(candidates, lens=tiny_lens(2), image=tiny_image(1))
    with pytest.raises(TargetError, match="give it as target"):
        CircuitDiagram(candidates, lens=tiny_lens(1), image=tiny_image(1), target=other(candidates))


def other(candidates: AttributionGraph) -> int:
    assert candidates.target_index is not None
    return (candidates.target_index + 1) % 5


def test_nodes_can_be_selected_that_pruning_does_not_reach(diagram: CircuitDiagram) -> None:
    for node in ((3, TARGET), (0, ERROR), (1, 29), None):
        diagram.selected = node
        assert diagram.selected == node


def test_the_browser_sees_lists_and_sends_lists(diagram: CircuitDiagram) -> None:
    key = diagram.circuit.nodes[0].key
    diagram.groups = {"parts": [key]}
    diagram.labels = {key: "fur"}
    state = diagram.get_state(["groups", "labels", "pinned"])
    assert state["groups"] == [["parts", ((*key,),)]]
    assert state["labels"] == [[*key, "fur"]]
    diagram.set_state(
        {"pinned": [list(key)], "groups": [["a", [list(key)]]], "selected": list(key)}
    )
    assert (diagram.pinned, diagram.selected) == ((key,), key)
    assert diagram.groups == {"a": (key,)}
    diagram.set_state({"pinned": [[0, 500]]})
    assert "not among" in diagram.notice
    assert diagram.pinned == (key,)


def test_another_image_lets_go_of_pins(diagram: CircuitDiagram) -> None:
    diagram.pinned = diagram.candidates.keys
    fresh = tiny_lens(1).attribute(tiny_image(9), at_most=4)
    diagram.show_candidates(fresh)
    assert set(diagram.pinned) <= set(fresh.keys)
    assert keys(diagram.circuit) >= set(diagram.pinned)


def test_what_was_measured_is_of_one_image(diagram: CircuitDiagram) -> None:
    lens, image = tiny_lens(1), tiny_image(1)
    checked = lens.verify(diagram.circuit, image, n=4, control=False)
    diagram.measured = checked.by_edge()
    sent = diagram.get_state("measured")["measured"]
    assert json.loads(json.dumps(sent)) == [
        [list(source), list(target), predicted, measured]
        for (source, target), (predicted, measured) in checked.by_edge().items()
    ]
    diagram.show_candidates(lens.attribute(tiny_image(9), at_most=4))
    assert diagram.measured == {}


def test_files(diagram: CircuitDiagram, tmp_path: Path) -> None:
    diagram.labels = {diagram.circuit.nodes[0].key: "</script>"}
    diagram.to_png(tmp_path / "a.png", dpi=40)
    diagram.to_svg(tmp_path / "a.svg")
    diagram.to_html(tmp_path / "a.html")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "a.svg").read_text()
    assert "<svg" in svg
    assert "<image" in svg
    assert "\\u003c/script>" in (tmp_path / "a.html").read_text()


def keys(circuit: Circuit) -> set[Key]:
    return {node.key for node in circuit.nodes}

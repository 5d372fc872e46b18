"""The diagram in Python, its pruning in JavaScript against Python, and ablations."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets

import vitlens
from tests.builders import tiny_image, tiny_lens
from tests.widgets.tiny import tiny_picture
from vitlens.circuits.circuit import ERROR, TARGET, Circuit
from vitlens.circuits.graph import AttributionGraph
from vitlens.errors import FeatureError, TargetError
from vitlens.lens import Lens
from vitlens.widgets import CircuitDiagram
from vitlens.widgets import diagram as module
from vitlens.widgets.base import from_bytes

PROGRAM = Path(__file__).parent / "js" / "prune.mjs"

Key = tuple[int, int]


@pytest.fixture(scope="module")
def graph() -> AttributionGraph:
    return tiny_lens(1).attribute(tiny_image(1), at_most=10)


@pytest.fixture
def diagram(graph: AttributionGraph) -> CircuitDiagram:
    return CircuitDiagram(graph, nodes_per_layer=3)


def cases(graph: AttributionGraph, seed: int) -> Iterator[dict[str, Any]]:
    """Thirty settings of the sliders, every third with pinned nodes."""
    drawn = random.Random(seed)
    for number in range(30):
        yield {
            "nodes_per_layer": drawn.randint(1, graph.at_most),
            "node_share": drawn.choice([0, 0, 0.001, 0.02, 0.1, 0.6]),
            "edge_share": drawn.choice([0, 0, 0.0005, 0.01, 0.05, 0.3]),
            "pinned": drawn.sample(graph.keys, 3) if number % 3 == 0 else [],
        }


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
@pytest.mark.parametrize(("seed", "features", "at_most"), [(0, 30, 12), (1, 120, 64), (2, 60, 20)])
def test_the_browser_prunes_as_python_does(seed: int, features: int, at_most: int) -> None:
    lens, image = tiny_lens(seed, features=features, depth=5), tiny_image(seed)
    graph = lens.attribute(image, at_most=at_most)
    diagram = CircuitDiagram(graph)
    rules = list(cases(graph, seed))
    number = {key: i for i, key in enumerate(graph.keys)}
    number[len(graph.features), TARGET] = len(number)
    found = run_node(
        {
            "graph": {
                "counts": diagram.graph_info["counts"],
                "positive": diagram.graph_info["positive"],
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
        circuit = graph.prune(**rule)
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
            direct = lens.circuit(image, **rule, select="walk")
            assert [node.key for node in circuit.nodes] == [node.key for node in direct.nodes]
            assert [e.weight for e in circuit.edges] == pytest.approx(
                [e.weight for e in direct.edges], rel=1e-4, abs=1e-7
            )


def run_node(given: dict[str, Any]) -> list[dict[str, list[Any]]]:
    result = subprocess.run(
        ["node", str(PROGRAM)], input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_view_gets_the_candidates(graph: AttributionGraph, diagram: CircuitDiagram) -> None:
    total = len(graph.keys)
    assert diagram.graph_info["total"] == total
    assert diagram.graph_info["max_count"] == 10
    assert diagram.graph_info["positive"] == list(graph.positive)
    assert diagram.grid == (3, 3)
    features = from_bytes(diagram.node_features, "int32").tolist()
    assert features == [f for layer in graph.features for f in layer]
    heat = from_bytes(diagram.node_heat, "float16", (total, 10))
    expected = torch.cat(graph.tokens, dim=1).T.numpy()
    np.testing.assert_allclose(heat, expected, rtol=2e-3, atol=1e-6)
    active = from_bytes(diagram.node_activations, "float16", (total, 10))
    assert graph.activations is not None
    np.testing.assert_allclose(
        active, torch.cat(graph.activations, dim=1).T.numpy(), rtol=2e-3, atol=1e-6
    )
    json.dumps(diagram.graph_info, allow_nan=False)


def test_the_circuit_is_what_is_visible(graph: AttributionGraph, diagram: CircuitDiagram) -> None:
    assert diagram.circuit == graph.prune(3)
    hidden = next(key for key in graph.keys if key not in keys(diagram.circuit))
    shown = diagram.circuit.nodes[0].key
    diagram.nodes_per_layer, diagram.node_share, diagram.edge_share = 5, 0.01, 0.02
    diagram.pinned = [hidden]
    diagram.groups = {"ears": [shown, hidden]}
    diagram.labels = {shown: " left ear ", (0, 29): "elsewhere"}
    made = diagram.circuit
    assert made == graph.prune(
        5,
        node_share=0.01,
        edge_share=0.02,
        pinned=[hidden],
        groups={"ears": [shown, hidden]},
        labels={shown: "left ear"},
    )
    diagram.nodes_per_layer = 1000  # more than there are: all of them
    diagram.node_share = 0
    assert len(diagram.circuit.nodes) == 3 * 10 + (hidden not in keys(graph.prune(10)))


def test_a_circuit_is_restored(diagram: CircuitDiagram, tmp_path: Path) -> None:
    first = diagram.circuit.nodes[0].key
    diagram.edge_share, diagram.pinned, diagram.labels = 0.03, [first], {first: "fur"}
    diagram.groups = {"parts": [first]}
    diagram.circuit.save(tmp_path / "one.safetensors")
    loaded = Circuit.load(tmp_path / "one.safetensors")

    other = CircuitDiagram(diagram.graph, node_share=0.5)
    other.circuit = loaded
    assert other.circuit == loaded
    assert (other.nodes_per_layer, other.node_share, other.edge_share) == (3, 0.0, 0.03)

    alone = CircuitDiagram(loaded)
    assert alone.pinned == (first,)
    assert alone.labels == {first: "fur"}
    assert keys(alone.circuit) == keys(loaded)
    assert alone.circuit.edges == loaded.edges
    assert alone.graph_info["max_count"] == 3
    alone.nodes_per_layer, alone.pinned = 1, ()
    assert len(alone.circuit.nodes) == 3


def test_a_circuit_of_another_image_is_refused(diagram: CircuitDiagram) -> None:
    other = tiny_lens(1).circuit(tiny_image(5), nodes_per_layer=3, select="walk")
    with pytest.raises(FeatureError, match="another image"):
        diagram.circuit = other
    gone = diagram.graph.keys[0]
    with pytest.raises(FeatureError, match="was removed from this circuit"):
        diagram.circuit = diagram.graph.prune(3, removed=[gone])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("nodes_per_layer", 0, "less than 1"),
        ("nodes_per_layer", "many", "int"),
        ("node_share", -0.1, "less than 0"),
        ("edge_share", float("nan"), "finite"),
        ("pinned", [(0, 500)], r"\(0, 500\) is not among the nodes of circuits of up to 10"),
        ("pinned", [(0,)], "list of"),
        ("selected", (7, 0), r"no node \(7, 0\)"),
        ("selected", (0, 30), r"no node \(0, 30\)"),
        ("selected", "ear", "or None"),
        ("groups", {"a": [(0, 1)], "b": [(0, 1)]}, "at most one group"),
        ("labels", {(0, 1): 5}, "text"),
        ("ablations", [(0, 1, None)], "lens and an image"),
    ],
)
def test_invalid_values_are_refused(
    diagram: CircuitDiagram, name: str, value: Any, words: str
) -> None:
    before = getattr(diagram, name)
    with pytest.raises(traitlets.TraitError, match=words):
        setattr(diagram, name, value)
    assert getattr(diagram, name) == before


def test_unknown_arguments_and_a_lens_without_an_image_are_refused(
    graph: AttributionGraph,
) -> None:
    with pytest.raises(TypeError, match="count"):
        CircuitDiagram(graph, count=3)  # type: ignore[call-arg]
    with pytest.raises(FeatureError, match="give both"):
        CircuitDiagram(graph, lens=tiny_lens(1))
    with pytest.raises(FeatureError, match="another model"):
        CircuitDiagram(graph, lens=tiny_lens(2), image=tiny_image(1))
    with pytest.raises(TargetError, match="give it as target"):
        CircuitDiagram(graph, lens=tiny_lens(1), image=tiny_image(1), target=other(graph))


def other(graph: AttributionGraph) -> int:
    assert graph.target_index is not None
    return (graph.target_index + 1) % 5


def test_nodes_outside_the_graph_can_be_selected(diagram: CircuitDiagram) -> None:
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


def test_another_image_removes_pins(diagram: CircuitDiagram) -> None:
    diagram.pinned = diagram.graph.keys
    fresh = tiny_lens(1).attribute(tiny_image(9), at_most=4)
    diagram.show_graph(fresh)
    assert set(diagram.pinned) <= set(fresh.keys)
    assert keys(diagram.circuit) >= set(diagram.pinned)


def test_measured_edges_are_of_one_image(diagram: CircuitDiagram) -> None:
    lens, image = tiny_lens(1), tiny_image(1)
    checked = lens.verify(diagram.circuit, image, n=4, control=False)
    diagram.measured = checked.by_edge()
    sent = diagram.get_state("measured")["measured"]
    assert json.loads(json.dumps(sent)) == [
        [list(source), list(target), predicted, measured]
        for (source, target), (predicted, measured) in checked.by_edge().items()
    ]
    diagram.show_graph(lens.attribute(tiny_image(9), at_most=4))
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


def test_a_diagram_shows_the_kind_of_its_nodes(atlas_lens: vitlens.Lens) -> None:
    atlas = atlas_lens.atlas
    assert atlas is not None
    diagram = CircuitDiagram.of(atlas_lens, tiny_picture(), at_most=4)
    keys, kinds = diagram.graph.keys, diagram.graph_info["kinds"]
    assert len(keys) == len(kinds)
    for (layer, feature), words in zip(keys, kinds, strict=True):
        if feature < 0:
            assert words == ""
            continue
        kind = atlas.scores(layer).kind(feature).name
        assert words.startswith("no score" if kind == "none" else kind)
        assert kind == "none" or "chance" in words
    assert "kinds" not in CircuitDiagram(diagram.circuit).graph_info


@pytest.fixture(scope="module")
def ablated_lens() -> Lens:
    return tiny_lens(3)


@pytest.fixture
def ablatable(ablated_lens: Lens) -> CircuitDiagram:
    return CircuitDiagram.of(ablated_lens, tiny_image(3), at_most=8)


def active(lens: Lens, layer: int, place: int = 0) -> int:
    sums = lens.trace(tiny_image(3)).features[layer].sum(0)
    return int(sums.argsort(descending=True)[place])


def keep_all_but(lens: Lens, off: dict[int, list[int]]) -> list[list[int]]:
    return [
        [f for f in range(sae.n_features) if f not in off.get(layer, [])]
        for layer, sae in enumerate(lens.saes)
    ]


def assert_reported(outcome: dict[str, Any], logits: torch.Tensor, lens: Lens) -> None:
    expected = logits[outcome["indices"]]
    torch.testing.assert_close(
        torch.tensor(outcome["after"]["logits"]), expected, atol=1e-5, rtol=0
    )
    probabilities = logits.softmax(-1)[outcome["indices"]]
    reported = torch.tensor(outcome["after"]["probabilities"])
    torch.testing.assert_close(reported, probabilities, atol=1e-5, rtol=0)
    assert lens.class_names is not None
    assert outcome["classes"] == [lens.class_names[i] for i in outcome["indices"]]


def test_features_off(ablated_lens: Lens, ablatable: CircuitDiagram) -> None:
    off = {0: [active(ablated_lens, 0), active(ablated_lens, 0, 1)], 2: [active(ablated_lens, 2)]}
    ablatable.ablations = [(layer, f, None) for layer, fs in off.items() for f in fs]
    logits = ablated_lens.run_with(tiny_image(3), keep=keep_all_but(ablated_lens, off))
    assert_reported(ablatable.outcome, logits, ablated_lens)
    clean = ablated_lens.trace(tiny_image(3)).logits
    assert not torch.allclose(logits, clean, atol=1e-3)
    before = torch.tensor(ablatable.outcome["before"]["logits"])
    torch.testing.assert_close(before, clean[ablatable.outcome["indices"]])
    torch.testing.assert_close(ablatable.logits_with(ablatable.ablations), logits)


def test_values_and_an_error_node(ablated_lens: Lens, ablatable: CircuitDiagram) -> None:
    set_to, off = active(ablated_lens, 1), active(ablated_lens, 0)
    ablatable.ablations = [(1, set_to, 2.5), (0, off, None), (2, -1, None)]
    changes = vitlens.Ablate((0, off)) + vitlens.Clamp((1, set_to), 2.5)
    logits = ablated_lens.run_with(
        tiny_image(3), changes, error_nodes=["clean", "clean", "baseline"]
    ).after
    assert_reported(ablatable.outcome, logits, ablated_lens)
    json.dumps(ablatable.outcome, allow_nan=False)


def test_history_and_reset_of_ablations(ablated_lens: Lens, ablatable: CircuitDiagram) -> None:
    first, second = (0, active(ablated_lens, 0), None), (1, active(ablated_lens, 1), 1.0)
    ablatable.ablations = [first]
    after_first = ablatable.outcome
    ablatable.ablations = [first, second]
    ablatable.ablations = []
    assert ablatable.outcome == {}
    tried = [entry["ablations"] for entry in ablatable.history]
    assert tried == [[list(first)], [list(first), list(second)]]
    ablatable.ablations = tried[0]
    assert ablatable.outcome == after_first
    assert [entry["ablations"] for entry in ablatable.history] == [tried[1], tried[0]]
    best = after_first["classes"][
        max(range(5), key=lambda i: after_first["after"]["probabilities"][i])
    ]
    assert ablatable.history[-1]["top"][0] == best


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (5, "must be a list of"),
        ([(0, 1)], "must be a list of"),
        ([(0, 1.5, None)], "must be a list of"),
        ([(0, 1, float("inf"))], "must be a list of"),
        ([(0, -2, None)], "must be a list of"),
        ([(9, 1, None)], "layers|Layers"),
        ([(0, 30, None)], "features 0 to 29"),
        ([(0, -1, 2.0)], "switched off, but not set"),
        ([(0, 1, None), (0, 1, 2.0)], "contradict"),
    ],
)
def test_invalid_ablations_are_refused(ablatable: CircuitDiagram, wanted: Any, words: str) -> None:
    with pytest.raises(traitlets.TraitError, match=words):
        ablatable.ablations = wanted
    assert ablatable.ablations == ()
    ablatable.set_state({"ablations": wanted})
    assert ablatable.notice


def test_another_image_removes_ablations(ablated_lens: Lens, ablatable: CircuitDiagram) -> None:
    ablatable.ablations = [(0, active(ablated_lens, 0), None)]
    assert ablatable.can_ablate
    ablatable.show_scene(ablatable.scene)
    assert (ablatable.ablations, ablatable.outcome, ablatable.history) == ((), {}, [])


def test_without_a_lens_nothing_can_be_ablated(ablated_lens: Lens) -> None:
    assert not CircuitDiagram(ablated_lens.attribute(tiny_image(3), at_most=2)).can_ablate


def test_the_latest_ablation_wins(
    ablated_lens: Lens, ablatable: CircuitDiagram, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun, runs = threading.Event(), threading.Event(), []
    real = module._outcome_payload

    def slow(scene: Any, wanted: Any) -> dict[str, Any]:
        runs.append(wanted)
        begun.set()
        assert go.wait(20)
        return real(scene, wanted)

    monkeypatch.setattr(module, "_outcome_payload", slow)
    reported = []
    ablatable.observe(lambda change: reported.append(change.new["ablations"]), "outcome")
    requests = [((0, active(ablated_lens, 0, place), None),) for place in range(3)]

    async def use() -> None:
        ablatable.ablations = requests[0]
        await asyncio.to_thread(begun.wait, 20)
        assert ablatable.outcome == {}  # the loop is free while the model runs
        ablatable.ablations = requests[1]
        ablatable.ablations = requests[2]
        go.set()
        while ablatable.background("ablation").busy:
            await asyncio.sleep(0.01)

    asyncio.run(use())
    assert reported == [[list(item) for item in requests[2]]]
    assert runs == [requests[0], requests[2]]  # the one in between never ran


def test_cancel_stops_an_ablation(ablated_lens: Lens, ablatable: CircuitDiagram) -> None:
    async def use() -> None:
        ablatable.ablations = [(0, active(ablated_lens, 0), None)]
        ablatable._answer_cancel({}, [])
        await asyncio.sleep(0.3)

    asyncio.run(use())
    assert ablatable.outcome == {}


def test_many_classes_are_reported_by_their_tops(
    ablated_lens: Lens, ablatable: CircuitDiagram
) -> None:
    before, after = torch.randn(2, 1000)
    shown = module._classes_to_report(before, after, target=7)
    assert set(before.topk(8).indices.tolist()) | set(after.topk(8).indices.tolist()) | {7} == set(
        shown
    )
    assert shown == sorted(shown, key=lambda i: -before[i])

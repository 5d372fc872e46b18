"""Circuits by hand: nodes, edges, heatmaps, locations, files, annotations."""

import dataclasses

import pytest
import torch

from vitlens.circuits.circuit import ERROR, TARGET, Circuit, Edge, Explanation, Node, location
from vitlens.circuits.graph import Scores, build_circuit, prune_scores
from vitlens.circuits.prune import Rules
from vitlens.errors import CheckpointError, FeatureError, VitlensError
from vitlens.io import write_tensors

# Two layers of two features and an error node; five tokens: CLS and 2 x 2 patches.
TOKENS = (
    torch.tensor([[0, 0, 0], [3, 0, 0], [0, 0, 0], [0, -2, 0], [0, 0, 1]]).double(),
    torch.tensor([[4, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, -1]]).double(),
)
EDGES = (torch.tensor([[2.0, 1.0], [-2.0, 0.0], [0.5, 0.5]]).double(),)


NODES = tuple(t.sum(0) for t in TOKENS)  # [3, -2, 1] and [5, 0, -1]


def explanation(**changes):
    facts = {
        "layers": (0, 1),
        "grid": (2, 2),
        "prefix_names": ("CLS",),
        "target": "mammal",
        "target_index": 2,
        "target_value": 4.0,
        "prediction": ("mammal", 0.75),
        "logits": torch.tensor([0.0, 1.0, 4.0]),
        "image": torch.arange(12, dtype=torch.uint8).reshape(2, 2, 3),
        "settings": {"count": 2, "gradient": "libragrad"},
        "model": "0123456789abcdef",
    }
    return Explanation(**(facts | changes))


def circuit(kept=((2, 0), (2, 0)), *, nodes=NODES, edges=EDGES, pinned=(), edge_share=0.0, **facts):
    scores = Scores.of_all(nodes, TOKENS, edges)
    return build_circuit(explanation(**facts), scores, kept, edge_share=edge_share, pinned=pinned)


def test_nodes_by_hand():
    assert circuit().nodes == (
        Node(0, 0, importance=3.0, share=0.75, kept_importance=2.0),
        Node(0, ERROR, importance=1.0, share=0.25, kept_importance=0.5),
        Node(1, 0, importance=5.0, share=1.0, kept_importance=5.0),
        Node(1, ERROR, importance=-1.0, share=-0.2, kept_importance=-1.0),
    )


def test_edges_by_hand():
    # Nothing leads into the error node of layer 1; all of layer 1 leads to the target.
    assert circuit().edges == (
        Edge((0, 0), (1, 0), weight=2.0, share=0.5),
        Edge((0, ERROR), (1, 0), weight=0.5, share=0.125),
        Edge((1, 0), (2, TARGET), weight=5.0, share=1.0),
        Edge((1, ERROR), (2, TARGET), weight=-1.0, share=-0.2),
    )


def test_nodes_and_heatmaps_are_ordered_by_importance_and_then_by_number():
    every = (torch.arange(3), torch.arange(3))
    made = circuit(every)
    order = [(0, 0), (0, ERROR), (0, 1), (1, 0), (1, 1), (1, ERROR)]
    assert [node.key for node in made.nodes] == order
    assert made.heatmaps.sum(1).tolist() == [3, 1, -2, 5, 0, -1]
    made = circuit(every, nodes=(torch.ones(3), torch.ones(3)))
    assert [node.feature for node in made.nodes] == [0, 1, ERROR] * 2


def test_edges_from_and_to_a_pinned_node_stay():
    # The shares are .5 and .125 into (1, 0), 1 and .2 into the target.
    for pinned, ends in (((1, 0), {(0, 0), (0, ERROR)}), ((0, ERROR), {(0, ERROR)})):
        made = circuit(pinned=[pinned], edge_share=0.9)
        assert {e.source for e in made.edges} == ends | {(1, 0)}


def test_edges_of_weight_zero_are_left_out():
    made = circuit((torch.tensor([1]), torch.tensor([0, 1])))
    assert [(e.source, e.target) for e in made.edges] == [
        ((0, 1), (1, 0)),
        ((1, 0), (2, TARGET)),
    ]


def test_edges_may_come_from_a_provider():
    lazy = circuit(edges=lambda position, features: EDGES[position][:, features])
    assert lazy.edges == circuit().edges


def test_heatmaps_are_the_nodes_own_tokens():
    made = circuit()
    for i, node in enumerate(made.nodes):
        index = 2 if node.feature == ERROR else node.feature
        assert torch.equal(made.heatmaps[i], TOKENS[node.layer][:, index])
        assert made.heatmaps[i].sum() == node.importance
    assert made.heatmap(made.node(0, 0)).tolist() == [[3, 0], [0, 0]]


def test_locations_in_words():
    made = circuit()
    assert [made.location(node) for node in made.nodes] == [
        "upper left",
        "lower right",
        "CLS token",
        "lower right",
    ]


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        ({(0, 0): 1}, "upper left"),
        ({(0, 4): 1}, "top"),
        ({(4, 8): 1}, "right"),
        ({(4, 4): 1}, "centre"),
        ({(8, 4): 2, (7, 4): 1}, "bottom"),
        ({(8, 0): 1}, "lower left"),
        ({(0, 0): -1, (8, 8): 0.5}, "upper left"),
        ({(0, 0): 1, (8, 8): 1, (0, 8): 1, (8, 0): 1}, "spread over the image"),
        ({(r, c): 1 for r in range(9) for c in range(9)}, "spread over the image"),
        ({(r, c): 1 for r in range(3, 6) for c in range(3, 6)}, "centre"),
        ({}, "nowhere"),
    ],
)
def test_location_of_patches(patches, words):
    grid = torch.zeros(9, 9)
    for position, value in patches.items():
        grid[position] = value
    assert location(grid.flatten(), (9, 9), ()) == words
    assert location(-grid.flatten(), (9, 9), ()) == words


def test_location_of_prefix_tokens():
    names = ("CLS", "register 1", "register 2")
    patches = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert location(torch.cat([torch.tensor([0, 0, 2.0]), patches]), (2, 2), names) == "register 2"
    assert location(torch.cat([torch.tensor([2.0, 0, 0]), patches]), (2, 2), names) == "CLS token"
    assert location(torch.cat([torch.tensor([0.9, 0, 0]), patches]), (2, 2), names) == "lower right"
    assert location(torch.tensor([1.0, 1, 1, 0, 0, 0, 0]), (2, 2), names) == "prefix tokens"


def test_table_and_text():
    rows = circuit().table()
    assert rows[0] == (0, "0", 0.75, "upper left", "1/0", 0.5)
    assert rows[3] == (1, "error", -0.2, "lower right", "target", -0.2)
    text = str(circuit()).splitlines()
    assert text[0] == "mammal = 4.000   predicted: mammal (75.0%)"
    assert text[3].split() == ["layer", "feature", "share", "location", "strongest", "edge"]
    assert text[5].split() == ["0", "error", "25.0%", "lower", "right", "1/0", "(12.5%)"]


def test_networkx():
    graph = circuit().to_networkx()
    assert list(graph.nodes) == [(0, 0), (0, ERROR), (1, 0), (1, ERROR), (2, TARGET)]
    assert graph.nodes[0, 0] == {
        "kind": "feature",
        "name": "0/0",
        "location": "upper left",
        "layer": 0,
        "feature": 0,
        "importance": 3.0,
        "share": 0.75,
        "kept_importance": 2.0,
        "pinned": False,
        "group": "",
        "label": "",
    }
    assert graph.nodes[0, ERROR]["kind"] == "error"
    assert graph.nodes[2, TARGET]["kind"] == "target"
    assert graph.nodes[2, TARGET]["importance"] == 4.0
    assert graph.edges[(0, 0), (1, 0)] == {"weight": 2.0, "share": 0.5}
    assert graph.number_of_edges() == 4


def test_round_trip(tmp_path):
    path = tmp_path / "one.safetensors"
    made = circuit()
    made.save(path)
    assert Circuit.load(path) == made
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]
    bare = circuit(logits=None, image=None, settings={}, model="")
    bare.save(path)
    assert Circuit.load(path) == bare
    assert bare != made
    assert made != dataclasses.replace(made, heatmaps=made.heatmaps + 1)


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    with pytest.raises(CheckpointError, match="no file"):
        Circuit.load(path)
    torch.save({"heatmaps": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="pickle"):
        Circuit.load(path)
    path.write_text("layer, feature")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Circuit.load(path)
    write_tensors(path, {"heatmaps": torch.zeros(2)}, {"format": "something else"})
    with pytest.raises(CheckpointError, match="does not hold a circuit"):
        Circuit.load(path)
    write_tensors(path, {}, {"format": "vitlens.circuit", "version": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        Circuit.load(path)
    write_tensors(path, {}, {"format": "vitlens.circuit", "version": 2, "nodes": []})
    with pytest.raises(CheckpointError, match="damaged"):
        Circuit.load(path)
    circuit().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="truncated"):
        Circuit.load(path)
    dataclasses.replace(circuit(), heatmaps=torch.zeros(4, 9)).save(path)
    with pytest.raises(CheckpointError, match=r"shape \(4, 9\)"):
        Circuit.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "one.safetensors"
    circuit().save(path)
    before = path.read_bytes()

    def disk_full(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", disk_full)
    with pytest.raises(VitlensError, match="No space left"):
        circuit().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]


def test_compare():
    other = dataclasses.replace(
        circuit(), nodes=(Node(0, 1, 1, 1, 1), *circuit().nodes[1:3], Node(1, 1, 0, 0, 0))
    )
    assert circuit().compare(circuit()) == (1.0, 1.0)
    assert circuit().compare(other) == (1 / 3, 1 / 3)
    with pytest.raises(FeatureError, match="different models"):
        circuit().compare(circuit(model="fedcba9876543210"))
    with pytest.raises(FeatureError, match="layers 0 to 1, the other layer 0"):
        circuit().compare(dataclasses.replace(circuit(), layers=(0,), nodes=circuit().nodes[:2]))


def test_nodes_that_do_not_exist_are_refused():
    with pytest.raises(FeatureError, match="Layer 1 has nodes 0 to 2"):
        circuit(([0], [3]))
    with pytest.raises(FeatureError, match="1 layers do not fit"):
        circuit(([0],))
    with pytest.raises(FeatureError, match="Node 1/0 is not in layer 0"):
        dataclasses.replace(circuit(), layers=(0,))
    with pytest.raises(FeatureError, match="0/1 is not in this circuit"):
        circuit().node(0, 1)
    for layer in (-1, 2):
        with pytest.raises(FeatureError, match=f"layers 0 to 1; there is no layer {layer}"):
            circuit().features(layer)


def test_layers_are_block_numbers():
    made = circuit(layers=(2, 9))
    assert made.layers == (2, 9)
    assert made.target_key == (10, TARGET)
    assert [(e.source, e.target) for e in made.edges] == [
        ((2, 0), (9, 0)),
        ((2, ERROR), (9, 0)),
        ((9, 0), (10, TARGET)),
        ((9, ERROR), (10, TARGET)),
    ]
    assert made.features(9) == (0,)
    with pytest.raises(FeatureError, match="layers 2, 9; there is no layer 1"):
        made.features(1)


def test_removed_nodes_are_left_out_and_no_others_take_their_place():
    scores = Scores.of_all(NODES, TOKENS, EDGES)
    made = prune_scores(explanation(), scores, Rules(2), removed=[(0, 0)])
    whole = prune_scores(explanation(), scores, Rules(2))
    assert [n.key for n in made.nodes] == [n.key for n in whole.nodes if n.key != (0, 0)]
    assert set(made.edges) == {e for e in whole.edges if e.source != (0, 0)}
    assert made.settings["removed"] == [[0, 0]]
    with pytest.raises(FeatureError, match=r"\(0, 0\) is both pinned and removed"):
        prune_scores(explanation(), scores, Rules(2), pinned=[(0, 0)], removed=[(0, 0)])

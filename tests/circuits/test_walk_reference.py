import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from vitlens.attribution.importances import importances
from vitlens.attribution.targets import resolve_target
from vitlens.circuits.build import build_circuit
from vitlens.circuits.circuit import ERROR, Circuit
from vitlens.circuits.prune import select, walk
from vitlens.models.vision import VisionModel
from vitlens.replacement import Baselines, trace
from vitlens.saes.topk import TopKSAE

MODELS = ("vit_cls", "vit_avgpool_fcnorm", "vit_reg_layerscale")


@pytest.fixture(scope="module", params=MODELS)
def case(request, reference_folder):
    """One reference model with the importances of its first image, and the reference data."""
    settings = json.loads((reference_folder / f"{request.param}.json").read_text())
    data = load_file(reference_folder / f"{request.param}.safetensors")
    model = timm.models.VisionTransformer(**settings["timm_VisionTransformer"]).double().eval()
    state = {k.removeprefix("model."): v for k, v in data.items() if k.startswith("model.")}
    model.load_state_dict(state)
    vision = VisionModel(model)
    saes = [
        TopKSAE.from_weights(
            **{n: data[f"sae.{i}.{n}"].double() for n in ("W_enc", "W_dec", "b_dec")}, k=k
        )
        for i, k in enumerate(settings["top_k"])
    ]
    layers = range(len(saes))
    baselines = Baselines(
        [data[f"baseline.{i}.features"] for i in layers],
        [data[f"baseline.{i}.errors"] for i in layers],
    )
    traced = trace(vision, saes, data["images"][0].double())
    target = resolve_target(settings["targets"][0], traced.logits)
    return vision, importances(vision, saes, traced, baselines, target), data


def reference_walk(data, n_layers, count, n_candidates):
    """The walk in plain Python over the reference's importances; the error node is last."""
    scores, kept = data[f"image0.libragrad.leaf.nodes.{n_layers - 1}"].tolist(), []
    for layer in reversed(range(n_layers)):
        best = sorted(range(n_candidates(len(scores))), key=lambda f: (-scores[f], f))[:count]
        kept.insert(0, best)
        if layer:
            edges = data[f"image0.libragrad.leaf.edges.{layer - 1}"]
            n_features = edges.shape[1]
            scores = [sum(float(row[n]) for n in best if n < n_features) for row in edges]
    return kept


@pytest.mark.parametrize("count", [2, 5, 8])
def test_walk_follows_the_reference_edges(case, count):
    _, found, data = case
    n_layers = len(found.nodes)
    kept = walk(found.nodes, found.edges, count=count)
    assert [k.tolist() for k in kept] == reference_walk(data, n_layers, count, lambda n: n)
    kept = walk(found.nodes, found.edges, count=count, error_nodes=False)
    assert [k.tolist() for k in kept] == reference_walk(data, n_layers, count, lambda n: n - 1)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_ranking_features_gives_the_kept_sets_of_the_reference(case, count):
    _, found, data = case
    for layer, scores in enumerate(found.nodes):
        expected = set(data[f"image0.kept{count}.features.{layer}"].tolist())
        kept = set(select(scores[:-1], count=count).tolist())
        # Where features have no importance at all, either may come first.
        assert {f for f in kept if scores[f]} == {f for f in expected if scores[f]}


def whole(case):
    vision, found, _ = case
    return build_circuit(
        found,
        walk(found.nodes, found.edges, share=1.0),
        found.edges,
        grid=vision.grid,
        n_prefix=vision.n_prefix,
        prefix_names=vision.prefix_names,
        prediction=("class 3", 0.5),
    )


def test_with_every_node_kept_nothing_is_lost(case):
    # Error nodes are leaves: what leaves a node is what the node is worth.
    circuit, (_, found, _) = whole(case), case
    assert len(circuit.nodes) == sum(len(scores) for scores in found.nodes)
    for node, heat in zip(circuit.nodes, circuit.heatmaps, strict=True):
        assert node.kept_importance == pytest.approx(node.importance, rel=1e-9, abs=1e-12)
        assert float(heat.sum()) == pytest.approx(node.importance, rel=1e-9, abs=1e-12)
        expected = found.nodes[node.layer][node.feature]  # -1 is the error node, and the last
        assert node.importance == float(expected)
    for layer in range(circuit.n_layers):
        shares = [n.share for n in circuit.nodes if n.layer == layer and n.share > 0]
        assert sum(shares) == pytest.approx(1)


def test_edges_are_those_of_the_reference(case):
    circuit, (_, _, data) = whole(case), case
    assert not [e for e in circuit.edges if e.target[1] == ERROR]
    for layer in range(circuit.n_layers - 1):
        expected = data[f"image0.libragrad.leaf.edges.{layer}"]
        made = torch.zeros_like(expected)
        for edge in circuit.edges:
            if edge.source[0] == layer:
                made[edge.source[1], edge.target[1]] = edge.weight
        torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-12)


def test_round_trip_of_a_real_circuit(case, tmp_path):
    circuit = whole(case)
    circuit.save(tmp_path / "circuit.safetensors")
    assert Circuit.load(tmp_path / "circuit.safetensors") == circuit
    graph = circuit.to_networkx()
    assert graph.number_of_nodes() == len(circuit.nodes) + 1
    assert graph.number_of_edges() == len(circuit.edges)

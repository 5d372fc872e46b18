"""Patched edges: against the slow program, exact on planted models, and as edges of circuits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vitlens
from tests.builders import (
    KINDS,
    LINEAR_FEATURES,
    lens_with,
    linear_lens,
    tiny_image,
    tiny_lens,
    written_out,
)
from tests.reference import program
from vitlens.circuits.circuit import ERROR, TARGET, Circuit
from vitlens.circuits.verify import measure_edges, predict_edges, predict_patched
from vitlens.errors import FeatureError, ModelError, OptionError, TargetError
from vitlens.method.importance import Target, node_importances, resolve_target
from vitlens.method.patching import PatchedEdges, run_gradients

DOUBLE = torch.float64
CLASS = 1


def strongest(trace: Any, position: int, n: int) -> list[int]:
    return trace.features[position].sum(0).topk(n).indices.tolist()


@pytest.mark.parametrize("active", ["clean", "running"])
@pytest.mark.parametrize("error_nodes", ["clean", "free"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_slow_program(kind: str, error_nodes: Any, active: Any) -> None:
    lens, image = lens_with(kind, layers=(0, 1, 3), depth=5, seed=3, dtype=DOUBLE), tiny_image(3)
    image = image.double()
    trace = lens.trace(image)
    sources, ends = [*strongest(trace, 0, 4), 30], strongest(trace, 1, 3)
    kept = [torch.tensor(sources), torch.tensor([*ends, 30]), torch.tensor(strongest(trace, 2, 2))]
    target = resolve_target(CLASS, trace.logits)
    vit = program.Transformer(lens.vision.module, "plain")
    saes = [written_out(sae) for sae in lens.saes]
    baseline = program.Reference(list(lens.baselines.features), list(lens.baselines.errors))
    for curved in (0, 2):
        found = PatchedEdges(
            lens.replacement,
            trace,
            target,
            kept,
            error_nodes=error_nodes,
            active=active,
            curved=curved,
        )(0, torch.tensor(ends))
        expected = program.patched_edges(
            vit,
            saes,
            lens.layers,
            program.trace(vit, saes, lens.layers, image),
            baseline,
            0,
            [*sources[:-1], ERROR],
            ends,
            CLASS,
            error_nodes,
            active,
            curved,
        )
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(found[sources], expected, rtol=0, atol=1e-9)
        others = torch.ones(31, dtype=torch.bool)
        others[sources] = False
        assert not found[others].any()


def test_where_all_is_linear_patched_edges_are_importances_and_cuts() -> None:
    lens, image = linear_lens(), torch.randn(3, 2, 2, dtype=DOUBLE)
    trace = lens.trace(image)
    known = (lens.replacement, trace, resolve_target(CLASS, trace.logits))
    edges = [((1, f), (2, g)) for f in (ERROR, 0, 3) for g in range(LINEAR_FEATURES)]
    edges += [((2, f), (3, TARGET)) for f in (ERROR, 1, 4)]
    nodes = node_importances(*known, gradient="plain", engine="jvp")
    found = predict_patched(*known, edges)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(
        found, predict_edges(lens.replacement, trace, nodes, edges), rtol=0, atol=1e-10
    )
    torch.testing.assert_close(found, measure_edges(*known, edges), rtol=0, atol=1e-10)


def test_a_quadratic_target_is_exact_along_the_largest_change() -> None:
    """First order misses half of the effect of a square; curvature is exact for one source."""
    lens, image = linear_lens(), torch.randn(3, 2, 2, dtype=DOUBLE)
    trace = lens.trace(image)
    centre = trace.logits[0]

    def square(logits: Tensor) -> Tensor:
        return (logits[0] - centre + 0.01) ** 2

    known = (lens.replacement, trace, Target("square", None, square))
    kept = [torch.tensor([2]), torch.tensor([0, 1, 4]), torch.tensor([1])]
    first, curved = (PatchedEdges(*known, kept, curved=n)(0, kept[1])[2] for n in (0, 3))
    measured = measure_edges(*known, [((0, 2), (1, g)) for g in kept[1].tolist()])
    torch.testing.assert_close(curved, measured, rtol=0, atol=1e-10)
    assert ((first - measured).abs() > 0.1 * measured.abs()).all()
    edges = PatchedEdges(*known, kept)
    cut = measure_edges(*known, [((2, 1), (3, TARGET))])
    assert float(edges.to_target()[1]) == pytest.approx(float(cut[0]), abs=1e-10)


@pytest.mark.parametrize("error_nodes", ["clean", "free"])
def test_for_small_changes_they_are_the_cuts_and_plain_importances_are_not(
    error_nodes: Any,
) -> None:
    """The sd of the SAEs moves in a run; importances hold it."""
    lens, image = tiny_lens(7, depth=5, dtype=DOUBLE), tiny_image(7, DOUBLE)
    trace = lens.trace(image)
    lens.baselines = vitlens.Baselines(
        [0.9999 * z for z in trace.features], [0.9999 * e for e in trace.errors]
    )
    known = (lens.replacement, trace, resolve_target(CLASS, trace.logits))
    edges = [
        ((0, f), (1, g)) for f in (ERROR, *strongest(trace, 0, 5)) for g in strongest(trace, 1, 5)
    ]
    measured = measure_edges(*known, edges, error_nodes=error_nodes)
    found = predict_patched(*known, edges, error_nodes=error_nodes)
    largest = float(measured.abs().max())
    torch.testing.assert_close(found, measured, rtol=0, atol=2e-3 * largest)
    errors: Any = {"clean": "leaf", "free": "through"}[error_nodes]
    nodes = node_importances(*known, gradient="plain", error_gradients=errors)
    plain = predict_edges(lens.replacement, trace, nodes, edges)
    if error_nodes == "clean":
        assert float((plain - measured).abs().max()) > 0.05 * largest


def test_with_several_reference_images_changes_are_means() -> None:
    lens, image = linear_lens(), torch.randn(3, 2, 2, dtype=DOUBLE)
    lens.baselines = lens.reference_baselines([torch.randn(3, 2, 2, dtype=DOUBLE) for _ in "ab"])
    trace = lens.trace(image)
    known = (lens.replacement, trace, resolve_target(CLASS, trace.logits))
    edges = [((0, f), (1, g)) for f in (ERROR, 1) for g in (2, 3)] + [((2, 1), (3, TARGET))]
    torch.testing.assert_close(
        predict_patched(*known, edges), measure_edges(*known, edges), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(("select", "default"), [("walk", "gradient"), ("path", "patched")])
def test_edges_of_a_circuit(select: Any, default: str, tmp_path: Any) -> None:
    lens, image = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    trace = lens.trace(image)
    target = resolve_target(2, trace.logits)
    made: dict[str, Circuit] = {
        kind: lens.circuit(image, target=2, nodes_per_layer=4, select=select, edges=kind)
        for kind in ("gradient", "patched")
    }
    usual = lens.circuit(image, target=2, nodes_per_layer=4, select=select)
    assert usual.edges == made[default].edges
    patched = made["patched"]
    assert {n.key for n in patched.nodes} == {n.key for n in made["gradient"].nodes}
    assert [n.importance for n in patched.nodes] == [n.importance for n in made["gradient"].nodes]
    links = [(edge.source, edge.target) for edge in patched.edges]
    weights = torch.tensor([edge.weight for edge in patched.edges], dtype=DOUBLE)
    torch.testing.assert_close(
        weights, predict_patched(lens.replacement, trace, target, links), rtol=0, atol=1e-12
    )
    for layer in patched.layers:
        shares = [e.share for e in patched.edges if e.source[0] == layer]
        assert sum(max(share, 0) for share in shares) == pytest.approx(1)
    patched.save(tmp_path / "circuit.safetensors")
    assert Circuit.load(tmp_path / "circuit.safetensors").settings["edges"] == "patched"
    assert "edges: patched" in str(patched)
    checked = lens.verify(patched, image, active="clean")
    assert checked.control is not None
    torch.testing.assert_close(
        checked.control.predicted,
        predict_patched(lens.replacement, trace, target, checked.control.edges),
    )
    assert checked.rank_correlation.value > 0.9


def test_error_gradients_say_what_error_nodes_do() -> None:
    lens, image = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    circuit = lens.circuit(image, nodes_per_layer=4, error_gradients="through")
    assert lens.verify(circuit, image, active="clean").rank_correlation.value > 0.9
    trace = lens.trace(image)
    own = run_gradients(
        lens.replacement, trace, resolve_target(None, trace.logits), error_nodes="free"
    )
    plain = node_importances(
        lens.replacement,
        trace,
        resolve_target(None, trace.logits),
        gradient="plain",
        error_gradients="through",
    )
    for sae, std, grad, expected in zip(lens.saes, trace.stds, own, plain.gradients, strict=True):
        torch.testing.assert_close(std * (grad @ sae.W_dec.T), expected)


def test_what_does_not_fit() -> None:
    lens, image = tiny_lens(7), tiny_image(7)
    trace = lens.trace(image)
    known = (lens.replacement, trace, resolve_target(0, trace.logits))
    kept = [torch.tensor([1, 2])] * 3
    with pytest.raises(OptionError, match="error_nodes must be one of"):
        PatchedEdges(*known, kept, error_nodes="zero")
    with pytest.raises(OptionError, match="active must be one of"):
        PatchedEdges(*known, kept, active="both")
    with pytest.raises(FeatureError, match="at least 0"):
        PatchedEdges(*known, kept, curved=-1)
    with pytest.raises(FeatureError, match="nodes of 3 sites, not 2"):
        PatchedEdges(*known, kept[:2])
    with pytest.raises(FeatureError, match=r"Features \[5\] are not among the kept"):
        PatchedEdges(*known, kept)(0, torch.tensor([1, 5]))
    with pytest.raises(FeatureError, match="only single edges"):
        predict_patched(*known, [((0, 1), (1, 1), (2, 1))])
    with pytest.raises(FeatureError, match="is not an edge"):
        predict_patched(*known, [((0, 1), (2, 1))])
    with pytest.raises(OptionError, match="edges must be one of"):
        lens.circuit(image, edges="cut")
    steps = Target("steps", None, lambda logits: logits.argmax().float())
    with pytest.raises(TargetError, match="cannot be patched"):
        PatchedEdges(lens.replacement, trace, steps, kept)


def test_a_token_without_variance_is_an_error() -> None:
    lens = tiny_lens(7)
    trace = lens.trace(tiny_image(7))
    trace.residuals[0][3] = 0.0
    broken = Target("nan", None, lambda logits: (logits.sum() * 0).sqrt())
    with pytest.raises(ModelError, match="NaN or infinity"):
        run_gradients(lens.replacement, trace, broken)


def test_nodes_without_an_end_or_a_source_have_no_edges() -> None:
    lens, image = tiny_lens(7), tiny_image(7)
    trace = lens.trace(image)
    target = resolve_target(0, trace.logits)
    none = torch.tensor([], dtype=torch.int64)
    found = PatchedEdges(
        lens.replacement, trace, target, [none, torch.tensor([1]), torch.tensor([30])]
    )
    assert not found(0, torch.tensor([1])).any()
    assert found(1, none).shape == (31, 0)

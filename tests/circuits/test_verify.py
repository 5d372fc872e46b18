"""Edges checked causally: exact where all is linear, and against a loop with plain hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import vitlens
from tests.builders import (
    KINDS,
    LINEAR_FEATURES,
    lens_with,
    linear_lens,
    tiny_image,
    tiny_lens,
)
from tests.interventions.by_hand import Coded, code, streams_of
from vitlens.circuits.circuit import ERROR, TARGET
from vitlens.circuits.verify import (
    Verification,
    measure_edges,
    predict_edges,
    random_edges,
    rank_correlation,
)
from vitlens.errors import FeatureError, OptionError, TargetError
from vitlens.method.importance import centred_logit, resolve_target
from vitlens.plots import save_figure, verification_figure

DOUBLE = torch.float64


@pytest.mark.parametrize("errors", ["leaf", "through"])
def test_where_all_is_linear_predicted_is_measured(errors: Any) -> None:
    lens, x = linear_lens(), torch.randn(3, 2, 2, dtype=DOUBLE)
    circuit = lens.circuit(
        x, target=1, share=1.0, engine="jvp", error_gradients=errors, select="walk"
    )
    checked = lens.verify(circuit, x, n=None)
    assert len(checked) == 2 * (LINEAR_FEATURES + 1) * LINEAR_FEATURES + LINEAR_FEATURES + 1
    torch.testing.assert_close(checked.measured, checked.predicted, rtol=0, atol=1e-10)
    assert checked.predicted.abs().max() > 0.1
    assert checked.rank_correlation.value == pytest.approx(1)
    assert checked.sign_agreement.value == 1
    assert checked.settings["error_nodes"] == {"leaf": "clean", "through": "free"}[errors]


@torch.no_grad()
def cut_by_hooks(
    lens: vitlens.Lens, x: torch.Tensor, edge: Any, error_nodes: str, active: str, index: int
) -> float:
    """One edge's measured change, with forward hooks and the slow program's SAEs."""
    (first, source), *way = edge
    model, layers, saes = lens.vision.module, lens.layers, lens.saes
    clean = streams_of(model, x)
    coded = [code(sae, clean[layer]) for layer, sae in zip(layers, saes, strict=True)]

    def recode(at: int, running: torch.Tensor) -> Coded:
        return code(saes[at], running, mask=None if active == "running" else coded[at].z > 0)

    def decode(at: int, z: torch.Tensor, like: Coded) -> torch.Tensor:
        return (z @ saes[at].W_dec + saes[at].b_dec) * like.std + like.mean

    def run(replace: dict[int, Any]) -> torch.Tensor:
        handles = [
            model.blocks[layers[at]].register_forward_hook(lambda _m, _a, out, f=f: f(out[0])[None])
            for at, f in replace.items()
        ]
        logits = model(x[None])[0]
        for handle in handles:
            handle.remove()
        return logits

    def without(at: int) -> Any:
        z, error = coded[at].z.clone(), coded[at].error
        if source == ERROR:
            error = lens.baselines.errors[at]
        else:
            z[:, source] = lens.baselines.features[at][:, source]
        return lambda _running: decode(at, z, coded[at]) + error

    def patched(at: int, end: int) -> Any:
        def change(running: torch.Tensor) -> torch.Tensor:
            z = coded[at].z.clone()
            z[:, end] = recode(at, running).z[:, end]
            return decode(at, z, coded[at]) + coded[at].error

        return change

    def held(at: int) -> Any:
        def change(running: torch.Tensor) -> torch.Tensor:
            now = recode(at, running)
            error = {
                "clean": coded[at].error,
                "baseline": lens.baselines.errors[at],
                "free": running - decode(at, now.z, now),
                "zero": torch.zeros_like(running),
            }[error_nodes]
            return decode(at, now.z, now) + error

        return change

    replaced = {layers.index(first): without(layers.index(first))}
    for layer, end in way:
        if end != TARGET:
            replaced[layers.index(layer)] = patched(layers.index(layer), end)
    later = range(max(replaced) + 1, len(saes))
    logits = run(replaced | {at: held(at) for at in later})
    target = centred_logit(index)
    return float(target(model(x[None])[0]) - target(logits))


@pytest.mark.parametrize("active", ["clean", "running"])
@pytest.mark.parametrize("errors", ["clean", "free", "baseline", "zero"])
def test_against_a_loop_over_edges(errors: Any, active: Any) -> None:
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    circuit = lens.circuit(x, target=2, nodes_per_layer=4, select="walk")
    assert any(edge.source[1] == ERROR for edge in circuit.edges)
    checked = lens.verify(circuit, x, error_nodes=errors, active=active, batch_size=5)
    expected = [cut_by_hooks(lens, x, edge, errors, active, 2) for edge in checked.edges]
    found = checked.measured
    torch.testing.assert_close(found, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=1e-10)
    assert checked.predicted.tolist() == [edge.weight for edge in circuit.edges]
    assert checked.control is not None
    random = [cut_by_hooks(lens, x, edge, errors, active, 2) for edge in checked.control.edges]
    torch.testing.assert_close(
        checked.control.measured, torch.tensor(random, dtype=DOUBLE), rtol=0, atol=1e-10
    )
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("active", ["clean", "running"])
def test_paths_against_hooks(active: Any) -> None:
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    circuit = lens.circuit(x, target=2, nodes_per_layer=3, select="walk")
    kept = [[n.key for n in circuit.nodes if n.layer == layer] for layer in range(3)]
    features = [[key for key in keys if key[1] != ERROR] for keys in kept]
    paths = [(a, b, c) for a in kept[0] for b in features[1] for c in features[2]]
    paths += [(*path, circuit.target_key) for path in paths]
    checked = lens.verify(circuit, x, paths=paths, active=active, batch_size=4)
    expected = [cut_by_hooks(lens, x, path, "clean", active, 2) for path in paths]
    torch.testing.assert_close(
        checked.measured, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=1e-10
    )
    assert checked.measured.abs().max() > 1e-4
    assert checked.control is None
    assert " → " in str(checked)


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
def test_paths_add_up_to_edges(gradient: Any) -> None:
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    trace = lens.trace(x)
    nodes = lens.importances(x, gradient=gradient, engine="jvp")
    known = (lens.replacement, trace, nodes)
    for source in (*trace.features[0].sum(0).topk(3).indices.tolist(), ERROR):
        for middle in trace.features[1].sum(0).topk(3).indices.tolist():
            paths = [((0, source), (1, middle), (2, end)) for end in range(30)]
            found = predict_edges(*known, paths)
            assert float(found.sum()) == pytest.approx(float(nodes.edges[0][source, middle]))


def test_where_all_is_linear_paths_are_exact() -> None:
    lens, x = linear_lens(), torch.randn(3, 2, 2, dtype=DOUBLE)
    circuit = lens.circuit(x, target=1, share=1.0, engine="jvp", select="walk")
    paths = [((0, a), (1, b), (2, c)) for a in (ERROR, 0, 3) for b in range(5) for c in (1, 4)]
    checked = lens.verify(circuit, x, paths=paths)
    torch.testing.assert_close(checked.measured, checked.predicted, rtol=0, atol=1e-10)
    assert checked.predicted.abs().max() > 1e-2
    with pytest.raises(FeatureError, match="not in this circuit"):
        lens.verify(lens.circuit(x, nodes_per_layer=1, engine="jvp", select="walk"), x, paths=paths)


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
def test_the_control(gradient: Any) -> None:
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    circuit = lens.circuit(x, nodes_per_layer=3, gradient=gradient, engine="jvp", select="walk")
    control = lens.verify(circuit, x).control
    assert control is not None
    found = lens.importances(x, gradient=gradient, engine="jvp")
    trace = lens.trace(x)
    mine = {(edge.source, edge.target) for edge in circuit.edges}
    assert len(set(control.edges)) == len(control.edges) == len(circuit.edges)
    assert not mine & set(control.edges)
    for ((layer, f), (_, g)), predicted in zip(control.edges, control.predicted, strict=True):
        assert trace.features[layer][:, f].any()
        expected = found.nodes[layer][f] if g == TARGET else found.edges[layer][f, g]
        assert float(predicted) == pytest.approx(float(expected), abs=1e-12)
    again = lens.verify(circuit, x, seed=1).control
    assert again is not None
    assert again.edges != control.edges
    assert lens.verify(circuit, x, control=False).control is None


def test_a_layer_can_run_out_of_random_edges() -> None:
    lens, x = linear_lens(), torch.randn(3, 2, 2, dtype=DOUBLE)
    circuit = lens.circuit(x, share=1.0, engine="jvp", select="walk")
    edges = [(edge.source, edge.target) for edge in circuit.edges]
    assert random_edges(lens.trace(x), edges) == ()


def test_random_edges_are_drawn_once_and_none_that_is_known() -> None:
    trace = tiny_lens(7).trace(tiny_image(7))
    here, there = (z.gt(0).any(0).nonzero()[:, 0].tolist() for z in trace.features[:2])
    every = [((0, f), (1, g)) for f in here for g in there]
    half = every[: len(every) // 2]
    rest = set(every) - set(half)
    drawn = random_edges(trace, half)
    assert set(drawn) <= rest and len(drawn) == len(set(drawn)) == len(half)
    drawn = random_edges(trace, every[:9], known=every[9:-3])
    assert sorted(drawn) == every[-3:]


def test_an_edge_may_be_measured_twice() -> None:
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    trace, top = lens.trace(x), len(lens.saes) - 1
    edges = [((top, f), (top + 1, TARGET)) for f in (3, 1, 3)]
    known = (lens.replacement, trace)
    target = resolve_target(0, trace.logits)
    found = measure_edges(*known, target, edges)
    alone = [float(measure_edges(*known, target, [edge])[0]) for edge in edges]
    assert found.tolist() == pytest.approx(alone)


def test_some_edges_by_chance() -> None:
    lens, x = tiny_lens(7), tiny_image(7)
    circuit = lens.circuit(x, nodes_per_layer=4, select="walk")
    every = lens.verify(circuit, x, control=False)
    some = lens.verify(circuit, x, n=7, control=False)
    assert (len(some), some.n_given) == (7, len(circuit.edges))
    known = every.by_edge()
    for edge, (predicted, measured) in some.by_edge().items():
        assert known[edge] == pytest.approx((predicted, measured), abs=1e-5)
    other = lens.verify(circuit, x, n=7, seed=3, control=False)
    assert other.edges != some.edges
    assert len(lens.verify(circuit, x, n=10_000, control=False)) == len(circuit.edges)


def test_statistics() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    b = a + rng.normal(size=40)
    b[3] = b[7]
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    edges = tuple(((0, i), (1, i)) for i in range(40))
    checked = Verification(edges, torch.from_numpy(a), torch.from_numpy(b), 40, "bird")
    assert checked.rank_correlation.value == pytest.approx(spearmanr(a, b).statistic)
    draws = np.random.default_rng(1).integers(40, size=(500, 40))
    values = [spearmanr(a[d], b[d]).statistic for d in draws]
    low, high = np.percentile(values, (2.5, 97.5))
    assert checked.rank_correlation.low == pytest.approx(low, abs=0.06)
    assert checked.rank_correlation.high == pytest.approx(high, abs=0.04)
    assert checked.sign_agreement.value == pytest.approx(np.mean(np.sign(a) == np.sign(b)))
    assert np.isnan(rank_correlation(a, np.ones(40)))
    assert checked.slope.value == pytest.approx((a * b).sum() / (a * a).sum())
    close = [x * y > 0 and 0.5 <= x / y <= 2 for x, y in zip(a, b, strict=True)]
    assert checked.within_two.value == pytest.approx(np.mean(close))
    assert 0 < checked.within_two.value < checked.sign_agreement.value
    for estimate in (checked.slope, checked.within_two):
        assert estimate.low < estimate.value < estimate.high
    assert "rank correlation" in str(checked)


def test_agreement_by_layer() -> None:
    edges = (((0, 1), (1, 1)), ((0, 1), (1, 2)), ((0, 2), (1, 1)), ((3, 1), (4, TARGET)))
    predicted = torch.tensor([1.0, 2.0, -1.0, 0.0], dtype=DOUBLE)
    measured = torch.tensor([2.0, 4.1, 1.0, 0.0], dtype=DOUBLE)
    layers = Verification(edges, predicted, measured, 4, "bird").by_layer()
    assert list(layers) == [0, 3]
    assert (layers[0].n, layers[3].n) == (3, 1)
    assert layers[0].slope.value == pytest.approx((2 + 8.2 - 1) / 6)
    assert layers[0].within_two.value == pytest.approx(1 / 3)
    assert layers[0].sign_agreement.value == pytest.approx(2 / 3)
    assert layers[3].within_two.value == 1  # nothing was predicted, and nothing measured
    assert np.isnan(layers[3].slope.value)


def test_both_protocols_are_the_two_alone() -> None:
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    circuit = lens.circuit(x, nodes_per_layer=3)
    both = lens.verify(circuit, x)
    held, again = (lens.verify(circuit, x, active=active) for active in ("clean", "running"))
    assert both.running is not None and both.control is not None and held.control is not None
    assert held.running is again.running is None
    for found, alone in ((both, held), (both.running, again)):
        assert found.settings["active"] == alone.settings["active"]
        assert found.measured.equal(alone.measured)
        assert found.control is not None and alone.control is not None
        assert found.control.measured.equal(alone.control.measured)
    assert not both.measured.equal(both.running.measured)
    text = str(both)
    for line in ("circuit, active features held", "random edges, chosen again", "slope"):
        assert line in text


def test_a_part_of_a_cut() -> None:
    """Where all is linear, half a cut has half of the effect."""
    lens, x = linear_lens(), torch.randn(3, 2, 2, dtype=DOUBLE)
    trace = lens.trace(x)
    target = resolve_target(1, trace.logits)
    edges = [((0, 1), (1, 2)), ((0, ERROR), (1, 3)), ((2, 4), (3, TARGET))]
    whole, half = (
        measure_edges(lens.replacement, trace, target, edges, part=part) for part in (1.0, 0.5)
    )
    torch.testing.assert_close(2 * half, whole, rtol=0, atol=1e-10)


def test_a_function_as_target() -> None:
    lens, x = tiny_lens(7), tiny_image(7)

    def margin(logits: torch.Tensor) -> torch.Tensor:
        return logits[1] - logits[2]

    circuit = lens.circuit(x, target=margin, nodes_per_layer=2, select="walk")
    with pytest.raises(TargetError, match="Pass the target function again"):
        lens.verify(circuit, x)
    assert lens.verify(circuit, x, target=margin).target == "margin"
    with pytest.raises(FeatureError, match="for another target"):
        lens.verify(circuit, x, target=0)


def test_what_does_not_fit() -> None:
    lens, x = tiny_lens(7), tiny_image(7)
    circuit = lens.circuit(x, nodes_per_layer=2, select="walk")
    with pytest.raises(FeatureError, match="another model"):
        tiny_lens(8).verify(circuit, x)
    with pytest.raises(FeatureError, match="for another image"):
        lens.verify(circuit, tiny_image(8))
    with pytest.raises(FeatureError, match="at least 1"):
        lens.verify(circuit, x, n=0)
    with pytest.raises(OptionError, match="error_nodes must be one of"):
        lens.verify(circuit, x, error_nodes="leaf")
    with pytest.raises(OptionError, match="active must be one of"):
        lens.verify(circuit, x, active="free")
    with pytest.raises(FeatureError, match="no path"):
        lens.verify(circuit, x, paths=[])
    with pytest.raises(FeatureError, match="no edges"):
        lens.verify(lens.circuit(x, edge_share=1e9, select="walk"), x)
    trace, target = lens.trace(x), resolve_target(0, lens.trace(x).logits)
    for wrong in (
        ((0, 1), (2, 1)),
        ((0, 1), (1, ERROR)),
        ((0, 30), (1, 1)),
        ((2, 1), (3, 1)),
        ((1, 1), (2, TARGET)),
        ((3, 1), (4, TARGET)),
        ((0, 1),),
        ((0, 1), (1, ERROR), (2, 1)),
        ((0, 1), (1, 2), (1, 3)),
        ((2, 1), (3, TARGET), (4, TARGET)),
    ):
        with pytest.raises(FeatureError, match="is not an edge"):
            measure_edges(lens.replacement, trace, target, [wrong])


def test_progress_can_end_it() -> None:
    lens, x = tiny_lens(7), tiny_image(7)
    reported = []

    def tell(done: float, what: str) -> None:
        reported.append(done)
        if done > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lens.verify(
            lens.circuit(x, nodes_per_layer=4, select="walk"), x, batch_size=4, progress=tell
        )
    assert reported[0] == 0


def test_figure(tmp_path: Path) -> None:
    lens, x = tiny_lens(7), tiny_image(7)
    checked = lens.verify(lens.circuit(x, nodes_per_layer=4, select="walk"), x)
    figure = verification_figure(checked)
    assert len(figure.axes) == 4  # circuit, top k chosen again, random edges, colour bar
    for axes, one in zip(figure.axes, (checked, checked.running, checked.control), strict=False):
        assert one is not None
        drawn = np.asarray(axes.collections[0].get_offsets())
        np.testing.assert_allclose(drawn, torch.stack([one.predicted, one.measured]).T)
        assert str(len(one)) in axes.get_title()
    save_figure(figure, tmp_path / "verify.png")
    assert len(verification_figure({"a": checked, "b": checked, "c": checked}).axes) == 4


@pytest.mark.parametrize("active", ["clean", "running"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_sae_kind_at_some_layers(kind: str, active: Any) -> None:
    lens = lens_with(kind, layers=(1, 3, 4), depth=6, seed=7, dtype=DOUBLE)
    x = tiny_image(7, DOUBLE)
    circuit = lens.circuit(x, target=2, nodes_per_layer=3, select="walk")
    assert {edge.target[0] for edge in circuit.edges} == {3, 4, 5}
    checked = lens.verify(circuit, x, active=active, batch_size=5)
    expected = [cut_by_hooks(lens, x, edge, "clean", active, 2) for edge in checked.edges]
    torch.testing.assert_close(
        checked.measured, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=1e-10
    )
    control = checked.control
    assert control is not None
    assert {edge[0][0] for edge in control.edges} == {1, 3, 4}
    found = lens.importances(x, target=2, engine="vjp")
    for ((layer, f), (_, g)), predicted in zip(control.edges, control.predicted, strict=True):
        at = lens.layers.index(layer)
        exact = found.nodes[at][f] if g == TARGET else found.edges[at][f, g]
        assert float(predicted) == pytest.approx(float(exact), abs=1e-12)
    path = ((1, ERROR), (3, 2), (4, 1), (5, TARGET))
    measured = measure_edges(
        lens.replacement,
        lens.trace(x),
        resolve_target(2, lens.trace(x).logits),
        [path],
        active=active,
    )
    assert float(measured[0]) == pytest.approx(
        cut_by_hooks(lens, x, path, "clean", active, 2), abs=1e-10
    )
    assert checked.settings["baselines"] == "custom"
    assert "baselines: custom" in str(checked)


def test_with_several_reference_images_cuts_are_the_mean_of_their_runs() -> None:
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    references = [tiny_image(seed, DOUBLE) for seed in (1, 2)]
    lens.baselines = lens.reference_baselines(references)
    edges = [((0, f), (1, g)) for f in (ERROR, 3, 5) for g in (1, 4)]
    traced = lens.trace(x)

    def logit(logits: torch.Tensor) -> torch.Tensor:
        return logits[1]

    target = resolve_target(logit, traced.logits)
    found = measure_edges(lens.replacement, traced, target, edges)
    alone = []
    for reference in references:
        lens.baselines = lens.reference_baselines(reference)
        alone.append(measure_edges(lens.replacement, traced, target, edges))
    torch.testing.assert_close(found, torch.stack(alone).mean(0))

"""What a circuit carries, against an independent program; and circuits that would fit any image."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import vitlens
from tests.builders import reference, run_by_hand, tiny_image, tiny_lens
from tests.planted import BIRD, MAMMAL, planted_lens
from vitlens.circuits.carried import Carried, carried, divergence, specificity
from vitlens.errors import FeatureError, ImageError, OptionError, TargetError
from vitlens.method.importance import resolve_target
from vitlens.method.replacement import keep_masks

DOUBLE = torch.float64
KEPT = [[0, 3, 7, 11], [2, 5, 8], [1, 4, 9, 20, 21]]


def slow_value(lens: vitlens.Lens, image: torch.Tensor, keep, held: str) -> torch.Tensor:
    """Logits by the definition, block by block."""
    masks = list(keep_masks(lens.replacement, keep))
    with torch.no_grad():
        return run_by_hand(lens.replacement, image, masks, [held] * len(masks))


@pytest.mark.parametrize("held", ["clean", "baseline"])
def test_shares_follow_the_definition(held: str) -> None:
    lens, image = tiny_lens(dtype=DOUBLE), tiny_image(3, DOUBLE)
    trace = lens.trace(image)
    everything = [list(range(sae.n_features)) for sae in lens.saes]
    rest = [[f for f in all_ if f not in kept] for all_, kept in zip(everything, KEPT, strict=True)]

    def r(keep, error_nodes=held, index=0):
        y = slow_value(lens, image, keep, error_nodes)
        return float(y[index] - y.mean())

    # A class for which the full model is above the empty one.
    index = next(c for c in range(5) if r(everything, index=c) - r([[]] * 3, index=c) > 1e-2)
    target = resolve_target(index, trace.logits)
    masks = keep_masks(lens.replacement, KEPT)
    found = carried(lens.replacement, trace, target, masks, error_nodes=held)
    empty, full = r([[]] * 3, index=index), r(everything, index=index)
    assert found.empty == pytest.approx(empty, rel=1e-9)
    assert found.full == pytest.approx(full, rel=1e-9)
    share = (r(KEPT, index=index) - empty) / (full - empty)
    assert found.alone == pytest.approx(share, rel=1e-8)
    assert found.distance == pytest.approx(abs(share - 1), rel=1e-8)
    assert found.without == pytest.approx((r(rest, index=index) - empty) / (full - empty), rel=1e-8)
    bare = r([[]] * 3, "baseline", index)
    if held == "baseline":
        assert found.errors is None
    elif full > bare:
        assert found.errors == pytest.approx((empty - bare) / (full - bare), rel=1e-8)
    p = trace.logits.softmax(0)
    q = slow_value(lens, image, KEPT, held).softmax(0)
    assert found.divergence == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-8)
    assert found.top1 == (int(q.argmax()) == index)
    assert found.n_features == (4, 3, 5) and found.error_nodes == held


def test_everything_carries_all_and_nothing_none() -> None:
    lens, image = tiny_lens(dtype=DOUBLE), tiny_image(3, DOUBLE)
    trace = lens.trace(image)
    found = {}
    for name, mask in (("all", True), ("none", False)):
        masks = [torch.full((sae.n_features,), mask) for sae in lens.saes]
        for index in range(5):
            target = resolve_target(index, trace.logits)
            found[name] = carried(lens.replacement, trace, target, masks)
            if not math.isnan(found[name].alone):
                break
    assert found["all"].alone == pytest.approx(1) and found["all"].without == pytest.approx(0)
    assert found["all"].divergence == pytest.approx(0, abs=1e-9)
    assert found["none"].alone == pytest.approx(0) and found["none"].without == pytest.approx(1)


def test_a_full_model_below_the_empty_one_has_no_shares() -> None:
    lens, image = tiny_lens(dtype=DOUBLE), tiny_image(3, DOUBLE)
    trace = lens.trace(image)
    masks = keep_masks(lens.replacement, KEPT)
    found = [
        carried(lens.replacement, trace, resolve_target(index, trace.logits), masks)
        for index in range(5)
    ]
    below = [one for one in found if one.full < one.empty]
    assert below  # centred logits sum to 0, so some class falls
    for one in below:
        assert math.isnan(one.alone) and math.isnan(one.without) and math.isfinite(one.divergence)
        assert "no share" in str(one)
        again = Carried.from_dict(one.to_dict())
        assert math.isnan(again.alone) and again.divergence == one.divergence


@pytest.mark.parametrize(("held", "rows"), [("clean", 4), ("free", 3), ("baseline", 4)])
def test_what_a_circuit_carries_costs_at_most_four_rows(held: str, rows: int, monkeypatch) -> None:
    lens, image = tiny_lens(), tiny_image(3)
    trace, found = lens.trace(image), []
    run = lens.replacement.run

    def counting(*args, **kwargs):
        logits = run(*args, **kwargs)
        found.append(len(logits))
        return logits

    monkeypatch.setattr(lens.replacement, "run", counting)
    target = resolve_target(None, trace.logits)
    masks = keep_masks(lens.replacement, KEPT)
    carried(lens.replacement, trace, target, masks, error_nodes=held)
    assert sum(found) == rows


def test_divergence_is_that_of_torch_and_never_below_zero() -> None:
    model, runs = tiny_logits(1)[0], tiny_logits(4, seed=1)
    expected = torch.nn.functional.kl_div(
        runs.log_softmax(-1), model.softmax(-1).expand_as(runs), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(divergence(model, runs), expected)
    nearly = torch.stack([model + 1e-9 * n for n in range(50)])
    assert bool((divergence(model, nearly) >= 0).all())


def tiny_logits(n: int, *, seed: int = 0) -> torch.Tensor:
    """Random logits of 7 classes."""
    return torch.randn(n, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def test_what_rounds_to_zero_has_no_sign() -> None:
    one = Carried(1.0, -0.001, -0.001, 0.3, True, 0.0, 2.0, (2,), "clean", "mean")
    assert "without 0.00; error nodes by themselves 0.00" in str(one)
    assert "without -0.01" in str(replace(one, without=-0.01))


def test_circuits_say_what_they_carry_and_keep_it_in_files(tmp_path) -> None:
    lens, image = tiny_lens(), tiny_image(1)
    for select in ("walk", "eliminate"):
        circuit = lens.circuit(image, select=select, nodes_per_layer=4)
        again = lens.carried(circuit, image)
        assert again == circuit.carried or math.isnan(again.alone)
        assert circuit.carried is not None
        assert circuit.carried.n_features == tuple(len(circuit.features(n)) for n in lens.layers)
        circuit.save(tmp_path / "circuit.safetensors")
        loaded = vitlens.Circuit.load(tmp_path / "circuit.safetensors")
        assert str(loaded.carried) == str(circuit.carried)
        assert str(circuit.carried).split("\n")[0] in str(circuit)
    held = lens.circuit(image, nodes_per_layer=4, error_nodes="baseline").carried
    assert held is not None and held.error_nodes == "baseline"
    pruned = lens.attribute(image).prune(4)
    assert pruned.carried is None
    with pytest.raises(FeatureError, match="pruned without the model"):
        _ = pruned.alone
    assert lens.carried(pruned, image).n_features


@pytest.fixture(scope="module")
def planted():
    """A lens, one bird, and three mammals."""
    lens = planted_lens(dtype=DOUBLE, shortcut=0.05)
    return lens, object_of(1.0), [object_of(-strength) for strength in (0.5, 1.0, 1.5)]


def object_of(strength: float) -> torch.Tensor:
    """An image with one object, a bird or a mammal (below 0), and nothing else."""
    patches = torch.zeros(3, 3, 3, dtype=DOUBLE)
    patches[0, 1, 1] = 2 * strength
    return patches.repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_a_specific_circuit_is_said_to_be_specific(planted) -> None:
    lens, bird, mammals = planted
    circuit = lens.circuit(bird, target="bird", nodes_per_layer=2)
    assert [circuit.features(layer) for layer in lens.layers] == [(BIRD,), (BIRD,)]
    found = lens.specificity(circuit, bird, mammals, target=None, n_random=4)
    assert found.alone > 0.5 and abs(found.ratio) < 0.2 and found.top1_others == 0
    assert "is specific" in found.verdict and found.images == (0, 1, 2)
    assert len(found.random) == 4 and max(found.random) <= found.alone + 1e-9
    one_by_one = lens.specificity(circuit, bird, mammals, n_random=4, batch_size=1)
    assert one_by_one.random == pytest.approx(found.random)


def test_without_a_share_or_an_answer_of_its_own_there_is_no_ratio(planted) -> None:
    lens, bird, mammals = planted
    circuit = lens.circuit(bird, target="bird", nodes_per_layer=2)
    found = lens.specificity(circuit, bird, mammals, n_random=0)
    for alone in (-0.1, 0.09):  # a small share is no scale: 0.08 on others is not "any image"
        nothing = replace(found, alone=alone, others=(0.08,) * 3)
        assert math.isnan(nothing.ratio) and "does not give the answer" in nothing.verdict
        assert "nan" not in str(nothing)
    assert not math.isnan(replace(found, alone=0.1).ratio)
    undefined = replace(found, alone=math.nan, others=(math.nan,) * 3)
    assert math.isnan(undefined.ratio) and "No verdict" in str(undefined)
    for others, verdict in ((0.5, "no explanation"), (0.49, "partly"), (0.19, "is specific")):
        assert verdict in replace(found, alone=1.0, others=(others,) * 3).verdict


def test_a_planted_cheat_is_no_explanation(planted) -> None:
    """Baselines say "mammal" on all tokens, and the kept set is MAMMAL.

    It switches that baseline off on the bird and on images without an object alike, so the answer
    "bird" rises whatever the image is.
    """
    lens, bird, _ = planted
    z = [torch.zeros_like(b) for b in lens.baselines.features]
    for of_site in z:
        of_site[:, MAMMAL] = 1.0
    lens = vitlens.Lens(
        lens.vision.module,
        dict(zip(lens.layers, lens.saes, strict=True)),
        baselines=vitlens.Baselines(z, lens.baselines.errors),
        class_names=lens.class_names,
        transform=lens.transform,
    )
    blank = [torch.zeros_like(bird) + 1e-3 * n for n in range(3)]
    circuit = lens.circuit(bird, target="bird", select="walk", nodes_per_layer=20)
    keep = {layer: [MAMMAL] for layer in lens.layers}
    cheat = vitlens.Circuit(
        **circuit.explanation(),
        nodes=tuple(vitlens.circuits.circuit.Node(layer, MAMMAL, 1.0, 1.0, 1.0) for layer in keep),
        edges=(),
        heatmaps=torch.zeros(len(keep), circuit.n_tokens),
    )
    labels = ["mammal"] * 3
    found = lens.specificity(cheat, bird, blank, labels=labels, n_random=0)
    assert found.alone > 0.3 and found.ratio >= 0.5
    assert "no explanation" in found.verdict and "no explanation" in str(found)


def test_images_of_other_classes_follow_the_definition() -> None:
    lens, image = tiny_lens(dtype=DOUBLE), tiny_image(3, DOUBLE)
    others = [tiny_image(seed, DOUBLE) for seed in (4, 5)]
    everything = [list(range(sae.n_features)) for sae in lens.saes]

    def r(picture, keep, index):
        y = slow_value(lens, picture, keep, "clean")
        return float(y[index] - y.mean())

    index, scale = max(
        ((c, r(image, everything, c) - r(image, [[]] * 3, c)) for c in range(5)),
        key=lambda found: found[1],
    )
    trace = lens.trace(image)
    found = specificity(
        lens.replacement,
        trace,
        resolve_target(index, trace.logits),
        keep_masks(lens.replacement, KEPT),
        [(n, lens.trace(other)) for n, other in enumerate(others)],
        n_random=0,
    )
    expected = [(r(o, KEPT, index) - r(o, [[]] * 3, index)) / scale for o in others]
    assert found.others == pytest.approx(expected, rel=1e-8)
    first = [int(slow_value(lens, o, KEPT, "clean").argmax()) == index for o in others]
    assert found.top1_others == sum(first) / 2


def test_images_of_the_explained_class_are_left_out(planted) -> None:
    lens, bird, mammals = planted
    circuit = lens.circuit(bird, target="bird", nodes_per_layer=2)
    mixed = [bird, mammals[0], bird, mammals[1]]
    assert lens.specificity(circuit, bird, mixed, n_random=0).images == (1, 3)
    labels = ["mammal", "bird", "bird", "mammal"]
    labelled = lens.specificity(circuit, bird, mixed, labels=labels, n_random=0)
    assert labelled.images == (0, 3)  # a label counts more than what the model says


def test_bad_input(planted) -> None:
    lens, bird, mammals = planted
    circuit = lens.circuit(bird, target="bird", nodes_per_layer=2)
    with pytest.raises(FeatureError, match="no image of another class"):
        lens.specificity(circuit, bird, mammals, labels=["bird"] * 3)
    with pytest.raises(FeatureError, match="as many labels"):
        lens.specificity(circuit, bird, mammals, labels=["bird"])
    with pytest.raises(TargetError):
        lens.specificity(circuit, bird, mammals, labels=["cat"] * 3)
    with pytest.raises(ImageError):
        lens.specificity(circuit, bird, [])
    with pytest.raises(ImageError):
        lens.specificity(circuit, bird, [torch.zeros(3, 8, 8, dtype=DOUBLE)])
    with pytest.raises(FeatureError, match="n_random"):
        lens.specificity(circuit, bird, mammals, n_random=-1)
    with pytest.raises(FeatureError, match="batch size"):
        lens.specificity(circuit, bird, mammals, batch_size=0)
    with pytest.raises(OptionError, match="error_nodes"):
        lens.carried(circuit, bird, error_nodes="held")
    with pytest.raises(FeatureError, match="another image"):
        lens.carried(circuit, mammals[0])
    with pytest.raises(FeatureError, match="another model"):
        planted_lens(dtype=DOUBLE).carried(circuit, bird)
    kind = lens.baselines
    try:
        lens.fit_baselines(mammals, kind="mean", progress=False)
        with pytest.raises(FeatureError, match="made with zero baselines, and the lens has mean"):
            lens.carried(circuit, bird)
    finally:
        lens.baselines = kind


def test_functions_as_targets_are_given_again(planted) -> None:
    lens, bird, mammals = planted

    def margin(logits: torch.Tensor) -> torch.Tensor:
        return logits[0] - logits[1]

    circuit = lens.circuit(bird, target=margin, nodes_per_layer=2)
    with pytest.raises(TargetError, match="Pass the target function again"):
        lens.carried(circuit, bird)
    assert lens.carried(circuit, bird, target=margin) == circuit.carried
    found = lens.specificity(circuit, bird, [bird, *mammals], target=margin, n_random=0)
    assert found.images == (0, 1, 2, 3)


def test_the_reference_numbers_of_a_replaced_run_give_the_share() -> None:
    ref = reference()
    lens = vitlens.Lens(ref.model, ref.saes, baselines=ref.baselines)
    image = ref.data["images"][0]
    key = next(k for k in ref.data if k.startswith("image0") and k.endswith(".logits"))
    run = key.removesuffix(".logits")
    keep = [ref.data[f"{run}.features.{i}"].tolist() for i in range(len(ref.saes))]
    trace, masks = lens.trace(image), keep_masks(lens.replacement, keep)
    shares = 0
    for index in range(len(trace.logits)):
        target = resolve_target(index, trace.logits)
        found = carried(lens.replacement, trace, target, masks)
        if not math.isnan(found.alone):
            value = float(target.function(ref.data[key]))
            share = (value - found.empty) / (found.full - found.empty)
            assert found.alone == pytest.approx(share, rel=1e-9)
            shares += 1
    assert shares

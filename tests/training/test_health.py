import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import DataLoader, TensorDataset

from tests.builders import KINDS, sae_of_kind
from vitlens.circuits.curves import Estimate
from vitlens.errors import CheckpointError, FeatureError, ImageError, ModelError
from vitlens.method.replacement import Baselines
from vitlens.models.vision import VisionModel
from vitlens.saes import TopKSAE
from vitlens.training.health import CarriedBySize, measure

WIDTH, DEPTH, CLASSES = 16, 4, 5


@pytest.fixture(scope="module")
def vision(images):
    """A tiny model that has no class in favour: its mean answer over the images is zero."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=2, num_classes=CLASSES
    )
    torch.nn.init.normal_(model.head.weight)
    model = model.eval().double()
    with torch.no_grad():
        model.head.bias -= model(images).mean(0)
    return VisionModel(model)


@pytest.fixture(scope="module")
def images():
    return torch.randn(23, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def random_saes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    saes = []
    for size, k in ((8, 2), (24, 4), (40, 6)):
        W_dec = F.normalize(torch.randn(size, WIDTH, generator=generator).double(), dim=-1)
        W_enc = W_dec.T.contiguous()
        W_enc[:, -2:] = 0  # dead
        b_dec = 0.1 * torch.randn(WIDTH, generator=generator).double()
        saes.append(TopKSAE.from_weights(W_enc=W_enc, W_dec=W_dec, b_dec=b_dec, k=k))
    return saes


def perfect_sae(k=WIDTH):
    """Reconstructs every token: features for both signs of every channel; a smaller k, part."""
    eye = torch.eye(WIDTH).double()
    both = torch.cat([eye, -eye])
    return TopKSAE.from_weights(
        W_enc=both.T.contiguous(), W_dec=both, b_dec=torch.zeros(WIDTH).double(), k=k
    )


def top1_with(vision, images, saes):
    """Top-1 answers with the given SAEs (None: left out) in the model's own forward pass."""
    hooks = [
        block.register_forward_hook(lambda module, args, out, sae=sae: sae(out).reconstruction)
        for block, sae in zip(vision.module.blocks, saes, strict=False)
        if sae is not None
    ]
    try:
        with torch.no_grad():
            return vision.module(images).argmax(-1)
    finally:
        for hook in hooks:
            hook.remove()


def test_matches_a_direct_computation(vision, images):
    saes = random_saes()
    labels = torch.arange(len(images)) % CLASSES
    report = measure(vision, saes, zip(images.split(7), labels.split(7), strict=True))
    residuals = vision.residuals(images)
    for layer, (sae, health) in enumerate(zip(saes, report.layers, strict=True)):
        x = residuals[layer].flatten(0, 1)
        out = sae(x)
        explained = 1 - out.error.square().sum() / (x - x.mean(0)).square().sum()
        assert health.explained_variance == pytest.approx(float(explained), rel=1e-10)
        xn = sae.normalize(x).values
        missed = xn - out.features @ sae.W_dec - sae.b_dec
        explained = 1 - missed.square().sum() / (xn - xn.mean(0)).square().sum()
        assert health.explained_variance_normalized == pytest.approx(float(explained), rel=1e-10)
        active = out.features > 0
        assert health.mean_active == pytest.approx(float(active.sum(-1).double().mean()))
        assert health.dead_fraction == pytest.approx(1 - float(active.any(0).double().mean()))
        assert health.dead_fraction >= 2 / sae.n_features
        alone = [sae if other == layer else None for other in range(3)]
        right = top1_with(vision, images, alone) == labels
        assert health.accuracy_kept == pytest.approx(float(right.double().mean()))
    right = top1_with(vision, images, saes) == labels
    assert report.accuracy_all == pytest.approx(float(right.double().mean()))
    right = top1_with(vision, images, []) == labels
    assert report.accuracy == pytest.approx(float(right.double().mean()))
    assert (report.n_images, report.labelled) == (23, True)


def test_without_labels_it_is_agreement_with_the_model(vision, images):
    saes = random_saes()
    report = measure(vision, saes, images.split(10))
    agree = top1_with(vision, images, saes) == top1_with(vision, images, [])
    assert report.accuracy == 1
    assert report.accuracy_all == pytest.approx(float(agree.double().mean()))
    assert not report.labelled


def test_perfect_saes(vision, images):
    report = measure(vision, [perfect_sae()] * 3, [images])
    assert report.accuracy_all == 1
    for health in report.layers:
        assert health.explained_variance == pytest.approx(1, abs=1e-6)
        assert health.explained_variance_normalized == pytest.approx(1, abs=1e-6)
        assert (health.accuracy_kept, health.dead_fraction) == (1, 0)


def test_large_mean_costs_no_precision(vision, images):
    """In one pass, sums of squares would cancel where the mean is far from zero."""
    from vitlens.training.health import _Variance

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator) + torch.tensor([1e4, 0, -300, 5])
    variance = _Variance()
    for part in x.split([1, 100, 150, 49]):
        variance.add(part)
    exact = (x.double() - x.double().mean(0)).square().sum()
    assert variance.total == pytest.approx(float(exact), rel=1e-12)


def test_a_stream_that_does_not_vary_is_explained_or_not():
    from vitlens.training.health import _explained

    assert (_explained(0.0, 0.0), _explained(1e-9, 0.0)) == (1, 0)


def test_table_and_dict(vision, images):
    report = measure(vision, random_saes(), [images])
    lines = str(report).splitlines()
    assert len(lines) == 1 + 3 + 1
    assert len({len(line) for line in lines[:-1]}) == 1  # columns line up
    assert "agreement" in lines[0]
    assert "accuracy" in str(replace(report, labelled=True)).splitlines()[0]
    assert json.loads(json.dumps(report.to_dict()))["layers"][1]["n_features"] == 24


def test_input_that_does_not_fit(vision, images):
    with pytest.raises(CheckpointError, match="4 blocks, so a list must hold 3 SAEs"):
        measure(vision, random_saes()[:2], [images])
    with pytest.raises(ImageError, match="no images"):
        measure(vision, random_saes(), [])
    with pytest.raises(ImageError, match="Some batches have labels"):
        measure(vision, random_saes(), [images, (images, torch.zeros(23).long())])
    with pytest.raises(ImageError, match=r"normalised.*torch\.uint8"):
        measure(vision, random_saes(), [torch.zeros(2, 3, 16, 16, dtype=torch.uint8)])


def test_a_loader_without_labels(vision, images):
    loader = DataLoader(TensorDataset(images), batch_size=5)  # gives lists of one tensor
    assert not measure(vision.module, random_saes(), loader).labelled


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_at_some_layers(vision, images, kind):
    layers = (1, 3)
    saes = {
        layer: sae_of_kind(
            kind, seed=layer, d_model=WIDTH, normalization="fixed", b_enc=True, scale=1.0
        ).double()
        for layer in layers
    }
    report = measure(vision, saes, images.split(10))
    assert [health.layer for health in report.layers] == [1, 3]
    streams = vision.residuals(images, layers)
    for (layer, sae), health, x in zip(saes.items(), report.layers, streams, strict=True):
        out = sae(x)
        total = (x - x.mean((0, 1))).square().sum()
        assert health.explained_variance == pytest.approx(
            float(1 - out.error.square().sum() / total), rel=1e-10
        )
        active = (out.features > 0).flatten(0, 1)
        assert health.mean_active == pytest.approx(float(active.sum(-1).double().mean()))
        assert health.dead_fraction == pytest.approx(1 - float(active.any(0).double().mean()))
        assert (health.n_features, health.max_active) == (sae.n_features, sae.max_active)
        alone = [saes[i] if i == layer else None for i in range(DEPTH)]
        agree = top1_with(vision, images, alone) == top1_with(vision, images, [])
        assert health.accuracy_kept == pytest.approx(float(agree.double().mean()))
    together = top1_with(vision, images, [saes.get(i) for i in range(DEPTH)])
    agree = together == top1_with(vision, images, [])
    assert report.accuracy_all == pytest.approx(float(agree.double().mean()))


SIZES = (1, 3, 12)


def mean_baselines(vision, images, saes):
    streams = vision.residuals(images)
    coded = [sae(x) for sae, x in zip(saes, streams, strict=False)]
    return Baselines(
        [out.features.mean(0) for out in coded], [out.error.mean(0) for out in coded], "mean"
    )


def logits_with_few(vision, image, saes, baselines, size):
    """Logits of one image in the model's own forward pass, its `size` strongest features kept."""
    hooks = []
    clean = vision.residuals(image[None])
    for layer, (sae, z_bar) in enumerate(zip(saes, baselines.features, strict=True)):
        own = sae(clean[layer])
        z = own.features[0]
        strength = {
            f: float(((z[:, f] - z_bar[:, f]) ** 2).sum())
            for f in range(sae.n_features)
            if bool((z[:, f] > 0).any())
        }
        kept = sorted(strength, key=strength.__getitem__, reverse=True)[:size]

        def replaced(module, args, out, sae=sae, z_bar=z_bar, own=own, kept=kept):
            now = sae.normalize(out)
            z = z_bar.expand(len(out), -1, -1).clone()
            z[..., kept] = sae(out).features[..., kept]
            return (z @ sae.W_dec + sae.b_dec) * now.std + now.mean + own.error

        hooks.append(vision.module.blocks[layer].register_forward_hook(replaced))
    try:
        with torch.no_grad():
            return vision.module(image[None])[0]
    finally:
        for hook in hooks:
            hook.remove()


def test_small_circuits_match_a_direct_computation(vision, images):
    saes = [perfect_sae(k) for k in (12, 13, 14)]
    baselines = mean_baselines(vision, images, saes)
    report = measure(vision, saes, images.split(9), baselines=baselines, circuit_sizes=SIZES)
    with torch.no_grad():
        full_logits = vision.module(images)
    own = full_logits.argmax(-1)

    def targets(logits):
        return torch.stack([row[c] - row.mean() for row, c in zip(logits, own, strict=True)])

    def run(size):
        rows = [logits_with_few(vision, image, saes, baselines, size) for image in images]
        return torch.stack(rows)

    empty, full = targets(run(0)), targets(full_logits)
    span = full.mean() - empty.mean()
    carried = report.carried
    assert (carried.sizes, carried.baselines) == (SIZES, "mean")
    for place, size in enumerate(SIZES):
        logits = run(size)
        kept = targets(logits)
        alone = float((kept.mean() - empty.mean()) / span)
        assert carried.alone[place].value == pytest.approx(alone, rel=1e-8)
        assert carried.alone[place].low < alone < carried.alone[place].high
        distance = float((kept - full).abs().mean() / span)
        assert carried.distance[place] == pytest.approx(distance, rel=1e-8)
        assert carried.top1[place] == float((logits.argmax(-1) == own).double().mean())
    assert replace(report, carried=None) == measure(vision, saes, images.split(9))


def test_all_active_features_carry_all_of_the_answer(vision, images):
    saes = [perfect_sae()] * 3
    baselines = mean_baselines(vision, images, saes)
    report = measure(
        vision, saes, [images], baselines=baselines, circuit_sizes=[saes[0].n_features]
    )
    # Features that are inactive on an image are at their means, not at 0.
    assert abs(report.carried.alone[0].value - 1) > 1e-3
    zero = replace(baselines, features=[torch.zeros_like(z) for z in baselines.features])
    report = measure(vision, saes, [images], baselines=zero, circuit_sizes=[saes[0].n_features])
    assert report.carried.alone[0].value == pytest.approx(1, abs=1e-6)
    assert report.carried.distance[0] == pytest.approx(0, abs=1e-6)
    assert report.carried.top1 == (1,)


def carried_of(*alone):
    sizes = (4, 8, 16, 32)[: len(alone)]
    estimates = tuple(Estimate(value, value - 0.1, value + 0.1) for value in alone)
    return CarriedBySize(sizes, estimates, (0.5,) * len(sizes), (0.9,) * len(sizes), "mean")


def test_features_needed_are_interpolated_over_their_logarithm():
    assert carried_of(0.2, 0.5, 0.9, 0.7).needed() == pytest.approx(8 * 2**0.75)
    assert carried_of(0.2, 0.5, 0.9).needed(0.35) == pytest.approx(4 * 2**0.5)
    assert carried_of(0.2, 0.8).needed() == pytest.approx(8)
    assert carried_of(0.85, 0.9).needed() == 4
    assert carried_of(0.2, 0.5).needed() is None
    assert carried_of(math.nan, math.nan).needed() is None


def test_report_of_small_circuits(vision, images):
    report = measure(vision, random_saes(), [images])
    assert report.to_dict()["carried"] is None
    text = str(replace(report, carried=carried_of(0.2, 0.5, 0.9)))
    assert text.startswith(f"{report}\n\n")
    assert "error nodes: clean, baselines: mean" in text
    assert text.endswith("needed for 0.8 of the answer: 13.5 features per layer")
    assert "0.900 [0.800, 1.000]" in text
    assert str(carried_of(0.9)).endswith("at most 4 features per layer")
    assert str(carried_of(0.2, 0.5)).endswith("more than 8 features per layer")
    none = carried_of(math.nan, math.nan)
    assert "full model is not clearly above the empty one" in str(none)
    stored = json.loads(json.dumps(none.to_dict(), allow_nan=False))
    assert (stored["alone"][0]["value"], stored["needed"]) == (None, None)
    stored = json.loads(json.dumps(replace(report, carried=carried_of(0.2, 0.9)).to_dict()))
    assert stored["carried"]["needed"] == pytest.approx(4 * 2 ** (6 / 7))


def test_small_circuits_that_do_not_fit(vision, images):
    saes = random_saes()
    baselines = mean_baselines(vision, images, saes)
    for sizes in ([], [0, 4], [8, 4], [4, 4], [2.5]):
        with pytest.raises(FeatureError, match="whole numbers from 1, ascending"):
            measure(vision, saes, [images], baselines=baselines, circuit_sizes=sizes)
    with pytest.raises(ModelError, match="Baselines of layer 0"):
        measure(vision, saes[::-1], [images], baselines=baselines)

"""Lenses with SAEs of any kind at any layers, and several images at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import vitlens
from tests.builders import CLASSES, KINDS, sae_of_kind, tiny_image, tiny_model, tiny_transform
from vitlens.errors import (
    CheckpointError,
    FeatureError,
    ImageError,
    ModelError,
    OptionError,
    TargetError,
)
from vitlens.lens import Lens

DOUBLE = torch.float64
LAYERS = (1, 2, 4)


def make_lens(kind: str = "topk", layers: tuple[int, ...] = LAYERS) -> Lens:
    return Lens(
        tiny_model(depth=6, dtype=DOUBLE),
        {layer: sae_of_kind(kind, seed=layer, dtype=DOUBLE) for layer in layers},
        class_names=CLASSES,
        transform=tiny_transform(),
    )


def batch(n: int = 3) -> Tensor:
    return torch.stack([tiny_image(seed, DOUBLE) for seed in range(n)])


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# Any layers, any kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_verb_works_for_every_kind_at_some_layers(kind) -> None:
    lens = make_lens(kind)
    lens.fit_baselines(batch(), kind="mean", progress=False)
    image = batch()[0]
    assert lens.layers == LAYERS and [site.name for site in lens.sites] == [
        f"blocks.{layer}" for layer in LAYERS
    ]
    found = lens.importances(image)
    assert found.layers == LAYERS and len(found.edges) == 2 and found.baselines == "mean"
    assert found.engines[1] in ("jvp", "vjp")  # a block is left out between layers 2 and 4
    for nodes, edges in zip(found.nodes, found.edges, strict=False):
        assert_same(edges.sum(1), nodes)
    circuit = lens.circuit(image, nodes_per_layer=3, select="walk")
    assert circuit.layers == LAYERS
    assert circuit.settings["engines"][0] == "closed_form"  # one block from layer 1 to layer 2
    assert circuit.settings["engines"][1] in ("jvp", "vjp")
    assert {node.layer for node in circuit.nodes} == set(LAYERS)
    assert circuit.target_key == (5, -2)
    pruned = lens.attribute(image).prune(3)
    assert [node.key for node in pruned.nodes] == [node.key for node in circuit.nodes]
    feature = circuit.features(2)[0]
    outcome = lens.run_with(image, vitlens.Ablate((2, feature)))
    with lens.intervene(vitlens.Ablate((2, feature))):
        assert_same(lens.vision.module(image[None])[0].detach(), outcome.after)
    curves = lens.faithfulness(
        [image], methods=("rrm", "node", "random"), q=(0, 0.2, 1), progress=False
    )
    assert curves.methods == ("rrm", "node", "random")
    assert lens.verify(circuit, image, n=2, control=False)
    assert abs(sum(value for _, value in lens.logit_lens(image, 2, feature))) < 1e-9


def test_layers_without_an_sae_are_named() -> None:
    lens = make_lens()
    with pytest.raises(FeatureError, match=r"1, 2, 4.*no SAE at 3"):
        lens.logit_lens(batch()[0], 3, 0)
    with pytest.raises(FeatureError, match="3"):
        lens.run_with(batch()[0], vitlens.Ablate((3, 0)))


def test_a_sequence_of_saes_is_one_after_each_block_but_the_last() -> None:
    model, sae = tiny_model(depth=4, dtype=DOUBLE), sae_of_kind("topk", dtype=DOUBLE)
    assert Lens(model, [sae] * 3, transform=tiny_transform()).layers == (0, 1, 2)
    with pytest.raises(CheckpointError, match="3"):
        Lens(model, [sae] * 2, transform=tiny_transform())
    assert Lens(model, {3: sae}, transform=tiny_transform()).layers == (3,)
    with pytest.raises(CheckpointError):
        Lens(model, {4: sae}, transform=tiny_transform())
    with pytest.raises(CheckpointError):
        Lens(model, {}, transform=tiny_transform())


def test_one_site_has_nodes_and_no_edges() -> None:
    lens = make_lens(layers=(2,))
    found = lens.importances(batch()[0])
    assert found.edges == () and len(found.nodes) == 1
    assert len(lens.circuit(batch()[0], nodes_per_layer=2, select="walk").nodes) == 2


# Several images


@pytest.mark.parametrize("several", ["tensor", "list", "tuple", "loader batch"])
def test_several_images_give_what_single_ones_give(several) -> None:
    lens, images = make_lens("budget"), batch()
    lens.fit_baselines(images, progress=False)
    given = {
        "tensor": images,
        "list": list(images),
        "tuple": tuple(images),
        "loader batch": [images, torch.tensor([0, 1, 2])],
    }[several]
    traces, found = lens.trace(given), lens.importances(given, target=[0, None, "flower"])
    assert len(traces) == len(found) == 3
    predicted, circuits = lens.predict(given), lens.circuit(given, nodes_per_layer=3, select="walk")
    outcomes = lens.run_with(given, vitlens.Scale((2, 3), 2.0), batch_size=2)
    kept = lens.run_with(given, keep=[[0, 1], [2], [3]], batch_size=2)
    for n, (image, target) in enumerate(zip(images, (0, None, "flower"), strict=True)):
        single = lens.importances(image, target=target)
        assert found[n].target == single.target
        for name in ("nodes", "edges", "tokens", "gradients"):
            for a, b in zip(getattr(found[n], name), getattr(single, name), strict=True):
                assert_same(a, b)
        assert_same(found[n].residual, single.residual)
        assert found[n].target_value == pytest.approx(single.target_value, rel=1e-10)
        for a, b in zip(traces[n].features, lens.trace(image).features, strict=True):
            assert_same(a, b)
        assert [name for name, _ in predicted[n]] == [name for name, _ in lens.predict(image)]
        circuit = lens.circuit(image, nodes_per_layer=3, select="walk")
        assert [node.key for node in circuits[n].nodes] == [node.key for node in circuit.nodes]
        assert_same(outcomes[n].after, lens.run_with(image, vitlens.Scale((2, 3), 2.0)).after)
        assert_same(kept[n], lens.run_with(image, keep=[[0, 1], [2], [3]]))


def test_a_batch_of_one_keeps_its_axis() -> None:
    lens = make_lens()
    for one in ([batch()[0]], batch(1)):
        assert lens.trace(one).logits.shape == (1, 5)
        assert lens.importances(one).nodes[0].shape == (1, 31)
        assert len(lens.circuit(one, select="walk")) == len(lens.predict(one)) == 1
        assert lens.run_with(one, keep=[[], [], []]).shape == (1, 5)
    assert lens.trace(batch()[0]).logits.shape == (5,)


def test_targets_are_one_or_one_per_image() -> None:
    lens = make_lens()
    for several in ([2, 0, 1], (2, 0, 1), torch.tensor([2, 0, 1])):
        assert lens.importances(batch(), target=several).target_index == (2, 0, 1)
        assert [
            made.target_index for made in lens.circuit(batch(), target=several, select="walk")
        ] == [2, 0, 1]
    with pytest.raises(TargetError, match="3 images need as many targets, not 2"):
        lens.importances(batch(), target=[0, 1])
    with pytest.raises(TargetError, match="3 images need as many targets, not 2"):
        lens.circuit(batch(), target=[0, 1], select="walk")


def test_what_a_loader_yields_is_several_images_whatever_comes_with_them() -> None:
    lens, images = make_lens(), batch()
    expected = lens.trace(images).logits
    labels = torch.arange(3)
    for given in (
        [images],
        [images, labels, ["a", "b", "c"]],
        (images, torch.zeros(3, 5)),
        [[images[:2], labels[:2]], [images[2:], labels[2:]]],
        [images[:2], images[2:]],
        DataLoader(TensorDataset(images, labels), batch_size=2),
        images.permute(0, 2, 3, 1).clamp(0, 1).numpy(),
    ):
        found = lens.trace(given).logits
        if isinstance(given, np.ndarray):
            assert found.shape == expected.shape
        else:
            assert_same(found, expected)
    median = lens.fit_baselines(images, progress=False)
    loaded = lens.fit_baselines(DataLoader(TensorDataset(images), batch_size=2), progress=False)
    assert_same(loaded.features, median.features)


def test_verbs_of_one_image_refuse_several() -> None:
    lens, images = make_lens(), batch()
    circuit = lens.circuit(images[0], select="walk")
    for several in (images, list(images), [images[0]]):
        for verb in (
            lens.attribute,
            lens.conservation,
            lambda image: lens.logit_lens(image, 1, 0),
            lambda image: lens.verify(circuit, image),
        ):
            with pytest.raises(ImageError, match="not"):
                verb(several)


def test_a_batch_size_below_one_is_refused_and_does_not_give_nothing() -> None:
    lens = make_lens()
    for size in (0, -1):
        for verb in (lens.predict, lens.run_with, lens.fit_baselines):
            with pytest.raises(ImageError, match="batch size must be at least 1"):
                verb(batch(), batch_size=size)


def test_features_are_whole_numbers() -> None:
    with pytest.raises(FeatureError, match=r"there is no 1\.5"):
        make_lens().logit_lens(batch()[0], 1, 1.5)


def test_an_empty_choice_for_error_nodes_is_not_taken_for_the_default() -> None:
    lens = make_lens()
    for empty, error in (("", OptionError), ([], FeatureError)):
        with pytest.raises(error, match="error_nodes"), lens.intervene((), error_nodes=empty):
            pass


# Check and conversion


def test_a_lens_checks_the_model_once_it_is_made() -> None:
    model = tiny_model(depth=4)
    model.register_forward_hook(lambda _, args, out: out / 10)
    with pytest.raises(ModelError, match="after its last block"):
        Lens(model, [sae_of_kind("topk")] * 3, transform=tiny_transform())


def test_check_finds_what_has_changed_since() -> None:
    lens = make_lens()
    lens.check()
    lens.saes[1].W_dec[0, 0] = torch.nan
    with pytest.raises(ModelError, match="W_dec of the SAE of layer 2"):
        lens.check()


def test_to_is_a_copy_in_another_precision() -> None:
    lens = make_lens("jumprelu")
    lens.fit_baselines(batch(), kind="mean", progress=False)
    assert lens.to(dtype=DOUBLE) is lens
    single = lens.to("cpu", torch.float32)
    assert single.vision.dtype == single.saes[0].W_enc.dtype == torch.float32
    assert single.baselines.features[0].dtype == torch.float32 and single.baselines.kind == "mean"
    assert lens.vision.dtype == lens.saes[0].W_enc.dtype == DOUBLE
    a, b = (x.importances(batch()[0].to(x.vision.dtype), target=1) for x in (lens, single))
    torch.testing.assert_close(a.nodes[0].float(), b.nodes[0], rtol=1e-3, atol=1e-4)


def test_the_fingerprint_covers_kind_settings_and_layers() -> None:
    model = tiny_model(depth=6)
    saes = {
        "k 4": {1: sae_of_kind("topk")},
        "budget": {1: sae_of_kind("budget")},
        "another layer": {2: sae_of_kind("topk")},
        "relu": {1: sae_of_kind("relu")},
    }
    prints = {
        name: Lens(model, s, transform=tiny_transform()).fingerprint for name, s in saes.items()
    }
    assert len(set(prints.values())) == len(prints)


def test_reference_baselines_are_the_activations_of_images() -> None:
    lens, images = make_lens(), batch()
    lens.baselines = lens.reference_baselines(images[1])
    assert lens.baselines.kind == "reference"
    nothing = lens.run_with(images[1], keep=[[], [], []], error_nodes="baseline")
    assert_same(nothing, lens.trace(images[1]).logits)
    assert lens.circuit(images[0], select="walk").settings["baselines"] == "reference"

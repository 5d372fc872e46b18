"""The Lens: what it takes, what it gives, and what it says to bad input."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import VisionTransformer

import vitlens
from vitlens import lens as lens_module
from vitlens.errors import (
    CheckpointError,
    FeatureError,
    ImageError,
    ModelError,
    NetworkError,
    OptionError,
    TargetError,
)
from vitlens.images import Transform
from vitlens.method.edges import SitePair
from vitlens.method.engines import ENGINES
from vitlens.method.importance import Engine
from vitlens.method.replacement import fit_baselines
from vitlens.saes.base import SAEOutput

CLASSES = ("bird", "mammal", "fruit", "flower", "vehicle")


def make_sae(width: int = 24, size: int = 30, k: int = 4) -> vitlens.TopKSAE:
    W_dec = F.normalize(torch.randn(size, width), dim=1)
    return vitlens.TopKSAE.from_weights(
        W_enc=W_dec.T.contiguous(), W_dec=W_dec, b_dec=torch.zeros(width), k=k
    )


def make_model(depth: int = 4, n_classes: int = 5) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=24, patch_size=8, embed_dim=24, depth=depth, num_heads=3, num_classes=n_classes
    ).eval()


@pytest.fixture
def lens() -> vitlens.Lens:
    model = make_model()
    transform = Transform(size=(24, 24), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return vitlens.Lens(
        model, [make_sae() for _ in range(3)], class_names=CLASSES, transform=transform
    )


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (40, 32, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_every_kind_of_image_gives_the_same(
    lens: vitlens.Lens, picture: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    picture.save(path)
    expected = lens.trace(picture).logits
    array = np.asarray(picture)
    for image in (path, str(path), array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert torch.equal(lens.trace(image).logits, expected)
    assert torch.equal(lens.trace(lens.tensor(picture)).logits, expected)


def test_trace_is_the_model_and_adds_up(lens: vitlens.Lens, picture: Image.Image) -> None:
    trace = lens.trace(picture)
    with torch.no_grad():
        torch.testing.assert_close(trace.logits, lens.vision.module(lens.tensor(picture)[None])[0])
    assert len(trace.residuals) == len(trace.features) == len(trace.errors) == 3
    assert trace.layers == (0, 1, 2)
    torch.testing.assert_close(lens.vision.readout(trace.output[None])[0], trace.logits)
    for layer, sae in enumerate(lens.saes):
        decoded = sae.decode(trace.features[layer], trace.means[layer], trace.stds[layer])
        torch.testing.assert_close(decoded + trace.errors[layer], trace.residuals[layer])
        assert int((trace.features[layer] > 0).sum(1).max()) <= sae.k


def test_targets(lens: vitlens.Lens, picture: Image.Image) -> None:
    logits = lens.trace(picture).logits
    best = int(logits.argmax())
    by_index = lens.importances(picture, target=1)
    by_name = lens.importances(picture, target="Mammal")
    by_function = lens.importances(picture, target=lambda y: y[1] - y.mean())
    default = lens.importances(picture)
    assert (by_index.target, by_name.target_index) == ("mammal", 1)
    assert by_index.target_value == pytest.approx(float(logits[1] - logits.mean()))
    assert default.target == CLASSES[best]
    for other in (by_name, by_function):
        torch.testing.assert_close(other.nodes, by_index.nodes)


def test_conservation(lens: vitlens.Lens, picture: Image.Image) -> None:
    found = lens.conservation(picture, target=1)
    for gradient, residual in found.items():
        plain = lens.importances(picture, target=1, gradient=gradient, engine="jvp")
        sums = torch.stack([nodes.sum() for nodes in plain.nodes])
        torch.testing.assert_close(residual, 1 - sums / plain.target_value)
    assert set(found) == {"libragrad", "plain"}
    assert not torch.allclose(found["libragrad"], found["plain"])


def test_keeping_everything_is_the_model(lens: vitlens.Lens, picture: Image.Image) -> None:
    logits = lens.trace(picture).logits
    everything = [range(sae.n_features) for sae in lens.saes]
    for errors in ("clean", "free"):
        torch.testing.assert_close(
            lens.run_with(picture, keep=everything, error_nodes=errors), logits
        )
    masks = [torch.ones(sae.n_features, dtype=torch.bool) for sae in lens.saes]
    torch.testing.assert_close(lens.run_with(picture, keep=masks), logits)
    without_errors = lens.run_with(picture, keep=everything, error_nodes="baseline")
    assert float((without_errors - logits).abs().max()) > 1e-3


def test_circuit_rules(lens: vitlens.Lens, picture: Image.Image, tmp_path: Path) -> None:
    circuit = lens.circuit(picture, nodes_per_layer=3, select="walk")
    assert len(circuit.nodes) == 9
    assert circuit.image is not None
    assert circuit.image.shape == (24, 24, 3)
    assert circuit.model == lens.fingerprint
    circuit.save(tmp_path / "circuit.safetensors")
    assert vitlens.Circuit.load(tmp_path / "circuit.safetensors") == circuit
    assert len(circuit.to_networkx()) == 10
    assert len(lens.circuit(picture, share=0.1, select="walk").nodes) == 3 * 4
    assert len(lens.circuit(picture, threshold=1.0, select="walk").nodes) > len(circuit.nodes)
    with pytest.raises(FeatureError):
        lens.circuit(picture, share=0.1, threshold=0.5, select="walk")
    counted = lens.circuit(
        picture, nodes_per_layer=np.int64(3), edge_share=np.float32(0.25), select="walk"
    )
    counted.save(tmp_path / "counted.safetensors")
    assert vitlens.Circuit.load(tmp_path / "counted.safetensors") == counted


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"nodes_per_layer": 0}, "at least 1, not 0"),
        ({"nodes_per_layer": 2.0}, "whole number and at least 1, not 2.0"),
        ({"nodes_per_layer": "3"}, "not '3'"),
        ({"nodes_per_layer": [2, 3]}, "not \\[2, 3\\]"),
        ({"nodes_per_layer": 3, "share": 0.1}, "exactly one"),
        ({"share": 1.5}, "share must be a number above 0 and at most 1, not 1.5"),
        ({"threshold": "all"}, "threshold must be a number"),
        ({"node_share": -1}, "node_share must be a number of at least 0"),
        ({"edge_share": "0.1"}, "edge_share must be a number of at least 0, not '0.1'"),
    ],
)
def test_rules_are_checked_before_the_work(
    lens: vitlens.Lens, picture: Image.Image, rules: dict, message: str
) -> None:
    reported: list[float] = []
    with pytest.raises(FeatureError, match=message):
        lens.circuit(
            picture, progress=lambda part, what: reported.append(part), **rules, select="walk"
        )
    assert not reported


def test_curves_use_class_names(lens: vitlens.Lens, picture: Image.Image) -> None:
    label = CLASSES[int(lens.trace(picture).logits.argmax())]
    curves = lens.faithfulness([picture], methods=("rrm", "random"), labels=[label], progress=False)
    assert curves.methods == ("rrm", "random")
    with pytest.raises(TargetError, match="mammal"):
        lens.faithfulness([picture], labels=["mamal"], progress=False)


def test_user_objects_are_not_changed(picture: Image.Image) -> None:
    model, saes = make_model(), [make_sae() for _ in range(3)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lens = vitlens.Lens(model.double(), saes, class_names=CLASSES)
    lens.importances(picture)
    assert all(sae.W_enc.dtype == torch.float32 for sae in saes)
    assert lens.saes[0].W_enc.dtype == torch.float64
    for name, value in model.state_dict().items():
        assert torch.equal(value.float(), before[name])
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mamal", "Did you mean 'mammal'"),
        (7, "classes 0 to 4"),
        (-1, "classes 0 to 4"),
        (1.5, "class index, a class name or a function"),
        (lambda y: y, "one number"),
        (lambda y: y[0] * float("nan"), "NaN"),
    ],
)
def test_bad_targets(
    lens: vitlens.Lens, picture: Image.Image, target: object, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        lens.importances(picture, target=target)


@pytest.mark.parametrize("errors", ["leaf", "through"])
@pytest.mark.parametrize(
    "target", [torch.argmax, lambda y: y[0].detach(), lambda y: torch.tensor(3.0)]
)
def test_targets_without_a_derivative(
    lens: vitlens.Lens, picture: Image.Image, target: object, errors: str
) -> None:
    with pytest.raises(TargetError, match="no derivative with respect to the logits"):
        lens.circuit(picture, target=target, error_gradients=errors, select="walk")


def test_a_target_that_looks_elsewhere(lens: vitlens.Lens, picture: Image.Image) -> None:
    with pytest.raises(TargetError, match="no derivative"):
        lens.circuit(picture, target=lambda y: lens.vision.module.head.weight.sum(), select="walk")


def test_weights_made_in_inference_mode(lens: vitlens.Lens, picture: Image.Image) -> None:
    with torch.inference_mode():
        inside = vitlens.Lens(make_model(), [make_sae() for _ in range(3)])
    other_saes = vitlens.Lens(lens.vision, inside.saes)
    for made in (inside, other_saes):
        with pytest.raises(ModelError, match=r"inside torch\.inference_mode"):
            made.circuit(picture, select="walk")


def test_the_default_device_does_not_count(lens: vitlens.Lens, picture: Image.Image) -> None:
    expected = lens.circuit(picture, nodes_per_layer=3, select="walk")
    saes = dict(zip(lens.layers, lens.saes, strict=True))
    torch.set_default_device("meta")
    try:
        other = vitlens.Lens(lens.vision, saes, baselines=lens.baselines, transform=lens.transform)
        other.check()
        found = other.circuit(picture, nodes_per_layer=3, select="walk")
        assert torch.equal(other.trace(picture).logits, lens.trace(picture).logits)
        assert other.pixels(picture).device.type == "cpu"
        assert vitlens.load("everyday").vision.device.type == "cpu"
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert [node.key for node in found.nodes] == [node.key for node in expected.nodes]
    assert [node.importance for node in found.nodes] == [n.importance for n in expected.nodes]


def test_a_head_of_another_dtype_is_named() -> None:
    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("directions", torch.ones(5, 4, dtype=torch.float64))

        def forward(self, out: torch.Tensor) -> torch.Tensor:
            return out @ self.directions

    saes = [make_sae() for _ in range(3)]
    with pytest.raises(ModelError, match=r"directions of the head is torch\.float64 on cpu"):
        vitlens.Lens(make_model(n_classes=5), saes, head=Head().eval())


def test_one_logit_needs_a_function(picture: Image.Image) -> None:
    lens = vitlens.Lens(make_model(n_classes=1), [make_sae() for _ in range(3)])
    for target in (None, 0):
        with pytest.raises(TargetError, match=r"one logit.*`target=lambda y: y\[0\]`"):
            lens.circuit(picture, target=target, select="walk")
    found = lens.circuit(picture, target=lambda y: y[0], select="walk")
    assert found.target_value == pytest.approx(float(lens.trace(picture).logits))
    options = {"methods": ("activation",), "labels": [0], "progress": False}
    curves = lens.faithfulness([picture], target=lambda y: y[0], **options)
    assert curves.untouched["target"].tolist() == pytest.approx([found.target_value])


def test_a_target_may_work_in_place(lens: vitlens.Lens, picture: Image.Image) -> None:
    found = lens.circuit(picture, target=lambda y: y.mul_(2)[1], select="walk")
    expected = lens.circuit(picture, target=lambda y: 2 * y[1], select="walk")
    assert torch.equal(found.logits, lens.trace(picture).logits)
    assert (found.target_value, found.nodes) == (expected.target_value, expected.nodes)
    outcome = lens.run_with(picture, vitlens.Steer((0, 1), 1.0))
    assert outcome.effect(lambda y: y.mul_(2)[1]) == outcome.effect(lambda y: 2 * y[1])


def test_class_names_that_are_not_unique(picture: Image.Image) -> None:
    names = ("crane", "Bat", "crane", "bat", "BIRD")
    lens = vitlens.Lens(make_model(), [make_sae() for _ in range(3)], class_names=names)
    assert [lens.class_index(name) for name in ("bat", "Bat", "bird", 2)] == [3, 1, 4, 2]
    twice = "classes: 0 \\('crane'\\) and 2 \\('crane'\\). Give the index"
    for name, words in {"crane": twice, "Crane": twice, "BAT": "1 .*'Bat'.* and 3 .*'bat'"}.items():
        with pytest.raises(TargetError, match=words):
            lens.circuit(picture, target=name, select="walk")
        with pytest.raises(TargetError, match=words):
            lens.faithfulness([picture], labels=[name], progress=False)
    assert lens.importances(picture, target="Bat").target_index == 1


def test_class_name_without_names(picture: Image.Image) -> None:
    lens = vitlens.Lens(make_model(), [make_sae() for _ in range(3)])
    with pytest.raises(TargetError, match="class_names"):
        lens.importances(picture, target="mammal")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([[0], [0]], "all 3 layers"),
        ([[0], [30], [0]], "Layer 1 has features 0 to 29; \\[30\\]"),
        ([[0], [-1], [0]], "do not exist"),
        ([[0], [0.5], [0]], "whole numbers"),
        ([[0], [(1, 5)], [0]], "keep in layer 1 must be one list of numbers"),
        ([[0], [0], 3], "keep in layer 2 must be one list"),
        (["ab", [0], [0]], "keep in layer 0 must be numbers or a mask, not 'ab'"),
        ([torch.ones(2, 30, dtype=torch.bool), [0], [0]], "not of shape \\(2, 30\\)"),
        ([torch.ones(29, dtype=torch.bool), [0], [0]], "29 entries for 30 features"),
    ],
)
def test_bad_keep(lens: vitlens.Lens, picture: Image.Image, keep: list, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        lens.run_with(picture, keep=keep)


def test_bad_settings(lens: vitlens.Lens, picture: Image.Image) -> None:
    for wrong in ({"gradient": "smooth"}, {"error_gradients": "clean"}, {"engine": "fast"}):
        with pytest.raises(OptionError, match="must be one of"):
            lens.importances(picture, **wrong)
    with pytest.raises(ValueError, match="must be one of"):
        lens.run_with(picture, keep=[[0]] * 3, error_nodes="leaf")


def test_the_fingerprint_follows_the_weights(
    lens: vitlens.Lens, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hashed = lens.vision.module, []
    real = lens_module.fingerprint

    def counted(*given: object) -> str:
        hashed.append(real(*given))
        return hashed[-1]

    monkeypatch.setattr(lens_module, "fingerprint", counted)
    circuit = lens.circuit(picture, select="walk")
    assert circuit.model == lens.fingerprint
    assert len(hashed) == 1
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.norm.bias.add_(1)
    assert lens.circuit(picture, select="walk").model != circuit.model
    with pytest.raises(FeatureError, match="another model"):
        lens.verify(circuit, picture)
    model.load_state_dict(weights)
    assert lens.fingerprint == circuit.model
    model.head = torch.nn.Linear(24, 5)
    assert lens.fingerprint != circuit.model
    model.head.weight = torch.nn.Parameter(weights["head.weight"])
    model.head.bias = torch.nn.Parameter(weights["head.bias"])
    assert lens.fingerprint == circuit.model
    with torch.no_grad():
        lens.saes[0].b_dec.add_(1)
    assert lens.fingerprint != circuit.model


def test_the_fingerprint_of_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        lens = vitlens.Lens(make_model(), [make_sae() for _ in range(3)])
        before = lens.fingerprint
        assert lens.fingerprint == before
        lens.vision.module.norm.bias.add_(1)
        assert lens.fingerprint != before


def test_bad_images(lens: vitlens.Lens, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    wrong = [broken, tmp_path / "missing.png", np.zeros((8, 8, 5)), torch.full((3, 24, 24), np.nan)]
    for image in wrong:
        with pytest.raises(ImageError):
            lens.trace(image)


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        (lambda: [make_sae() for _ in range(2)], r"4 blocks, so a list must hold 3 SAEs.*holds 2"),
        (lambda: [make_sae() for _ in range(4)], r"4 blocks, so a list must hold 3 SAEs.*holds 4"),
        (
            lambda: [make_sae(), make_sae(width=16), make_sae()],
            r"layer 1 has width 16, the model 24",
        ),
        (make_sae, "3 SAEs.*holds 1"),
        (lambda: None, "got NoneType instead of an SAE"),
        (lambda: ["saes/"] * 3, "got str instead of an SAE"),
    ],
)
def test_saes_that_do_not_fit(saes: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        vitlens.Lens(make_model(), saes())


def test_saes_from_a_generator(lens: vitlens.Lens) -> None:
    assert vitlens.Lens(lens.vision, (sae for sae in lens.saes)).saes == lens.saes


def test_a_lens_is_no_model(lens: vitlens.Lens) -> None:
    with pytest.raises(ModelError, match=r"A Lens is not a model; pass its `vision`"):
        vitlens.Lens(lens, lens.saes)
    with pytest.raises(ModelError, match="together with the bare model"):
        vitlens.Lens(lens.vision, lens.saes, head=lambda y: y)


def test_names_and_baselines_that_do_not_fit(lens: vitlens.Lens) -> None:
    with pytest.raises(ModelError, match=r"2 class names.*5 classes"):
        vitlens.Lens(lens.vision, lens.saes, class_names=["a", "b"])
    features, errors = lens.baselines.features, lens.baselines.errors
    with pytest.raises(ModelError, match="need baselines of 3 layers"):
        lens.baselines = vitlens.Baselines(features[:2], errors[:2])
    with pytest.raises(ModelError, match="Baselines of layer 0"):
        lens.baselines = vitlens.Baselines([z[:5] for z in features], [e[:5] for e in errors])
    with pytest.raises(CheckpointError, match="NaN"):
        vitlens.Baselines(features, [e * float("nan") for e in errors])
    with pytest.raises(ModelError, match=r"not NoneType.*fit_baselines"):
        lens.baselines = None
    with pytest.raises(ModelError, match="at least one image"):
        lens.fit_baselines([], progress=False)


def test_baselines_round_trip(lens: vitlens.Lens, picture: Image.Image, tmp_path: Path) -> None:
    found = lens.fit_baselines([picture, picture.rotate(90), picture.rotate(180)], progress=False)
    found.save(tmp_path / "baselines.safetensors")
    loaded = vitlens.Baselines.load(tmp_path / "baselines.safetensors")
    for a, b in zip(
        (*found.features, *found.errors), (*loaded.features, *loaded.errors), strict=True
    ):
        assert torch.equal(a, b)
    by_path = vitlens.Lens(lens.vision, lens.saes, baselines=tmp_path / "baselines.safetensors")
    assert all(map(torch.equal, by_path.baselines.errors, found.errors))
    lens.baselines = vitlens.Baselines(found.features, [0 * e for e in found.errors])
    lens.baselines = str(tmp_path / "baselines.safetensors")
    assert all(map(torch.equal, lens.baselines.errors, found.errors))
    found.save(tmp_path / "half.safetensors", dtype=torch.float16)
    for a, b in zip(
        found.errors, vitlens.Baselines.load(tmp_path / "half.safetensors").errors, strict=True
    ):
        torch.testing.assert_close(b, a.half().float(), rtol=0, atol=0)  # the type, too
    lens.circuit(picture, select="walk").save(tmp_path / "circuit.safetensors")
    with pytest.raises(CheckpointError, match="no baselines"):
        vitlens.Baselines.load(tmp_path / "circuit.safetensors")


def test_one_image_counts_as_a_list_of_one(
    lens: vitlens.Lens, picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "image.png")
    array = np.asarray(picture)
    uint8 = torch.from_numpy(array.copy()).permute(2, 0, 1)
    ones = [tmp_path / "image.png", str(tmp_path / "image.png"), picture, array, uint8]
    baselines = lens.fit_baselines([picture], progress=False)
    fidelity = lens.faithfulness([picture], methods=("random",), q=(0, 1), progress=False)
    mean = vitlens.Ablate((0, 1), "mean", over=[picture])
    for one in [*ones, lens.tensor(picture)]:
        found = lens.fit_baselines(one, progress=False)
        assert all(map(torch.equal, found.errors, baselines.errors))
        assert lens.faithfulness(one, methods=("random",), q=(0, 1), progress=False) == fidelity
        outcome = lens.run_with(picture, vitlens.Ablate((0, 1), "mean", over=one))
        assert torch.equal(outcome.after, lens.run_with(picture, mean).after)


def test_a_batch_is_a_list_of_images(lens: vitlens.Lens, picture: Image.Image) -> None:
    turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = lens.fit_baselines([picture, turned], progress=False)
    arrays = np.stack([np.asarray(picture), np.asarray(turned)])
    tensors = torch.stack([lens.tensor(picture), lens.tensor(turned)])
    for batch in (arrays, tensors, iter([picture, turned])):
        found = lens.fit_baselines(batch, progress=False)
        assert all(map(torch.equal, found.errors, expected.errors))


def test_what_is_no_list_of_images(lens: vitlens.Lens, tmp_path: Path) -> None:
    for wrong in (None, 5):
        for take in (lens.fit_baselines, lens.faithfulness):
            with pytest.raises(ImageError, match="Images must be one path, PIL image"):
                take(wrong)
        with pytest.raises(ImageError, match="Images must be one path, PIL image"):
            vitlens.Ablate((0, 1), "mean", over=wrong)
    with pytest.raises(ImageError, match="is a folder"):
        lens.fit_baselines(tmp_path, progress=False)


def test_the_bundles_baselines_by_kind(tmp_path: Path) -> None:
    from vitlens.saes.io import save_saes

    by_default, median = vitlens.load("everyday"), vitlens.load("everyday", baselines="median")
    assert by_default.baselines.kind == "mean" and median.baselines.kind == "median"
    for mean, z in zip(by_default.baselines.features, median.baselines.features, strict=True):
        # Most features are silent on most images: their median is 0, their mean is not.
        assert (mean >= 0).all() and float((mean > 0).double().mean()) > 0.3
        assert float((z > 0).double().mean()) < 0.1
    save_saes(dict(zip(median.layers, median.saes, strict=True)), tmp_path / "saes")
    assert vitlens.load("everyday", saes=tmp_path / "saes").baselines.kind == "zero"
    with pytest.raises(ModelError, match="belong to its own SAEs"):
        vitlens.load("everyday", saes=tmp_path / "saes", baselines="mean")


def test_load_by_name() -> None:
    with pytest.raises(ModelError, match=r"No SAEs are known.*vitlens train-saes"):
        vitlens.load("vit_tiny_patch16_224")
    with pytest.raises(ModelError, match="Did you mean 'vit_base_patch16_224'"):
        vitlens.load("vit_base_patch16_225")
    with pytest.raises(NetworkError):
        vitlens.load("vit_base_patch16_224", pretrained=False)


def test_load_a_timm_model_with_a_folder_of_saes(tmp_path: Path, picture: Image.Image) -> None:
    from vitlens.saes.io import save_saes

    save_saes([make_sae(width=192) for _ in range(11)], tmp_path / "saes")
    lens = vitlens.load("vit_tiny_patch16_224", saes=tmp_path / "saes", pretrained=False)
    assert lens.transform.size == (224, 224)
    assert len(lens.predict(picture)) == 1000
    wide = make_sae(width=16)
    save_saes([wide] * 11, tmp_path / "other")
    with pytest.raises(CheckpointError, match="width 16"):
        vitlens.load("vit_tiny_patch16_224", saes=tmp_path / "other", pretrained=False)


def test_load_a_bundle_with_other_saes(tmp_path: Path) -> None:
    from vitlens.saes.io import save_saes

    save_saes([make_sae(width=384) for _ in range(11)], tmp_path / "saes")
    own, other = vitlens.load("everyday"), vitlens.load("everyday", saes=tmp_path / "saes")
    assert other.saes[0].n_features == make_sae().n_features != own.saes[0].n_features
    assert other.class_names == own.class_names
    # What was measured, named and fitted belongs to the bundle's own SAEs.
    assert own.about.figures and not other.about.figures
    assert own.atlas is not None and other.atlas is None
    assert not any(features.any() for features in other.baselines.features)
    fitted = other.fit_baselines(own.samples[:2])
    fitted.save(tmp_path / "baselines.safetensors")
    third = vitlens.load(
        "everyday", saes=tmp_path / "saes", baselines=tmp_path / "baselines.safetensors"
    )
    assert torch.equal(third.baselines.errors[3], fitted.errors[3])
    with pytest.raises(ModelError, match="leave out class_names"):
        vitlens.load("everyday", class_names=["a"])
    with pytest.raises(ModelError, match="leave out timm_options"):
        vitlens.load("everyday", timm_options={"img_size": 96})


def test_a_sample_is_taken_as_an_image() -> None:
    lens = vitlens.load("everyday")
    sample = lens.samples[0]
    assert torch.equal(lens.trace(sample).logits, lens.trace(sample.path).logits)


@pytest.mark.parametrize("engine", ["closed_form", "vjp", "jvp"])
def test_every_engine_computes_only_the_columns_of_a_circuit(
    lens: vitlens.Lens, picture: Image.Image, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    whole, graph = lens.circuit(picture, nodes_per_layer=3, select="walk"), lens.attribute(picture)
    asked: list[int] = []
    run = ENGINES[engine]

    def counted(pair: SitePair) -> torch.Tensor:
        asked.append(len(pair.targets))
        return run(pair)

    monkeypatch.setitem(ENGINES, engine, counted)
    reported: list[float] = []
    found = lens.circuit(
        picture,
        nodes_per_layer=3,
        engine=engine,
        progress=lambda part, _: reported.append(part),
        select="walk",
    )
    for other in (whole, graph.prune(3)):
        assert [node.key for node in found.nodes] == [node.key for node in other.nodes]
        assert [(e.source, e.target) for e in found.edges] == [
            (e.source, e.target) for e in other.edges
        ]
        for a, b in zip(found.edges, other.edges, strict=True):
            assert a.weight == pytest.approx(b.weight, rel=1e-3, abs=1e-5)
    pairs = len(lens.saes) - 1
    assert len(asked) == pairs and max(asked) <= 3
    assert reported == [number / pairs for number in range(pairs + 1)]


def test_medians_free_the_features_of_other_tokens(lens: vitlens.Lens) -> None:
    alive: WeakSet[torch.Tensor] = WeakSet()
    most = 0

    def note(_sae: torch.nn.Module, _args: object, out: SAEOutput) -> None:
        nonlocal most
        alive.add(out.features)
        most = max(most, len(alive))

    handles = [sae.register_forward_hook(note) for sae in lens.saes]
    images = torch.randn(4, 3, *lens.vision.image_size)
    try:
        fitted = fit_baselines(lens.replacement, [images], tokens_at_once=1, progress=False)
    finally:
        for handle in handles:
            handle.remove()
    assert most <= 2
    streams = lens.vision.residuals(images)
    for layer, sae in enumerate(lens.saes):
        expected = sae(streams[layer]).features.median(0).values
        torch.testing.assert_close(fitted.features[layer], expected)


def test_half_precision_opens_without_the_atlas() -> None:
    assert vitlens.load("everyday").atlas is not None
    assert vitlens.load("everyday", dtype=torch.bfloat16).atlas is None


def test_baselines_that_do_not_fit_a_precision_are_not_written(
    lens: vitlens.Lens, tmp_path: Path
) -> None:
    baselines = lens.baselines
    large = vitlens.Baselines(baselines.features, [e + 1e5 for e in baselines.errors])
    with pytest.raises(CheckpointError, match="do not fit into"):
        large.save(tmp_path / "b.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    large.save(tmp_path / "b.safetensors")


def test_results_are_compared_as_objects(lens: vitlens.Lens, picture: Image.Image) -> None:
    trace, again = lens.trace(picture), lens.trace(picture)
    assert trace == trace and trace != again
    assert lens.baselines == lens.baselines


def test_the_fingerprint_counts_k_and_the_head(lens: vitlens.Lens) -> None:
    other = [
        vitlens.TopKSAE.from_weights(W_enc=sae.W_enc, W_dec=sae.W_dec, b_dec=sae.b_dec, k=sae.k + 1)
        for sae in lens.saes
    ]
    heads = [torch.nn.Linear(5, 5).eval() for _ in range(2)]
    lenses = [
        lens,
        vitlens.Lens(lens.vision.module, other),
        *(vitlens.Lens(lens.vision.module, lens.saes, head=head) for head in heads),
    ]
    assert len({one.fingerprint for one in lenses}) == len(lenses)
    assert vitlens.Lens(lens.vision.module, lens.saes).fingerprint == lens.fingerprint


def test_a_mask_of_bytes_is_not_taken_for_features(
    lens: vitlens.Lens, picture: Image.Image
) -> None:
    kept = [torch.arange(30) < 5 for _ in lens.saes]
    expected = lens.run_with(picture, keep=kept)
    for form in (torch.nonzero, lambda mask: mask[None], lambda mask: mask.nonzero()[:, 0]):
        torch.testing.assert_close(lens.run_with(picture, keep=list(map(form, kept))), expected)
    masks = [torch.zeros(30, dtype=torch.uint8) for _ in lens.saes]
    with pytest.raises(FeatureError, match="must hold booleans"):
        lens.run_with(picture, keep=masks)


def test_one_image_goes_with_one_method_and_one_label(
    lens: vitlens.Lens, picture: Image.Image
) -> None:
    name = lens.predict(picture)[0][0]
    one = lens.faithfulness(picture, methods="random", labels=name, progress=False)
    several = lens.faithfulness([picture], methods=["random"], labels=[name], progress=False)
    assert one.methods == ("random",) and one.n_given == 1
    assert torch.equal(one.insertion["target"], several.insertion["target"])
    number = np.int64(CLASSES.index(name))
    by_number = lens.faithfulness(picture, methods="random", labels=number, progress=False)  # type: ignore[arg-type]
    assert torch.equal(one.insertion["target"], by_number.insertion["target"])
    with pytest.raises(OptionError, match=r"method must be one of rrm, .*, not 'rnd'"):
        lens.faithfulness(picture, methods="rnd", progress=False)


@pytest.mark.parametrize("names", ["abcde", "abc", dict(enumerate(CLASSES)), set(CLASSES)])
def test_class_names_that_are_no_list_are_refused(names: object) -> None:
    with pytest.raises(ModelError, match="a list in the order of the logits"):
        vitlens.Lens(make_model(), [make_sae() for _ in range(3)], class_names=names)  # type: ignore[arg-type]


def test_two_rules_are_named_as_they_were_given(lens: vitlens.Lens, picture: Image.Image) -> None:
    with pytest.raises(FeatureError, match="not nodes_per_layer and share"):
        lens.circuit(picture, nodes_per_layer=2, share=0.1, select="walk")

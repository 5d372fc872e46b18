"""The package reproduces the reference numbers, and the slow program for every kind of SAE.

`tests/data/reference` holds numbers of an independent program; `tests/reference/program.py` is
the same kind of program, written from docs/method.md, for SAEs of every kind at any layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models import VisionTransformer
from torch import Tensor

import vitlens
from tests.builders import KINDS, N_TOKENS, sae_of_kind, tiny_image, tiny_model
from tests.reference import program
from vitlens.saes.base import SAE

DATA = Path(__file__).parents[1] / "data" / "reference"
NAMES = ("vit_cls", "vit_reg_layerscale", "vit_avgpool_fcnorm")
ENGINES = ("closed_form", "jvp", "vjp")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def assert_relative(found: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    assert found.shape == expected.shape
    allowed = TOLERANCE[found.dtype] if tolerance is None else tolerance
    assert float((found - expected).abs().max()) <= allowed * float(expected.abs().max())


# --- Stored numbers --------------------------------------------------------------------------


@cache
def stored(name: str, dtype: torch.dtype) -> tuple[dict, dict, vitlens.Lens]:
    config = json.loads((DATA / f"{name}.json").read_text())
    data = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in load_file(DATA / f"{name}.safetensors").items()
    }
    model = VisionTransformer(**config["timm_VisionTransformer"]).to(dtype).eval()
    model.load_state_dict(
        {key.removeprefix("model."): v for key, v in data.items() if key.startswith("model.")}
    )
    saes = stored_saes(config, data)
    layers = range(len(saes))
    baselines = vitlens.Baselines(
        features=[data[f"baseline.{layer}.features"] for layer in layers],
        errors=[data[f"baseline.{layer}.errors"] for layer in layers],
    )
    return config, data, vitlens.Lens(model, saes, baselines=baselines)


def stored_saes(config: dict, data: dict, budget: int | None = None) -> list[vitlens.TopKSAE]:
    return [
        vitlens.TopKSAE.from_weights(
            **{w: data[f"sae.{layer}.{w}"] for w in ("W_enc", "W_dec", "b_dec")},
            k=k,
            budget=budget,
        )
        for layer, k in enumerate(config["top_k"])
    ]


def keys_with(data: dict, part: str) -> list[str]:
    found = [key for key in data if part in key]
    assert found
    return found


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize(("kind", "key"), [("median", "baseline"), ("mean", "mean")])
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_baselines(name: str, kind: str, key: str, dtype: torch.dtype) -> None:
    config, data, lens = stored(name, dtype)
    assert_relative(lens.trace(data["images"]).logits, data["logits"])
    own = vitlens.Lens(lens.vision, lens.saes)
    own.fit_baselines(data["images"], kind=kind, batch_size=5, progress=False)
    assert own.baselines.kind == kind
    for layer in range(len(config["top_k"])):
        assert_relative(own.baselines.features[layer], data[f"{key}.{layer}.features"])
        assert_relative(own.baselines.errors[layer], data[f"{key}.{layer}.errors"])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("error_gradients", ["leaf", "through"])
@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_importances(
    name: str, gradient: str, error_gradients: str, engine: str, dtype: torch.dtype
) -> None:
    config, data, lens = stored(name, dtype)
    for n, target in enumerate(config["targets"]):
        found = lens.importances(
            data["images"][n],
            target=target,
            gradient=gradient,
            error_gradients=error_gradients,
            engine=engine,
        )
        key = f"image{n}.{'gradient' if gradient == 'plain' else gradient}.{error_gradients}"
        for layer, nodes in enumerate(found.nodes):
            assert_relative(nodes, data[f"{key}.nodes.{layer}"])
            torch.testing.assert_close(found.tokens[layer].sum(0), nodes)
        for layer, edges in enumerate(found.edges):
            assert_relative(edges, data[f"{key}.edges.{layer}"])
        assert len(found.edges) == len(found.nodes) - 1


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_kept_features(name: str, dtype: torch.dtype) -> None:
    _, data, lens = stored(name, dtype)
    runs = [key.removesuffix(".logits") for key in keys_with(data, ".logits")]
    assert len(runs) >= 2
    for run in runs:
        image = data["images"][int(run[len("image")])]
        keep = [data[f"{run}.features.{layer}"] for layer in range(len(lens.saes))]
        assert_relative(lens.run_with(image, keep=keep), data[f"{run}.logits"])


@pytest.mark.parametrize("name", NAMES)
def test_features_within_an_image_budget(name: str, dtype: torch.dtype) -> None:
    config, data, lens = stored(name, dtype)
    keys = keys_with(data, ".budget")
    for budget in {int(key.split(".")[1].removeprefix("budget")) for key in keys}:
        bounded = vitlens.Lens(lens.vision, stored_saes(config, data, budget))
        trace = bounded.trace(data["images"])
        mine = [key for key in keys if f".budget{budget}." in key]
        for image, _, _, layer in (key.split(".") for key in mine):
            found = trace.features[int(layer)][int(image.removeprefix("image"))]
            assert_relative(found, data[f"{image}.budget{budget}.features.{layer}"])


@pytest.mark.parametrize("name", NAMES)
def test_leaf_nodes_are_sums_of_their_edges(name: str) -> None:
    _, data, lens = stored(name, torch.float64)
    found = lens.importances(data["images"][2], target=1)
    for nodes, edges in zip(found.nodes, found.edges, strict=False):
        torch.testing.assert_close(edges.sum(1), nodes)
    assert found.residual[0] == pytest.approx(found.target_value - float(found.nodes[0].sum()))


# --- Every kind of SAE, at any layers --------------------------------------------------------

NORMALIZATIONS = ("layer", "none", "fixed")
LAYERS = ((0, 1, 2), (0, 2), (1,))
TARGET = 3


def lens_of(kind: str, normalization: str, layers: Sequence[int]) -> vitlens.Lens:
    """A random lens in float64, no baseline of which is zero; half of the kinds have b_enc."""
    model = tiny_model(seed=len(kind), dtype=torch.float64)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.blocks.parameters():  # attention and MLP count as much as the stream
            weight += 0.15 * torch.randn(weight.shape, generator=random, dtype=torch.float64)
    saes = {
        layer: sae_of_kind(
            kind,
            seed=layer,
            n_features=24 + 2 * layer,
            normalization=normalization,
            b_enc=(layer + len(kind)) % 2 == 0,
            subtract_b_dec=layer != 2,
            dtype=torch.float64,
        )
        for layer in layers
    }
    baselines = vitlens.Baselines(
        [0.1 * torch.rand(N_TOKENS, s.n_features, generator=random).double() for s in saes.values()],
        [0.1 * torch.randn(N_TOKENS, s.d_model, generator=random).double() for s in saes.values()],
    )
    return vitlens.Lens(model, saes, baselines=baselines)


def written_out(sae: SAE) -> program.SparseAutoencoder:
    """An SAE as the slow program takes it."""
    return program.SparseAutoencoder(
        kind=sae.kind,
        W_enc=sae.W_enc,
        W_dec=sae.W_dec,
        b_dec=sae.b_dec,
        b_enc=sae.b_enc,
        k=getattr(sae, "k", 0),
        budget=getattr(sae, "budget", None),
        threshold=getattr(sae, "threshold", 0.0),
        normalization=sae.normalization,
        input_mean=sae.input_mean,
        input_scale=1.0 if sae.input_scale is None else float(sae.input_scale),
        subtract_b_dec=sae.subtract_b_dec,
    )


class Reference:
    """The slow program on the lens's model, one image at a time."""

    def __init__(self, lens: vitlens.Lens) -> None:
        self.vit = lens.vision.module
        self.saes, self.layers = [written_out(sae) for sae in lens.saes], lens.layers
        self.baselines = program.Reference(
            list(lens.baselines.features), list(lens.baselines.errors)
        )

    def trace(self, image: Tensor) -> program.ImageTrace:
        return program.trace(program.Transformer(self.vit), self.saes, self.layers, image)

    def importances(
        self, image: Tensor, gradient: str, error_gradients: str
    ) -> program.NodesAndEdges:
        model = program.Transformer(self.vit, gradient)
        return program.importances(
            model,
            self.saes,
            self.layers,
            self.trace(image),
            self.baselines,
            TARGET,
            error_gradients,
        )

    def run(self, image: Tensor, keep: list[list[int]], error_nodes: str) -> Tensor:
        model = program.Transformer(self.vit)
        return program.replaced_run(
            model, self.saes, self.layers, self.trace(image), self.baselines, keep, error_nodes
        )


KIND_AND_NORMALIZATION = pytest.mark.parametrize(
    ("kind", "normalization"), list(product(KINDS, NORMALIZATIONS))
)
SITES = pytest.mark.parametrize("layers", LAYERS, ids=lambda x: "+".join(map(str, x)))


@SITES
@KIND_AND_NORMALIZATION
def test_traces_of_every_kind(kind: str, normalization: str, layers: tuple[int, ...]) -> None:
    lens = lens_of(kind, normalization, layers)
    image = tiny_image(1, torch.float64)
    found, expected = lens.trace(image), Reference(lens).trace(image)
    assert_relative(found.logits, expected.logits)
    for i in range(len(layers)):
        share = float((expected.features[i] > 0).double().mean())
        assert 0.02 < share < 0.95, "this SAE tests nothing: all or none of its features are active"
        assert_relative(found.residuals[i], expected.streams[i])
        assert_relative(found.features[i], expected.features[i])
        assert_relative(found.errors[i], expected.errors[i])


@SITES
@KIND_AND_NORMALIZATION
def test_importances_of_every_kind(kind: str, normalization: str, layers: tuple[int, ...]) -> None:
    lens = lens_of(kind, normalization, layers)
    reference, image = Reference(lens), tiny_image(1, torch.float64)
    for gradient, error_gradients in product(("libragrad", "plain"), ("leaf", "through")):
        expected = reference.importances(image, gradient, error_gradients)
        for engine in ENGINES if len(layers) > 1 else ENGINES[:1]:
            found = lens.importances(
                image,
                target=TARGET,
                gradient=gradient,
                error_gradients=error_gradients,
                engine=engine,
            )
            assert found.layers == layers
            assert len(found.nodes) == len(layers) == len(found.edges) + 1
            for i, nodes in enumerate(found.nodes):
                assert_relative(nodes, expected.nodes[i])
                assert_relative(found.tokens[i], expected.tokens[i])
            for i, edges in enumerate(found.edges):
                assert_relative(edges, expected.edges[i])


@SITES
@KIND_AND_NORMALIZATION
def test_replaced_runs_of_every_kind(
    kind: str, normalization: str, layers: tuple[int, ...]
) -> None:
    lens = lens_of(kind, normalization, layers)
    reference, image = Reference(lens), tiny_image(1, torch.float64)
    random = torch.Generator().manual_seed(2)
    keep = [torch.randperm(s.n_features, generator=random)[:9].tolist() for s in lens.saes]
    mixed = ["free", "zero", "baseline"][: len(layers)]
    for error_nodes in ("clean", "free", "baseline", "zero", mixed):
        found = lens.run_with(image, keep=keep, error_nodes=error_nodes)
        assert_relative(found, reference.run(image, keep, error_nodes))
    nothing_changes = [range(sae.n_features) for sae in lens.saes]
    for error_nodes in ("clean", "free"):
        found = lens.run_with(image, keep=nothing_changes, error_nodes=error_nodes)
        assert_relative(found, lens.trace(image).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_edges_of_cross_layer_attribution(kind: str) -> None:
    from vitlens.method.rankings import cla_edges

    lens = lens_of(kind, "layer", (0, 2))
    reference, image = Reference(lens), tiny_image(1, torch.float64)
    expected = program.cla_edges(
        program.Transformer(reference.vit, "plain"),
        reference.saes,
        reference.layers,
        reference.trace(image),
        0,
    )
    for engine in ENGINES:
        assert_relative(
            cla_edges(lens.replacement, lens.trace(image), 0, engine=engine), expected
        )


# --- Batches ---------------------------------------------------------------------------------


def batch_of(n: int) -> Tensor:
    return torch.stack([tiny_image(seed, torch.float64) for seed in range(n)])


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2)], ids=["every layer", "two layers"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_images_give_one_by_one(kind: str, layers: tuple[int, ...]) -> None:
    lens, images = lens_of(kind, "layer", layers), batch_of(3)
    keep = [[0, 1, 2, 3, 4]] * len(layers)
    trace, runs = lens.trace(images), lens.run_with(images, keep=keep)
    found = lens.importances(images, target=TARGET)
    circuits = lens.circuit(images, target=TARGET, nodes_per_layer=4)
    assert len(trace) == len(found) == len(circuits) == 3
    for n, image in enumerate(images):
        alone, single = lens.importances(image, target=TARGET), lens.trace(image)
        assert_relative(trace.logits[n], single.logits, 1e-10)
        assert_relative(runs[n], lens.run_with(image, keep=keep), 1e-10)
        for i in range(len(layers)):
            assert_relative(trace[n].features[i], single.features[i], 1e-10)
            assert_relative(trace[n].errors[i], single.errors[i], 1e-10)
            assert_relative(found[n].nodes[i], alone.nodes[i], 1e-10)
        for edges, expected in zip(found[n].edges, alone.edges, strict=True):
            assert_relative(edges, expected, 1e-10)
        one = lens.circuit(image, target=TARGET, nodes_per_layer=4)
        assert [node.key for node in circuits[n].nodes] == [node.key for node in one.nodes]
        torch.testing.assert_close(
            torch.tensor([edge.weight for edge in circuits[n].edges]).double(),
            torch.tensor([edge.weight for edge in one.edges]).double(),
            rtol=1e-10,
            atol=1e-12,
        )


def test_images_come_as_a_list_a_tensor_or_a_batch_of_a_loader() -> None:
    lens, images = lens_of("topk", "layer", (0, 2)), batch_of(2)
    expected = lens.trace(images).logits
    batch = next(iter(torch.utils.data.DataLoader(list(images), batch_size=2)))
    labelled = next(iter(torch.utils.data.DataLoader(list(zip(images, (0, 1), strict=True)), 2)))
    for given in (list(images), batch, labelled):
        assert_relative(lens.trace(given).logits, expected, 1e-10)
    one = lens.trace(images[0])
    assert one.logits.ndim == 1
    assert lens.trace(images[:1]).logits.ndim == 2

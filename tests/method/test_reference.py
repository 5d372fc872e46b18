"""The numbers of an independent, slow, float64 program (tests/data/reference) are reproduced."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models import VisionTransformer

import vitlens
from vitlens.lens import Lens

DATA = Path(__file__).parents[1] / "data" / "reference"
NAMES = ("vit_cls", "vit_reg_layerscale", "vit_avgpool_fcnorm")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@cache
def reference(name: str, dtype: torch.dtype) -> tuple[dict, dict, Lens]:
    config = json.loads((DATA / f"{name}.json").read_text())
    data = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in load_file(DATA / f"{name}.safetensors").items()
    }
    model = VisionTransformer(**config["timm_VisionTransformer"]).to(dtype).eval()
    model.load_state_dict(
        {key.removeprefix("model."): v for key, v in data.items() if key.startswith("model.")}
    )
    saes = [
        vitlens.TopKSAE.from_weights(
            **{w: data[f"sae.{layer}.{w}"] for w in ("W_enc", "W_dec", "b_dec")}, k=k
        )
        for layer, k in enumerate(config["top_k"])
    ]
    layers = range(len(saes))
    baselines = vitlens.Baselines(
        features=[data[f"baseline.{layer}.features"] for layer in layers],
        errors=[data[f"baseline.{layer}.errors"] for layer in layers],
    )
    return config, data, vitlens.Lens(model, saes, baselines=baselines)


def assert_relative(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    error = (found - expected).abs().max()
    assert float(error) <= TOLERANCE[found.dtype] * float(expected.abs().max())


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_baselines(name: str, dtype: torch.dtype) -> None:
    config, data, lens = reference(name, dtype)
    found = torch.stack([lens.trace(image).logits for image in data["images"]])
    assert_relative(found, data["logits"])
    own = vitlens.Lens(lens.vision, lens.saes)
    own.fit_baselines(data["images"], batch_size=5, progress=False)
    for layer in range(len(config["top_k"])):
        assert_relative(own.baselines.features[layer], data[f"baseline.{layer}.features"])
        assert_relative(own.baselines.errors[layer], data[f"baseline.{layer}.errors"])


@pytest.mark.parametrize("engine", ["closed_form", "jvp", "vjp"])
@pytest.mark.parametrize("errors", ["leaf", "through"])
@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_importances(
    name: str, gradient: str, errors: str, engine: str, dtype: torch.dtype
) -> None:
    config, data, lens = reference(name, dtype)
    for n, target in enumerate(config["targets"]):
        found = lens.importances(
            data["images"][n], target=target, gradient=gradient, errors=errors, engine=engine
        )
        key = f"image{n}.{'gradient' if gradient == 'plain' else gradient}.{errors}"
        for layer, nodes in enumerate(found.nodes):
            assert_relative(nodes, data[f"{key}.nodes.{layer}"])
            torch.testing.assert_close(found.tokens[layer].sum(0), nodes)
        for layer, edges in enumerate(found.edges):
            assert_relative(edges, data[f"{key}.edges.{layer}"])
        assert len(found.edges) == len(found.nodes) - 1


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_kept_features(name: str, dtype: torch.dtype) -> None:
    _, data, lens = reference(name, dtype)
    runs = [key.removesuffix(".logits") for key in data if ".kept" in key and "logits" in key]
    assert len(runs) >= 2
    for run in runs:
        image = data["images"][int(run[len("image")])]
        keep = [data[f"{run}.features.{layer}"] for layer in range(len(lens.saes))]
        assert_relative(lens.run_with(image, keep=keep), data[f"{run}.logits"])


@pytest.mark.parametrize("name", NAMES)
def test_leaf_nodes_are_sums_of_their_edges(name: str) -> None:
    _, data, lens = reference(name, torch.float64)
    found = lens.importances(data["images"][2], target=1)
    for nodes, edges in zip(found.nodes, found.edges, strict=False):
        torch.testing.assert_close(edges.sum(1), nodes)
    assert found.residual[0] == pytest.approx(found.target_value - float(found.nodes[0].sum()))

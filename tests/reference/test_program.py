"""The slow program reproduces the reference numbers, so that other tests may rely on it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models import VisionTransformer
from torch import Tensor

from tests.reference import program

DATA = Path(__file__).parents[1] / "data" / "reference"
NAMES = ("vit_cls", "vit_reg_layerscale", "vit_avgpool_fcnorm")


class Case:
    """One reference model with its SAEs, images, traces and expected numbers."""

    def __init__(self, name: str) -> None:
        self.config = json.loads((DATA / f"{name}.json").read_text())
        self.data = {
            key: value.double() if value.is_floating_point() else value
            for key, value in load_file(DATA / f"{name}.safetensors").items()
        }
        vit = VisionTransformer(**self.config["timm_VisionTransformer"]).double().eval()
        vit.load_state_dict(
            {k.removeprefix("model."): v for k, v in self.data.items() if k.startswith("model.")}
        )
        self.vit = vit.requires_grad_(False)
        self.model = program.Transformer(vit)
        self.layers = range(len(self.config["top_k"]))
        self.saes = self.make_saes()
        self.traces = [
            program.trace(self.model, self.saes, self.layers, image) for image in self.images
        ]

    @property
    def images(self) -> Tensor:
        return self.data["images"]

    def make_saes(self, budget: int | None = None) -> list[program.SparseAutoencoder]:
        weights = ("W_enc", "W_dec", "b_dec")
        return [
            program.SparseAutoencoder(
                "topk", *(self.data[f"sae.{i}.{w}"] for w in weights), k=k, budget=budget
            )
            for i, k in enumerate(self.config["top_k"])
        ]

    def stored(self, key: str) -> program.Reference:
        return program.Reference(
            [self.data[f"{key}.{i}.features"] for i in self.layers],
            [self.data[f"{key}.{i}.errors"] for i in self.layers],
        )

    def keys(self, part: str) -> list[str]:
        found = [key for key in self.data if part in key]
        assert found
        return found


case = cache(Case)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_logits(name: str) -> None:
    c = case(name)
    assert_close(torch.stack([t.logits for t in c.traces]), c.data["logits"])
    with torch.no_grad():
        assert_close(c.vit(c.images), c.data["logits"])


@pytest.mark.parametrize("kind, key", [("median", "baseline"), ("mean", "mean")])
@pytest.mark.parametrize("name", NAMES)
def test_baselines(name: str, kind: str, key: str) -> None:
    c = case(name)
    found, expected = program.baselines(c.traces, kind), c.stored(key)
    for i in c.layers:
        assert_close(found.features[i], expected.features[i])
        assert_close(found.errors[i], expected.errors[i])


@pytest.mark.parametrize("error_gradients", ["leaf", "through"])
@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_importances(name: str, gradient: str, error_gradients: str) -> None:
    c = case(name)
    model = program.Transformer(c.vit, gradient)
    for n, target in enumerate(c.config["targets"]):
        found = program.importances(
            model, c.saes, c.layers, c.traces[n], c.stored("baseline"), target, error_gradients
        )
        key = f"image{n}.{'gradient' if gradient == 'plain' else gradient}.{error_gradients}"
        assert len(found.nodes) == len(c.keys(f"{key}.nodes"))
        assert len(found.edges) == len(c.keys(f"{key}.edges"))
        for i, nodes in enumerate(found.nodes):
            assert_close(nodes, c.data[f"{key}.nodes.{i}"])
        for i, edges in enumerate(found.edges):
            assert_close(edges, c.data[f"{key}.edges.{i}"])


@pytest.mark.parametrize("name", NAMES)
def test_edges_by_head(name: str) -> None:
    c = case(name)
    for n, target in enumerate(c.config["targets"]):
        baseline = c.stored("baseline")
        found = program.importances(c.model, c.saes, c.layers, c.traces[n], baseline, target)
        for i in range(len(c.layers) - 1):
            by_head = program.edges_by_head(
                c.model, c.saes, c.layers, c.traces[n], baseline, i, found.gradients[i + 1]
            )
            assert_close(by_head, c.data[f"image{n}.libragrad.leaf.heads.{i}"])
            assert_close(by_head.sum(0), found.edges[i])


@pytest.mark.parametrize("name", NAMES)
def test_replaced_runs(name: str) -> None:
    c = case(name)
    for key in c.keys(".logits"):
        run = key.removesuffix(".logits")
        keep = [c.data[f"{run}.features.{i}"].tolist() for i in c.layers]
        found = program.replaced_run(
            c.model, c.saes, c.layers, c.traces[int(run[5])], c.stored("baseline"), keep
        )
        assert_close(found, c.data[key])


@pytest.mark.parametrize("name", NAMES)
def test_image_budget(name: str) -> None:
    c = case(name)
    for key in c.keys(".budget"):
        image, budget, _, layer = key.split(".")
        sae = c.make_saes(int(budget.removeprefix("budget")))[int(layer)]
        found = sae.encode(c.traces[int(image.removeprefix("image"))].streams[int(layer)])
        assert_close(found, c.data[key])


@pytest.mark.parametrize("name", NAMES)
def test_path_integrated_importance(name: str) -> None:
    c = case(name)
    model = program.Transformer(c.vit, "plain")
    for n, target in enumerate(c.config["targets"]):
        found = program.path_integrated(
            model, c.saes, c.layers, c.traces[n], c.stored("mean"), target, steps=8
        )
        for i, nodes in enumerate(found):
            assert_close(nodes, c.data[f"image{n}.path8.nodes.{i}"])

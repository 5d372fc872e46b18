"""The package reproduces the reference numbers, and the slow program for every kind of SAE.

`tests/data/reference` holds numbers of an independent program; `tests/reference/program.py` is
the same kind of program, written from docs/method.md, for SAEs of every kind at any layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

import vitlens
from tests.builders import (
    KINDS,
    N_TOKENS,
    REFERENCES,
    reference,
    sae_of_kind,
    tiny_image,
    tiny_model,
    written_out,
)
from tests.reference import program
from vitlens.circuits.verify import measure_edges
from vitlens.method.importance import resolve_target
from vitlens.method.logit_lens import logit_lens
from vitlens.method.rankings import Case, cla_edges
from vitlens.method.replacement import KeepFeatures, keep_masks

ENGINES = ("closed_form", "jvp", "vjp")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
NAMES = pytest.mark.parametrize("name", REFERENCES)


def assert_relative(found: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    assert found.shape == expected.shape
    allowed = TOLERANCE[found.dtype] if tolerance is None else tolerance
    assert float((found - expected).abs().max()) <= allowed * float(expected.abs().max())


# --- Stored numbers --------------------------------------------------------------------------


@cache
def stored(name: str, dtype: torch.dtype) -> tuple[dict, dict, vitlens.Lens]:
    known = reference(name, dtype)
    return (
        known.config,
        known.data,
        vitlens.Lens(known.model, known.saes, baselines=known.baselines),
    )


def keys_with(data: dict, part: str) -> list[str]:
    found = [key for key in data if part in key]
    assert found
    return found


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize(("kind", "key"), [("median", "baseline"), ("mean", "mean")])
@NAMES
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
@NAMES
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


@NAMES
def test_runs_on_kept_features(name: str, dtype: torch.dtype) -> None:
    _, data, lens = stored(name, dtype)
    runs = [key.removesuffix(".logits") for key in keys_with(data, ".logits")]
    assert len(runs) >= 2
    for run in runs:
        image = data["images"][int(run[len("image")])]
        keep = [data[f"{run}.features.{layer}"] for layer in range(len(lens.saes))]
        assert_relative(lens.run_with(image, keep=keep), data[f"{run}.logits"])


@NAMES
def test_features_within_an_image_budget(name: str, dtype: torch.dtype) -> None:
    _, data, lens = stored(name, dtype)
    keys = keys_with(data, ".budget")
    for budget in {int(key.split(".")[1].removeprefix("budget")) for key in keys}:
        saes = [
            vitlens.TopKSAE.from_weights(
                W_enc=sae.W_enc, W_dec=sae.W_dec, b_dec=sae.b_dec, k=sae.k, budget=budget
            )
            for sae in lens.saes
        ]
        bounded = vitlens.Lens(lens.vision, saes)
        trace = bounded.trace(data["images"])
        mine = [key for key in keys if f".budget{budget}." in key]
        for image, _, _, layer in (key.split(".") for key in mine):
            found = trace.features[int(layer)][int(image.removeprefix("image"))]
            assert_relative(found, data[f"{image}.budget{budget}.features.{layer}"])


@NAMES
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
    """A random lens in float64 with no baseline of zero; half of its SAEs have a b_enc.

    `kind` and `normalization` "mixed" give every layer others.
    """
    model = tiny_model(seed=len(kind), dtype=torch.float64)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.blocks.parameters():  # attention and MLP count as much as the stream
            weight += 0.15 * torch.randn(weight.shape, generator=random, dtype=torch.float64)
    saes = {
        layer: sae_of_kind(
            KINDS[2 * layer] if kind == "mixed" else kind,
            seed=layer,
            n_features=24 + 2 * layer,
            normalization=NORMALIZATIONS[layer] if normalization == "mixed" else normalization,
            b_enc=(layer + len(kind)) % 2 == 0,
            subtract_b_dec=layer != 2,
            dtype=torch.float64,
        )
        for layer in layers
    }
    baselines = vitlens.Baselines(
        [
            0.1 * torch.rand(N_TOKENS, s.n_features, generator=random).double()
            for s in saes.values()
        ],
        [0.1 * torch.randn(N_TOKENS, s.d_model, generator=random).double() for s in saes.values()],
    )
    return vitlens.Lens(model, saes, baselines=baselines)


class SlowProgram:
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

    def run(
        self, image: Tensor, keep: list[list[int]], error_nodes: str, active: str = "running"
    ) -> Tensor:
        return program.replaced_run(
            program.Transformer(self.vit),
            self.saes,
            self.layers,
            self.trace(image),
            self.baselines,
            keep,
            error_nodes,
            active,
        )


MIXED = [("mixed", "mixed", layers) for layers in ((0, 1, 2), (0, 2), (1, 2))]
EVERY_LENS = pytest.mark.parametrize(
    ("kind", "normalization", "layers"),
    [*product(KINDS, NORMALIZATIONS, LAYERS), *MIXED],
    ids=lambda x: x if isinstance(x, str) else "+".join(map(str, x)),
)
KINDS_AND_LAYERS = pytest.mark.parametrize(
    ("kind", "layers"),
    [*product(KINDS, ((0, 2),)), ("mixed", (0, 1, 2)), ("mixed", (1, 2))],
    ids=lambda x: x if isinstance(x, str) else "+".join(map(str, x)),
)


@EVERY_LENS
def test_traces_of_every_kind(kind: str, normalization: str, layers: tuple[int, ...]) -> None:
    lens = lens_of(kind, normalization, layers)
    image = tiny_image(1, torch.float64)
    found, expected = lens.trace(image), SlowProgram(lens).trace(image)
    assert_relative(found.logits, expected.logits)
    for i in range(len(layers)):
        share = float((expected.features[i] > 0).double().mean())
        assert 0.02 < share < 0.95, "this SAE tests nothing: all or none of its features are active"
        assert_relative(found.residuals[i], expected.streams[i])
        assert_relative(found.features[i], expected.features[i])
        assert_relative(found.errors[i], expected.errors[i])


@EVERY_LENS
def test_importances_of_every_kind(kind: str, normalization: str, layers: tuple[int, ...]) -> None:
    lens = lens_of(kind, normalization, layers)
    slow, image = SlowProgram(lens), tiny_image(1, torch.float64)
    settings = list(product(("libragrad", "plain"), ("leaf", "through")))
    every = normalization in ("layer", "mixed")
    for gradient, error_gradients in settings if every else settings[::3]:
        expected = slow.importances(image, gradient, error_gradients)
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


@EVERY_LENS
def test_replaced_runs_of_every_kind(
    kind: str, normalization: str, layers: tuple[int, ...]
) -> None:
    lens = lens_of(kind, normalization, layers)
    slow, image = SlowProgram(lens), tiny_image(1, torch.float64)
    random = torch.Generator().manual_seed(2)
    keep = [torch.randperm(s.n_features, generator=random)[:9].tolist() for s in lens.saes]
    mixed = ["free", "zero", "baseline"][: len(layers)]
    for error_nodes in ("clean", "free", "baseline", "zero", mixed):
        found = lens.run_with(image, keep=keep, error_nodes=error_nodes)
        assert_relative(found, slow.run(image, keep, error_nodes))
        held = lens.replacement.run(
            lens.trace(image),
            KeepFeatures(keep_masks(lens.replacement, keep)),
            error_nodes=error_nodes,
            active="clean",
        )
        assert_relative(held[0], slow.run(image, keep, error_nodes, "clean"))
    nothing_changes = [range(sae.n_features) for sae in lens.saes]
    for error_nodes in ("clean", "free"):
        found = lens.run_with(image, keep=nothing_changes, error_nodes=error_nodes)
        assert_relative(found, lens.trace(image).logits)


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
@pytest.mark.parametrize("feature", [0, 3, -1])
def test_logit_lens(feature: int, gradient: str) -> None:
    lens, image = lens_of("mixed", "mixed", (0, 2)), tiny_image(1, torch.float64)
    slow = SlowProgram(lens)
    found = slow.trace(image)
    for position, layer in enumerate(lens.layers):
        added = program.contribution(slow.saes, found, slow.baselines, position, feature)
        assert_relative(
            logit_lens(lens.replacement, lens.trace(image), layer, feature, gradient=gradient),
            program.logit_lens(program.Transformer(slow.vit, gradient), found, added),
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_edges_of_cross_layer_attribution(kind: str, engine: str) -> None:
    lens, image = lens_of(kind, "layer", (0, 2)), tiny_image(1, torch.float64)
    slow, trace = SlowProgram(lens), lens.trace(image)
    expected = program.cla_edges(
        program.Transformer(slow.vit, "plain"),
        slow.saes,
        slow.layers,
        slow.trace(image),
        0,
    )
    case = Case(lens.replacement, trace, resolve_target(TARGET, trace.logits), engine=engine)
    assert_relative(cla_edges(case, 0), expected)


@KINDS_AND_LAYERS
def test_path_integrated_importance(kind: str, layers: tuple[int, ...]) -> None:
    lens = lens_of(kind, "mixed" if kind == "mixed" else "layer", layers)
    slow, image = SlowProgram(lens), tiny_image(1, torch.float64)
    expected = program.path_integrated(
        program.Transformer(slow.vit, "plain"),
        slow.saes,
        slow.layers,
        slow.trace(image),
        slow.baselines,
        TARGET,
        steps=3,
    )
    found = lens.path_importances(image, target=TARGET, steps=3)
    for of_site, slope in zip(found, expected, strict=True):
        assert_relative(of_site, slope)


def test_several_reference_images_give_the_mean_of_their_runs() -> None:
    lens, images = lens_of("topk", "layer", (0, 2)), batch_of(3)
    keep = [[0, 1, 2, 3, 4]] * 2
    alone = []
    for image in images[1:]:
        lens.baselines = lens.reference_baselines(image)
        alone.append(lens.run_with(images[0], keep=keep))
    lens.baselines = lens.reference_baselines(images[1:])
    assert lens.baselines.kind == lens.importances(images[0]).baselines == "reference"
    assert_relative(lens.run_with(images[0], keep=keep), torch.stack(alone).mean(0))


@pytest.mark.parametrize("error_nodes", ["clean", "free"])
@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2), (1, 2)], ids=lambda x: "+".join(map(str, x)))
@pytest.mark.parametrize("kind", (*KINDS, "mixed"))
def test_cut_edges(kind: str, layers: tuple[int, ...], error_nodes: str) -> None:
    lens = lens_of(kind, "mixed" if kind == "mixed" else "layer", layers)
    slow, image = SlowProgram(lens), tiny_image(1, torch.float64)
    found, trace = slow.trace(image), lens.trace(image)
    ends = found.features[1].sum(0).topk(2).indices.tolist()
    sources = [-1, *found.features[0].sum(0).topk(2).indices.tolist()]
    measured = measure_edges(
        lens.replacement,
        trace,
        resolve_target(TARGET, trace.logits),
        [((layers[0], f), (layers[1], g)) for f in sources for g in ends],
        error_nodes=error_nodes,
    )
    expected = [
        program.cut_edge(
            program.Transformer(slow.vit),
            slow.saes,
            slow.layers,
            found,
            slow.baselines,
            0,
            source,
            end,
            TARGET,
            error_nodes,
        )
        for source in sources
        for end in ends
    ]
    assert_relative(measured, torch.stack(expected))


# --- Batches ---------------------------------------------------------------------------------


def batch_of(n: int) -> Tensor:
    return torch.stack([tiny_image(seed, torch.float64) for seed in range(n)])


@KINDS_AND_LAYERS
def test_a_batch_gives_what_its_images_give_one_by_one(kind: str, layers: tuple[int, ...]) -> None:
    lens = lens_of(kind, "mixed" if kind == "mixed" else "layer", layers)
    images, keep = batch_of(3), [[0, 1, 2, 3, 4]] * len(layers)
    predictions = lens.predict(images)
    trace, runs = lens.trace(images), lens.run_with(images, keep=keep)
    found = lens.importances(images, target=TARGET)
    circuits = lens.circuit(images, target=TARGET, nodes_per_layer=4, select="walk")
    assert len(trace) == len(found) == len(circuits) == 3
    for n, image in enumerate(images):
        alone, single = lens.importances(image, target=TARGET), lens.trace(image)
        assert_relative(trace.logits[n], single.logits, 1e-10)
        assert [name for name, _ in predictions[n]] == [name for name, _ in lens.predict(image)]
        assert_relative(runs[n], lens.run_with(image, keep=keep), 1e-10)
        for i in range(len(layers)):
            assert_relative(trace[n].features[i], single.features[i], 1e-10)
            assert_relative(trace[n].errors[i], single.errors[i], 1e-10)
            assert_relative(found[n].nodes[i], alone.nodes[i], 1e-10)
        for edges, expected in zip(found[n].edges, alone.edges, strict=True):
            assert_relative(edges, expected, 1e-10)
        one = lens.circuit(image, target=TARGET, nodes_per_layer=4, select="walk")
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

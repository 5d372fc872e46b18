"""Atlases of SAEs of every kind, with and without normalisation, after some of the blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vitlens
from tests.builders import CLASSES, KINDS, sae_of_kind, tiny_image, tiny_model, tiny_transform
from vitlens.atlas import exact
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.build import build_state
from vitlens.atlas.state import EMPTY, AtlasState, merge_states
from vitlens.errors import CheckpointError, FeatureError
from vitlens.saes.base import SAE, Normalization
from vitlens.saes.topk import TopKSAE

LAYERS = (2, 5, 9)
N, BATCH = 20, 8
QUICK = {"n_top": 3, "n_sampled": 3, "batch_size": BATCH, "progress": False}


def lens_of(kind: str, normalization: Normalization = "layer", *, b_enc: bool = False):
    """A model of 11 blocks with SAEs of different sizes after three of them."""
    saes = {
        layer: sae_of_kind(
            kind, seed=layer, n_features=24 + layer, normalization=normalization, b_enc=b_enc
        )
        for layer in LAYERS
    }
    return vitlens.Lens(tiny_model(depth=11), saes, class_names=CLASSES, transform=tiny_transform())


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return [tiny_image(number) for number in range(N)]


def activations(lens: vitlens.Lens, images: list[Tensor]) -> list[Tensor]:
    """By position all activations [N, T, F], in the batches of the pass."""
    found: list[list[Tensor]] = [[] for _ in lens.layers]
    for start in range(0, N, BATCH):
        given = torch.stack(images[start : start + BATCH])
        batch = torch.zeros(BATCH, 3, 24, 24)
        batch[: len(given)] = given
        streams = lens.vision.residuals(batch, lens.layers)
        for rows, sae, stream in zip(found, lens.saes, streams, strict=True):
            rows.append(sae.encode(stream)[: len(given)].detach())
    return [torch.cat(rows) for rows in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalization", ["layer", "none", "fixed"])
def test_every_kind_is_counted_as_by_brute_force(
    kind: str, normalization: Normalization, images: list[Tensor]
) -> None:
    lens = lens_of(kind, normalization, b_enc=normalization == "fixed")
    labels = [number % 5 for number in range(N)]
    state = build_state(lens, images, labels=labels, groups=str, **QUICK)
    assert state.layers == LAYERS
    ids = torch.tensor([exact.hash_text(str(number)) for number in range(N)])
    for layer_state, z in zip(state.layer_states, activations(lens, images), strict=True):
        sums, active = layer_state.sums, z > 0
        assert active.any() and not active.all()
        assert torch.equal(sums.n_active, active.sum((0, 1)))
        assert torch.equal(sums.prefix_active[0], active[:, 0].sum(0))
        assert torch.equal(sums.n_images, active.any(1).sum(0))
        assert torch.equal(sums.histogram.sum(1), sums.n_active)
        assert torch.equal(sums.position, exact.activations_to_fixed(z).sum(0))
        mean = z.mean(1).double()
        expected = torch.stack([mean[label::5].sum(0) for label in range(5)])
        torch.testing.assert_close(
            sums.class_mean.double() * exact.UNIT, expected, atol=1e-4, rtol=0
        )
        peak = z.amax(1)
        for feature in range(z.shape[2]):
            best = sorted(range(N), key=lambda n: (-peak[n, feature], ids[n]))[:3]
            best = [n for n in best if peak[n, feature] > 0]
            found = layer_state.top.id[feature]
            assert found[: len(best)].tolist() == ids[best].tolist()
            assert (found[len(best) :] == EMPTY).all()
            assert torch.equal(layer_state.top.peak[feature, : len(best)], peak[best, feature])


@pytest.mark.parametrize("kind", KINDS)
def test_an_atlas_of_every_kind_is_built_saved_and_opened(
    kind: str, images: list[Tensor], tmp_path: Path
) -> None:
    lens = lens_of(kind)
    built = Atlas.build(lens, images, out=tmp_path / "atlas", **QUICK)
    files = {path.name for path in (tmp_path / "atlas").glob("layer_*")}
    assert files == {f"layer_{layer:02}.safetensors" for layer in LAYERS}
    atlas = Atlas.load(tmp_path / "atlas", lens)
    lens.atlas = atlas
    assert atlas.layers == built.layers == lens.layers == LAYERS
    assert atlas.sizes == tuple(sae.n_features for sae in lens.saes) == (26, 29, 33)
    assert atlas.layout is not None and atlas.layout.shape == (26 + 29 + 33, 2)
    assert atlas.evolution().layers == LAYERS
    traces = [lens.trace(image) for image in images]
    for position, layer in enumerate(LAYERS):
        scores = atlas.scores(layer)
        assert scores.layer == layer and len(scores) == atlas.sizes[position]
        assert scores.chance.keys() >= {"position", "class_information", "orientation"}
        feature = int(scores["frequency"].argmax())
        profile = atlas.feature(layer, feature)
        assert (profile.layer, profile.feature) == (layer, feature)
        z = torch.stack([trace.features[position][:, feature] for trace in traces])
        assert profile.frequency == pytest.approx(float((z > 0).double().mean()), abs=0.01)
        assert profile.tuning is not None and profile.trust.value >= 0
        near = {node[0] for nodes in profile.neighbours.values() for node, _ in nodes}
        assert near == set(LAYERS[max(position - 1, 0) : position + 2])
        assert [node[0] for node, _ in atlas.lineage(layer, feature)] == list(LAYERS)
        top = atlas.top(layer, feature)[0]
        torch.testing.assert_close(
            top.heatmap, z[int(top.key)], atol=top.peak / 255 / 1.99 + 1e-4, rtol=0
        )
        assert len(atlas.logit_lens(layer, feature)) == 5
        atlas.names.set(layer, feature, "mine")
        assert atlas.feature(layer, feature).name == "mine"
    for layer, feature in ((0, 0), (3, 0), (10, 0), (2, 26), (5, -1)):
        with pytest.raises(FeatureError, match=r"no layer|there is no"):
            atlas.feature(layer, feature)
        with pytest.raises(FeatureError):
            atlas.names.set(layer, feature, "nobody's")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalization", ["layer", "none", "fixed"])
def test_the_logit_lens_is_the_slope_of_the_read_out(
    kind: str, normalization: Normalization, images: list[Tensor]
) -> None:
    """A unit of a feature adds its decoder row times the scale that its SAE decodes with."""
    lens = lens_of(kind, normalization)
    state = build_state(lens, images, **QUICK)
    atlas = Atlas.from_state(state, lens, stimuli=False, layout=False, progress=False)
    traces = lens.trace(torch.stack(images))
    stream = traces.output.mean(0)
    norm, head = lens.vision.module.norm, lens.vision.module.head
    scale = (stream[0].var(unbiased=False) + norm.eps).sqrt()
    for position, layer in enumerate(LAYERS):
        added = traces.stds[position][:, 0].mean() * lens.saes[position].W_dec[3]
        moved = head.weight @ ((added - added.mean()) / scale * norm.weight)
        expected = dict(zip(CLASSES, (moved - moved.mean()).tolist(), strict=True))
        assert dict(atlas.logit_lens(layer, 3)) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_every_kind_merge_to_the_whole(
    kind: str, images: list[Tensor], tmp_path: Path
) -> None:
    lens = lens_of(kind)
    whole = build_state(lens, images, **QUICK)
    parts = [build_state(lens, images, part=(i, 2), **QUICK) for i in range(2)]
    whole.save(tmp_path / "whole")
    merge_states(parts[::-1]).save(tmp_path / "merged")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "merged").read_bytes()
    assert AtlasState.load(tmp_path / "whole").layers == LAYERS


@pytest.fixture(scope="module")
def small(images: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("atlas") / "small"
    Atlas.build(lens_of("topk"), images, out=out, stimuli=False, layout=False, **QUICK)
    return out


def with_saes(saes: dict[int, SAE]) -> vitlens.Lens:
    return vitlens.Lens(tiny_model(depth=11), saes, class_names=CLASSES)


def test_an_atlas_knows_the_layers_kinds_and_settings_of_its_saes(small: Path) -> None:
    lens = lens_of("topk")
    saes = dict(zip(LAYERS, lens.saes, strict=True))
    assert Atlas.load(small, with_saes(saes)).lens is not None
    moved = {2: saes[2], 6: saes[5], 9: saes[9]}
    with pytest.raises(CheckpointError, match=r"after blocks 2, 5, 9, but .* after blocks 2, 6, 9"):
        Atlas.load(small, with_saes(moved))
    tensors = dict(saes[5].state_dict())
    other_k = TopKSAE(tensors, k=5)
    budget = TopKSAE(tensors, k=4, budget=9)
    relu = SAE.from_tensors(tensors, {"kind": "relu"})
    plain = TopKSAE(tensors, k=4, normalization="none")
    for other in (other_k, budget, relu, plain):
        with pytest.raises(CheckpointError, match="other SAEs: those of layer 5 differ"):
            Atlas.load(small, with_saes(saes | {5: other}))


def test_an_interrupted_pass_of_other_saes_is_not_continued(
    images: list[Tensor], tmp_path: Path
) -> None:
    def stop(share: float, _: str) -> None:
        raise KeyboardInterrupt

    options = QUICK | {"progress": stop}
    lens = lens_of("topk")
    with pytest.raises(KeyboardInterrupt):
        build_state(lens, images, out=tmp_path / "atlas", **options)
    tensors = dict(lens.saes[1].state_dict())
    saes = dict(zip(LAYERS, lens.saes, strict=True)) | {5: TopKSAE(tensors, k=5)}
    with pytest.raises(CheckpointError, match="differs: model and SAEs"):
        build_state(with_saes(saes), images, out=tmp_path / "atlas", **QUICK)
    assert build_state(lens, images, out=tmp_path / "atlas", **QUICK).n_images == N


def test_control_of_other_layers_is_refused(small: Path, images: list[Tensor]) -> None:
    saes = {layer: sae_of_kind("topk", seed=layer) for layer in (2, 5)}
    other = Atlas.build(with_saes(saes), images, stimuli=False, layout=False, **QUICK)
    with pytest.raises(FeatureError, match="The control has layers"):
        Atlas.load(small).add_control("other", other)

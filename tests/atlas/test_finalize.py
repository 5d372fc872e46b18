"""From a finished pass to an atlas: logit lens, map, words, controls, embeddings, a whole build."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import vitlens
from tests.atlas_by_hand import coarse_noise, state_by_hand
from tests.builders import CLASSES, READOUTS, tiny_lens
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.finalize import Readout, effects, place_features, readout_directions
from vitlens.errors import CheckpointError, FeatureError, ModelError, OptionError
from vitlens.method.libragrad import libragrad
from vitlens.training.health import HealthReport, SAEHealth

N = 12


QUICK = {"stimuli": False, "layout": False, "progress": False}


@pytest.fixture(scope="module")
def lens() -> vitlens.Lens:
    return tiny_lens()


def brightness(images: list[Image.Image]) -> torch.Tensor:
    """A stand-in for the image tower of CLIP: how bright, and how blue."""
    pixels = torch.stack(
        [torch.from_numpy(np.array(image.resize((8, 8)))).float() / 255 for image in images]
    )
    return torch.stack([pixels.mean((1, 2, 3)) - 0.5, pixels[..., 2].mean((1, 2)) - 0.5], 1)


def test_words_are_proposed_and_kept(lens: vitlens.Lens, tmp_path: Path) -> None:
    atlas = Atlas.from_state(state_by_hand(lens, range(N)), lens, **QUICK)
    atlas.save(tmp_path / "atlas")
    towers = (lambda words: torch.eye(2)[: len(words)], brightness)
    atlas.propose(["bright", "blue"], towers, n=1, n_images=2, patches=None)
    first, loaded = (
        {
            (layer, f): [p for p in a.feature(layer, f).proposals if p.source == "text"]
            for layer, f in itertools.product(range(3), range(30))
        }
        for a in (atlas, Atlas.load(tmp_path / "atlas"))
    )
    assert first == loaded
    embedded = F.normalize(brightness([coarse_noise(n) for n in range(N)]), dim=1)
    shown = {f: atlas.top(1, f, n=2) for f in range(30)}
    means = {
        f: embedded[[int(s.key.removesuffix(".png")) for s in some]].mean(0)
        for f, some in shown.items()
        if some
    }
    centre = torch.stack(list(means.values())).mean(0)
    for f in range(30):
        if f not in means:
            assert first[1, f] == []
            continue
        above = means[f] - centre
        (proposal,) = first[1, f]
        assert proposal.text == ["bright", "blue"][int(above.argmax())]
        assert proposal.score == pytest.approx(float(above.max()), abs=1e-5)
        assert atlas.proposals(1, f) == atlas.feature(1, f).proposals
    assert atlas.names.labels == {}
    atlas.propose(["blue"], (lambda words: torch.eye(2)[:1], brightness), n_images=1)
    assert Atlas.load(tmp_path / "atlas").proposals(1, 0)[-1].text == "blue"
    Atlas.load(tmp_path / "atlas", lens).save(tmp_path / "copy")
    assert Atlas.load(tmp_path / "copy").proposals(1, 0)[-1].text == "blue"


def test_a_control_is_kept(lens: vitlens.Lens, tmp_path: Path) -> None:
    atlas = Atlas.from_state(state_by_hand(lens, range(N)), lens, **QUICK)
    other = tiny_lens(1)
    untrained = Atlas.from_state(state_by_hand(other, range(N)), other, **QUICK)
    atlas.add_control("untrained", untrained)
    atlas.save(tmp_path / "atlas")
    found = Atlas.load(tmp_path / "atlas").evolution()
    assert set(found.controls) == {"shuffled", "untrained"}
    assert found.controls["untrained"].n_live == untrained.evolution().course.n_live
    narrow = tiny_lens(2, depth=3)
    with pytest.raises(FeatureError, match="The control has layers"):
        atlas.add_control("x", Atlas.from_state(state_by_hand(narrow, range(4)), narrow, **QUICK))


def test_another_embedding_and_the_health_of_the_saes(lens: vitlens.Lens, tmp_path: Path) -> None:
    state = state_by_hand(lens, range(N))
    health = HealthReport(
        layers=tuple(SAEHealth(i, 30, 4, 0.1, 0.2 + 0.1 * i, 0, 4, 1) for i in range(3)),
        accuracy=1,
        accuracy_all=1,
        n_images=1,
        labelled=False,
    )
    atlas = Atlas.from_state(state, lens, embed=brightness, health=health, **QUICK)
    assert atlas.health == pytest.approx((0.2, 0.3, 0.4))
    embedded = F.normalize(brightness([coarse_noise(n) for n in range(N)]), dim=1)
    own = F.normalize(torch.stack([r.embedding.float() for r in state.images.values()]), dim=1)
    keys = [r.key for r in state.images.values()]
    pairs = list(itertools.combinations(range(N), 2))
    for f in range(30):
        rows = [int(s.key.removesuffix(".png")) for s in atlas.top(1, f)]
        scores = atlas.feature(1, f).scores
        for name, units, places in (
            ("monosemanticity_given", embedded, rows),
            ("monosemanticity", own, [keys.index(f"{n}.png") for n in rows]),
        ):
            inside = [float(units[i] @ units[j]) for i, j in itertools.combinations(places, 2)]
            if not inside:
                assert scores[name] != scores[name]  # NaN
                continue
            chance = sum(float(units[i] @ units[j]) for i, j in pairs) / len(pairs)
            assert scores[name] == pytest.approx(sum(inside) / len(inside) - chance, abs=1e-5)
        assert atlas.feature(1, f).trust.health == pytest.approx(0.3)
    atlas.save(tmp_path / "atlas")
    found = Atlas.load(tmp_path / "atlas").scores(1)
    assert found.names == atlas.scores(1).names
    with pytest.raises(ModelError, match="not one row per image"):
        Atlas.from_state(state, lens, embed=lambda images: torch.zeros(1, 2), **QUICK)
    with pytest.raises(CheckpointError, match="state was made with another model"):
        Atlas.from_state(state, tiny_lens(1), **QUICK)


def test_ctrl_c_while_the_map_is_made_leaves_the_pass_to_resume(
    lens: vitlens.Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.manifold import TSNE

    photos = [coarse_noise(n) for n in range(6)]
    out = tmp_path / "atlas"
    options = {"n_top": 3, "n_sampled": 2, "stimuli": False, "progress": False}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as changed, pytest.raises(KeyboardInterrupt):
        changed.setattr(TSNE, "fit_transform", interrupted)
        Atlas.build(lens, photos, out=out, **options)
    assert not out.exists()
    assert "atlas.partial" in {path.name for path in tmp_path.iterdir()}
    read = []
    monkeypatch.setattr(lens, "tensor", lambda *_: read.append(1))
    Atlas.build(lens, photos, out=out, **options)
    assert not read  # no image goes through the model again
    Atlas.build(tiny_lens(), photos, out=tmp_path / "whole", **options)
    for file in (tmp_path / "whole").iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_build_in_one_go(lens: vitlens.Lens, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(6):
        coarse_noise(n).save(tmp_path / "photos" / f"{n}.png")
    (tmp_path / "photos" / "broken.png").write_text("x")
    out = tmp_path / "atlas"
    atlas = Atlas.build(lens, tmp_path / "photos", n_top=3, n_sampled=2, out=out, progress=False)
    assert (atlas.n_images, atlas.labels_from, atlas.path) == (6, "predictions", out)
    assert [key for key, _ in atlas.skipped] == ["broken.png"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["atlas", "photos"]
    again = Atlas.load(out, lens)
    assert again.layout is not None
    assert again.layout.shape == (90, 2)
    assert again.feature(1, 2).tuning is not None
    traces = [lens.trace(tmp_path / "photos" / f"{n}.png") for n in range(6)]
    for f in range(30):
        peaks = {f"{n}.png": float(t.features[1][:, f].max()) for n, t in enumerate(traces)}
        best = [key for key in sorted(peaks, key=lambda key: -peaks[key]) if peaks[key] > 0][:3]
        assert [shown.key for shown in again.top(1, f)] == best
        for shown in again.top(1, f):
            assert shown.original == tmp_path / "photos" / shown.key
            assert shown.peak == pytest.approx(peaks[shown.key], rel=1e-5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name in ("beach", "forest"):
        (folder / name).mkdir()
        for number in range(6):
            pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_the_logit_lens_names_the_models_logits(photos, tmp_path):
    lens = tiny_lens()
    options = {"stimuli": False, "layout": False, "progress": False}
    own = Atlas.build(lens, photos, out=tmp_path / "atlas", **options)
    predicted = Atlas.build(lens, photos, labels="predictions", **options)
    assert own.class_names == ("beach", "forest") and predicted.class_names == CLASSES
    for atlas in (own, Atlas.load(tmp_path / "atlas", lens)):
        shown = atlas.feature(1, 3).logit_lens
        assert [name for name, _ in shown] == [
            name for name, _ in predicted.feature(1, 3).logit_lens
        ]
        assert {name for name, _ in shown} <= set(CLASSES)
        assert atlas.logit_lens(1, 3) == predicted.logit_lens(1, 3)


def test_a_model_without_class_names_numbers_its_logits(photos):
    lens = tiny_lens()
    lens.class_names = None
    atlas = Atlas.build(lens, photos, stimuli=False, layout=False, progress=False)
    assert {name for name, _ in atlas.logit_lens(0, 0)} == {f"class {i}" for i in range(5)}


HEADS = ("cls", "average", "cls_average", "cls_mean", "registers")


@pytest.mark.parametrize("readout", ["both", "prefix", "patch"])
@pytest.mark.parametrize("head", HEADS)
def test_the_logit_lens_is_the_slope_of_the_read_out(head: str, readout: Readout) -> None:
    torch.manual_seed(1)
    model = READOUTS[head]().eval().double()
    for name, weight in model.named_parameters():
        if "norm" in name:  # a fresh norm has weight 1 and bias 0, which would hide mistakes
            weight.data += 0.3 * torch.randn_like(weight)
    vision = vitlens.VisionModel(model)
    T, n = vision.n_tokens, vision.n_prefix
    stream = torch.randn(T, 24, dtype=torch.float64)
    stds = [0.5 + torch.rand(T, dtype=torch.float64) for _ in range(2)]
    rows = F.normalize(torch.randn(2, 7, 24, dtype=torch.float64), dim=-1)
    saes = [
        vitlens.TopKSAE.from_weights(
            W_enc=row.T, W_dec=row, b_dec=torch.zeros(24, dtype=torch.float64), k=2
        )
        for row in rows
    ]
    directions = readout_directions(vision, stream, stds, readout=readout)
    tokens = {"both": range(T), "prefix": range(n), "patch": range(n, T)}[readout]
    for layer, feature in itertools.product(range(2), range(7)):
        added = torch.zeros(T, 24, dtype=torch.float64)
        for token in tokens:
            added[token] = stds[layer][token] * rows[layer, feature]
        # With the norm's scale fixed, the read-out is linear: a whole step is its slope.
        slope = frozen(vision, stream, stream + added) - frozen(vision, stream, stream)
        found = effects(saes[layer], directions[layer])[feature]
        torch.testing.assert_close(found, slope - slope.mean(), atol=1e-10, rtol=1e-9)


def frozen(vision: vitlens.VisionModel, at: Tensor, stream: Tensor) -> Tensor:
    """The read-out of `stream` with the last norm's scale taken at `at`."""
    norm = vision.module.norm
    if isinstance(norm, nn.Identity):  # a norm after the mean over patches
        norm, mean = vision.module.fc_norm, lambda x: x[vision.n_prefix :].mean(0, keepdim=True)
        normed = scaled(norm, mean(at), mean(stream))
        return vision.module.head(normed[0])
    normed = scaled(norm, at, stream)
    return vision.module.head(vision.module.fc_norm(vision.module.pool(normed[None])))[0]


def scaled(norm: nn.LayerNorm, at: Tensor, stream: Tensor) -> Tensor:
    scale = (at.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (stream - stream.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias


def test_the_logit_lens_agrees_with_reverse_mode() -> None:
    lens = tiny_lens(dtype=torch.float64)
    stream = torch.randn(10, 24, dtype=torch.float64)
    std = torch.rand(10, dtype=torch.float64)
    directions = readout_directions(lens.vision, stream, [std])
    with libragrad(lens.vision.module):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: lens.vision.readout(x[None])[0], stream
        )
    expected = torch.einsum("ctd,t->cd", jacobian, std)
    torch.testing.assert_close(directions[0], expected - expected.mean(0))
    with pytest.raises(OptionError, match="readout"):
        readout_directions(lens.vision, stream, [std], readout="cls")  # type: ignore[arg-type]


def test_the_map_keeps_what_is_alike_together_and_is_the_same_again() -> None:
    lens = tiny_lens(features=40)
    for layer, sae in enumerate(lens.saes):  # two bundles of directions, in each layer
        torch.manual_seed(layer)
        centre = torch.zeros(40, 24)
        centre[:20, 0], centre[20:, 1] = 1, 1
        sae.W_dec.data = F.normalize(centre + 0.1 * torch.randn(40, 24), dim=1)
    places = place_features(lens.saes, perplexity=10)
    assert places.shape == (120, 2)
    assert float(places.abs().max()) == pytest.approx(1)
    one = (torch.arange(120) % 40) < 20
    centres = torch.stack([places[one].mean(0), places[~one].mean(0)])
    nearer = torch.cdist(places, centres).argmin(1) == 0
    assert torch.equal(nearer, one)
    assert torch.equal(place_features(lens.saes, perplexity=10), places)
    assert place_features([tiny_lens(features=4).saes[0]]).shape == (4, 2)


def test_the_map_says_that_it_is_being_made(capsys: pytest.CaptureFixture[str]) -> None:
    saes = tiny_lens(features=8).saes
    reported: list[tuple[float, str]] = []
    silent = place_features(saes, progress=False)
    assert capsys.readouterr().err == ""
    assert torch.equal(place_features(saes, progress=lambda *now: reported.append(now)), silent)
    assert [done for done, _ in reported] == [0.0, 1.0]
    assert "map of 24 features" in reported[0][1]
    assert torch.equal(place_features(saes, progress=True), silent)
    assert "map of 24 features" in capsys.readouterr().err

"""An atlas against numbers counted the slow way, in memory and read from a folder."""

from __future__ import annotations

import builtins
import io
import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import vitlens
from tests.atlas_by_hand import coarse_noise, state_by_hand
from tests.builders import tiny_lens
from vitlens.atlas import store
from vitlens.atlas.atlas import Atlas
from vitlens.errors import CheckpointError, FeatureError, ImageError, ModelError, VitlensError

N = 12


QUICK = {"stimuli": False, "layout": False, "progress": False}


@pytest.fixture(scope="module")
def lens() -> vitlens.Lens:
    return tiny_lens()


@pytest.fixture(scope="module")
def features(lens: vitlens.Lens) -> list[torch.Tensor]:
    """By layer the activations on all images, [N, T, F]."""
    traces = [lens.trace(coarse_noise(n)) for n in range(N)]
    return [
        torch.stack([trace.features[layer] for trace in traces]) for layer in range(len(lens.saes))
    ]


@pytest.fixture(scope="module")
def built(lens: vitlens.Lens) -> Atlas:
    return Atlas.from_state(state_by_hand(lens, range(N)), lens, **QUICK)


@pytest.fixture(scope="module")
def folder(built: Atlas, lens: vitlens.Lens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "atlas"
    Atlas.from_state(built.state, lens, **QUICK).save(path)
    return path


@pytest.fixture(params=["built", "loaded"])
def atlas(request: pytest.FixtureRequest, built: Atlas, folder: Path, lens: vitlens.Lens) -> Atlas:
    return built if request.param == "built" else Atlas.load(folder, lens)


def test_an_atlas_has_the_facts_of_its_lens(atlas: Atlas, lens: vitlens.Lens) -> None:
    assert atlas.model == lens.fingerprint
    assert atlas.sizes == (30, 30, 30)
    assert (atlas.n_layers, atlas.n_images, atlas.grid) == (3, N, (3, 3))
    assert atlas.class_names == lens.class_names
    assert atlas.labels_from == "data"
    assert atlas.skipped == (("broken.png", "damaged"),)
    assert atlas.health == (None, None, None)
    assert atlas.layout is None
    assert "90 features of 3 layers on 12 images" in repr(atlas)


def test_top_images_are_those_of_all_activations(
    atlas: Atlas, features: list[torch.Tensor]
) -> None:
    for layer, z in enumerate(features):
        peaks = z.amax(1)  # images, F
        for feature in range(30):
            order = peaks[:, feature].argsort(descending=True).tolist()
            order = [n for n in order if peaks[n, feature] > 0][:3]
            shown = atlas.top(layer, feature, n=3)
            assert [s.key for s in shown] == [f"{n}.png" for n in order]
            assert [s.peak for s in shown] == [float(peaks[n, feature]) for n in order]
            assert [s.token for s in shown] == [int(z[n, :, feature].argmax()) for n in order]
            for n, s in zip(order, shown, strict=True):
                torch.testing.assert_close(
                    s.heatmap, z[n, :, feature], atol=s.peak / 255 / 1.99, rtol=0
                )


def test_labels_credits_and_thumbnails(atlas: Atlas) -> None:
    shown = next(s for f in range(30) for s in atlas.top(0, f) if s.key == "7.png")
    assert (shown.label, shown.credit, shown.path) == ("fruit", "noise", "/nowhere/7.png")
    assert shown.image is not None
    assert shown.image.tobytes() == coarse_noise(7).tobytes()
    assert Image.open(io.BytesIO(shown.encoded or b"")).format == "WEBP"
    assert shown.original is None


def test_the_sample_is_spread_over_the_peaks(atlas: Atlas, features: list[torch.Tensor]) -> None:
    for feature in range(30):
        shown = atlas.sampled(1, feature, n=2)
        active = features[1][:, :, feature].amax(1)
        assert len(shown) == min(2, int((active > 0).sum()))
        assert [s.peak for s in shown] == sorted((s.peak for s in shown), reverse=True)
        for s in shown:
            assert s.peak == float(active[int(s.key.removesuffix(".png"))])
            below = float((active[active > 0] < s.peak).double().mean())
            in_bin = 1 / int((active > 0).sum())
            assert 0 <= s.quantile <= 1
            assert abs(s.quantile - below) < 3 * in_bin + 0.01


def test_a_profile_says_what_was_counted(atlas: Atlas, features: list[torch.Tensor]) -> None:
    labels = torch.arange(N) % 5
    for feature in range(30):
        z = features[2][:, :, feature]
        profile = atlas.feature(2, feature)
        active = z > 0
        assert profile.frequency == pytest.approx(float(active.double().mean()))
        assert profile.image_frequency == pytest.approx(float(active.any(1).double().mean()))
        assert int(profile.histogram.counts.sum()) == int(active.sum())
        edges = profile.histogram.edges.double()
        expected = torch.histogram(z[active].double().cpu(), edges).hist
        torch.testing.assert_close(profile.histogram.counts.double(), expected)
        if not active.any():
            assert profile.token_kinds == {}
            assert profile.best_class == ""
            continue
        on_cls = float(active[:, 0].sum() / active.sum())
        assert profile.token_kinds == pytest.approx({"CLS": on_cls, "patch": 1 - on_cls})
        mean = z.mean(0)
        torch.testing.assert_close(
            profile.mean_map, mean, atol=float(mean.max()) / 255 * 0.504, rtol=0
        )
        means = [float(z[labels == c].mean()) for c in range(5)]
        assert {r.name: r.mean for r in profile.classes} == pytest.approx(
            dict(zip(atlas.class_names, means, strict=True)), rel=1e-3, abs=1e-5
        )
        best = max(range(5), key=means.__getitem__)
        assert profile.best_class == atlas.class_names[best] == profile.classes[0].name
        shares = {
            name: float((z[labels == c].amax(1) > 0).double().mean())
            for c, name in enumerate(atlas.class_names)
        }
        assert {r.name: r.share for r in profile.classes} == pytest.approx(shares, rel=1e-3)
        assert profile.tuning is None


def test_the_logit_lens_goes_through_the_read_out(atlas: Atlas, lens: vitlens.Lens) -> None:
    traces = [lens.trace(coarse_noise(n)) for n in range(N)]
    stream = torch.stack([t.output for t in traces]).mean(0)
    std = torch.stack([t.stds[1] for t in traces]).mean(0)
    norm, head = lens.vision.module.norm, lens.vision.module.head
    scale = (stream[0].var(unbiased=False) + norm.eps).sqrt()
    for feature in (0, 7):
        added = std[0] * lens.saes[1].W_dec[feature]
        moved = head.weight @ ((added - added.mean()) / scale * norm.weight)
        moved = (moved - moved.mean()).tolist()
        expected = dict(zip(atlas.class_names, moved, strict=True))
        profile = atlas.feature(1, feature)
        assert dict(profile.logit_lens) == pytest.approx(expected, rel=2e-3, abs=1e-4)
        effects = [effect for _, effect in profile.logit_lens]
        assert effects == sorted(effects, reverse=True)
        assert dict(atlas.logit_lens(1, feature)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        patch = atlas.logit_lens(1, feature, readout="patch")  # this model reads CLS alone
        assert [effect for _, effect in patch] == [0] * 5


def test_scores_are_the_same_by_feature_and_by_layer(atlas: Atlas) -> None:
    scores = atlas.scores(1)
    profile = atlas.feature(1, 4)
    assert set(profile.scores) == set(scores.names)
    for name, value in profile.scores.items():
        assert value == pytest.approx(float(scores[name][4]), rel=1e-3, abs=1e-6, nan_ok=True)
    assert profile.scores["trust"] == pytest.approx(profile.trust.value, rel=2e-3, abs=1e-4)
    assert profile.chance == scores.chance
    assert "monosemanticity" in scores.chance


def test_loaded_is_what_was_built(built: Atlas, folder: Path) -> None:
    loaded = Atlas.load(folder)
    for layer in range(3):
        ours, theirs = built.scores(layer), loaded.scores(layer)
        assert ours.names == theirs.names
        assert ours.chance == theirs.chance
        for name in ours.names:
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=1e-3, atol=1e-6, equal_nan=True
            )
    assert str(loaded.evolution()) == str(built.evolution())


def test_opening_reads_one_file(
    folder: Path, lens: vitlens.Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read_bytes, read_text, plain, safe = (
        Path.read_bytes, Path.read_text, builtins.open, store.read_result
    )  # fmt: skip
    note = lambda path: opened.append(Path(path).name)  # noqa: E731
    monkeypatch.setattr(Path, "read_bytes", lambda p: note(p) or read_bytes(p))
    monkeypatch.setattr(Path, "read_text", lambda p, **k: note(p) or read_text(p, **k))
    monkeypatch.setattr(builtins, "open", lambda p, *a, **k: note(p) or plain(p, *a, **k))
    monkeypatch.setattr(store, "read_result", lambda p, **k: note(p) or safe(p, **k))
    atlas = Atlas.load(folder, lens)
    assert opened == ["atlas.json"]
    atlas.feature(1, 0)
    assert set(opened) == {"atlas.json", "layer_01.safetensors"}


@pytest.mark.parametrize("node", [(-1, 0), (3, 0), (0, -1), (0, 30)])
def test_there_must_be_such_a_feature(atlas: Atlas, node: tuple[int, int]) -> None:
    for verb in (atlas.feature, atlas.top, atlas.sampled, atlas.proposals, atlas.neighbours):
        with pytest.raises(FeatureError):
            verb(*node)


def test_an_atlas_of_another_model(folder: Path, lens: vitlens.Lens) -> None:
    with pytest.raises(CheckpointError, match="another model: the network's weights"):
        Atlas.load(folder, tiny_lens(1))
    with pytest.raises(CheckpointError, match=r"have 30, 30, 30 features, but .* 20, 20, 20"):
        Atlas.load(folder, tiny_lens(features=20))
    other = vitlens.Lens(lens.vision, lens.saes, class_names=lens.class_names)
    saes = [*lens.saes[:2], vitlens.TopKSAE.from_weights(
        W_enc=lens.saes[2].W_enc, W_dec=lens.saes[2].W_dec, b_dec=lens.saes[2].b_dec + 1, k=4
    )]  # fmt: skip
    other = vitlens.Lens(lens.vision, saes)
    with pytest.raises(CheckpointError, match="other SAEs: those of layer 2 differ"):
        other.atlas = Atlas.load(folder)
    assert other.atlas is None


def test_the_same_model_in_another_precision(folder: Path) -> None:
    assert Atlas.load(folder, tiny_lens(dtype=torch.float64)).lens is not None


def test_the_lens_has_an_atlas(folder: Path) -> None:
    lens = tiny_lens()
    assert lens.atlas is None
    lens.atlas = Atlas.load(folder)
    assert lens.atlas is not None
    assert lens.atlas.lens is lens
    assert set(lens.atlas.feature(1, 0).neighbours) == {"before", "same", "after"}
    lens.atlas = None
    assert lens.atlas is None


def test_without_a_lens(folder: Path) -> None:
    atlas = Atlas.load(folder)
    assert atlas.feature(1, 0).neighbours == {}
    with pytest.raises(CheckpointError, match="need the lens"):
        atlas.neighbours(1, 0)
    with pytest.raises(CheckpointError, match="need the lens"):
        atlas.lineage(1, 0)


def test_heatmaps_are_computed_where_they_are_not_stored(
    lens: vitlens.Lens, features: list[torch.Tensor], tmp_path: Path
) -> None:
    state = state_by_hand(lens, range(N), heatmaps=False)
    Atlas.from_state(state, lens, **QUICK).save(tmp_path / "atlas", mergeable=False)
    atlas = Atlas.load(tmp_path / "atlas", lens)
    for feature in range(5):
        for shown in atlas.top(1, feature):
            n = int(shown.key.removesuffix(".png"))
            torch.testing.assert_close(shown.heatmap, features[1][n, :, feature])
    alone = Atlas.load(tmp_path / "atlas")
    assert alone.top(1, 0)[0].heatmap is None


def test_thumbnails_are_optional_and_originals_are_found(
    lens: vitlens.Lens, features: list[torch.Tensor], tmp_path: Path
) -> None:
    from dataclasses import replace

    state = state_by_hand(lens, range(N), heatmaps=False)
    state.images = {i: replace(r, thumbnail=None) for i, r in state.images.items()}
    Atlas.from_state(state, lens, **QUICK).save(tmp_path / "atlas")
    shown = Atlas.load(tmp_path / "atlas", lens).top(1, 0)[0]
    assert (shown.encoded, shown.image, shown.heatmap, shown.original) == (None, None, None, None)
    (tmp_path / "moved").mkdir()
    for n in range(N):
        coarse_noise(n).save(tmp_path / "moved" / f"{n}.png")
    shown = Atlas.load(tmp_path / "atlas", lens, images=tmp_path / "moved").top(1, 0)[0]
    n = int(shown.key.removesuffix(".png"))
    assert shown.original == tmp_path / "moved" / shown.key
    assert shown.image is not None
    assert shown.image.tobytes() == coarse_noise(n).tobytes()
    torch.testing.assert_close(shown.heatmap, features[1][n, :, 0])


def test_saving_without_the_sums(
    built: Atlas, lens: vitlens.Lens, features: list[torch.Tensor], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    Atlas.from_state(built.state, lens, **QUICK).save(small, mergeable=False, originals=False)
    assert not (small / store.STATE).exists()
    assert "nowhere" not in (small / store.HEADER).read_text()
    atlas = Atlas.load(small, lens)
    assert atlas.top(0, 0)[0].path == ""
    assert atlas.top(0, 0)[0].peak == pytest.approx(built.top(0, 0)[0].peak, rel=5e-3)
    for feature in range(30):
        exact, rounded = built.feature(2, feature), atlas.feature(2, feature)
        z = features[2][:, 1:, feature]
        error = (z.square().mean() - z.mean(0).square().mean()).clamp_min(0).sqrt() / N**0.5
        most = max(float(error), float(exact.mean_map.max()) / 30) * 1.01
        torch.testing.assert_close(rounded.mean_map, exact.mean_map, atol=most, rtol=0)
        for one, other in zip(exact.classes, rounded.classes, strict=True):
            assert other.mean == pytest.approx(one.mean, abs=exact.classes[0].mean / 500)
        effects = dict(exact.logit_lens)
        largest = max(map(abs, effects.values()))
        assert dict(rounded.logit_lens) == pytest.approx(effects, abs=largest / 250)
        assert torch.equal(rounded.histogram.counts, exact.histogram.counts)
        assert rounded.frequency == exact.frequency
    with pytest.raises(CheckpointError, match="without its sums"):
        Atlas.merge([small, small], lens=lens)
    with pytest.raises(VitlensError, match="without its sums"):
        atlas.save(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_halves_merge_to_the_whole_byte_for_byte(
    lens: vitlens.Lens, folder: Path, tmp_path: Path
) -> None:
    for name, numbers in (("a", range(5)), ("b", range(5, N))):
        Atlas.from_state(state_by_hand(lens, numbers), lens, **QUICK).save(tmp_path / name)
    for order in (("a", "b"), ("b", "a")):
        merged = Atlas.merge([tmp_path / name for name in order], lens=lens, **QUICK)
        merged.save(tmp_path / "merged")
        for file in folder.iterdir():
            assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes(), file.name
    with pytest.raises(CheckpointError, match="Both hold the image"):
        Atlas.merge([tmp_path / "a", tmp_path / "a"], lens=lens)
    with pytest.raises(CheckpointError, match="needs the lens"):
        Atlas.merge([tmp_path / "a", tmp_path / "b"])


def test_names_outlive_everything(lens: vitlens.Lens, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "atlas"
    atlas = Atlas.from_state(state_by_hand(lens, range(4)), lens, **QUICK)
    atlas.names.set(0, 1, "before saving")
    atlas.save(path)
    atlas.names.set(0, 2, "after saving")
    Atlas.load(folder, lens).save(path)  # another build of the same model replaces it
    again = Atlas.load(path, lens)
    assert again.n_images == N
    assert again.names.labels == {(0, 1): "before saving", (0, 2): "after saving"}
    assert again.feature(0, 2).name == "after saving"
    elsewhere = Atlas.load(path, names=tmp_path / "mine.jsonl")
    elsewhere.names.set(1, 1, "mine")
    assert again.names.get(1, 1) == ""
    other = tiny_lens(1)
    stranger = Atlas.from_state(state_by_hand(other, range(4)), other, **QUICK)
    with pytest.raises(VitlensError, match="2 names of its features"):
        stranger.save(path)


def test_only_atlases_are_replaced(built: Atlas, lens: vitlens.Lens, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("cat")
    atlas = Atlas.from_state(built.state, lens, **QUICK)
    with pytest.raises(VitlensError, match=r"other files, for instance cat\.png"):
        atlas.save(tmp_path / "photos")
    atlas.save(tmp_path / "atlas")
    (tmp_path / "atlas" / "notes.txt").write_text("mine")
    with pytest.raises(VitlensError, match=r"other files, for instance notes\.txt"):
        atlas.save(tmp_path / "atlas")
    assert (tmp_path / "atlas" / "notes.txt").read_text() == "mine"


def test_a_smaller_one_replaces_a_larger(built: Atlas, lens: vitlens.Lens, tmp_path: Path) -> None:
    Atlas.from_state(built.state, lens, **QUICK).save(tmp_path / "atlas")
    Atlas.load(tmp_path / "atlas", lens).save(tmp_path / "atlas", mergeable=False)
    assert not (tmp_path / "atlas" / store.STATE).exists()
    assert Atlas.load(tmp_path / "atlas", lens).n_images == N


def test_a_crash_leaves_the_old_one(
    built: Atlas, lens: vitlens.Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = Atlas.from_state(built.state, lens, **QUICK)
    atlas.save(tmp_path / "atlas")
    before = {file.name: file.read_bytes() for file in (tmp_path / "atlas").iterdir()}

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_header", crash)
    with pytest.raises(KeyboardInterrupt):
        atlas.save(tmp_path / "atlas")
    with pytest.raises(KeyboardInterrupt):
        atlas.save(tmp_path / "new")
    assert {f.name: f.read_bytes() for f in (tmp_path / "atlas").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "There is no atlas"),
        (lambda f: (f / "atlas.json").unlink(), "holds no atlas"),
        (lambda f: (f / "atlas.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "atlas.json").write_text("[]"), "not from an atlas"),
        (lambda f: edit(f, version=1), "format 1; this version .* reads format 2"),
        (lambda f: edit(f, images=3), "is damaged"),
        (lambda f: (f / "evolution.json").unlink(), "incomplete: evolution.* is missing"),
        (
            lambda f: cut(f / "thumbnails.safetensors"),
            r"incomplete: thumbnails.* has \d+ of \d+ bytes",
        ),
    ],
)
def test_a_damaged_atlas_is_not_opened(folder: Path, tmp_path: Path, spoil, message: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(CheckpointError, match=message):
        Atlas.load(copy)


def test_damage_inside_a_file_is_found_on_reading(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = copy / "layer_00.safetensors"
    data = bytearray(file.read_bytes())
    data[-400:-300] = bytes(100)
    file.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"layer_00\.safetensors is damaged: '.*' is.*data\. Replace this"
    ):
        Atlas.load(copy).feature(0, 0)
    shutil.copy(copy / "layer_01.safetensors", copy / "thumbnails.safetensors")
    header = json.loads((copy / "atlas.json").read_text())
    edit(copy, files=header["files"] | {
        "thumbnails.safetensors": (copy / "thumbnails.safetensors").stat().st_size
    })  # fmt: skip
    with pytest.raises((CheckpointError, ImageError)):
        _ = Atlas.load(copy).top(1, 0)[0].image


def rename_a_score(file: Path) -> None:
    data = file.read_bytes()
    assert data.count(b"selectivity") >= 1
    file.write_bytes(data.replace(b"selectivity", b"selestivity"))


@pytest.mark.parametrize(
    ("spoil", "damage", "message"),
    [
        (lambda file: file.unlink(), "is missing", "There is no file"),
        (lambda file: cut(file), r"has \d+ of \d+ bytes", "is a truncated"),
        (rename_a_score, "", "is damaged: there is no score 'selestivity'"),
    ],
)
def test_a_damaged_layer_is_refused_and_the_others_are_read(
    folder: Path, tmp_path: Path, spoil, damage: str, message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy / "layer_01.safetensors")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        atlas = Atlas.load(copy)
    assert len(warned) == bool(damage)
    for warning in warned:
        assert re.search(rf"incomplete: layer_01\.safetensors {damage}", str(warning.message))
    whole = Atlas.load(folder)
    assert torch.equal(atlas.scores(0)["frequency"], whole.scores(0)["frequency"])
    assert atlas.feature(2, 0).scores == pytest.approx(whole.feature(2, 0).scores, nan_ok=True)
    for asked in (
        lambda: atlas.feature(1, 0),
        lambda: atlas.scores(1),
        lambda: atlas.top(1, 0),
        lambda: atlas.proposals(1, 0),
        lambda: atlas.save(tmp_path / "again", mergeable=False),
    ):
        with pytest.raises(CheckpointError, match=rf"layer_01.*{message}|{message}.*layer_01") as e:
            asked()
        assert "Replace this file with an intact copy" in str(e.value)
    assert not (tmp_path / "again").exists()


def test_the_bundle_opens_its_own_atlas_late(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitlens import bundle

    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "bundle.json").write_text("{}")
    shutil.copytree(folder, tmp_path / "small" / "atlas")
    monkeypatch.setattr(bundle, "_FOLDER", tmp_path)
    monkeypatch.setattr(bundle, "_load_bundle", lambda *_: tiny_lens())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    lens = vitlens.load("small")
    assert callable(lens._atlas)
    assert lens.atlas is not None
    lens.atlas.names.set(0, 0, "mine")
    file = tmp_path / "home" / "vitlens" / "names" / f"small-{lens.fingerprint}.jsonl"
    assert "mine" in file.read_text()
    assert vitlens.load("small").atlas.feature(0, 0).name == "mine"
    named = vitlens.load("small", names=tmp_path / "names.jsonl")
    assert named.atlas.names.path == tmp_path / "names.jsonl"
    other = vitlens.load("small", atlas=folder)
    assert other.atlas.path == folder
    shutil.rmtree(tmp_path / "small" / "atlas")
    assert vitlens.load("small").atlas is None
    with pytest.raises(ModelError, match="Names need an atlas"):
        vitlens.load("small", names=tmp_path / "names.jsonl")


def edit(folder: Path, **values: object) -> None:
    file = folder / "atlas.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])

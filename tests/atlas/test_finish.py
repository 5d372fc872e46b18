"""What is worked out when an atlas is finished: words, controls, embeddings, a whole build."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vitlens
from tests.atlas_by_hand import picture, state_by_hand
from tests.tiny import tiny_lens
from vitlens.atlas.atlas import Atlas
from vitlens.errors import CheckpointError, FeatureError, ModelError
from vitlens.saes.health import HealthReport, SAEHealth

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
    atlas.propose(["bright", "blue"], towers, n=1, n_pictures=2, patches=None)
    first, loaded = (
        {
            (layer, f): [p for p in a.feature(layer, f).proposals if p.source == "text"]
            for layer, f in itertools.product(range(3), range(30))
        }
        for a in (atlas, Atlas.load(tmp_path / "atlas"))
    )
    assert first == loaded
    embedded = F.normalize(brightness([picture(n) for n in range(N)]), dim=1)
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
    atlas.propose(["blue"], (lambda words: torch.eye(2)[:1], brightness), n_pictures=1)
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
    embedded = F.normalize(brightness([picture(n) for n in range(N)]), dim=1)
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
    with pytest.raises(ModelError, match="not a row for each"):
        Atlas.from_state(state, lens, embed=lambda images: torch.zeros(1, 2), **QUICK)
    with pytest.raises(CheckpointError, match="state is of another model"):
        Atlas.from_state(state, tiny_lens(1), **QUICK)


def test_ctrl_c_while_the_map_is_made_leaves_the_pass_to_be_taken_up(
    lens: vitlens.Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.manifold import TSNE

    photos = [picture(n) for n in range(6)]
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
        picture(n).save(tmp_path / "photos" / f"{n}.png")
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

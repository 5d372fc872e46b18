import re

import numpy as np
import pytest
from PIL import Image

from tests.builders import tiny_lens
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.build import writing
from vitlens.cli import atlas as command
from vitlens.cli import main
from vitlens.io import partial_path


@pytest.fixture(autouse=True)
def lens(monkeypatch):
    lens = tiny_lens()
    monkeypatch.setattr(command, "load_lens", lambda arguments: lens)
    return lens


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(24):
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 36)).save(folder / f"{number:02}.png")
    (folder / "99.jpg").write_bytes(b"no image")
    return folder


def run(*words):
    return main(["atlas", *map(str, words), "--no-stimuli", "--batch-size", "4"])


def test_an_atlas_is_built_and_summarised(photos, tmp_path, capsys):
    assert run(photos, "--out", tmp_path / "atlas", "--n-top", 3) == 0
    out = capsys.readouterr().out
    assert "90 features in 3 layers, 24 images" in out
    assert re.search(r"1 image could not be read:\n  \S*99\.jpg is not an image", out)
    assert "frequency" in out
    atlas = Atlas.load(tmp_path / "atlas")
    assert atlas.n_images == 24
    assert len(atlas.top(0, 0)) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_parts_are_merged(photos, tmp_path):
    for part in ("1/2", "2/2"):
        assert run(photos, "--part", part, "--out", tmp_path / part[0]) == 0
    parts = [tmp_path / "2", tmp_path / "1"]
    assert (
        main(["atlas", "--merge", *map(str, parts), "--no-stimuli", "--out", str(tmp_path / "m")])
        == 0
    )
    assert run(photos, "--out", tmp_path / "whole") == 0
    states = [tmp_path / name / "state.safetensors" for name in ("m", "whole")]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_a_folder_with_other_files_is_refused_before_the_pass(
    photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("vitlens.atlas.atlas.build_state", lambda *_, **__: pytest.fail("ran"))
    (tmp_path / "thesis.tex").write_text("words")
    assert run(photos, "--out", tmp_path) == 2
    assert "already holds other files, for instance thesis.tex" in capsys.readouterr().err


def test_an_existing_atlas_is_not_built_again_without_restart(photos, tmp_path, capsys):
    assert run(photos, "--out", tmp_path / "atlas") == 0
    assert run(photos, "--out", tmp_path / "atlas") == 2
    assert "is already an atlas" in capsys.readouterr().err
    assert run(photos, "--out", tmp_path / "atlas", "--restart", "--no-thumbnails") == 0
    assert Atlas.load(tmp_path / "atlas").settings["thumbnails"] is None


def test_two_runs_cannot_write_one_atlas(photos, tmp_path, capsys):
    with writing(tmp_path / "atlas"):
        assert run(photos, "--out", tmp_path / "atlas") == 2
    assert "Another run is writing" in capsys.readouterr().err


def test_ctrl_c_says_how_to_continue(photos, tmp_path, capsys, monkeypatch):
    from vitlens.atlas.build import Accumulator

    add = Accumulator.add

    def interrupted(self, batch):
        if self.n_batches == 3:
            raise KeyboardInterrupt
        add(self, batch)

    monkeypatch.setattr(Accumulator, "add", interrupted)
    assert run(photos, "--out", tmp_path / "atlas") == 130
    assert "The same command continues" in capsys.readouterr().err
    assert partial_path(tmp_path / "atlas").exists()
    monkeypatch.setattr(Accumulator, "add", add)
    assert run(photos, "--out", tmp_path / "atlas") == 0
    assert Atlas.load(tmp_path / "atlas").n_images == 24


@pytest.mark.parametrize("words", [(), ("a", "--merge", "b")])
def test_images_or_atlases_but_not_both(words, tmp_path, capsys):
    assert main(["atlas", *words, "--out", str(tmp_path / "atlas")]) == 2
    assert "Give either images" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_malformed_parts_are_refused(part, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["atlas", "x", "--part", part, "--out", str(tmp_path)])
    assert "must be like 1/4" in capsys.readouterr().err

"""A tiny lens with an atlas, saved once per session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import vitlens
from tests.widgets.tiny import open_atlas, tiny_atlas, tiny_lens


@pytest.fixture(scope="session")
def atlas_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved atlas; tests that save names use a file of their own."""
    out = tmp_path_factory.mktemp("atlas") / "atlas"
    tiny_atlas(tiny_lens(), out)
    return out


@pytest.fixture
def atlas_lens(atlas_folder: Path, tmp_path: Path) -> vitlens.Lens:
    """A lens with the atlas, and a separate file of names."""
    return open_atlas(atlas_folder, tmp_path)


@pytest.fixture
def damaged_lens(atlas_folder: Path, tmp_path: Path) -> vitlens.Lens:
    """A lens with an atlas whose file of layer 1 is damaged."""
    copy = tmp_path / "atlas"
    shutil.copytree(atlas_folder, copy)
    file = copy / "layer_01.safetensors"
    data = bytearray(file.read_bytes())
    data[-400:-300] = bytes(100)
    file.write_bytes(data)
    return open_atlas(copy, tmp_path)

"""Image records in memory, and thumbnails in a file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from vitlens.atlas.image_store import (
    ImageRecord,
    ImageTable,
    ThumbnailFile,
    ThumbnailsInMemory,
    decode,
    encode,
    write_thumbnails,
)
from vitlens.errors import CheckpointError, ImageError


def record_of(number, size):
    thumbnail = bytes([number % 256]) * size if size else None
    return ImageRecord(
        f"k{number}", "", 1, 2, 3, 4, torch.full((6,), number).half(), thumbnail, "c"
    )


def test_the_image_table_gives_back_what_it_was_given():
    sizes = [0, 5, 3 * 2**20, 2**20, 9 * 2**20, 7]
    given = {100 - n: record_of(n, size) for n, size in enumerate(sizes)}
    table = ImageTable(given)
    assert list(table) == list(given)
    table.keep({100, 99, 96})
    assert list(table) == [96, 99, 100]
    for image, found in table.items():
        assert torch.equal(found.embedding, given[image].embedding)
        assert replace(found, embedding=None) == replace(given[image], embedding=None)
    with pytest.raises(KeyError):
        table.keep({96, 98})


def test_blocks_of_dropped_images_are_given_back():
    """One image of each block stays, so that no block is free by itself."""
    table = ImageTable()
    for number in range(64):
        table[number] = record_of(number, 2**20)
        if number % 16 == 15:
            table.keep(set(range(0, number, 8)))
    assert [table[n].thumbnail[0] for n in table] == list(range(0, 64, 8))
    assert len({id(row.block) for row in table._rows.values()}) <= 6


def test_thumbnails_round_trip(tmp_path) -> None:
    stored = [encode(Image.new("RGB", (9, 5), (i, 0, 0))) if i != 1 else None for i in range(4)]
    file = tmp_path / "thumbnails.safetensors"
    for given in (stored, [None, None], []):
        write_thumbnails(file, ThumbnailsInMemory(given))
        read = ThumbnailFile(file, len(given))
        assert [read.get(row) for row in range(len(given))] == given
    write_thumbnails(file, ThumbnailsInMemory(stored))
    assert decode(ThumbnailFile(file, 4).get(3) or b"").size == (9, 5)
    with pytest.raises(CheckpointError, match="does not hold the 5 thumbnails"):
        ThumbnailFile(file, 5).get(0)
    with pytest.raises(CheckpointError, match="There is no file"):
        ThumbnailFile(tmp_path / "none", 4).get(0)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        ThumbnailFile(file, 4).get(0)
    with pytest.raises(ImageError, match="damaged"):
        decode(b"RIFF")

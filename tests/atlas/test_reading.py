"""Batches read from a source: only what is needed, and thumbnails."""

from pathlib import Path

import torch
from torch.utils.data import Dataset

from tests.atlas_by_hand import photograph
from tests.builders import tiny_lens
from vitlens.atlas.build import build_state
from vitlens.atlas.image_store import decode
from vitlens.atlas.reading import Reader, Ready, read_batches
from vitlens.atlas.sources import open_source


def test_only_the_requested_part_is_read():
    read = []

    class Noting(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, number):
            read.append(number)
            return torch.zeros(3, 24, 24)

    reader = Reader(transform=None, image_size=(24, 24), side=None)
    source = open_source(Noting())
    read.clear()
    batches = list(read_batches(reader, source, 4, part=(1, 3), start=1))
    assert read == [*range(16, 20), *range(28, 32)]
    assert all(isinstance(entry, Ready) for batch in batches for entry in batch)


def test_a_webp_of_the_models_size_is_stored_as_it_is(tmp_path):
    lens = tiny_lens()
    path = Path(tmp_path / "a.webp")
    photograph(0, (24, 24)).save(path, "WEBP", quality=60)

    def stored(side):
        state = build_state(lens, path, thumbnails=side, batch_size=4, progress=False)
        return next(iter(state.images.values())).thumbnail

    assert stored(160) == path.read_bytes()
    small = stored(12)
    assert decode(small).size == (12, 12)

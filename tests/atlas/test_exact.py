"""Buckets that are dealt to classes, and perceptual hashes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitlens
from tests.atlas_by_hand import photograph
from tests.builders import tiny_lens
from vitlens.atlas.exact import buckets, deal, n_buckets, perceptual_hash
from vitlens.atlas.image_store import ThumbnailFile, decode


def test_the_fullest_bucket_goes_to_the_class_that_lacks_most() -> None:
    per_bucket, per_class = torch.tensor([1, 4, 0, 2, 2, 1]), torch.tensor([3, 0, 7])
    # 4 to class 2 (lacks 7), 2 to class 0 (both lack 3), 2 to class 2, 1 and 1 to either.
    assert deal(per_bucket, per_class)[[1, 3, 4, 0, 5]].tolist() == [2, 0, 2, 0, 2]
    assert deal(torch.zeros(4, dtype=torch.int64), torch.zeros(2)).tolist() == [0] * 4


@pytest.mark.parametrize(
    "per_class", [[300, 60, 20, 5, 4, 2], [30_000, 6000, 500, 80, 15], [9] * 300]
)
def test_classes_keep_their_sizes(per_class: list[int]) -> None:
    wanted = torch.tensor(per_class)
    drawn = buckets(torch.arange(int(wanted.sum())), len(wanted))
    per_bucket = drawn.bincount(minlength=n_buckets(len(wanted)))
    found = deal(per_bucket, wanted)[drawn].bincount(minlength=len(wanted))
    assert torch.equal(found, wanted) or (found - wanted).abs().max() <= 2


def test_buckets_are_of_all_sizes() -> None:
    n, size = 400_000, n_buckets(6)
    counts = buckets(torch.arange(n), 6).bincount(minlength=size).double()
    expected = (2 * torch.arange(size) + 1) * (n / size**2)
    assert len(counts) == size
    assert float(((counts - expected) ** 2 / expected).mean()) == pytest.approx(1, abs=0.3)


def test_without_classes_there_are_no_buckets():
    ids = torch.arange(5)
    assert n_buckets(0) == 0
    assert torch.equal(buckets(ids, 0), torch.zeros(5, dtype=torch.int64))
    nothing = torch.zeros(0, dtype=torch.int64)
    assert len(deal(nothing, nothing)) == 0


def test_resized_copies_have_one_perceptual_hash():
    lens = tiny_lens()

    def hashed(images):
        return perceptual_hash(torch.stack([lens.tensor(image) for image in images]))

    originals = [photograph(seed, (400, 400)) for seed in range(40)]
    copies = []
    for image in originals:
        buffer = io.BytesIO()
        image.resize((230, 230), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=75)
        copies.append(Image.open(buffer))
    hashes = hashed(originals)
    assert len(hashes.unique()) == 40
    assert (hashed(copies) == hashes).sum() >= 32


def test_photographs_keep_their_hash_and_no_two_share_one():
    folder = Path(vitlens.__file__).parent / "bundles" / "everyday" / "atlas"
    stored = ThumbnailFile(folder / "thumbnails.safetensors", 391)
    originals = [decode(stored.get(number)) for number in range(391)]
    hashes = hashed_images(originals)
    assert len(hashes.unique()) == 391
    for copy, least in ((recompressed, 0.9), (halved, 0.97)):
        kept = hashed_images([copy(image) for image in originals[::3]]) == hashes[::3]
        assert kept.float().mean() >= least


def recompressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


def halved(image):
    half = image.resize((112, 112), Image.Resampling.LANCZOS)
    return half.resize((224, 224), Image.Resampling.BICUBIC)


def hashed_images(images):
    return torch.cat([perceptual_hash(pixels(image)[None]) for image in images])


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_the_hash_is_that_of_an_independent_cosine_transform():
    from scipy.fft import dctn

    for seed in range(5):
        image = pixels(photograph(seed, (64, 96)))
        grey = image[0] * 0.299 + image[1] * 0.587 + image[2] * 0.114
        small = grey.double().reshape(32, grey.shape[0] // 32, 32, -1).mean((1, 3)).numpy()
        found = dctn(small, type=2)
        lowest = [found[t - b, b] for t in range(1, 7) for b in range(t + 1)]
        median = sorted(lowest)[(len(lowest) - 1) // 2]
        number = sum(1 << bit for bit, strength in enumerate(lowest) if strength > median)
        assert int(perceptual_hash(image[None])) == number


def test_images_without_contrast_share_a_hash():
    flat = torch.tensor([0.0, 0.3, 1.0])[:, None, None, None].expand(3, 3, 48, 48)
    assert perceptual_hash(flat).tolist() == [0, 0, 0]

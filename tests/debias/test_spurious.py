"""The bundled benchmark: its images, its splits, its lens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vitlens
from vitlens.debias.spurious import FOLDER, SIZES, spurious_images
from vitlens.io import read_json, read_tensors

FACTS = read_json(FOLDER / "spurious.json")


def test_groups() -> None:
    train = spurious_images("train")
    assert len(train) == SIZES["train"]
    # 95 % of each class in front of its own background
    assert train.counts.tolist() == [190, 10, 10, 190]
    for split in ("validation", "test"):
        groups = spurious_images(split)
        assert groups.counts.tolist() == [SIZES[split] // 4] * 4
        groups.check()
    assert train.group_names[0] == "bird, water or sky"


def test_images_depend_on_seed_and_number_alone() -> None:
    first, again, other = (spurious_images("test", seed) for seed in (3, 3, 4))
    image = np.asarray(first.images[5])
    assert image.shape == (224, 224, 3)
    assert np.array_equal(image, np.asarray(again.images[5]))
    assert np.array_equal(image, np.asarray(again.subset([5]).images[0]))
    assert not np.array_equal(image, np.asarray(other.images[5]))
    assert not np.array_equal(image, np.asarray(spurious_images("validation", 3).images[5]))
    assert len(first.images[:2]) == 2
    with pytest.raises(IndexError):
        _ = first.images[200]


def test_no_source_image_is_in_two_splits() -> None:
    blobs, _ = read_tensors(FOLDER / "pictures.safetensors")
    for kind in ("cutout", "background"):
        entries = FACTS[f"{kind}s"]
        splits = {}
        for number, entry in enumerate(entries):
            data = blobs[f"{kind}.{number}"].numpy().tobytes()
            assert splits.setdefault(data, entry["split"]) == entry["split"]
        for value in (0, 1):
            of = "class" if kind == "cutout" else "attribute"
            present = {entry["split"] for entry in entries if entry[of] == value}
            assert present == {"train", "validation", "test"}


def test_it_is_small_and_every_source_image_is_credited() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000
    for entry in (*FACTS["cutouts"], *FACTS["backgrounds"]):
        assert "copyright" in entry["credit"]
        assert "GPL-2" in entry["credit"]
    assert "GPL-2.0" in (FOLDER / "NOTICE").read_text()


def test_the_lens_is_everyday_with_a_probe() -> None:
    made = vitlens.spurious(1)
    everyday = vitlens.load("everyday")
    assert made.lens.class_names == ("bird", "mammal")
    probes, _ = read_tensors(FOLDER / "probes.safetensors")
    assert torch.equal(made.lens.vision.module.head.weight, probes["1.weight"])
    assert made.lens.fingerprint != everyday.fingerprint
    own = {n: w for n, w in made.lens.vision.module.state_dict().items() if "head" not in n}
    for name, weight in everyday.vision.module.state_dict().items():
        if "head" not in name:
            assert torch.equal(weight, own[name])
    assert everyday.vision.module.head.out_features == 6
    # on training images the probe is nearly always right
    few = made.train.subset(range(6))
    right = [
        made.lens.predict(image)[0][0] == few.class_names[label]
        for image, label in zip(few.images, few.labels, strict=True)
    ]
    assert sum(right) >= 5

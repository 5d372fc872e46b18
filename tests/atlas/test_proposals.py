"""Proposed names: from classes, and from words."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vitlens.atlas.profile import class_proposals
from vitlens.atlas.proposals import Proposal, crop_patch, from_class, from_words, open_clip_tower
from vitlens.errors import ModelError


@pytest.mark.parametrize(
    ("coin", "bird", "cat", "information", "chance", "proposed"),
    [
        (1.0, 2.0, 0.5, 0.6, 0.5, True),
        (1.1, 2.0, 0.5, 0.6, 0.5, False),  # does not stand out
        (0.0, 2.0, 0.0, 0.5, 0.5, False),  # as chance would have it
        (0.0, 2.0, 0.0, float("nan"), 0.5, False),
        (0.0, 2.0, 0.0, 0.6, float("nan"), False),
        (0.0, 0.0, 0.0, 0.6, 0.5, False),
        (None, 2.0, 0.5, 0.6, 0.5, True),
        (None, 2.0, None, 0.6, 0.5, False),  # one class is no choice
    ],
)
def test_a_class_is_proposed_that_stands_out_and_is_above_chance(
    coin: float | None,
    bird: float,
    cat: float | None,
    information: float,
    chance: float,
    proposed: bool,
) -> None:
    means = torch.tensor([mean or 0.0 for mean in (coin, bird, cat)])
    found = from_class(
        ("coin", "bird", "cat"),
        means,
        [mean is not None for mean in (coin, bird, cat)],
        information=information,
        chance=chance,
    )
    assert found == ((Proposal("bird", 0.6, "class"),) if proposed else ())


def test_proposals_of_many_classes_are_those_of_a_sorted_list_and_quick() -> None:
    C, n = 1000, 400
    generator = torch.Generator().manual_seed(0)
    header = SimpleNamespace(
        class_names=tuple(f"class {number}" for number in range(C)),
        per_class=tuple(torch.randint(3, (C,), generator=generator).tolist()),
    )
    table = SimpleNamespace(
        class_mean=torch.rand(C, n, generator=generator) ** 300,
        class_share=torch.rand(C, n, generator=generator),
        chance={"class_information": 0.9},
        scores={"class_information": torch.rand(n, generator=generator)},
    )
    start = time.process_time()
    found = [class_proposals(header, table, feature) for feature in range(n)]
    assert time.process_time() - start < 1  # a list of all classes for each feature takes 5 s
    expected = []
    for feature, information in enumerate(table.scores["class_information"].tolist()):
        named = zip(table.class_mean[:, feature].tolist(), header.class_names, strict=True)
        there = [one for one, images in zip(named, header.per_class, strict=True) if images]
        (best, name), (second, _) = sorted(there, reverse=True)[:2]
        good = information > 0.9 and best >= 2 * second
        expected.append((Proposal(name, information, "class"),) if good else ())
    assert found == expected
    assert 5 < sum(map(bool, found)) < sum(table.scores["class_information"] > 0.9)


COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (99,) * 3}


def encode_text(words: list[str]) -> Tensor:
    return torch.tensor([COLOURS[word] for word in words]).float() - 90


def encode_images(images: list[Image.Image]) -> Tensor:
    return torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images]).float() - 90


def test_words_near_the_images_are_proposed() -> None:
    images = [Image.new("RGB", (8, 8), COLOURS[c]) for c in ("red", "red", "blue", "green")]
    rows = torch.tensor([[0, 1, -1], [2, -1, -1], [-1, -1, -1], [2, 3, -1]])
    found = from_words(list(COLOURS), images, rows, (encode_text, encode_images), n=2)
    assert [one[0].text for one in found if one] == ["red", "blue", "green"]
    assert found[2] == ()
    words, seen = (
        F.normalize(x, dim=1) for x in (encode_text(list(COLOURS)), encode_images(images))
    )
    similar = torch.stack([seen[[0, 1]].mean(0), seen[2], seen[[2, 3]].mean(0)]) @ words.T
    red = similar - similar.mean(0)
    assert found[0][0].score == pytest.approx(float(red[0, 0]), abs=1e-6)
    assert all(p.source == "text" for one in found for p in one)
    with pytest.raises(ModelError, match="no words"):
        from_words([" "], images, rows, (encode_text, encode_images))
    with pytest.raises(ModelError, match="both must be"):
        from_words(["red"], images, rows, (lambda w: torch.ones(1, 7), encode_images))


def test_what_is_crop_patch_holds_the_patch() -> None:
    image = Image.new("RGB", (80, 60))
    for token, grid in itertools.product(range(1, 49), [(6, 8)]):
        row, col = divmod(token - 1, 8)
        marked = image.copy()
        marked.paste((255, 255, 255), (col * 10, row * 10, col * 10 + 10, row * 10 + 10))
        part = crop_patch(marked, token, grid=grid, n_prefix=1, patches=3)
        assert part.size == (30, 30)
        assert int((np.asarray(part) == 255).all(-1).sum()) == 100
    assert crop_patch(image, 0, grid=(6, 8), n_prefix=1) is image
    assert crop_patch(image, 9, grid=(6, 8), n_prefix=1, patches=99).size == (60, 60)


def test_open_clip_is_only_needed_when_it_is_asked_for() -> None:
    try:
        import open_clip  # noqa: F401
    except ImportError:
        with pytest.raises(ModelError, match="open_clip"):
            open_clip_tower("ViT-B-32", "nowhere")

"""Features whose meaning is known by construction, through the whole way to an atlas.

A ViT whose blocks pass the stream on unchanged: each channel of the stream is one filter of the
patch, or a mark of its place. One SAE reads one channel a feature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor

from vitlens.atlas.atlas import Atlas
from vitlens.atlas.scores import KINDS
from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.saes.topk import TopKSAE

PATCH, GRID, WIDTH, IMAGES = 12, 8, 64, 90


ORIENTATION = 60.0


ROW = 2


POSITION, ORIENTED, GREEN, DEAD = range(4)


RANDOM = range(4, 58)


# The opposites of the first four channels: what is planted must not shift a token's mean.
OPPOSITES = range(58, 62)


# Two channels far from 0 keep each token's standard deviation all but constant.
ANCHORS = (62, 63)


HELD = 400.0


SPREAD = math.sqrt(2 * HELD**2 / (WIDTH - 1))


def planted_lens() -> Lens:
    """A level 8 x 8 grid of patches, three classes, 64 channels, one SAE of 58 features."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=PATCH * GRID, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=2,
        num_classes=3,
    )  # fmt: skip
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
        model.cls_token.zero_()
        model.pos_embed.zero_()
        marked = model.pos_embed[0, 1:].reshape(GRID, GRID, WIDTH)[ROW]
        marked[:, POSITION], marked[:, OPPOSITES[POSITION]] = 6.0, -6.0
        model.pos_embed[..., ANCHORS[0]], model.pos_embed[..., ANCHORS[1]] = HELD, -HELD
        model.patch_embed.proj.bias.zero_()
        model.patch_embed.proj.weight.copy_(filters())
    # A feature is its channel beyond a threshold; the dead one's is out of reach.
    thresholds = torch.full((WIDTH,), 1.0)
    thresholds[POSITION] = 3.0
    thresholds[ORIENTED] = 0.5
    thresholds[DEAD] = 1e6
    sae = TopKSAE.from_weights(
        W_enc=torch.eye(WIDTH)[:, :58],
        W_dec=torch.eye(WIDTH)[:58],
        b_dec=thresholds / SPREAD,
        k=58,
    )
    half = (0.5, 0.5, 0.5)
    return Lens(
        model.eval(),
        [sae],
        class_names=("red", "green", "blue"),
        transform=Transform(size=(PATCH * GRID, PATCH * GRID), mean=half, std=half),
    )


def filters() -> Tensor:
    """What each channel reads of a patch, [WIDTH, 3, PATCH, PATCH]."""
    weight = torch.zeros(WIDTH, 3, PATCH, PATCH)
    y, x = np.mgrid[:PATCH, :PATCH] - (PATCH - 1) / 2
    turn = math.radians(ORIENTATION)
    across = -x * math.sin(turn) - y * math.cos(turn)  # rows go downwards
    window = np.exp(-(x**2 + y**2) / (2 * (PATCH / 3) ** 2))
    wave = window * np.sin(2 * np.pi * across / (0.7 * PATCH))
    weight[ORIENTED] = torch.tensor(32 * wave / np.abs(wave).sum() / 3)
    weight[GREEN, 1] = 12 / PATCH**2
    weight[GREEN, [0, 2]] = -6 / PATCH**2
    noise = torch.randn(len(RANDOM), 3, PATCH, PATCH, generator=torch.Generator().manual_seed(1))
    noise = noise - noise.mean((2, 3), keepdim=True)
    # Together they are 0, too, for the same reason as the opposites.
    weight[list(RANDOM)] = 20 * F.normalize(noise - noise.mean(0), dim=(1, 2, 3))
    weight[POSITION] = weight[RANDOM[0]] / 200  # so that its activation is not always the same
    weight[list(OPPOSITES)] = -weight[:4]
    return weight


def images() -> list[tuple[np.ndarray, int]]:
    """Noise with a tint by class, which is only there in two of three.

    The contrast is always the same: features would share it, and with it what chance gives. It is
    never so strong that it would be cut off: tinted noise must not be weaker.
    """
    rng = np.random.default_rng(0)
    shown = []
    for number in range(IMAGES):
        label = number % 3
        noise = rng.normal(0.5, 0.05, (PATCH * GRID, PATCH * GRID, 3))
        noise[..., label] += 0.25 * (number % 9 > 2)
        shown.append((np.round(255 * noise.clip(0, 1)).astype(np.uint8), label))
    return shown


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    shown = images()
    return Atlas.build(
        planted_lens(),
        [image for image, _ in shown],
        labels=[label for _, label in shown],
        n_top=4,
        n_sampled=4,
        thumbnails=None,
        layout=False,
        progress=False,
    )


def above(atlas: Atlas, feature: int) -> set[str]:
    """The kinds in which a feature is above chance."""
    return {kind for kind in KINDS if atlas.scores(0).of_kind(kind)[feature]}


def test_the_position_feature_is_found(atlas: Atlas) -> None:
    scores = atlas.scores(0)
    assert scores["position"][POSITION] > 0.9
    assert scores.kind(POSITION).name == "position"
    mean_map = atlas.feature(0, POSITION).mean_map[1:].reshape(GRID, GRID)
    assert mean_map[ROW].min() > 0 and mean_map.sum() == pytest.approx(float(mean_map[ROW].sum()))
    assert scores["class_information"][POSITION] < 0.05
    # It answers all images alike, whatever they show.
    for name in ("orientation", "direction", "hue", "texture", "curvature"):
        assert abs(float(scores[name][POSITION])) < 0.05, name
    assert above(atlas, POSITION) == {"position"}


def test_the_oriented_feature_is_found(atlas: Atlas) -> None:
    scores = atlas.scores(0)
    assert scores["orientation"][ORIENTED] > 0.5
    assert "orientation" in above(atlas, ORIENTED)
    tuning = atlas.feature(0, ORIENTED).tuning
    assert tuning is not None
    off = (tuning.preferred.orientation - ORIENTATION) % 180
    assert min(off, 180 - off) < 5
    assert not above(atlas, ORIENTED) & {"position", "class", "hue"}


def test_the_class_feature_is_found(atlas: Atlas) -> None:
    scores = atlas.scores(0)
    assert scores["class_information"][GREEN] > 0.3
    assert scores["selectivity"][GREEN] > 0.9
    assert atlas.feature(0, GREEN).best_class == "green"
    assert above(atlas, GREEN) >= {"class", "hue"}  # its class is a colour
    assert not above(atlas, GREEN) & {"position", "orientation", "curve", "texture"}
    tuning = atlas.feature(0, GREEN).tuning
    assert tuning is not None and 110 < tuning.preferred.hue < 170


def test_the_dead_feature_has_no_scores(atlas: Atlas) -> None:
    scores = atlas.scores(0)
    assert not scores.live[DEAD]
    values = scores.of(DEAD)
    assert all(value == 0 or math.isnan(value) for value in values.values()), values
    assert scores.kind(DEAD) == ("none", 0.0)


def test_random_features_are_what_they_are_by_chance(atlas: Atlas) -> None:
    scores = atlas.scores(0)
    for kind in ("position", "class", "curve", "hue"):
        share = scores.of_kind(kind)[list(RANDOM)].double().mean()
        assert share < 0.1, kind
    assert scores["position"][list(RANDOM)].abs().max() < 0.05

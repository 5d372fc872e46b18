"""An atlas's state counted the slow way: from whole traces, one image and feature at a time."""

from __future__ import annotations

import io
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vitlens.atlas import exact
from vitlens.atlas.image_store import ImageRecord
from vitlens.atlas.scores import Scores, layer_scores
from vitlens.atlas.state import EMPTY, AtlasState, LayerState, LayerSums, Pool
from vitlens.lens import Lens


def coarse_noise(seed: int, side: int = 24) -> Image.Image:
    """Noise, coarser or finer with the seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 2 + seed % 5, 2 + seed % 5, generator=generator)
    pixels = F.interpolate(coarse[None], (side, side), mode="bilinear")[0]
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())


def photograph(seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """Something smooth, as photographs are."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def state_by_hand(
    lens: Lens, numbers: range, *, n_top: int = 3, n_sampled: int = 3, heatmaps: bool = True
) -> AtlasState:
    """Of noise images, each its own group, labelled by turns."""
    C, prefix = lens.vision.n_classes, lens.vision.n_prefix
    ids = {n: exact.hash_text(str(n)) for n in numbers}
    traces = {n: lens.trace(coarse_noise(n)) for n in numbers}
    label = {n: n % C for n in numbers}
    layers = []
    for layer, sae in enumerate(lens.saes):
        z = torch.stack([traces[n].features[layer].float() for n in numbers])  # images, T, F
        mean = exact.to_fixed(z.mean(1))
        fixed = exact.to_fixed(z)
        order = exact.shuffled_tokens(torch.tensor(list(ids.values())), prefix, z.shape[1])
        shuffled = fixed.gather(1, order.argsort(1)[..., None].expand_as(fixed))
        bucket = exact.buckets(torch.tensor(list(ids.values())), C)
        sums = LayerSums.zeros(
            n_tokens=z.shape[1], n_prefix=prefix, n_features=sae.n_features, n_classes=C
        )
        for i, n in enumerate(numbers):
            for f in range(sae.n_features):
                active = z[i, z[i, :, f] > 0, f]
                sums.n_active[f] += len(active)
                sums.prefix_active[:, f] += z[i, :prefix, f] > 0
                if len(active):
                    sums.n_images[f] += 1
                    sums.histogram[f] += exact.bin_index(active).bincount(minlength=exact.N_BINS)
                    sums.peak_histogram[f, exact.bin_index(active.max()[None])] += 1
                    sums.class_active[label[n], f] += 1
            sums.position += fixed[i]
            sums.position_shuffled += shuffled[i]
            sums.squares += exact.squares(fixed[i, prefix:]).sum(0)
            sums.class_mean[label[n]] += mean[i]
            sums.bucket_mean[bucket[i]] += mean[i]
            sums.image_mean += mean[i]
            sums.image_squares += exact.image_squares(mean[i])
            sums.stds += exact.to_fixed(traces[n].stds[layer][:, 0])
        pools = [Pool.empty(k, sae.n_features, n, z.shape[1] if heatmaps else 0)
                 for k, n in (("top", n_top), ("sampled", n_sampled))]  # fmt: skip
        for f in range(sae.n_features):
            entries = [(float(z[i, :, f].max()), ids[n], i) for i, n in enumerate(numbers)]
            entries = [entry for entry in entries if entry[0] > 0]
            top = sorted(entries, key=lambda e: (-e[0], e[1]))[:n_top]
            some = sorted(entries, key=lambda e: e[1])[:n_sampled]
            for pool, chosen in zip(pools, (top, some), strict=True):
                for place, (peak, image, i) in enumerate(chosen):
                    pool.peak[f, place] = peak
                    pool.id[f, place] = pool.group[f, place] = image
                    pool.token[f, place] = int(z[i, :, f].argmax())
                    if heatmaps:
                        pool.heatmap[f, place] = (z[i, :, f] / peak * 255).round().byte()
        layers.append(LayerState(sums, *pools))
    state = AtlasState(
        model=lens.fingerprint,
        n_prefix=prefix,
        grid=lens.vision.grid,
        class_names=lens.class_names or (),
        labels_from="data",
        settings={"n_top": n_top},
        layers=lens.layers,
        layer_states=tuple(layers),
        n_images=len(numbers),
        per_class=torch.tensor(list(label.values())).bincount(minlength=C),
        per_bucket=exact.buckets(torch.tensor(list(ids.values())), C).bincount(
            minlength=exact.n_buckets(C)
        ),
        final_stream=exact.to_fixed(torch.stack([traces[n].output for n in numbers])).sum(0),
        images={
            ids[n]: ImageRecord(
                key=f"{n}.png",
                path=f"/nowhere/{n}.png",
                label=label[n],
                group=ids[n],
                width=24,
                height=24,
                embedding=traces[n].output[prefix:].mean(0).half(),
                thumbnail=webp(coarse_noise(n)),
                credit="noise",
            )
            for n in numbers
        },
        skipped=(("broken.png", "damaged"),),
    )
    state.drop_unused_images()
    assert all(EMPTY not in layer.top.id[layer.sums.n_images >= n_top] for layer in layers)
    return state


#: Sizes of `activations`.
IMAGES, PREFIX, PATCHES, FEATURES, CLASSES = 24, 2, 9, 5, 3


def activations(seed: int = 0) -> tuple[Tensor, list[int]]:
    """Sparse activations [images, T, F], and a label an image; class 2 is rare."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(IMAGES, PREFIX + PATCHES, FEATURES, generator=generator).relu().double()
    z *= torch.rand(IMAGES, 1, FEATURES, generator=generator) > 0.3
    z[:, PREFIX + 4, 0] += 2  # a place
    z[::2, :, 1] += 1  # every other image: class 0
    z[..., 4] = 0  # dead
    labels = [0 if i % 2 == 0 else 1 if i < 20 else 2 for i in range(IMAGES)]
    return z, labels


def sums_of(z: Tensor, labels: list[int], buckets: list[int]) -> tuple[LayerSums, Tensor, Tensor]:
    """The sums of raw activations in whole numbers, by plain loops; images by class and bucket."""
    n, tokens, features = z.shape
    zero = LayerSums.zeros(n_tokens=tokens, n_prefix=PREFIX, n_features=features, n_classes=CLASSES)
    generator = torch.Generator().manual_seed(7)
    for i in range(n):
        fixed = (z[i] / exact.UNIT).round().long()
        mean = (z[i].mean(0) / exact.UNIT).round().long()
        order = torch.randperm(tokens - PREFIX, generator=generator) + PREFIX
        zero.n_active += (z[i] > 0).sum(0)
        zero.prefix_active += (z[i, :PREFIX] > 0).long()
        zero.n_images += (z[i] > 0).any(0).long()
        zero.position += fixed
        zero.position_shuffled += torch.cat([fixed[:PREFIX], fixed[order]])
        zero.squares += (z[i, PREFIX:].square() / exact.SQUARE_UNIT).round().long().sum(0)
        zero.image_mean += mean
        zero.image_squares += (z[i].mean(0).square() / exact.IMAGE_SQUARE_UNIT).round().long()
        if labels[i] >= 0:
            zero.class_mean[labels[i]] += mean
            zero.bucket_mean[buckets[i]] += mean
        for f, b in product(range(features), [exact.bin_index(z[i].float())]):
            for t in range(tokens):
                zero.histogram[f, b[t, f]] += int(z[i, t, f] > 0)
    per_class = torch.tensor([labels.count(c) for c in range(CLASSES)])
    known = torch.tensor([b for b, label in zip(buckets, labels, strict=True) if label >= 0])
    return zero, per_class, known.bincount(minlength=len(zero.bucket_mean))


def scored(z: Tensor, labels: list[int]) -> Scores:
    buckets = exact.buckets(torch.arange(len(z)), CLASSES)
    sums, per_class, per_bucket = sums_of(z, labels, buckets.tolist())
    return layer_scores(
        0,
        sums,
        n_images=len(z),
        per_class=per_class,
        per_bucket=per_bucket,
        n_prefix=PREFIX,
    )

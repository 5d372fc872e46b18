"""An atlas's state counted the slow way: from whole traces, one image and feature at a time."""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from PIL import Image

from vitlens.atlas import bins, chance
from vitlens.atlas.pools import EMPTY, Pool
from vitlens.atlas.state import AtlasState, ImageRecord, LayerState
from vitlens.atlas.sums import LayerSums
from vitlens.lens import Lens


def picture(seed: int, side: int = 24) -> Image.Image:
    """Noise, coarser or finer with the seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 2 + seed % 5, 2 + seed % 5, generator=generator)
    pixels = F.interpolate(coarse[None], (side, side), mode="bilinear")[0]
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())


def webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def state_by_hand(
    lens: Lens, numbers: range, *, n_top: int = 3, n_sampled: int = 3, heats: bool = True
) -> AtlasState:
    """Of noise pictures, each its own group, labelled by turns."""
    C, prefix = lens.vision.n_classes, lens.vision.n_prefix
    ids = {n: bins.hash_text(str(n)) for n in numbers}
    traces = {n: lens.trace(picture(n)) for n in numbers}
    label = {n: n % C for n in numbers}
    layers = []
    for layer, sae in enumerate(lens.saes):
        z = torch.stack([traces[n].features[layer].float() for n in numbers])  # images, T, F
        mean = bins.to_fixed(z.mean(1))
        fixed = bins.to_fixed(z)
        order = bins.shuffled_tokens(torch.tensor(list(ids.values())), prefix, z.shape[1])
        shuffled = fixed.gather(1, order.argsort(1)[..., None].expand_as(fixed))
        bucket = chance.buckets(torch.tensor(list(ids.values())), C)
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
                    sums.histogram[f] += bins.bin_index(active).bincount(minlength=bins.N_BINS)
                    sums.peak_histogram[f, bins.bin_index(active.max()[None])] += 1
                    sums.class_active[label[n], f] += 1
            sums.position += fixed[i]
            sums.position_shuffled += shuffled[i]
            sums.squares += bins.squares(fixed[i, prefix:]).sum(0)
            sums.class_mean[label[n]] += mean[i]
            sums.bucket_mean[bucket[i]] += mean[i]
            sums.image_mean += mean[i]
            sums.image_squares += bins.image_squares(mean[i])
            sums.stds += bins.to_fixed(traces[n].stds[layer][:, 0])
        pools = [Pool.empty(k, sae.n_features, n, z.shape[1] if heats else 0)
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
                    if heats:
                        pool.heat[f, place] = (z[i, :, f] / peak * 255).round().byte()
        layers.append(LayerState(sums, *pools))
    state = AtlasState(
        model=lens.fingerprint,
        n_prefix=prefix,
        grid=lens.vision.grid,
        class_names=lens.class_names or (),
        labels_from="data",
        settings={"n_top": n_top},
        layers=tuple(layers),
        n_images=len(numbers),
        per_class=torch.tensor(list(label.values())).bincount(minlength=C),
        per_bucket=chance.buckets(torch.tensor(list(ids.values())), C).bincount(
            minlength=chance.n_buckets(C)
        ),
        final_stream=bins.to_fixed(torch.stack([traces[n].output for n in numbers])).sum(0),
        images={
            ids[n]: ImageRecord(
                key=f"{n}.png",
                path=f"/nowhere/{n}.png",
                label=label[n],
                group=ids[n],
                width=24,
                height=24,
                embedding=traces[n].output[prefix:].mean(0).half(),
                picture=webp(picture(n)),
                credit="noise",
            )
            for n in numbers
        },
        skipped=(("broken.png", "damaged"),),
    )
    state.drop_unused_images()
    assert all(EMPTY not in layer.top.id[layer.sums.n_images >= n_top] for layer in layers)
    return state

"""How fast the atlas's pass is, and how much memory it takes: ``make bench``.

Speed: the bundled model on the sample images, again and again, read from their files; the pass
over all layers against the bare forward pass of the model, in turns within one run, on batches of
the same size. Reading an image is part of both.

Memory: a process of its own over 1,000 and over 10,000 synthetic images, by default with a small
random ViT (192 channels, 4 blocks, 196 patches; the bundled one takes hours on two cores), with
thumbnails and heatmaps, saving as it goes. Peak resident memory includes what the imports and the
model take.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from vitlens.atlas.build import build_state
from vitlens.atlas.reading import Reader, read_batches, stack
from vitlens.atlas.sources import open_source
from vitlens.bundle import load
from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.saes.topk import TopKSAE

AIM = 0.6
MOST_GROWTH = 0.1
_SELF = "tests.benchmarks.atlas"


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        _work(arguments.worker, everyday=arguments.everyday)
        return 0
    fast = _speed(arguments.images, arguments.batch_size, arguments.rounds)
    small = arguments.skip_memory or _memory(arguments.threads, everyday=arguments.everyday)
    return 0 if fast and small else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_SELF}", description=__doc__)
    parser.add_argument("--images", type=int, default=48, metavar="N", help="a round")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="medians count")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument(
        "--everyday", action="store_true", help="measure memory with the bundled model (hours)"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser


def _speed(n_images: int, batch_size: int, rounds: int) -> bool:
    """Compare a pass with the bare model; images a second, medians over rounds in turns."""
    lens = load("everyday")
    paths = [sample.path for sample in lens.samples]
    images = [(paths[n % len(paths)], None) for n in range(n_images)]
    options = {"batch_size": batch_size, "progress": False}
    bare: list[float] = []
    full: list[float] = []
    _bare(lens, images[:batch_size], batch_size)
    build_state(lens, images[:batch_size], **options)
    for _ in range(rounds):
        start = time.perf_counter()
        _bare(lens, images, batch_size)
        middle = time.perf_counter()
        build_state(lens, images, **options)
        end = time.perf_counter()
        bare.append(n_images / (middle - start))
        full.append(n_images / (end - middle))
    ratios = [b / a for a, b in zip(bare, full, strict=True)]
    ratio = float(np.median(ratios))
    print(
        f"{n_images} images of {lens.vision.image_size}, {len(lens.saes)} layers, "
        f"{torch.get_num_threads()} threads, batches of {batch_size}, {rounds} rounds"
    )
    print(f"  bare forward pass  {np.median(bare):6.2f} images a second")
    print(f"  atlas              {np.median(full):6.2f} images a second")
    print(
        f"  ratio              {ratio:6.1%} ({min(ratios):.1%} to {max(ratios):.1%}), "
        f"aim {AIM:.0%}: {'met' if ratio >= AIM else 'MISSED'}"
    )
    return ratio >= AIM


@torch.no_grad()
def _bare(lens: Lens, images: list, batch_size: int) -> None:
    """Read the images the same way and run the model, and nothing else."""
    reader = Reader(lens.transform, lens.vision.image_size, None)
    for batch in read_batches(reader, open_source(images), batch_size):
        where = {"dtype": lens.vision.dtype, "device": lens.vision.device}
        lens.vision.logits(stack(batch, batch_size, lens.vision.image_size, **where))


def _memory(threads: int, *, everyday: bool) -> bool:
    """Compare the peak memory of 1,000 and 10,000 images."""
    peaks = []
    for n_images in (1_000, 10_000):
        command = [sys.executable, "-m", _SELF, "--worker", str(n_images)]
        command += ["--threads", str(threads), *(["--everyday"] if everyday else [])]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks.append(int(out.split()[-1]))
        print(f"  {n_images:6} images: peak {peaks[-1] / 2**20:.0f} MiB", flush=True)
    growth = peaks[1] / peaks[0] - 1
    verdict = "met" if growth <= MOST_GROWTH else "MISSED"
    print(f"  growth {growth:+.1%}, aim within {MOST_GROWTH:.0%}: {verdict}")
    return growth <= MOST_GROWTH


def _work(n_images: int, *, everyday: bool) -> None:
    """Build the state of an atlas and print the peak memory in bytes."""
    lens = load("everyday") if everyday else _small_lens()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "atlas"
        state = build_state(
            lens, _synthetic(n_images), groups=lambda key: key, out=out, progress=False
        )
    assert state.n_images == n_images
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _synthetic(n_images: int) -> Iterator[Image.Image]:
    for number in range(n_images):
        pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        yield Image.fromarray(pixels).resize((112, 112), Image.Resampling.BICUBIC)


def _small_lens() -> Lens:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=112, patch_size=8, embed_dim=192, depth=4, num_heads=3, num_classes=10
    )
    saes = []
    for _ in range(3):
        W_dec = torch.nn.functional.normalize(torch.randn(384, 192), dim=1)
        weights = {"W_enc": W_dec.T.contiguous(), "W_dec": W_dec, "b_dec": torch.zeros(192)}
        saes.append(TopKSAE.from_weights(**weights, k=16))
    transform = Transform(size=(112, 112), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Lens(model.eval(), saes, transform=transform)


if __name__ == "__main__":
    sys.exit(main())

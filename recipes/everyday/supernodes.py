"""Supernodes: how stable they are, and what they look like.

    python -m recipes.everyday.supernodes --images 50
    python -m recipes.everyday.supernodes --images 0 --figures 0 1 2

On composites of the test split (see `images.test_composites`), the groups of an image's circuit are
compared with those of a crop by one patch and of the image with a little noise. Each has its own
circuit of 16 nodes per layer; only features that both keep are compared. The adjusted Rand index
stands next to chance: the same groups with their members permuted. `--figures` draws circuits of
the bundle's sample images. An image takes about 40 seconds of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image

import vitlens
from recipes.everyday.fetch import fetch
from recipes.everyday.images import test_composites
from vitlens.circuits.circuit import Circuit
from vitlens.circuits.curves import Estimate, interval, resamples
from vitlens.circuits.prune import Select
from vitlens.circuits.supernodes import GroupAgreement, agreement
from vitlens.images import ImageLike
from vitlens.plots import circuit_figure, save_figure

OUT = Path("build/everyday/supernodes")
NODES = 16  # per layer
NOISE = 5.0  # standard deviation, in levels of 255

#: GroupAgreement by layer, for each image.
Found = list[tuple[GroupAgreement, ...]]


def crop(image: Image.Image, lens: vitlens.Lens, seed: int) -> Image.Image:
    """Cut off one patch at two sides, drawn at random, and enlarge to the size before."""
    generator = np.random.default_rng([seed, 1])
    left, top = (int(side) for side in generator.integers(2, size=2))
    width, height = image.width // lens.vision.grid[1], image.height // lens.vision.grid[0]
    box = (left * width, top * height)
    box = (*box, box[0] + image.width - width, box[1] + image.height - height)
    return image.crop(box).resize(image.size, Image.Resampling.BICUBIC)


def noise(image: Image.Image, lens: vitlens.Lens, seed: int) -> Image.Image:
    """Add independent noise to every channel of every pixel."""
    pixels = np.asarray(image).astype(np.float64)
    drawn = np.random.default_rng([seed, 2]).normal(0.0, NOISE, pixels.shape)
    return Image.fromarray((pixels + drawn).clip(0, 255).round().astype(np.uint8))


CHANGES: dict[str, Callable[[Image.Image, vitlens.Lens, int], Image.Image]] = {
    "crop by one patch": crop,
    f"noise of {NOISE:g} levels of 255": noise,
}


def main() -> None:
    """Measure, print the table, and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50, help="images (%(default)s)")
    parser.add_argument("--nodes", type=int, default=NODES, help="nodes per layer (%(default)s)")
    parser.add_argument(
        "--select",
        choices=get_args(Select),
        default="eliminate",
        help="how circuits are made (%(default)s)",
    )
    parser.add_argument("--figures", type=int, nargs="*", default=(), help="numbers of samples")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of figures (%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lens = vitlens.load("everyday")
    if given.images:
        fetch()
        print(stability(lens, given.images, nodes=given.nodes, select=given.select))
    for path in draw(lens, given.figures, given.out, nodes=given.nodes, select=given.select):
        print(path)


def stability(
    lens: vitlens.Lens, n: int, *, nodes: int = NODES, select: Select = "eliminate"
) -> str:
    """Measure `n` images, and return the table."""
    found: dict[str, Found] = {change: [] for change in CHANGES}
    sizes = []
    for number, pixels in enumerate(test_composites(n, seed=4).pixels):
        image = Image.fromarray(pixels)
        first = grouped(lens, image, nodes, select)
        sizes.append(len(first.groups) / len(first.layers))
        for change, function in CHANGES.items():
            changed = function(image, lens, number)
            second = grouped(lens, changed, nodes, select, target=first.target_index)
            found[change].append(agreement(first, second, seed=number))
    lines = [
        f"{n} images, {nodes} nodes per layer by {select!r}, {np.mean(sizes):.1f} groups per layer",
        "",
        "| change | features kept by both | adjusted Rand index | permuted |",
        "| --- | ---: | ---: | ---: |",
    ]
    for change, images in found.items():
        kept, index, chance = (_over_images(images, of) for of in ("kept", "index", "chance"))
        lines.append(f"| {change} | {kept.value:.0%} | {index} | {chance.value:.3f} |")
    for change, images in found.items():
        by_layer = zip(*images, strict=True)
        each = [f"{one[0].layer}: {np.nanmean([a.index for a in one]):.2f}" for one in by_layer]
        lines += ["", f"{change}, by layer: {', '.join(each)}"]
    return "\n".join(lines)


def draw(
    lens: vitlens.Lens,
    samples: Sequence[int],
    out: Path = OUT,
    *,
    nodes: int = NODES,
    select: Select = "eliminate",
) -> list[Path]:
    """Draw the supernodes of sample images, and return the files."""
    files = []
    for number in samples:
        sample = lens.samples[number]
        circuit = grouped(lens, sample, nodes, select)
        files.append(out / f"{sample.path.stem}.png")
        out.mkdir(parents=True, exist_ok=True)
        save_figure(circuit_figure(circuit, supernodes=True), files[-1])
    return files


def grouped(
    lens: vitlens.Lens,
    image: ImageLike,
    nodes: int,
    select: Select,
    *,
    target: int | None = None,
) -> Circuit:
    """The circuit of an image, with supernodes."""
    circuit = lens.circuit(image, target=target, select=select, nodes_per_layer=nodes)
    return lens.supernodes(circuit, image)


def _over_images(found: Found, name: str) -> Estimate:
    """The mean over layers, and then over images, with its interval over images."""
    values = np.array([np.nanmean([getattr(layer, name) for layer in one]) for one in found])
    return interval(float(values.mean()), resamples(len(values)) @ values, len(values))


if __name__ == "__main__":
    main()

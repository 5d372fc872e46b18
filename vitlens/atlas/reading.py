"""From a source of images to batches of model inputs, read ahead of the model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from vitlens.atlas.image_store import encode
from vitlens.atlas.sources import Item, Label, Source
from vitlens.errors import ImageError
from vitlens.images import Transform, open_image, to_tensor

_BATCHES_AHEAD = 2
_MOST_THREADS = 8


@dataclass(frozen=True)
class Ready:
    """An image that has been read.

    Attributes
    ----------
    position, item
        Its position in the source, and its item.
    tensor
        The model's input, on the CPU.
    label
        Its label according to the source.
    size
        Width and height of the original.
    thumbnail
        A small version, where the model's input cannot be turned back into an image.
    """

    position: int
    item: Item
    tensor: Float[Tensor, "3 H W"]
    label: Label
    size: tuple[int, int]
    thumbnail: Image.Image | None


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, and why."""

    item: Item
    why: str


@dataclass(frozen=True)
class Reader:
    """Reads items as inputs of one model.

    Attributes
    ----------
    transform
        From an image to the model's input, that of the lens.
    image_size
        Height and width of the model's input.
    side
        Longest side of thumbnails in pixels; None when none are stored.
    """

    transform: Callable[[Image.Image], Tensor]
    image_size: tuple[int, int]
    side: int | None

    def read(self, position: int, item: Item) -> Ready | Unreadable:
        """Read one image; every failure is returned, none is raised."""
        try:
            return self._ready(position, item)
        except Exception as error:  # files, decoders and data sets of others may raise anything
            why = (
                str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
            )
            return Unreadable(item, why.replace(item.path, item.key) if item.path else why)

    def _ready(self, position: int, item: Item) -> Ready:
        image, label = item.read()
        pil = None
        if not (isinstance(image, Tensor) and image.is_floating_point()):
            image = pil = open_image(image)
        tensor = to_tensor(image, self.transform).cpu()
        if tuple(tensor.shape[1:]) != self.image_size:
            height, width = self.image_size
            raise ImageError(
                f"The model takes images of {height} × {width}, this one is "
                f"{tensor.shape[1]} × {tensor.shape[2]}."
            )
        size = pil.size if pil else (tensor.shape[2], tensor.shape[1])
        thumbnail = None
        if self.side is not None and pil and not isinstance(self.transform, Transform):
            thumbnail = ImageOps.fit(pil, self._stored_size(self.side))
        return Ready(position, item, tensor, label, size, thumbnail)

    def thumbnail(self, ready: Ready, quality: int) -> bytes | None:
        """The thumbnail to store: what the model sees, as WebP.

        A WebP file that has the input's size already is stored as it is, so that it gives the
        same activations when it is read again.
        """
        if self.side is None:
            return None
        size = self._stored_size(self.side)
        path = Path(ready.item.path)
        if size == ready.size == self.image_size[::-1] and path.suffix.lower() == ".webp":
            return path.read_bytes()
        if isinstance(self.transform, Transform):
            seen = self.transform.to_pil(ready.tensor)
            small = seen if seen.size == size else seen.resize(size, Image.Resampling.LANCZOS)
        elif ready.thumbnail is not None:
            small = ready.thumbnail
        else:
            return None
        return encode(small, quality=quality)

    def _stored_size(self, side: int) -> tuple[int, int]:
        """Width and height of the model's input, made no longer than `side`."""
        height, width = self.image_size
        scale = min(1.0, side / max(height, width))
        return max(1, round(width * scale)), max(1, round(height * scale))


def read_batches(
    reader: Reader,
    source: Source,
    batch_size: int,
    *,
    part: tuple[int, int] = (0, 1),
    start: int = 0,
) -> Generator[list[Ready | Unreadable], None, None]:
    """Yield batches of images, a few of them read ahead.

    Batch b holds the items from ``b * batch_size`` on, readable or not, so that an image is in the
    same place of the same batch whatever happens to the others.

    Parameters
    ----------
    part
        (i, n): only the batches i, i + n, i + 2 n, ...
    start
        Batches of the part to skip at the beginning; their images are not read.
    """
    wanted = islice(_batched(source, batch_size), part[0] + start * part[1], None, part[1])
    if not source.parallel:
        for batch in wanted:
            yield [reader.read(position, item) for position, item in batch]
        return
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="vitlens-images")
    try:
        ahead: deque[list[Future[Ready | Unreadable]]] = deque()
        for batch in wanted:
            ahead.append([pool.submit(reader.read, *entry) for entry in batch])
            if len(ahead) > _BATCHES_AHEAD:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def count_images(source: Source, batch_size: int, part: tuple[int, int]) -> int | None:
    """Images of a part, where the source knows how many it has."""
    if source.length is None:
        return None
    starts = range(part[0] * batch_size, source.length, part[1] * batch_size)
    return sum(min(batch_size, source.length - start) for start in starts)


def _batched(source: Source, size: int) -> Iterator[list[tuple[int, Item]]]:
    items = enumerate(source.items())
    while batch := list(islice(items, size)):
        yield batch


def stack(
    batch: Sequence[Ready | Unreadable],
    batch_size: int,
    image_size: tuple[int, int],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Float[Tensor, "n 3 H W"]:
    """A batch as one tensor, of the same shape for every batch; missing images are 0."""
    images = torch.zeros(batch_size, 3, *image_size, dtype=dtype)
    for row, entry in enumerate(batch):
        if isinstance(entry, Ready):
            images[row] = entry.tensor
    return images.to(device)

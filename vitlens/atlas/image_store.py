"""The images that an atlas refers to: their records and embeddings, and small thumbnails.

While an atlas is built, records are in an `ImageTable`. In a saved atlas thumbnails are in one
safetensors file and read one at a time.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float16
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitlens.errors import CheckpointError, ImageError
from vitlens.io import write_tensors

#: WebP quality from 0 to 100; at 80 artefacts are hard to see at this size.
QUALITY = 80

_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that some pool holds.

    Attributes
    ----------
    key
        Its name: the path within the folder, or a number.
    path
        The absolute path of the file; "" where there is none.
    label
        Its class, or -1 without one.
    group
        Number of its group; images of one group count as one.
    width, height
        Size of the original, in pixels.
    embedding
        The model's pooled output; where this has another width than the model, the mean of the
        patch tokens of the last stream after the final norm; float16 [D].
    thumbnail
        The image as the model sees it, encoded as WebP; None when thumbnails are not kept.
    credit
        Author and licence, if attribution is required.
    """

    key: str
    path: str
    label: int
    group: int
    width: int
    height: int
    embedding: Float16[Tensor, " D"]
    thumbnail: bytes | None = None
    credit: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """A record whose bytes are in a block, the embedding before the thumbnail."""

    key: str
    path: str
    credit: str
    label: int
    group: int
    width: int
    height: int
    block: mmap.mmap
    start: int
    embedding_bytes: int
    thumbnail_bytes: int


class ImageTable(MutableMapping[int, ImageRecord]):
    """Image records by id.

    Embeddings and thumbnails lie in few large blocks of their own. As thousands of small pieces of
    ordinary memory, between the large ones that come and go with each batch, they would leave
    holes that no tensor fits in: the process would grow by many times their size.
    """

    def __init__(self, records: Mapping[int, ImageRecord] | None = None):
        self._rows: dict[int, _Row] = {}
        self._block: mmap.mmap | None = None
        self._used = 0  # bytes of the current block
        self._stored = 0  # bytes of all blocks, with those of dropped images
        for image, record in (records or {}).items():
            self[image] = record

    @classmethod
    def of(cls, records: Mapping[int, ImageRecord]) -> ImageTable:
        """A table of any records; a table is returned as it is."""
        return records if isinstance(records, cls) else cls(records)

    def __getitem__(self, image: int) -> ImageRecord:
        row = self._rows[image]
        middle = row.start + row.embedding_bytes
        embedding = bytearray(row.block[row.start : middle])
        return ImageRecord(
            key=row.key,
            path=row.path,
            label=row.label,
            group=row.group,
            width=row.width,
            height=row.height,
            embedding=torch.frombuffer(embedding, dtype=torch.float16),
            thumbnail=row.block[middle : middle + row.thumbnail_bytes] or None,
            credit=row.credit,
        )

    def __setitem__(self, image: int, record: ImageRecord) -> None:
        embedding = record.embedding.detach().to("cpu", torch.float16).contiguous()
        vector = embedding.view(torch.uint8).numpy().tobytes()
        thumbnail = record.thumbnail or b""
        block, start = self._put(vector + thumbnail)
        self._rows[image] = _Row(
            key=record.key,
            path=record.path,
            credit=record.credit,
            label=record.label,
            group=record.group,
            width=record.width,
            height=record.height,
            block=block,
            start=start,
            embedding_bytes=len(vector),
            thumbnail_bytes=len(thumbnail),
        )

    def __delitem__(self, image: int) -> None:
        del self._rows[image]

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def keep(self, images: set[int]) -> None:
        """Drop all other images, and order those kept by their ids.

        Raises
        ------
        KeyError
            If one of them is missing.
        """
        self._rows = {image: self._rows[image] for image in sorted(images)}
        needed = sum(row.embedding_bytes + row.thumbnail_bytes for row in self._rows.values())
        if self._stored > 2 * needed + _BLOCK_BYTES:  # a block lives as long as one of its rows
            rows, self._rows = self._rows, {}
            self._block, self._stored = None, 0
            for image, row in rows.items():
                data = row.block[row.start : row.start + row.embedding_bytes + row.thumbnail_bytes]
                block, start = self._put(data)
                self._rows[image] = replace(row, block=block, start=start)

    def _put(self, data: bytes) -> tuple[mmap.mmap, int]:
        if self._block is None or self._used + len(data) > len(self._block):
            self._block, self._used = mmap.mmap(-1, max(_BLOCK_BYTES, len(data))), 0
        start = self._used
        self._block[start : start + len(data)] = data
        self._used += len(data)
        self._stored += len(data)
        return self._block, start


class Thumbnails(Protocol):
    """Encoded thumbnails by row of an atlas's image table."""

    def get(self, row: int) -> bytes | None:
        """The thumbnail's bytes, None if none is stored."""
        ...

    def __len__(self) -> int: ...


class ThumbnailsInMemory:
    """Thumbnails of an atlas that is not on disk yet."""

    def __init__(self, encoded: Sequence[bytes | None]):
        self._encoded = tuple(encoded)

    def get(self, row: int) -> bytes | None:
        """The thumbnail's bytes, None if none is stored."""
        return self._encoded[row]

    def __len__(self) -> int:
        return len(self._encoded)


class ThumbnailFile:
    """Thumbnails in a file written by `write_thumbnails`; opened at the first request.

    Raises
    ------
    CheckpointError
        On the first request, when the file is missing, damaged or of another number of images.
    """

    def __init__(self, path: str | Path, n: int):
        self._path, self._n = Path(path), n
        self._ends: list[int] | None = None

    def get(self, row: int) -> bytes | None:
        """The thumbnail's bytes, None if none is stored."""
        if not 0 <= row < self._n:
            raise IndexError(f"There are {self._n} thumbnails; there is no thumbnail {row}.")
        if not self._path.is_file():
            raise CheckpointError(f"There is no file {self._path}.")
        try:
            with safe_open(self._path, framework="pt") as file:
                if self._ends is None:
                    self._ends = self._checked(file.get_tensor("ends"), file)
                start = self._ends[row - 1] if row else 0
                piece = file.get_slice("bytes")[start : self._ends[row]]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._path} is damaged: {error}.") from error
        return bytes(piece.numpy()) or None

    def __len__(self) -> int:
        return self._n

    def _checked(self, ends: Tensor, file: safe_open) -> list[int]:
        positions = [int(end) for end in ends]
        total = file.get_slice("bytes").get_shape()[0]
        if (
            len(positions) != self._n
            or positions != sorted(positions)
            or positions[-1:] not in ([], [total])
        ):
            raise CheckpointError(
                f"{self._path} does not hold the {self._n} thumbnails of this atlas."
            )
        return positions


def write_thumbnails(path: str | Path, thumbnails: Thumbnails) -> None:
    """Write thumbnails to one file; missing ones take no space."""
    encoded = [thumbnails.get(row) or b"" for row in range(len(thumbnails))]
    lengths = torch.tensor([len(data) for data in encoded], dtype=torch.int64)
    joined = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
    write_tensors(path, {"bytes": joined[: int(lengths.sum())], "ends": lengths.cumsum(0)}, {})


def encode(image: Image.Image, *, quality: int = QUALITY) -> bytes:
    """Encode an image as WebP."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    """Decode a stored image; raises `ImageError` when it is damaged."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ImageError(f"A stored image is damaged: {error}.") from error

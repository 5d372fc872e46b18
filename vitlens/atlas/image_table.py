"""The images that an atlas refers to, kept so that memory does not fray."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float16
from torch import Tensor

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
        Of the original, in pixels.
    embedding
        The model's pooled output, or where this is not of the model's width the mean of the
        patch tokens of the last stream after the final norm; float16 [D].
    picture
        The picture as the model sees it, encoded as WebP; None when pictures are not kept.
    credit
        Who made it, if that must be said.
    """

    key: str
    path: str
    label: int
    group: int
    width: int
    height: int
    embedding: Float16[Tensor, " D"]
    picture: bytes | None = None
    credit: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """A record whose bytes are in a block, the embedding before the picture."""

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
    picture_bytes: int


class ImageTable(MutableMapping[int, ImageRecord]):
    """Image records by id.

    Embeddings and pictures lie in few large blocks of their own. As thousands of small pieces of
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
        """A table of any records; one that is a table already as it is."""
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
            picture=row.block[middle : middle + row.picture_bytes] or None,
            credit=row.credit,
        )

    def __setitem__(self, image: int, record: ImageRecord) -> None:
        embedding = record.embedding.detach().to("cpu", torch.float16).contiguous()
        vector = embedding.view(torch.uint8).numpy().tobytes()
        picture = record.picture or b""
        block, start = self._put(vector + picture)
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
            picture_bytes=len(picture),
        )

    def __delitem__(self, image: int) -> None:
        del self._rows[image]

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def keep(self, images: set[int]) -> None:
        """Drop all other images; those kept are in the order of their ids from now on.

        Raises
        ------
        KeyError
            If one is not there.
        """
        self._rows = {image: self._rows[image] for image in sorted(images)}
        needed = sum(row.embedding_bytes + row.picture_bytes for row in self._rows.values())
        if self._stored > 2 * needed + _BLOCK_BYTES:  # a block lives as long as one of its rows
            rows, self._rows = self._rows, {}
            self._block, self._stored = None, 0
            for image, row in rows.items():
                data = row.block[row.start : row.start + row.embedding_bytes + row.picture_bytes]
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

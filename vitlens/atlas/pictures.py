"""The picture store: many small WebP pictures in one safetensors file, read one at a time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitlens.errors import CheckpointError, ImageError
from vitlens.io import write_tensors

#: WebP's scale from 0 to 100; at 80 artefacts are hard to see at this size.
QUALITY = 80


class Pictures(Protocol):
    """Encoded pictures by row of an atlas's image table."""

    def get(self, row: int) -> bytes | None:
        """The picture's bytes, None if none is stored."""
        ...

    def __len__(self) -> int: ...


class PicturesInMemory:
    """Pictures of an atlas that is not on disk yet."""

    def __init__(self, encoded: Sequence[bytes | None]):
        self._encoded = tuple(encoded)

    def get(self, row: int) -> bytes | None:
        """The picture's bytes, None if none is stored."""
        return self._encoded[row]

    def __len__(self) -> int:
        return len(self._encoded)


class PictureFile:
    """Pictures in a file written by `write_pictures`; opened at the first one asked for.

    Raises
    ------
    CheckpointError
        On the first use, when the file is missing, damaged or of another number of pictures.
    """

    def __init__(self, path: str | Path, n: int):
        self._path, self._n = Path(path), n
        self._ends: list[int] | None = None

    def get(self, row: int) -> bytes | None:
        """The picture's bytes, None if none is stored."""
        if not 0 <= row < self._n:
            raise IndexError(f"There are {self._n} pictures, no number {row}.")
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
        places = [int(end) for end in ends]
        total = file.get_slice("bytes").get_shape()[0]
        if len(places) != self._n or places != sorted(places) or places[-1:] not in ([], [total]):
            raise CheckpointError(
                f"{self._path} does not hold the {self._n} pictures of this atlas."
            )
        return places


def write_pictures(path: str | Path, pictures: Pictures) -> None:
    """Write pictures to one file; those that are missing take no room."""
    encoded = [pictures.get(row) or b"" for row in range(len(pictures))]
    lengths = torch.tensor([len(data) for data in encoded], dtype=torch.int64)
    joined = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
    write_tensors(path, {"bytes": joined[: int(lengths.sum())], "ends": lengths.cumsum(0)}, {})


def encode(picture: Image.Image, *, quality: int = QUALITY) -> bytes:
    """A picture as WebP bytes."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    """A picture of its bytes; raises `ImageError` when they are damaged."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ImageError(f"A stored picture is damaged: {error}.") from error

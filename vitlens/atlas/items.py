"""An image of a source that has not been read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from vitlens.images import ImageLike

#: Files that are taken for images when a folder or a shard is searched.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

Label = int | str | None


class Loaded(NamedTuple):
    """What reading an item gives."""

    image: ImageLike
    label: Label = None


@dataclass(frozen=True)
class Item:
    """An image that has not been read yet.

    Attributes
    ----------
    key
        Its name within the source.
    read
        Reads it; raises whatever goes wrong.
    path
        The file it is in, or "".
    """

    key: str
    read: Callable[[], Loaded]
    path: str = ""

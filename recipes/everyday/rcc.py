"""The pictures inside the Qt resource files (.rcc) of gcompris-qt-data."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

# Activities whose pictures are photographs; the others hold drawings and paintings.
ACTIVITIES = (
    "categorization", "clickgame", "erase", "explore_farm_animals", "explore_monuments",
    "explore_world_animals", "explore_world_music",
)  # fmt: skip
_LEAST_BYTES = 4000


def unpack(package: Path, out: Path) -> None:
    """Write the WebP pictures of these activities, named by activity and place, into a folder.

    Qt stores files that are compressed already as they are, so that a picture is found by its
    RIFF header, which tells its length. The smallest are drawings.
    """
    for resources in sorted(package.rglob("*.rcc")):
        if resources.stem in ACTIVITIES:
            for number, picture in enumerate(_webp(resources.read_bytes())):
                (out / f"{resources.stem}-{number:03d}.webp").write_bytes(picture)


def _webp(data: bytes) -> Iterator[bytes]:
    for header in re.finditer(rb"RIFF(....)WEBP", data, re.DOTALL):
        (size,) = struct.unpack("<I", header.group(1))
        if size >= _LEAST_BYTES:
            yield data[header.start() : header.start() + 8 + size]

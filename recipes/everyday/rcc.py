"""Images inside the Qt resource files (.rcc) of gcompris-qt-data."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

# Activities whose images are photographs; the others have drawings and paintings.
ACTIVITIES = (
    "categorization", "clickgame", "erase", "explore_farm_animals", "explore_monuments",
    "explore_world_animals", "explore_world_music",
)  # fmt: skip
_LEAST_BYTES = 4000


def unpack(package: Path, out: Path) -> None:
    """Write the WebP images of these activities into a folder, named by activity and number.

    Qt stores compressed files unchanged, so an image is found by its RIFF header, which holds its
    length. The smallest images are drawings.
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

"""Webdataset shards: uncompressed tar files of pictures, each with a label perhaps."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vitlens.atlas.items import SUFFIXES, Item, Label, Loaded
from vitlens.errors import ImageError


def check_shard(shard: Path) -> None:
    """Raise `ImageError` when a file is no uncompressed tar file."""
    try:
        with tarfile.open(shard, "r:"):
            pass
    except tarfile.ReadError as error:
        raise ImageError(f"{shard} is no uncompressed tar file, or is damaged.") from error


def shard_items(shard: Path, name: str) -> Iterator[Item]:
    """Samples of a shard: neighbouring files whose names agree up to the first dot."""
    members = ((_sample_name(m.name), m) for m in _members(shard, name))
    for sample, files in itertools.groupby(members, key=lambda pair: pair[0]):
        by_ending: dict[str, tuple[int, int]] = {}
        broken = ""
        for _, member in files:
            if isinstance(member, _Broken):
                broken = member.why
            else:
                ending = member.name.rpartition("/")[2].partition(".")[2].lower()
                by_ending[ending] = (member.offset_data, member.size)
        if broken or any(f".{end.rpartition('.')[2]}" in SUFFIXES for end in by_ending):
            yield Item(
                f"{name}/{sample}", partial(_read_sample, shard, by_ending, broken), str(shard)
            )


_REST = "(the rest)"


class _Broken(NamedTuple):
    """Stands for the rest of a shard that cannot be read."""

    name: str
    why: str


def _members(shard: Path, name: str) -> Iterator[tarfile.TarInfo | _Broken]:
    with tarfile.open(shard, "r:") as archive:
        try:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or the list grows with the shard
                if member.isfile():
                    yield member
            if shard.stat().st_size % tarfile.BLOCKSIZE:  # which tarfile takes for the end
                yield _Broken(_REST, "the shard is cut off")
        except (tarfile.TarError, OSError, EOFError) as error:
            yield _Broken(_REST, f"the shard is damaged: {error}")


def _sample_name(member: str) -> str:
    folder, slash, file = member.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _read_sample(shard: Path, files: dict[str, tuple[int, int]], broken: str) -> Loaded:
    if broken:
        raise ImageError(broken)
    content = {}
    with shard.open("rb") as archive:
        for ending, (offset, size) in files.items():
            archive.seek(offset)
            content[ending] = archive.read(size)
    picture = next(
        data for end, data in content.items() if f".{end.rpartition('.')[2]}" in SUFFIXES
    )
    return Loaded(Image.open(io.BytesIO(picture)), _sample_label(content))


def _sample_label(content: dict[str, bytes]) -> Label:
    if "cls" in content:
        text = content["cls"].decode("utf-8", "replace").strip()
        return int(text) if text.removeprefix("-").isdigit() else text
    if "json" in content:
        try:
            about = json.loads(content["json"])
        except ValueError:
            return None
        label = about.get("label", about.get("cls")) if isinstance(about, dict) else about
        return label if isinstance(label, int | str) else None
    return None

"""Any source of images as one stream of named items, read only when they are wanted."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vitlens.atlas.items import SUFFIXES, Item, Loaded
from vitlens.atlas.shards import check_shard, shard_items
from vitlens.errors import ImageError


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes
    ----------
    items
        Gives an iterator over all items, in the source's order.
    length
        How many there are, where that is known.
    labelled
        The items bring labels.
    class_names
        What integer labels stand for, where the source says so.
    parallel
        Items can be read in several threads.
    data
        What was given, for looking up its attributes.
    skipped
        Keys of items that are left out, and why.
    """

    items: Callable[[], Iterator[Item]]
    length: int | None
    labelled: bool
    class_names: tuple[str, ...] | None = None
    parallel: bool = False
    data: Any = None
    skipped: tuple[tuple[str, str], ...] = ()


def open_source(images: Any) -> Source:
    """Take any images as a `Source`.

    Parameters
    ----------
    images
        A folder, searched with its subfolders: where every image is in a subfolder, and there
        are two or more, their names are the labels (`torchvision.datasets.ImageFolder`); a file;
        a webdataset shard (``.tar``: pictures, with a label in ``.cls`` or in ``"label"`` of
        ``.json``); a list of these; a list of images; a batch [n, 3, H, W]; a PyTorch data set
        or any iterable of images or of tuples (image, label), or of batches of them; or a
        `Source`. To go on with a pass, or to make it in parts, images must come in the same
        order each time: an image without a path goes by its number.

    Raises
    ------
    ImageError
        If there is no such file, or no image in it.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str | os.PathLike):
        return _from_paths([images])
    if isinstance(images, Image.Image) or (
        isinstance(images, np.ndarray | Tensor) and images.ndim < 4
    ):
        return _from_sequence([images])
    if isinstance(images, list | tuple) and all(isinstance(i, str | os.PathLike) for i in images):
        return _from_paths(images)
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return _from_sequence(images)
    if isinstance(images, Iterable):
        return _from_iterable(images)
    raise ImageError(
        "Images come from a folder, a list, a data set or an iterable, not from "
        f"{type(images).__name__}."
    )


def _from_paths(paths: Sequence[str | os.PathLike[str]]) -> Source:
    if not paths:
        raise ImageError("There are no images: the list is empty.")
    roots = [Path(path).absolute() for path in paths]
    files: list[Path] = []
    for given, root in zip(paths, roots, strict=True):
        if not root.exists():
            raise ImageError(f"There is no file or folder {os.fspath(given)}.")
        files += _inside(root, given) if root.is_dir() else [root]
    unique = list(dict.fromkeys(files))
    parents = [root if root.is_dir() else root.parent for root in roots]
    base = Path(os.path.commonpath(parents))
    twice = [(_key(file, base), "listed more than once") for file in _repeated(files)]
    shards = [file for file in unique if file.suffix.lower() == ".tar"]
    if shards and len(shards) < len(unique):
        raise ImageError("Shards (.tar) and image files cannot be mixed: give one kind.")
    if shards:
        return _from_shards(shards, base, tuple(twice))
    classes = _class_folders(unique, base) if len(roots) == 1 and roots[0].is_dir() else None
    return Source(
        items=lambda: (_file_item(file, base, labelled=classes is not None) for file in unique),
        length=len(unique),
        labelled=classes is not None,
        class_names=classes,
        parallel=True,
        skipped=tuple(twice),
    )


def _inside(folder: Path, given: str | os.PathLike[str]) -> list[Path]:
    """Image files in a folder, or its shards where it holds no images, in sorted order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for suffixes in (SUFFIXES, {".tar"}):
        found = [path for path in files if path.suffix.lower() in suffixes]
        if found:
            return found
    kinds = " ".join(sorted(SUFFIXES))
    raise ImageError(f"The folder {os.fspath(given)} holds no image ({kinds}) and no shard (.tar).")


def _class_folders(files: Sequence[Path], base: Path) -> tuple[str, ...] | None:
    parts = [file.relative_to(base).parts for file in files]
    names = {part[0] for part in parts}
    if len(names) < 2 or any(len(part) < 2 for part in parts):
        return None
    return tuple(sorted(names))


def _repeated(files: Sequence[Path]) -> list[Path]:
    return [file for file, count in Counter(files).items() if count > 1]


def _key(file: Path, base: Path) -> str:
    return file.relative_to(base).as_posix()


def _file_item(file: Path, base: Path, *, labelled: bool) -> Item:
    label = file.relative_to(base).parts[0] if labelled else None
    return Item(_key(file, base), lambda: Loaded(file, label), str(file))


def _from_sequence(images: Any) -> Source:
    length = len(images)
    if not length:
        raise ImageError("There are no images: the data set is empty.")
    first = _split(_attempt(images, 0))
    if first is not None and _is_batch(first.image) and not isinstance(images, Tensor | np.ndarray):
        return _from_iterable(images[position] for position in range(length))

    def read(position: int) -> Loaded:
        return _split(images[position])

    paths = _paths_of(images)

    def items() -> Iterator[Item]:
        for position in range(length):
            key, path = paths[position] if paths else (str(position), "")
            yield Item(key, partial(read, position), path)

    return Source(
        items=items,
        length=length,
        labelled=first is not None and first.label is not None,
        class_names=_classes_of(images),
        data=images,
    )


def _paths_of(images: Any) -> list[tuple[str, str]] | None:
    """Key and path of each item, for ``(path, label)`` pairs and torchvision's folders."""
    pairs = images if isinstance(images, list | tuple) else getattr(images, "samples", None)
    if not isinstance(pairs, list | tuple) or len(pairs) != len(images):
        return None
    if not all(isinstance(p, tuple | list) and p and isinstance(p[0], str | Path) for p in pairs):
        return None
    files = [Path(pair[0]).absolute() for pair in pairs]
    if len(set(files)) < len(files):
        return None
    base = Path(os.path.commonpath([file.parent for file in files]))
    return [(_key(file, base), str(file)) for file in files]


def _attempt(images: Any, position: int) -> Any:
    """An item, or None when it cannot be read: that is told when its turn comes."""
    try:
        return images[position]
    except Exception:
        return None


def _from_iterable(images: Iterable[Any]) -> Source:
    iterator = iter(images)
    try:
        first = next(iterator)
    except StopIteration:
        raise ImageError("There are no images: the iterable is empty.") from None
    each = itertools.chain.from_iterable(map(_unbatched, itertools.chain([first], iterator)))

    def items() -> Iterator[Item]:
        for position, loaded in enumerate(each):
            yield Item(str(position), partial(_same, loaded))

    data = getattr(images, "dataset", images)
    batches = _is_batch(_split(first).image)
    try:
        length = None if batches else len(images)  # type: ignore[arg-type]
    except TypeError:
        length = None
    return Source(
        items=items,
        length=length,
        labelled=_split(first).label is not None,
        class_names=_classes_of(data),
        data=data,
    )


def _same(loaded: Loaded) -> Loaded:
    return loaded


def _split(item: Any) -> Loaded:
    """Take image and label apart."""
    if isinstance(item, tuple | list):
        if not item:
            raise ImageError("An item of the data set is empty.")
        return Loaded(item[0], _plain(item[1]) if len(item) > 1 else None)
    if isinstance(item, dict):
        image = next(
            (item[name] for name in ("image", "pixel_values", "img") if name in item), None
        )
        if image is None:
            raise ImageError(f"An item has no image: its fields are {', '.join(map(str, item))}.")
        return Loaded(image, _plain(item.get("label")))
    return Loaded(item)


def _unbatched(item: Any) -> Iterator[Loaded]:
    image, label = _split(item)
    if not _is_batch(image):
        yield Loaded(image, label)
        return
    batch: Any = image
    labels: Any = label if label is not None else [None] * len(batch)
    for one, its_label in zip(batch, labels, strict=True):
        yield Loaded(one, _plain(its_label))


def _is_batch(image: Any) -> bool:
    return isinstance(image, Tensor | np.ndarray) and image.ndim == 4 and len(image) != 1


def _plain(label: Any) -> Any:
    """Numbers of torch and numpy as Python's own; a batch of labels as it is."""
    if isinstance(label, Tensor | np.ndarray | np.generic) and label.ndim == 0:
        return label.item()
    return label


def _classes_of(data: Any) -> tuple[str, ...] | None:
    classes = getattr(data, "classes", None)
    if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    return None


def _from_shards(
    shards: Sequence[Path], base: Path, skipped: tuple[tuple[str, str], ...]
) -> Source:
    for shard in shards:
        check_shard(shard)

    def items() -> Iterator[Item]:
        for shard in shards:
            yield from shard_items(shard, _key(shard, base))

    first = next(items(), None)
    if first is None:
        raise ImageError(f"The shard {shards[0]} and those after it hold no image.")
    try:
        labelled = first.read().label is not None
    except ImageError:
        labelled = False
    return Source(items=items, length=None, labelled=labelled, parallel=True, skipped=skipped)

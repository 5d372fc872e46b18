"""Any source of images as one stream of named items, with their labels.

An item is read only when it is needed. Sources are folders, files, webdataset shards, lists,
tensors, data sets and iterables; labels, groups and credits are given by position, by key or as a
function.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from vitlens.errors import ImageError, TargetError, VitlensError, near_matches
from vitlens.images import ImageLike

if TYPE_CHECKING:
    from vitlens.lens import Lens

#: Files that count as images when a folder or a shard is searched.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

Label = int | str | None


class Loaded(NamedTuple):
    """An image that has been read, and its label."""

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
        Reads it; may raise any exception.
    path
        The file it is in, or "".
    """

    key: str
    read: Callable[[], Loaded]
    path: str = ""


@dataclass(frozen=True)
class Source:
    """A stream of images.

    Attributes
    ----------
    items
        Gives an iterator over all items, in the source's order.
    length
        Number of items, None if it is not known.
    labelled
        The items have labels.
    class_names
        Names of integer labels, None if the source has none.
    parallel
        Items can be read in several threads.
    data
        The object that was given, to look up its attributes.
    skipped
        Keys of items that are left out, and the reasons.
    """

    items: Callable[[], Iterator[Item]]
    length: int | None
    labelled: bool
    class_names: tuple[str, ...] | None = None
    parallel: bool = False
    data: Any = None
    skipped: tuple[tuple[str, str], ...] = ()


def open_source(images: Any) -> Source:
    """Open any images as a `Source`.

    Parameters
    ----------
    images
        A folder, searched with its subfolders: where every image is in a subfolder, and there
        are two or more, their names are the labels (`torchvision.datasets.ImageFolder`); a file;
        a webdataset shard (``.tar``: images, with a label in ``.cls`` or in ``"label"`` of
        ``.json``); a list of these; a list of images; a batch [n, 3, H, W]; a PyTorch data set
        or any iterable of images or of tuples (image, label), or of batches of them; or a
        `Source`. To resume a pass, or to make it in parts, images must come in the same order each
        time: the key of an image without a path is its number.

    Raises
    ------
    ImageError
        If the file does not exist, or contains no image.
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
        f"Images must be a folder, a list, a data set or an iterable, not {type(images).__name__}."
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
    raise ImageError(
        f"The folder {os.fspath(given)} contains no images ({kinds}) and no shards (.tar)."
    )


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
    """An item, or None when it cannot be read: it is reported when its turn comes."""
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
    """Split an item into image and label."""
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
    """Convert a number of torch or numpy to Python; a batch of labels stays as it is."""
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
        raise ImageError(f"The shard {shards[0]} and the shards after it contain no images.")
    try:
        labelled = first.read().label is not None
    except ImageError:
        labelled = False
    return Source(items=items, length=None, labelled=labelled, parallel=True, skipped=skipped)


def check_shard(shard: Path) -> None:
    """Raise `ImageError` unless a file is an uncompressed tar file."""
    try:
        with tarfile.open(shard, "r:"):
            pass
    except tarfile.ReadError as error:
        raise ImageError(f"{shard} is not an uncompressed tar file, or it is damaged.") from error


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


Lookup = Callable[[int, Item], Any]


@dataclass(frozen=True)
class Labels:
    """The classes, and where an image's class comes from.

    Attributes
    ----------
    class_names
        Names of the C classes.
    origin
        "data"; "predictions" of the model; or "none" for a model without a classifier, where all
        images are of one class.
    lookup
        Label by position and item, from the caller; None when the data have the labels.
    numbered
        Names of integer labels.
    """

    class_names: tuple[str, ...]
    origin: str
    lookup: Lookup | None
    numbered: tuple[str, ...]

    def index(self, position: int, item: Item, loaded: Label) -> int:
        """Class of an image, or -1 without one.

        Raises
        ------
        TargetError
            If there is no such class.
        """
        label = loaded if self.lookup is None else self.lookup(position, item)
        if label is None:
            return -1
        if hasattr(label, "item"):
            label = label.item()
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label < len(self.numbered):
                raise TargetError(
                    f"The image {item.key!r} is of class {label}, but there are "
                    f"{len(self.numbered)} classes."
                )
            if self.numbered == self.class_names:
                return label  # two classes may have one name
            label = self.numbered[label]
        if label not in self.class_names:
            raise TargetError(
                f"The image {item.key!r} is of the class {label!r}, which is unknown."
                f"{near_matches(str(label), self.class_names)}"
            )
        return self.class_names.index(label)


def find_labels(lens: Lens, source: Source, labels: Any) -> Labels:
    """Decide which classes there are, and where an image's class comes from.

    Parameters
    ----------
    labels
        None for the labels of the data, or else the model's predictions; "predictions"; the
        name of an attribute of the data set; or labels by position, by key, or as a function of
        the key. A label is an index or a name, or None for an image without one.

    Raises
    ------
    TargetError
        If there are too few or too many labels.
    """
    model_names = _model_names(lens)
    if labels == "predictions" or (labels is None and not source.labelled):
        if model_names is None:
            return Labels(("any",), "none", None, ("any",))
        return Labels(model_names, "predictions", None, model_names)
    lookup = None if labels is None else look_up(labels, source, "labels", TargetError)
    own = labels is None or isinstance(labels, str)  # the data set names its numbers
    names = (source.class_names if own else _names_among(labels)) or model_names or ()
    known = model_names is not None and set(names) <= set(model_names)
    return Labels(model_names if known and model_names else names, "data", lookup, names)


def look_up(given: Any, source: Source, what: str, error: type[VitlensError]) -> Lookup:
    """Turn values per image, given in any way, into a function of position and item.

    Raises
    ------
    VitlensError
        Of the class `error`: if the number of values is not that of the images, or `given` is of
        another type.
    """
    if isinstance(given, str):
        attribute = getattr(source.data, given, None)
        if attribute is None:
            raise error(f"{what} is {given!r}, but the data set has no attribute with that name.")
        given = attribute
    if callable(given):
        return lambda position, item: given(item.key)
    if isinstance(given, Mapping):
        return lambda position, item: given.get(item.key)
    if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise error(f"{what} must be a list, a mapping or a function, not {type(given).__name__}.")
    if source.length is not None and len(given) != source.length:
        raise error(f"{source.length} images need as many {what}, not {len(given)}.")
    return lambda position, item: _at(given, position, what, error)


def _at(given: Sequence[Any], position: int, what: str, error: type[VitlensError]) -> Any:
    if position >= len(given):
        raise error(f"There are more images than {what}: {len(given)}.")
    return given[position]


def _names_among(labels: Any) -> tuple[str, ...] | None:
    """Class names in alphabetical order, if all labels are known and are names."""
    values = labels.values() if isinstance(labels, Mapping) else labels
    if isinstance(labels, str) or not isinstance(labels, Mapping | list | tuple):
        return None
    found = {value for value in values if value is not None}
    if not found or not all(isinstance(value, str) for value in found):
        return None
    return tuple(sorted(found))


def _model_names(lens: Lens) -> tuple[str, ...] | None:
    """Names of the model's classes; None when it has no classifier."""
    headless = lens.vision.head is None and getattr(lens.vision.module, "num_classes", None) == 0
    return None if headless and lens.class_names is None else lens.logit_names

"""Images in groups: each has a class, and an attribute that should not matter for the class."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vitlens.errors import GroupError, near_matches
from vitlens.images import ImageLike

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class GroupedImages:
    """Images, each with a class and an attribute; a *group* is one class with one attribute value.

    Attributes
    ----------
    images
        Paths, PIL images or model inputs; or a sequence that makes them on access.
    labels
        Class of every image as an index into `class_names`, [n].
    attributes
        Attribute value of every image as an index into `attribute_names`, [n].
    class_names, attribute_names
        Names of the classes and of the attribute values.

    Raises
    ------
    GroupError
        If the lengths differ, or a number has no name.
    """

    images: Sequence[ImageLike]
    labels: Int[Tensor, " n"]
    attributes: Int[Tensor, " n"]
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for what, names in (("labels", "class_names"), ("attributes", "attribute_names")):
            object.__setattr__(self, names, tuple(str(name) for name in getattr(self, names)))
            values = _whole_numbers(getattr(self, what), what)
            object.__setattr__(self, what, values)
            if values.shape != (len(self.images),):
                raise GroupError(
                    f"{what} must have one entry for each of the {len(self.images)} images, not "
                    f"{list(values.shape)}."
                )
            n_names = len(getattr(self, names))
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < n_names:
                raise GroupError(
                    f"{what} must be 0 to {n_names - 1} (`{names}` has {n_names} names), not "
                    f"{int(values.min())} to {int(values.max())}."
                )

    @cached_property
    def groups(self) -> Int[Tensor, " n"]:
        """Group of every image, [n]: class x number of attribute values + attribute."""
        return self.labels * len(self.attribute_names) + self.attributes

    @property
    def group_names(self) -> tuple[str, ...]:
        """Name of every group, such as "bird, water"; classes in order, attributes within."""
        return tuple(f"{c}, {a}" for c in self.class_names for a in self.attribute_names)

    @property
    def counts(self) -> Int[Tensor, " G"]:
        """Number of images in every group, [G]."""
        return torch.bincount(self.groups, minlength=len(self.group_names))

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Iterable[int] | Tensor) -> GroupedImages:
        """Select images by index, or by a boolean mask [n]."""
        chosen = torch.as_tensor(index if isinstance(index, Tensor) else list(index))
        chosen = chosen.nonzero().squeeze(1) if chosen.dtype == torch.bool else chosen.long()
        return GroupedImages(
            _Picked(self.images, chosen.tolist()),
            self.labels[chosen],
            self.attributes[chosen],
            self.class_names,
            self.attribute_names,
        )

    def check(self) -> None:
        """Raise `GroupError` unless every combination of class and attribute value has images.

        Raises
        ------
        GroupError
            If there are no images, only one class or attribute value, the attribute is identical to
            the class, or a group is empty.
        """
        if not len(self):
            raise GroupError("There are no images.")
        for what, values, names in (
            ("class", self.labels, self.class_names),
            ("attribute value", self.attributes, self.attribute_names),
        ):
            present = values.unique().tolist()
            if len(present) < 2:
                raise GroupError(
                    f"All {len(self)} images have the same {what}, {names[present[0]]!r}. Groups "
                    f"need at least two."
                )
        counts = self.counts.reshape(len(self.class_names), -1)
        if int((counts > 0).sum(0).max()) == 1 and int((counts > 0).sum(1).max()) == 1:
            raise GroupError(
                "The attribute is identical to the class: every class has its own single "
                "attribute value, so no image separates the two. Add images of the other "
                "combinations."
            )
        empty = [name for name, n in zip(self.group_names, self.counts, strict=True) if n == 0]
        if empty:
            raise GroupError(
                f"No image is in the group{'s' if len(empty) > 1 else ''} "
                f"{'; '.join(map(repr, empty))}. Every class needs images with every attribute "
                "value."
            )

    def __str__(self) -> str:
        counts = zip(self.group_names, self.counts.tolist(), strict=True)
        return f"{len(self)} images: " + "; ".join(f"{name} {n}" for name, n in counts)

    def __repr__(self) -> str:
        return f"GroupedImages({self})"


class _Picked(Sequence[ImageLike]):
    """Some items of a sequence, fetched on access."""

    def __init__(self, items: Sequence[ImageLike], index: list[int]):
        self._items, self._index = items, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return _Picked(self._items, self._index[position])
        return self._items[self._index[position]]

    def __iter__(self) -> Iterator[ImageLike]:
        return (self._items[i] for i in self._index)


def load_waterbirds(folder: str | Path) -> dict[str, GroupedImages]:
    """Read a folder of the Waterbirds layout.

    ``metadata.csv`` has the columns ``img_filename``, ``y`` (0 land bird, 1 water bird), ``place``
    (0 land, 1 water) and ``split`` (0 train, 1 validation, 2 test); images lie in the folder.

    Parameters
    ----------
    folder
        The data set's folder, such as ``waterbird_complete95_forest2water2``.

    Returns
    -------
    dict
        The splits that the file has, of "train", "validation" and "test".

    Raises
    ------
    GroupError
        If the file, a column, a value or an image is missing or wrong.

    Notes
    -----
    Sagawa et al., "Distributionally robust neural networks for group shifts", ICLR 2020.
    """
    path = Path(folder) / "metadata.csv"
    rows = _read_rows(path, ("img_filename", "y", "place", "split"))
    splits = _numbers(path, rows, "split", 3)
    images = _paths(path, rows, "img_filename", Path(folder))
    labels, places = _numbers(path, rows, "y", 2), _numbers(path, rows, "place", 2)
    found = {}
    for number, name in enumerate(_SPLITS):
        index = [i for i, split in enumerate(splits) if split == number]
        if index:
            found[name] = GroupedImages(
                [images[i] for i in index],
                torch.tensor([labels[i] for i in index]),
                torch.tensor([places[i] for i in index]),
                ("landbird", "waterbird"),
                ("land", "water"),
            )
    return found


def load_groups(
    table: str | Path,
    *,
    image: str = "image",
    label: str = "label",
    group: str = "group",
    split: str | None = None,
    folder: str | Path | None = None,
    class_names: Sequence[str] | None = None,
) -> GroupedImages | dict[str, GroupedImages]:
    """Read images, classes and groups from a CSV file.

    Parameters
    ----------
    table
        The CSV file, with a header.
    image, label, group
        Columns with the image's path, its class and its group. The group column holds the
        attribute (such as "water"), or the number of the group as in WILDS: class x number of
        attribute values + attribute.
    split
        Column with the split that an image belongs to; by default all images are one set.
    folder
        Folder that the paths are relative to; by default the CSV file's folder.
    class_names
        Order of the classes, such as the model's; by default they are sorted.

    Returns
    -------
    GroupedImages or dict
        With `split`, one entry per value of that column.

    Raises
    ------
    GroupError
        If the file, a column, a value or an image is missing or wrong.
    """
    path = Path(table)
    columns = (image, label, group) + (() if split is None else (split,))
    rows = _read_rows(path, columns)
    images = _paths(path, rows, image, path.parent if folder is None else Path(folder))
    classes = tuple(class_names or sorted({row[label] for row in rows}, key=_natural))
    unknown = [row[label] for row in rows if row[label] not in classes]
    if unknown:
        raise GroupError(
            f"{path} has the class {unknown[0]!r}, which is not in `class_names`."
            f"{near_matches(unknown[0], classes)}"
        )
    labels = torch.tensor([classes.index(row[label]) for row in rows])
    attributes, names = _attributes([row[group] for row in rows], labels, len(classes))
    whole = GroupedImages(images, labels, attributes, classes, names)
    if split is None:
        return whole
    parts = [row[split] for row in rows]
    return {
        part: whole.subset([i for i, other in enumerate(parts) if other == part])
        for part in sorted(set(parts), key=_natural)
    }


def _attributes(
    groups: list[str], labels: Int[Tensor, " n"], n_classes: int
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Attribute values of a group column, which may number classes and attributes together."""
    names = sorted(set(groups), key=_natural)
    values = torch.tensor([names.index(group) for group in groups])
    n_values, left_over = divmod(len(names), n_classes)
    numbered = all(name.isdigit() for name in names) and n_values > 1 and not left_over
    if numbered and torch.equal(values // n_values, labels):
        return values % n_values, tuple(f"attribute {i}" for i in range(n_values))
    return values, tuple(names)


def _natural(text: str) -> tuple[float, str]:
    """Sort key: numbers by size, before words."""
    return (float(text), "") if text.isdigit() else (float("inf"), text)


def _read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise GroupError(f"There is no file {path}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GroupError(f"{path} cannot be read as CSV: {error}.") from error
    for column in columns:
        if column not in header:
            raise GroupError(
                f"{path} has no column {column!r}; its columns are {', '.join(header) or 'none'}."
                f"{near_matches(column, header)}"
            )
    if not rows:
        raise GroupError(f"{path} has no rows.")
    for number, row in enumerate(rows, start=2):
        missing = [column for column in columns if not row[column]]
        if missing:
            raise GroupError(f"{path}, line {number}: no value for {missing[0]!r}.")
    return rows


def _numbers(path: Path, rows: list[dict[str, str]], column: str, n_values: int) -> list[int]:
    allowed = {str(value): value for value in range(n_values)}
    for number, row in enumerate(rows, start=2):
        if row[column] not in allowed:
            raise GroupError(
                f"{path}, line {number}: {column!r} must be one of {', '.join(allowed)}, not "
                f"{row[column]!r}."
            )
    return [allowed[row[column]] for row in rows]


def _paths(path: Path, rows: list[dict[str, str]], column: str, folder: Path) -> list[Path]:
    images = [folder / row[column] for row in rows]
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise GroupError(
            f"{path} lists {len(missing)} images that do not exist; the first is {missing[0]}."
        )
    return images


def _whole_numbers(values: Any, what: str) -> Int[Tensor, " n"]:
    numbers = torch.as_tensor(values).detach().cpu()
    if numbers.is_floating_point() and numbers.numel():
        raise GroupError(f"{what} must be whole numbers, not {numbers.dtype}.")
    return numbers.long()

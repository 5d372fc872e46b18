"""Which class and which group an image belongs to, as given or found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitlens.atlas.items import Item, Label
from vitlens.atlas.sources import Source
from vitlens.errors import TargetError, VitlensError, near_matches
from vitlens.lens_base import LensBase

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
        What the caller gave, by position and item; None when the data bring the labels.
    numbered
        What integer labels stand for.
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
                    f"The image {item.key!r} is of class {label}, and there are "
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


def find_labels(lens: LensBase, source: Source, labels: Any) -> Labels:
    """Decide which classes there are and where an image's class comes from.

    Parameters
    ----------
    labels
        None for the labels the data bring, or else the model's predictions; "predictions"; the
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
    own = labels is None or isinstance(labels, str)  # the data set says what its numbers mean
    names = (source.class_names if own else _names_among(labels)) or model_names or ()
    known = model_names is not None and set(names) <= set(model_names)
    return Labels(model_names if known and model_names else names, "data", lookup, names)


def look_up(given: Any, source: Source, what: str, error: type[VitlensError]) -> Lookup:
    """Turn what a caller gives for each image into a function of its position and item.

    Raises
    ------
    VitlensError
        Of the class `error`: if there are not as many values as images, or it is nothing that
        gives values.
    """
    if isinstance(given, str):
        attribute = getattr(source.data, given, None)
        if attribute is None:
            raise error(f"{what} is {given!r}, and the data set has no attribute of that name.")
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
    """Class names, in alphabetical order, when all labels are known and are names."""
    values = labels.values() if isinstance(labels, Mapping) else labels
    if isinstance(labels, str) or not isinstance(labels, Mapping | list | tuple):
        return None
    found = {value for value in values if value is not None}
    if not found or not all(isinstance(value, str) for value in found):
        return None
    return tuple(sorted(found))


def _model_names(lens: LensBase) -> tuple[str, ...] | None:
    """Names of the model's classes; None when it has no classifier."""
    headless = lens.vision.head is None and getattr(lens.vision.module, "num_classes", None) == 0
    return None if headless and lens.class_names is None else lens.logit_names

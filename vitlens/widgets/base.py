"""The base of all widgets: the widget class, trait types with a meaning, and binary data.

In Python the trait types hold tuples and dictionaries, in the browser nested lists. A node is
(layer, feature); feature -1 is the layer's error node, -2 the target. Arrays and images travel as
bytes; all numbers are little-endian.
"""

from __future__ import annotations

import base64
import inspect
import io
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anywidget
import numpy as np
import torch
import traitlets as t
from jaxtyping import UInt8
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from vitlens.circuits.circuit import TARGET
from vitlens.errors import FeatureError, OptionError, VitlensError, check_choice
from vitlens.saes.base import FeatureId
from vitlens.widgets.export import STATIC, write_page
from vitlens.widgets.tasks import LatestTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["float32", "float16", "int32", "uint8"]

_LONGEST = 16383  # pixels: the limit of WebP and of a browser's canvas
_SIDE = 448  # pixels of an image's longer side: enough for a page, and small to send

_log = logging.getLogger(__name__)


class Widget(anywidget.AnyWidget):
    """Base of every widget; a subclass names its bundle: ``class X(Widget, bundle="x")``.

    The browser calls ``ask(model, what, payload)``; the method ``_answer_<what>(payload,
    buffers)`` returns a value, or a value and a list of bytes. It may be async.

    Attributes
    ----------
    notice
        A message for the user; the widget shows it until the user closes it.
    progress
        ``{"done": 0..1, "what": text}`` while something is computed, else ``{}``.
    """

    notice = t.Unicode("").tag(sync=True)
    progress = t.Dict().tag(sync=True)

    def __init_subclass__(cls, bundle: str | None = None, **kwargs: Any) -> None:
        if bundle is not None:
            # Text, not paths: anywidget would watch files for changes.
            cls._esm = (STATIC / f"{bundle}.js").read_text("utf-8")
            cls._css = (STATIC / f"{bundle}.css").read_text("utf-8")
        super().__init_subclass__(**kwargs)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        """Set the first values of traits; None stands for the default."""
        self._background: dict[str, LatestTask] = {}
        super().__init__(**{n: value for n, value in (values or {}).items() if value is not None})
        self.on_msg(self._receive)

    def background(self, name: str) -> LatestTask:
        """Return the worker of that name; it shows its errors to the user."""
        if name not in self._background:
            self._background[name] = LatestTask(self.show_error)
        return self._background[name]

    def show_error(self, error: Exception) -> None:
        """Show an exception to the user as a message, and log it with its traceback."""
        _log.error("%s", error, exc_info=error)
        self.progress = {}
        self.notice = describe_error(error)

    def show_progress(self, done: float, what: str) -> None:
        """Show how much of something is done, 0 to 1, and what it is."""
        self.progress = {"done": round(done, 3), "what": what}

    def end_progress(self, *, unless: str) -> None:
        """Hide the progress bar, unless the worker of that name is still busy."""
        if not self.background(unless).busy:
            self.progress = {}

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Set values from the browser; show an error for a value that a trait refuses."""
        try:
            super().set_state(sync_data)
        except (t.TraitError, OptionError) as error:
            self.send_state([name for name in sync_data if self.has_trait(name)])
            self.show_error(error)

    def figure(self) -> Figure:
        """Return what the widget shows as a figure for a page; see `vitlens.plots`."""
        raise NotImplementedError

    def offline_answers(self) -> dict[str, list[tuple[Any, Any]]]:
        """Return the requests an exported page can answer: {what: [(payload, value), ...]}."""
        return {}

    def to_png(self, path: str | Path, *, dpi: int = 160) -> None:
        """Write `figure` as PNG.

        Raises
        ------
        VitlensError
            When the file cannot be written, or its suffix is not ``.png``.
        """
        self._save(path, ".png", dpi)

    def to_svg(self, path: str | Path) -> None:
        """Write `figure` as SVG: vectors, with images and legend inside.

        Raises
        ------
        VitlensError
            When the file cannot be written, or its suffix is not ``.svg``.
        """
        self._save(path, ".svg", 160)

    def to_html(self, path: str | Path, *, title: str = "") -> None:
        """Write the current state of the widget to one self-contained page.

        Parameters
        ----------
        path
            The page; it opens from disk, without a network, and needs no Python.
        title
            Title of the page; by default the widget's name.

        Raises
        ------
        VitlensError
            When the file cannot be written.
        """
        write_page(self, path, title=title or type(self).__name__)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Add a PNG to the view: a notebook without widget state still shows it."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        try:
            png = self._png()
        except FeatureError:  # nothing to draw yet; the view itself says what is missing
            return data, metadata
        except Exception as error:  # the view still works without its PNG
            self.show_error(error)
            return data, metadata
        return {**data, "image/png": base64.b64encode(png).decode()}, metadata

    def _png(self) -> bytes:
        file = io.BytesIO()
        self.figure().savefig(file, format="png", dpi=100, facecolor="white")
        return file.getvalue()

    def _save(self, path: str | Path, suffix: str, dpi: int) -> None:
        from vitlens.plots import save_figure

        if Path(path).suffix.lower() != suffix:
            raise VitlensError(f"This method writes {suffix} files; {path} has another suffix.")
        save_figure(self.figure(), path, dpi=dpi)

    def _receive(self, _: Any, content: Any, buffers: Sequence[Any]) -> Any:
        if not isinstance(content, Mapping) or content.get("vl") != "ask":
            return None
        what, number = str(content.get("what")), content.get("id")
        try:
            answer = getattr(self, f"_answer_{what}", None)
            if answer is None:
                raise VitlensError(f"{type(self).__name__} has no answer to {what!r}.")
            found = answer(content.get("payload"), buffers)
        except Exception as error:
            return self._reply_error(number, error)
        if inspect.isawaitable(found):
            return self._reply_later(number, found)
        return self._reply(number, found)

    def _reply_later(self, number: Any, found: Any) -> None:
        import asyncio

        async def wait() -> None:
            try:
                value = await found
            except Exception as error:
                self._reply_error(number, error)
            else:
                self._reply(number, value)

        try:
            self._task = asyncio.get_running_loop().create_task(wait())
        except RuntimeError:
            asyncio.run(wait())

    def _reply(self, number: Any, found: Any) -> None:
        value, buffers = found if isinstance(found, tuple) else (found, [])
        self.send({"vl": "answer", "id": number, "value": value}, list(buffers))

    def _reply_error(self, number: Any, error: Exception) -> None:
        self.show_error(error)
        self.send({"vl": "answer", "id": number, "error": describe_error(error)})

    def _answer_ping(self, payload: Any, buffers: Sequence[Any]) -> bool:
        return True

    def _answer_cancel(self, payload: Any, buffers: Sequence[Any]) -> bool:
        for worker in self._background.values():
            worker.cancel()
        self.progress = {}
        return True


def describe_error(error: Exception) -> str:
    """Return an exception as a sentence for the user."""
    text = str(error).strip()
    if isinstance(error, VitlensError | t.TraitError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# Trait types


class _JsonTrait(t.TraitType[Any, Any]):
    """A trait that is sent to the browser as JSON, and read back."""

    default_value: Any = None

    def __init__(self, default_value: Any = t.Undefined, **metadata: Any) -> None:
        super().__init__(default_value, **metadata)
        self.tag(sync=True, to_json=self.to_json, from_json=self.from_json)

    def normalize(self, value: Any) -> Any:
        """Return the value in its canonical form, or raise TypeError or ValueError."""
        raise NotImplementedError

    def decode(self, value: Any) -> Any:
        """Return the Python form of a value from the browser; `normalize` checks it later."""
        return value

    def validate(self, obj: Any, value: Any) -> Any:
        """Return the value in its canonical form.

        Raises
        ------
        traitlets.TraitError
            When the value has no such form.
        """
        try:
            return self.normalize(value)
        except (TypeError, ValueError) as error:
            raise t.TraitError(
                f"{type(obj).__name__}.{self.name} must be {self.info()}, not {value!r}."
            ) from error

    def to_json(self, value: Any, owner: Any) -> Any:
        """Return the value as it is sent to the browser."""
        return value

    def from_json(self, value: Any, owner: Any) -> Any:
        """Return the Python form of a value from the browser; `validate` checks it later."""
        try:
            return self.decode(value)
        except (TypeError, ValueError):
            return value  # which `validate` refuses


class Choice(t.Enum[Any]):
    """One of some strings; another value raises `OptionError`, as everywhere."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Return the value.

        Raises
        ------
        OptionError
            When it is not one of the choices.
        """
        check_choice(self.name or "value", value, self.values or ())
        return value


class NodeRef(_JsonTrait):
    """One node, (layer, feature), or None."""

    info_text = "(layer, feature) or None"

    def normalize(self, value: Any) -> FeatureId | None:
        """Return a node or None."""
        return None if value is None else feature_id(value)


class NodeList(_JsonTrait):
    """Nodes, ((layer, feature), ...), without duplicates."""

    info_text = "a list of (layer, feature)"
    default_value: Any = ()

    def normalize(self, value: Any) -> tuple[FeatureId, ...]:
        """Return the nodes in the given order."""
        return tuple(dict.fromkeys(feature_id(node) for node in _items(value)))


class Patches(_JsonTrait):
    """Patches, ((row, column), ...); prefix token i is (-1, i)."""

    info_text = "a list of (row, column), in which prefix token i is (-1, i)"
    default_value: Any = ()

    def normalize(self, value: Any) -> tuple[tuple[int, int], ...]:
        """Return rows and columns in the given order, without duplicates."""
        return tuple(dict.fromkeys(_pair(patch, least=(-1, 0)) for patch in _items(value)))


class Labels(_JsonTrait):
    """Names that people gave to nodes, {(layer, feature): text}."""

    info_text = "a dictionary {(layer, feature): text}"
    default_value: Any = t.Undefined

    def make_dynamic_default(self) -> Any:
        """Return a separate dictionary for every widget."""
        return {}

    def normalize(self, value: Any) -> dict[FeatureId, str]:
        """Return names by node, without empty ones."""
        return {feature_id(k): _text(v) for k, v in _entries(value) if _text(v)}

    def to_json(self, value: Any, owner: Any) -> Any:
        """Return [[layer, feature, text], ...]."""
        return [[*node, text] for node, text in value.items()]

    def decode(self, value: Any) -> Any:
        """Return a dictionary of [[layer, feature, text], ...]."""
        return {(layer, feature): text for layer, feature, text in value}


class Groups(_JsonTrait):
    """Named groups of nodes, {name: ((layer, feature), ...)}; a node is in at most one group."""

    info_text = (
        "a dictionary {name: [(layer, feature), ...]}, without empty or repeated names, and with "
        "each node in at most one group"
    )
    default_value: Any = t.Undefined

    def make_dynamic_default(self) -> Any:
        """Return a separate dictionary for every widget."""
        return {}

    def normalize(self, value: Any) -> dict[str, tuple[FeatureId, ...]]:
        """Return nodes by group name, without empty groups."""
        nodes = NodeList()
        groups: dict[str, tuple[FeatureId, ...]] = {}
        for given, members in _entries(value):
            name = _text(given)
            if not name or name in groups:
                raise ValueError("a name is empty or repeated")
            groups[name] = nodes.normalize(members)
        every = [node for members in groups.values() for node in members]
        if len(every) != len(set(every)):
            raise ValueError("a node is in two groups")
        return {name: members for name, members in groups.items() if members}

    def to_json(self, value: Any, owner: Any) -> Any:
        """Return [[name, [[layer, feature], ...]], ...]."""
        return [[name, members] for name, members in value.items()]

    def decode(self, value: Any) -> Any:
        """Return a dictionary of [[name, nodes], ...]."""
        return dict(value)


class MeasuredEdges(_JsonTrait):
    """Changes of the target, {(node, node): (predicted, measured)}; see `Verification.by_edge`."""

    info_text = "a dictionary {((layer, feature), (layer, feature)): (predicted, measured)}"
    default_value: Any = t.Undefined

    def make_dynamic_default(self) -> Any:
        """Return a separate dictionary for every widget."""
        return {}

    def normalize(self, value: Any) -> dict[tuple[FeatureId, FeatureId], tuple[float, float]]:
        """Return both changes by edge."""
        edges = {}
        for (source, target), (predicted, measured) in _entries(value):
            changes = float(predicted), float(measured)
            if not all(map(math.isfinite, changes)):
                raise ValueError("a change must be a finite number")
            edges[feature_id(source), feature_id(target)] = changes
        return edges

    def to_json(self, value: Any, owner: Any) -> Any:
        """Return [[node, node, predicted, measured], ...]."""
        return [[source, target, *changes] for (source, target), changes in value.items()]

    def decode(self, value: Any) -> Any:
        """Return a dictionary of [[node, node, predicted, measured], ...]."""
        return {
            (tuple(source), tuple(target)): (predicted, measured)
            for source, target, predicted, measured in value
        }


class ImageTraits(t.HasTraits):
    """The traits of every part that shows an image.

    Attributes
    ----------
    image_strip
        One encoded image (WebP or PNG): `n_images` images of equal size, side by side.
    grid
        Rows and columns of patches.
    prefix_names
        Names of the tokens before the patches.
    patches
        The selected patches, ((row, column), ...); prefix token i is (-1, i).
    """

    image_strip = t.Bytes(b"").tag(sync=True)
    n_images = t.Int(1, min=1).tag(sync=True)
    grid = t.Tuple(t.Int(min=1), t.Int(min=1), default_value=(1, 1)).tag(sync=True)
    prefix_names = t.Tuple().tag(sync=True)
    patches = Patches()

    @t.validate("patches")
    def _patches_on_the_grid(self, proposal: Any) -> Any:
        rows, columns = self.grid
        for row, column in proposal.value:
            end = columns if row >= 0 else len(self.prefix_names)
            if row >= rows or column >= end:
                raise t.TraitError(
                    f"There is no patch ({row}, {column}): the grid has {rows} rows and {columns} "
                    f"columns, and {len(self.prefix_names)} tokens come before it."
                )
        return proposal.value


class NodeTraits(t.HasTraits):
    """The traits of every part that shows nodes.

    Attributes
    ----------
    selected, hovered
        One node (layer, feature), or None.
    labels
        Names that people gave to nodes, {(layer, feature): text}.
    """

    selected = NodeRef()
    hovered = NodeRef()
    labels = Labels()


def feature_id(value: Any) -> FeatureId:
    """Return (layer, feature) as a tuple of two int.

    Raises
    ------
    TypeError, ValueError
        When the value is anything else, or the layer or feature is out of range.
    """
    return _pair(value, least=(0, TARGET))


def _pair(value: Any, *, least: tuple[int, int]) -> tuple[int, int]:
    first, second = value
    if any(isinstance(x, bool | str) or int(x) != x for x in (first, second)):
        raise TypeError("two whole numbers are needed")
    if first < least[0] or second < least[1]:
        raise ValueError("a number is too small")
    return int(first), int(second)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, str | bytes | Mapping):
        raise TypeError("a list is needed")
    return list(value)


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if not isinstance(value, Mapping):
        raise TypeError("a dictionary is needed")
    return value.items()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is needed")
    return value.strip()


# Binary data


def to_bytes(values: ArrayLike | Tensor, kind: Kind = "float32") -> bytes:
    """Return numbers as bytes, in row-major order.

    Parameters
    ----------
    values
        Any array or tensor.
    kind
        The type that the browser reads. Numbers outside float16's range are clipped to it.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if kind == "float16":
        array = np.clip(array, -65504, 65504)
    return np.ascontiguousarray(array, dtype=np.dtype(kind).newbyteorder("<")).tobytes()


def from_bytes(data: bytes, kind: Kind = "float32", shape: tuple[int, ...] = (-1,)) -> NDArray[Any]:
    """Return the array of `to_bytes`."""
    return np.frombuffer(data, dtype=np.dtype(kind).newbyteorder("<")).reshape(shape).copy()


def encode_strip(
    images: Sequence[UInt8[Tensor, "H W 3"] | UInt8[NDArray[np.uint8], "H W 3"] | None],
    *,
    side: int = _SIDE,
) -> bytes:
    """Return images side by side as one WebP image.

    Parameters
    ----------
    images
        [H, W, 3] each. All are resized to the size of the first known one; None leaves an empty
        place.
    side
        Upper bound on the pixels of an image's longer side; larger images are made smaller.

    Returns
    -------
    bytes
        Empty when no image is known.
    """
    opened = [None if image is None else Image.fromarray(_pixels(image)) for image in images]
    known = next((image for image in opened if image is not None), None)
    if known is None:
        return b""
    scale = min(
        1.0, side / max(known.size), _LONGEST / (known.width * len(opened)), _LONGEST / known.height
    )
    size = (max(1, int(known.width * scale)), max(1, int(known.height * scale)))
    strip = Image.new("RGB", (size[0] * len(opened), size[1]), (235, 235, 235))
    for index, image in enumerate(opened):
        if image is not None:
            strip.paste(image.resize(size, Image.Resampling.LANCZOS), (index * size[0], 0))
    file = io.BytesIO()
    strip.save(file, "WEBP", quality=90, method=4)
    return file.getvalue()


def decode_strip(data: bytes, n_images: int) -> list[UInt8[Tensor, "H W 3"] | None]:
    """Return the images of `encode_strip`; None for each when the strip is empty."""
    if not data:
        return [None] * n_images
    with Image.open(io.BytesIO(data)) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return list(pixels.chunk(n_images, dim=1))


def _pixels(image: Tensor | NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = image.cpu().numpy() if isinstance(image, Tensor) else image
    return np.ascontiguousarray(array)

"""What all widgets have: a bundle, answers, words for the user, files and pictures."""

from __future__ import annotations

import base64
import inspect
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets as t

from vitlens.errors import FeatureError, VitlensError
from vitlens.widgets.tasks import Latest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATIC = Path(__file__).parent / "static"

_log = logging.getLogger(__name__)


class Widget(anywidget.AnyWidget):
    """Base of every widget; a subclass names its bundle: ``class X(Widget, bundle="x")``.

    The browser asks with ``ask(model, what, payload)``; the method ``_answer_<what>(payload,
    buffers)`` answers with a value, or with a value and a list of bytes. It may be async.

    Attributes
    ----------
    notice
        Words for the user; shown in the widget until they are dismissed.
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

    def __init__(self, **traits: Any) -> None:
        self._background: dict[str, Latest] = {}
        unknown = sorted(name for name in traits if not self.has_trait(name))
        if unknown:
            raise t.TraitError(f"{type(self).__name__} has no trait {', '.join(unknown)}.")
        super().__init__(**traits)
        self.on_msg(self._receive)

    def background(self, name: str) -> Latest:
        """Return the worker of that name; its failures are told to the user."""
        if name not in self._background:
            self._background[name] = Latest(self.tell)
        return self._background[name]

    def tell(self, error: Exception) -> None:
        """Show an exception to the user in words, and log it with its traceback."""
        _log.error("%s", error, exc_info=error)
        self.progress = {}
        self.notice = words(error)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take values from the browser; what a trait refuses is told to the user."""
        try:
            super().set_state(sync_data)
        except t.TraitError as error:
            self.send_state([name for name in sync_data if self.has_trait(name)])
            self.tell(error)

    def figure(self) -> Figure:
        """Return what the widget shows as a figure for a page; see `vitlens.plots`."""
        raise NotImplementedError

    def offline_answers(self) -> dict[str, list[tuple[Any, Any]]]:
        """Return questions an exported page can answer: {what: [(payload, value), ...]}."""
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
        """Write `figure` as SVG: vectors, with pictures and legend inside.

        Raises
        ------
        VitlensError
            When the file cannot be written, or its suffix is not ``.svg``.
        """
        self._save(path, ".svg", 160)

    def to_html(self, path: str | Path, *, title: str = "") -> None:
        """Write the widget as it is now to one self-contained page.

        Parameters
        ----------
        path
            The page; it opens from disk, without a network, and needs no Python.
        title
            Of the page; by default the widget's name.

        Raises
        ------
        VitlensError
            When the file cannot be written.
        """
        from vitlens.widgets.export import write_page

        write_page(self, path, title=title or type(self).__name__)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Add a picture to the view: what a notebook without widget state still shows."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        try:
            picture = self._picture()
        except FeatureError:  # nothing to draw yet; the view itself says what it waits for
            return data, metadata
        except Exception as error:  # a picture that fails must not take the view with it
            self.tell(error)
            return data, metadata
        return {**data, "image/png": base64.b64encode(picture).decode()}, metadata

    def _picture(self) -> bytes:
        file = io.BytesIO()
        self.figure().savefig(file, format="png", dpi=100, facecolor="white")
        return file.getvalue()

    def _save(self, path: str | Path, suffix: str, dpi: int) -> None:
        from vitlens.plots import save_figure

        if Path(path).suffix.lower() != suffix:
            raise VitlensError(f"This writes {suffix} files; {path} has another suffix.")
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
            return self._refuse(number, error)
        if inspect.isawaitable(found):
            return self._reply_later(number, found)
        return self._reply(number, found)

    def _reply_later(self, number: Any, found: Any) -> None:
        import asyncio

        async def wait() -> None:
            try:
                value = await found
            except Exception as error:
                self._refuse(number, error)
            else:
                self._reply(number, value)

        try:
            self._task = asyncio.get_running_loop().create_task(wait())
        except RuntimeError:
            asyncio.run(wait())

    def _reply(self, number: Any, found: Any) -> None:
        value, buffers = found if isinstance(found, tuple) else (found, [])
        self.send({"vl": "answer", "id": number, "value": value}, list(buffers))

    def _refuse(self, number: Any, error: Exception) -> None:
        self.tell(error)
        self.send({"vl": "answer", "id": number, "error": words(error)})

    def _answer_ping(self, payload: Any, buffers: Sequence[Any]) -> bool:
        return True

    def _answer_cancel(self, payload: Any, buffers: Sequence[Any]) -> bool:
        for worker in self._background.values():
            worker.cancel()
        self.progress = {}
        return True


def words(error: Exception) -> str:
    """Return an exception as a sentence for the user."""
    text = str(error).strip()
    if isinstance(error, VitlensError | t.TraitError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

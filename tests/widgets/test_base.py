"""What all widgets have: questions and answers, words for the user, pictures, pages."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import traitlets as t

from vitlens.errors import VitlensError
from vitlens.widgets import PatchHeatmap
from vitlens.widgets.base import STATIC
from vitlens.widgets.export import page

SENT = list[tuple[dict[str, Any], list[bytes]]]


class Asked(PatchHeatmap):
    number = t.Int(0, max=9).tag(sync=True)
    _esm = PatchHeatmap._esm
    _css = PatchHeatmap._css

    def _answer_double(self, payload: dict[str, int], buffers: list[bytes]) -> int:
        return 2 * payload["x"]

    def _answer_echo(self, payload: object, buffers: list[bytes]) -> tuple[str, list[bytes]]:
        return "here", [bytes(b) for b in buffers]

    def _answer_fail(self, payload: object, buffers: list[bytes]) -> None:
        raise VitlensError("The moon is full.")

    async def _answer_later(self, payload: dict[str, bool], buffers: list[bytes]) -> int:
        await asyncio.sleep(0)
        if payload["fail"]:
            raise ValueError("no")
        return 7


@pytest.fixture
def widget(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(None, [[1.0, 2.0]])


def ask(
    widget: Asked, what: str, payload: object = None, buffers: tuple[bytes, ...] = ()
) -> tuple[dict[str, Any], list[bytes]]:
    sent: SENT = []
    widget.send = lambda content, buffers=(): sent.append((content, list(buffers)))
    widget._handle_custom_msg({"vl": "ask", "id": 5, "what": what, "payload": payload}, buffers)
    assert len(sent) == 1
    return sent[0]


def test_an_answer(widget: Asked) -> None:
    assert ask(widget, "double", {"x": 4}) == ({"vl": "answer", "id": 5, "value": 8}, [])


def test_an_answer_with_bytes(widget: Asked) -> None:
    message, buffers = ask(widget, "echo", buffers=(b"abc",))
    assert message["value"] == "here"
    assert buffers == [b"abc"]


def test_an_answer_that_takes_its_time(widget: Asked) -> None:
    assert ask(widget, "later", {"fail": False})[0]["value"] == 7
    assert ask(widget, "later", {"fail": True})[0]["error"] == "ValueError: no"

    async def inside() -> None:
        sent: SENT = []
        widget.send = lambda content, buffers=(): sent.append((content, list(buffers)))
        question = {"vl": "ask", "id": 1, "what": "later", "payload": {"fail": False}}
        widget._handle_custom_msg(question, [])
        await asyncio.sleep(0.05)
        assert sent[0][0]["value"] == 7

    asyncio.run(inside())


def test_an_exception_becomes_words(widget: Asked) -> None:
    assert ask(widget, "fail")[0] == {"vl": "answer", "id": 5, "error": "The moon is full."}
    assert widget.notice == "The moon is full."
    assert "x" in ask(widget, "double", {})[0]["error"]


def test_only_answers_can_be_asked_for(widget: Asked) -> None:
    for what in ("to_html", "__init__", "nothing", None, {"a": 1}):
        assert "has no answer" in ask(widget, what)[0]["error"]


def test_other_messages_are_left_alone(widget: Asked) -> None:
    widget.send = lambda *_: pytest.fail("nothing was asked")
    for message in ({"id": 5}, "text", None, ["vl"]):
        widget._handle_custom_msg(message, [])


def test_cancel(widget: Asked) -> None:
    widget.progress = {"done": 0.5, "what": "edges"}
    worker = widget.background("work")
    assert widget.background("work") is worker
    worker.busy = True
    assert ask(widget, "cancel")[0]["value"] is True
    assert not worker.busy
    assert widget.progress == {}


def test_what_a_trait_refuses_is_told(widget: Asked) -> None:
    widget.set_state({"number": 12})
    assert widget.number == 0
    assert "12" in widget.notice


def test_unknown_traits_are_refused() -> None:
    with pytest.raises(TypeError, match="opcity"):
        PatchHeatmap(None, [[1.0]], opcity=0.5)  # type: ignore[call-arg]
    with pytest.raises(t.TraitError, match="Asked has no trait opcity"):
        Asked(None, [[1.0]])._check_names({"opcity": 0.5})


def test_a_picture_stands_beside_the_view(widget: Asked) -> None:
    data, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_a_picture_that_fails_leaves_the_view(widget: Asked) -> None:
    widget.figure = lambda: 1 / 0
    data, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "image/png" not in data
    assert "ZeroDivisionError" in widget.notice


def test_png_and_svg(widget: Asked, tmp_path: Path) -> None:
    widget.to_png(tmp_path / "a.png")
    widget.to_svg(tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    with pytest.raises(VitlensError, match="writes"):
        widget.to_png(tmp_path / "a.jpg")


def test_a_page_holds_everything_and_asks_for_nothing(widget: Asked) -> None:
    widget.title = "</script><!-- x"
    text = page(widget, title="<b>")
    assert "<title>&lt;b&gt;</title>" in text
    content = re.search(r'id="vl-content">(.*?)</script>', text, re.S)
    assert content is not None
    assert "<" not in content[1]
    found = json.loads(content[1])
    assert found["values"]["title"] == "</script><!-- x"
    assert base64.b64decode(found["buffers"]["values"]) == widget.values
    assert "<script src" not in text
    assert "<link" not in text
    addresses = re.findall(r"https?://[^\s\"'`)\\]+", text)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}


def test_a_page_that_cannot_be_written(widget: Asked, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VitlensError):
        widget.to_html(tmp_path / "file" / "page.html")


def test_bundles_are_small_and_ask_for_nothing() -> None:
    for file in STATIC.iterdir():
        text = file.read_text("utf-8")
        assert len(text.encode()) < 150_000, file.name
        assert set(re.findall(r"https?://[^\s\"'`)\\]+", text)) <= {"http://www.w3.org/2000/svg"}

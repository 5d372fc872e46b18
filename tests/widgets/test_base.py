"""The widget base: requests, messages, pages; trait types; binary data."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t

from vitlens.errors import VitlensError
from vitlens.widgets import PatchHeatmap
from vitlens.widgets.base import (
    STATIC,
    Groups,
    ImageTraits,
    MeasuredEdges,
    NodeList,
    NodeTraits,
    decode_strip,
    encode_strip,
    from_bytes,
    to_bytes,
)
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


def test_an_asynchronous_answer(widget: Asked) -> None:
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


def test_an_exception_becomes_a_message(widget: Asked) -> None:
    assert ask(widget, "fail")[0] == {"vl": "answer", "id": 5, "error": "The moon is full."}
    assert widget.notice == "The moon is full."
    assert "x" in ask(widget, "double", {})[0]["error"]


def test_only_answers_can_be_requested(widget: Asked) -> None:
    for what in ("to_html", "__init__", "nothing", None, {"a": 1}):
        assert "has no answer" in ask(widget, what)[0]["error"]


def test_other_messages_are_ignored(widget: Asked) -> None:
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


def test_a_value_that_a_trait_refuses_is_reported(widget: Asked) -> None:
    widget.set_state({"number": 12})
    assert widget.number == 0
    assert "12" in widget.notice


def test_unknown_traits_are_refused() -> None:
    with pytest.raises(TypeError, match="opcity"):
        PatchHeatmap(None, [[1.0]], opcity=0.5)  # type: ignore[call-arg]


def test_the_view_comes_with_a_png(widget: Asked) -> None:
    data, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_a_png_that_fails_leaves_the_view(widget: Asked) -> None:
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


def test_a_page_is_self_contained(widget: Asked) -> None:
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


def test_bundles_are_small_and_request_nothing() -> None:
    for file in STATIC.iterdir():
        text = file.read_text("utf-8")
        assert len(text.encode()) < 150_000, file.name
        assert set(re.findall(r"https?://[^\s\"'`)\\]+", text)) <= {"http://www.w3.org/2000/svg"}


class Everything(NodeTraits, ImageTraits):
    groups = Groups()
    pinned = NodeList()
    measured = MeasuredEdges()


@pytest.fixture
def traits() -> Everything:
    return Everything(grid=(3, 4), prefix_names=("CLS",))


@pytest.mark.parametrize(
    ("name", "given", "kept", "sent"),
    [
        ("selected", [1, 2], (1, 2), (1, 2)),
        ("selected", (4, -2), (4, -2), (4, -2)),
        ("selected", None, None, None),
        ("pinned", [[1, 2], (1, 2), (0, -1)], ((1, 2), (0, -1)), ((1, 2), (0, -1))),
        ("patches", [(2, 3), [-1, 0]], ((2, 3), (-1, 0)), ((2, 3), (-1, 0))),
        ("labels", {(1, 2): " eye ", (1, 3): ""}, {(1, 2): "eye"}, [[1, 2, "eye"]]),
        ("groups", {"face": [(1, 2)], "none": []}, {"face": ((1, 2),)}, [["face", ((1, 2),)]]),
        (
            "measured",
            {((0, 2), (1, -1)): [1, 0.5]},
            {((0, 2), (1, -1)): (1.0, 0.5)},
            [[(0, 2), (1, -1), 1.0, 0.5]],
        ),
    ],
)
def test_one_form_in_python_and_one_in_the_browser(
    traits: Everything, name: str, given: object, kept: object, sent: object
) -> None:
    setattr(traits, name, given)
    assert getattr(traits, name) == kept
    trait = traits.traits()[name]
    assert trait.to_json(kept, traits) == sent
    setattr(traits, name, trait.from_json(sent, traits))
    assert getattr(traits, name) == kept


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("selected", 5),
        ("selected", (1,)),
        ("selected", (1, 2, 3)),
        ("selected", (-1, 0)),
        ("selected", (0, -3)),
        ("selected", ("0", "1")),
        ("selected", (0.5, 1)),
        ("selected", (True, 1)),
        ("pinned", "12"),
        ("pinned", {(1, 2): 3}),
        ("patches", [(3, 0)]),
        ("patches", [(0, 4)]),
        ("patches", [(-1, 1)]),
        ("patches", [(-2, 0)]),
        ("labels", [(1, 2)]),
        ("labels", {(1, 2): 3}),
        ("groups", {"a": [(1, 2)], "b": [(1, 2)]}),
        ("groups", {1: [(1, 2)]}),
        ("groups", {"a": [(1, 2)], "a ": [(1, 3)]}),
        ("groups", {" ": [(1, 2)]}),
        ("grid", (0, 3)),
        ("measured", [(1, 2)]),
        ("measured", {(1, 2): (1, 2)}),
        ("measured", {((0, 2), (1, 1)): (1, float("nan"))}),
    ],
)
def test_invalid_values_are_refused(traits: Everything, name: str, given: object) -> None:
    before = getattr(traits, name)
    with pytest.raises(t.TraitError) as caught:
        setattr(traits, name, given)
    assert len(str(caught.value)) > 20
    assert getattr(traits, name) == before


def test_the_message_names_the_expected_form(traits: Everything) -> None:
    with pytest.raises(
        t.TraitError, match=r"Everything.selected must be \(layer, feature\) or None"
    ):
        traits.selected = "3/5"


def test_dictionaries_are_not_shared() -> None:
    first, second = Everything(), Everything()
    first.labels = {(0, 1): "a"}
    assert second.labels == {}
    assert second.groups == {}


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "uint8"])
def test_numbers_come_back(kind: str) -> None:
    numbers = torch.arange(6).reshape(2, 3)
    for values in (numbers, numbers.numpy(), numbers.tolist(), numbers.T.contiguous().T):
        found = from_bytes(to_bytes(values, kind), kind, (2, 3))
        assert found.dtype == np.dtype(kind)
        assert (found == numbers.numpy()).all()


def test_halfs_do_not_overflow() -> None:
    assert from_bytes(to_bytes([1e9, -1e9], "float16"), "float16").tolist() == [65504, -65504]


def test_a_strip_of_images() -> None:
    red = torch.zeros(20, 30, 3, dtype=torch.uint8)
    red[..., 0] = 200
    blue = np.zeros((20, 30, 3), dtype=np.uint8)
    blue[..., 2] = 200
    data = encode_strip([red, None, blue])
    first, empty, last = decode_strip(data, 3)
    assert first.shape == (20, 30, 3)
    assert first[10, 15].tolist() == pytest.approx([200, 0, 0], abs=12)
    assert empty[10, 15].tolist() == pytest.approx([235, 235, 235], abs=12)
    assert last[10, 15].tolist() == pytest.approx([0, 0, 200], abs=12)


def test_large_images_and_long_strips_are_made_smaller() -> None:
    large = np.zeros((600, 1200, 3), dtype=np.uint8)
    assert decode_strip(encode_strip([large]), 1)[0].shape == (224, 448, 3)
    many = decode_strip(encode_strip([large] * 50), 50)
    assert len(many) == 50
    assert many[0].shape[1] == 327


def test_a_strip_without_images() -> None:
    assert encode_strip([None, None]) == b""
    assert decode_strip(b"", 2) == [None, None]

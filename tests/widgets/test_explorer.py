"""The Explorer without a browser: what it tells the view, in which order, and what it refuses."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

import vitlens
from tests.builders import CLASSES, lens_with, tiny_lens
from vitlens.circuits import faithfulness
from vitlens.errors import ImageError, OptionError, TargetError, VitlensError
from vitlens.lens import About, Sample
from vitlens.widgets import Explorer
from vitlens.widgets.explorer import health
from vitlens.widgets.export import page
from vitlens.widgets.scene import Scene


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def lens_with_samples(folder: Path) -> vitlens.Lens:
    """A tiny lens with two sample images."""
    lens = tiny_lens()
    samples = []
    for i, label in enumerate(("bird", "")):
        picture(i).save(folder / f"{i}.png")
        samples.append(Sample(folder / f"{i}.png", label, "noise"))
    lens.about = About(name="tiny", samples=tuple(samples))
    return lens


@pytest.fixture
def lens(tmp_path: Path) -> vitlens.Lens:
    return lens_with_samples(tmp_path)


def says(explorer: Explorer, lens: vitlens.Lens, image: Any) -> bool:
    """Whether the Explorer shows what the lens says of an image."""
    expected = lens.trace(image).logits.softmax(-1)
    return torch.allclose(torch.tensor(explorer.probabilities), expected, atol=1e-6)


def test_it_opens_on_the_first_sample(lens: vitlens.Lens) -> None:
    explorer = lens.explore()
    assert isinstance(explorer, Explorer)
    assert explorer.image_choice == 0
    assert explorer.image_name == "0.png"
    assert [sample["label"] for sample in explorer.samples] == ["bird", ""]
    assert explorer.classes == CLASSES
    assert says(explorer, lens, lens.samples[0].path)
    assert explorer.progress == {}
    assert explorer.notice == ""
    expected = lens.circuit(lens.samples[0].path, nodes_per_layer=8, select="walk")
    assert [n.key for n in explorer.circuit.nodes] == [n.key for n in expected.nodes]
    assert explorer.selected == explorer.scene.most_important(2)
    assert explorer.card["node"] == list(explorer.selected)
    json.dumps([explorer.health, explorer.explained, explorer.graph_info], allow_nan=False)


def test_without_samples_it_waits_for_an_image() -> None:
    explorer = tiny_lens().explore()
    assert explorer.explained == {}
    assert explorer.graph_info == {}
    with pytest.raises(VitlensError, match="image"):
        explorer.measure_curves()
    explorer.target_choice = 1  # nothing to look at yet
    assert explorer.explained == {}


def test_image_and_target_from_python(lens: vitlens.Lens) -> None:
    explorer = lens.explore(picture(7), target="fruit")
    assert (explorer.image_choice, explorer.target_choice) == (None, 2)
    assert explorer.explained["name"] == "fruit"
    assert says(explorer, lens, picture(7))
    explorer.target_choice = 4
    assert explorer.explained["name"] == "vehicle"
    assert says(explorer, lens, picture(7))
    explorer.image_choice = 1
    assert explorer.target_choice is None
    assert explorer.explained["name"] == lens.predict(lens.samples[1].path)[0][0]
    explorer.load(picture(8), target=lambda logits: logits[0] - logits[1])
    assert explorer.explained["index"] is None
    assert explorer.explained["value"] == pytest.approx(explorer.graph_info["target"]["value"])


def test_bad_images_and_targets_are_refused_and_nothing_moves(
    lens: vitlens.Lens, tmp_path: Path
) -> None:
    explorer = lens.explore()
    before = explorer.probabilities
    with pytest.raises(ImageError, match="There is no image"):
        explorer.load(tmp_path / "none.png")
    with pytest.raises(TargetError, match="Did you mean 'fruit'"):
        explorer.load(picture(3), target="friut")
    with pytest.raises(TargetError):
        explorer.load(picture(3), target=99)
    for name, value in (("image_choice", 2), ("target_choice", -1), ("height", 10)):
        with pytest.raises(traitlets.TraitError):
            setattr(explorer, name, value)
    with pytest.raises(TypeError, match="colour"):
        lens.explore(colour="red")
    for name in ("show", "gradient", "error_gradients", "engine"):
        with pytest.raises(OptionError, match=f"{name} must be one of .* not 'bad'"):
            lens.explore(**{name: "bad"})
    assert explorer.probabilities == before


def ask(explorer: Explorer, what: str, payload: Any, *buffers: bytes) -> dict[str, Any]:
    """Ask as the browser does, and return the answer."""
    answers: list[dict[str, Any]] = []
    explorer.send = lambda content, buffers=None: answers.append(content)  # type: ignore[method-assign]
    explorer._receive(None, {"vl": "ask", "id": 1, "what": what, "payload": payload}, buffers)
    (answer,) = answers
    return answer


def test_upload_and_path(lens: vitlens.Lens, tmp_path: Path) -> None:
    explorer = lens.explore()
    file = io.BytesIO()
    picture(5).save(file, "PNG")
    assert ask(explorer, "upload", {"name": "mine.png"}, file.getvalue())["value"] is True
    assert (explorer.image_choice, explorer.image_name) == (None, "mine.png")
    assert says(explorer, lens, picture(5))

    picture(6).save(tmp_path / "there.png")
    assert ask(explorer, "open_path", {"path": f" {tmp_path}/there.png "})["value"] is True
    assert says(explorer, lens, picture(6))


@pytest.mark.parametrize(
    ("what", "payload", "buffers", "words"),
    [
        ("upload", {"name": "mine.png"}, [b"no image"], "mine.png is damaged, or not an image"),
        ("open_path", {"path": "/nowhere/x.png"}, [], "There is no image"),
        ("dance", {}, [], "no answer to 'dance'"),
    ],
)
def test_a_failing_request_is_reported_in_words(
    lens: vitlens.Lens, what: str, payload: Any, buffers: list[bytes], words: str
) -> None:
    explorer = lens.explore()
    before = explorer.probabilities
    answer = ask(explorer, what, payload, *buffers)
    assert words in answer["error"]
    assert words in explorer.notice
    assert explorer.probabilities == before


def test_curves_on_demand_go_with_their_image(lens: vitlens.Lens) -> None:
    explorer = lens.explore()
    assert ask(explorer, "compute_curves", {})["value"] is True
    assert explorer.curves["methods"] == ["rrm", "node", "random"]
    expected = lens.faithfulness(
        [lens.samples[0].path],
        methods=("rrm", "node", "random"),
        q=explorer.curves["q"],
        progress=False,
    )
    band = [expected.band("deletion", m).mean for m in expected.methods]
    sent = np.frombuffer(explorer.curve_data, np.float32).reshape(2, 3, 3, -1)
    np.testing.assert_allclose(sent[1, :, 0], np.stack(band), rtol=1e-5)
    explorer.target_choice = 1
    assert explorer.curves == {}


def test_health_says_what_is_missing(lens: vitlens.Lens) -> None:
    explorer = lens.explore()
    assert "accuracy with all SAEs" in explorer.health["missing"]
    residuals = [layer["residual"] for layer in explorer.health["layers"]]
    relative = lens.conservation(lens.samples[0].path)["libragrad"]
    assert residuals == pytest.approx(relative.tolist(), rel=1e-4)


def test_a_target_of_zero_has_no_relative_residual(lens: vitlens.Lens) -> None:
    explorer = lens.explore(target=lambda logits: 0 * logits.sum())
    assert explorer.explained["value"] == 0
    assert [layer["residual"] for layer in explorer.health["layers"]] == [None] * 3
    json.dumps(explorer.health, allow_nan=False)


def test_a_page_knows_no_nan(lens: vitlens.Lens) -> None:
    explorer = lens.explore()
    layers = [{**layer, "explained_variance": float("nan")} for layer in explorer.health["layers"]]
    explorer.health = {**explorer.health, "layers": layers, "accuracy": float("inf")}
    content = page(explorer, title="").split('id="vl-content">')[1].split("</script>")[0]
    values = json.loads(content, parse_constant=pytest.fail)["values"]
    assert values["health"]["accuracy"] is None
    assert {layer["explained_variance"] for layer in values["health"]["layers"]} == {None}


def test_health_of_the_bundle() -> None:
    lens = vitlens.load("everyday")
    found = health(lens, None)
    assert found["missing"] == []
    assert len(found["layers"]) == 11
    assert found["layers"][3]["residual"] is None
    assert found["accuracy_all"] == lens.about.figures["saes"]["accuracy_all"]


def test_health_of_other_saes_is_not_the_bundles() -> None:
    own = vitlens.load("everyday")
    few = {layer: own.saes[layer] for layer in (2, 5, 9)}
    nearly_own = dict(enumerate(own.saes)) | {4: tiny_change(own.saes[4])}
    for saes in (few, nearly_own):
        found = health(vitlens.Lens(own.vision, saes, about=own.about), None)
        assert {layer["explained_variance"] for layer in found["layers"]} == {None}
        assert found["accuracy"] is None
        assert "accuracy with all SAEs" in found["missing"]


def tiny_change(sae: vitlens.SAE) -> vitlens.SAE:
    changed = copy.deepcopy(sae)
    with torch.no_grad():
        changed.b_dec[0] += 1e-3
    return changed


def test_first_the_picture_then_the_circuit(lens: vitlens.Lens) -> None:
    async def story() -> None:
        explorer = lens.explore()
        assert explorer.explained == {}
        assert explorer.progress["what"]
        states: list[tuple[bool, bool]] = []

        def note(change: Any) -> None:
            states.append((bool(explorer.explained), bool(explorer.graph_info)))

        explorer.observe(note, ["explained", "graph_info", "progress"])
        await explorer.ready()
        assert (True, False) in states
        assert states[-1] == (True, True)
        assert explorer.progress == {}

    asyncio.run(story())


def test_the_last_request_wins(lens: vitlens.Lens) -> None:
    async def story() -> None:
        explorer = lens.explore()
        explorer.image_choice = 1
        explorer.target_choice = 3
        seen: list[str] = []
        explorer.observe(lambda change: seen.append(change.new.get("name", "")), "explained")
        await explorer.ready()
        assert says(explorer, lens, lens.samples[1].path)
        assert set(seen) == {CLASSES[3]}
        assert explorer.circuit.target == CLASSES[3]

    asyncio.run(story())


def test_cancel_stops_and_look_goes_on(lens: vitlens.Lens) -> None:
    async def story() -> None:
        explorer = lens.explore()
        ask(explorer, "cancel", {})
        await explorer.ready()
        assert explorer.progress == {}
        assert explorer.graph_info == {}
        ask(explorer, "compute", {})
        await explorer.ready()
        assert explorer.graph_info["layers"] == [0, 1, 2]

    asyncio.run(story())


def slow_to_read(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[threading.Event, threading.Event]:
    """Let looks wait for the second event; the first one says that one does."""
    begun, go = threading.Event(), threading.Event()
    real = Scene.of

    def waits(*arguments: Any, **settings: Any) -> Scene:
        begun.set()
        assert go.wait(20)
        return real(*arguments, **settings)

    monkeypatch.setattr(Scene, "of", waits)
    return begun, go


def choice(explorer: Explorer) -> tuple[object, ...]:
    """What the view shows as chosen, and what is explained."""
    shown = explorer.image_choice, explorer.target_choice, explorer.image_name
    return *shown, explorer.explained["name"], explorer.image_strip


@pytest.mark.parametrize(
    "act",
    [
        lambda explorer: explorer.set_state({"image_choice": 1}),
        lambda explorer: explorer.set_state({"target_choice": 3}),
        lambda explorer: explorer.load(picture(4), target="vehicle"),
    ],
    ids=["image", "target", "load"],
)
def test_cancel_goes_back_to_what_is_in_sight(
    lens: vitlens.Lens, monkeypatch: pytest.MonkeyPatch, act: Callable[[Explorer], None]
) -> None:
    async def story() -> None:
        explorer = lens.explore(lens.samples[0].path, target="fruit")
        await explorer.ready()
        before = choice(explorer)
        circuit = explorer.circuit
        with monkeypatch.context() as patch:
            begun, go = slow_to_read(patch)
            act(explorer)
            assert await asyncio.to_thread(begun.wait, 20)
            ask(explorer, "cancel", {})
            go.set()
        await explorer.ready()
        assert choice(explorer) == before
        assert explorer.circuit == circuit
        explorer.measure_curves(methods=("rrm",))  # of the image in sight
        await explorer.ready()
        assert explorer.curves["target"] == "fruit"
        act(explorer)  # once more, and now it counts
        await explorer.ready()
        assert choice(explorer) != before

    asyncio.run(story())


def test_a_look_that_fails_goes_back_to_what_is_in_sight(lens: vitlens.Lens) -> None:
    explorer = lens.explore()
    before = choice(explorer)
    explorer.load(picture(4), target=lambda logits: logits[99])
    assert explorer.notice
    assert choice(explorer) == before
    lens.samples[1].path.write_text("no image any more")
    explorer.set_state({"image_choice": 1})
    assert choice(explorer) == before


def test_cancel_leaves_card_and_ablation(lens: vitlens.Lens) -> None:
    async def story() -> None:
        explorer = lens.explore()
        await explorer.ready()
        explorer.measure_curves(methods=("rrm",))
        explorer.ablations = [(1, 4, None)]
        explorer.selected = (1, 5)
        ask(explorer, "cancel", {})
        assert not explorer.background("curves").busy
        await explorer.ready()
        assert explorer.curves == {}
        assert explorer.card["node"] == [1, 5]
        assert explorer.outcome["ablations"] == [[1, 4, None]]

    asyncio.run(story())


def test_cancel_stops_curves_within_a_method(
    lens: vitlens.Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    positions: list[int] = []
    cla_edges = faithfulness.cla_edges

    def waits(case: Any, position: int, **columns: Any) -> torch.Tensor:
        positions.append(position)
        begun.set()
        assert go.wait(20)
        return cla_edges(case, position, **columns)

    async def story() -> None:
        explorer = lens.explore()
        await explorer.ready()
        monkeypatch.setattr(faithfulness, "cla_edges", waits)
        explorer.measure_curves(methods=("cla", "rrm"))
        assert await asyncio.to_thread(begun.wait, 20)
        ask(explorer, "cancel", {})
        go.set()
        # What comes after it in the worker's only thread runs once the curves have stopped.
        explorer.background("curves").run(lambda check: None, lambda result: None)
        await explorer.ready()
        assert positions == [0]  # of two
        assert explorer.curves == {}
        assert explorer.progress == {}

    asyncio.run(story())


def test_curves_tell_how_far_they_are(lens: vitlens.Lens) -> None:
    async def story() -> None:
        explorer = lens.explore()
        await explorer.ready()
        seen: list[dict[str, Any]] = []
        explorer.observe(lambda change: seen.append(change.new), "progress")
        explorer.measure_curves(methods=("rrm",))
        await explorer.ready()
        assert {"curves: rrm, layer 1", "curves: replaced runs"} <= {
            one["what"] for one in seen if one
        }
        assert seen[-1] == {}
        assert explorer.curves["methods"] == ["rrm"]

    asyncio.run(story())


def test_a_failure_in_the_background_reaches_the_user(
    lens: vitlens.Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("no room for the edges")

    async def story() -> None:
        monkeypatch.setattr(lens, "attribute", fails)
        explorer = lens.explore()
        await explorer.ready()
        assert explorer.notice == "MemoryError: no room for the edges"
        assert explorer.progress == {}
        assert explorer.explained["prediction"]

    asyncio.run(story())


def test_all_parts_share_their_traits(lens: vitlens.Lens) -> None:
    explorer = lens.explore()
    explorer.selected = (1, 4)
    assert explorer.layer == 1
    assert explorer.card["node"] == [1, 4]
    assert explorer.title == "Layer 1, feature 4"
    explorer.labels = {(1, 4): "ears"}
    explorer.ablations = [(1, 4, None)]
    assert explorer.outcome["ablations"] == [[1, 4, None]]
    explorer.image_choice = 1
    assert explorer.selected == (1, 4)
    assert explorer.labels == {(1, 4): "ears"}
    assert explorer.ablations == ()
    assert explorer.outcome == {}


def test_files_and_picture(lens: vitlens.Lens, tmp_path: Path) -> None:
    explorer = lens.explore()
    explorer.to_png(tmp_path / "x.png")
    explorer.to_html(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert "https://" not in page
    assert str(tmp_path) not in page
    data, _ = explorer._repr_mimebundle_()
    assert data["image/png"]
    waiting = tiny_lens().explore()
    data, _ = waiting._repr_mimebundle_()
    assert data["image/png"]
    assert waiting.notice == ""


def test_opening_on_everyday_sends_less_than_three_megabytes() -> None:
    explorer = vitlens.load("everyday").explore()
    state = explorer.get_state()
    sizes = {
        name: len(value)
        if isinstance(value, bytes | bytearray | memoryview)
        else len(json.dumps(value))
        for name, value in state.items()
    }
    total = sum(sizes.values())
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    what = f"the Explorer on everyday sends {total / 1e6:.2f} MB, most of it {largest}"
    print(what)  # noqa: T201
    assert total < 3e6


def test_layers_are_block_numbers_for_saes_of_any_kind_after_some_blocks() -> None:
    lens = lens_with(("jumprelu", "budget"), layers=(0, 2))
    explorer = lens.explore(picture(1))
    assert explorer.layers == (0, 2)
    assert explorer.graph_info["layers"] == explorer.browser["layers"] == [0, 2]
    assert [layer["kind"] for layer in explorer.health["layers"]] == ["jumprelu", "topk"]
    assert explorer.selected is not None
    assert explorer.selected[0] == explorer.layer == 2
    last = explorer.scene.most_important(2)
    assert {end[0] for end in explorer.card["edges_in"]} == {0}
    assert explorer.card["edges_out"][0][:2] == [3, -2]
    explorer.selected = first = explorer.scene.most_important(0)
    assert explorer.layer == 0
    assert explorer.card["is_first"]
    assert {end[0] for end in explorer.card["edges_out"]} == {2}
    found = explorer.features_at(4)
    assert found["layers"] == [0, 2]
    assert found["counts"][1] == int((explorer.scene.trace.features[1][4] > 0).sum())
    explorer.ablations = [(*first, None), (*last, 1.0), (2, -1, None)]
    changes = vitlens.Ablate(first) + vitlens.Clamp(last, 1.0)
    expected = lens.run_with(picture(1), changes, error_nodes=["clean", "baseline"]).after
    indices = explorer.outcome["indices"]
    assert explorer.outcome["after"]["logits"] == pytest.approx(
        expected[indices].tolist(), abs=1e-5
    )
    for name, value in (("selected", (1, 0)), ("layer", 1), ("map_layers", [1])):
        with pytest.raises(traitlets.TraitError):
            setattr(explorer, name, value)

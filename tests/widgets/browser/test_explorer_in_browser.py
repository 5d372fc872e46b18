"""The Explorer as people use it, in every notebook program and as a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.builders import lens_with
from tests.widgets.browser.hosts import Host, Jupyter
from tests.widgets.test_explorer import lens_with_samples, picture
from vitlens.widgets import Explorer

Result = TypeVar("Result")
START = """
import tempfile, pathlib
from tests.widgets.test_explorer import lens_with_samples
lens = lens_with_samples(pathlib.Path(tempfile.mkdtemp()))
"""
CELLS = (START, "explorer = lens.explore(at_most=12, nodes_per_layer=4)\nexplorer")
SLOW = """
import time
quick = lens.attribute
def slow(image, *, progress, **settings):
    for i in range(600):
        progress(i / 600, "edges")
        time.sleep(0.05)
lens.attribute = slow
"""
SLOW_ABLATION = """
import threading
import vitlens.widgets.diagram as ablation
real, go, before, asked = ablation._outcome_payload, threading.Event(), explorer.ablations, []
ablation._outcome_payload = lambda *given: go.wait(20) and real(*given)
explorer._answer_cancel = lambda *_: asked.append("cancel")
"""


def node(page: Page, explorer: Explorer, key: tuple[int, int]) -> Locator:
    return page.locator(f'.vl-node[data-key="{explorer.graph.keys.index(key)}"]')


def prediction(explorer: Explorer) -> str:
    name, probability = explorer.explained["prediction"]
    return f"Predicted: {name} {100 * probability:.3g}%"


def heat_title(page: Page) -> Locator:
    return page.locator(".vl-x-heat > .vl-title")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


@pytest.fixture
def twin(tmp_path: Path) -> Explorer:
    """The same Explorer in this process, to know what the page must show."""
    (tmp_path / "twin").mkdir()
    lens = lens_with_samples(tmp_path / "twin")
    return apart(lambda: lens.explore(at_most=12, nodes_per_layer=4))


def apart(action: Callable[[], Result]) -> Result:
    """Do something at once: in this thread Playwright's loop runs, and it would wait for that."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(action).result()


def test_everything_is_linked(host: Host, twin: Explorer) -> None:
    page = host.drive(CELLS)
    expect(page.locator(".vl-node")).to_have_count(len(twin.circuit.nodes) + 1)
    expect(page.locator(".vl-x-prediction")).to_contain_text(prediction(twin))
    expect(page.locator(".vl-x-health-line")).to_contain_text("not measured")

    # Hover is the browser's own affair; a click selects, in every view and in Python.
    features = [n.key for n in twin.circuit.nodes if n.feature >= 0]
    one, other = features[0], features[-2]
    node(page, twin, one).hover()
    expect(heat_title(page)).to_have_text(f"Layer {one[0]}, feature {one[1]}")
    node(page, twin, other).click()
    host.wait(f"explorer.selected == {other}")
    expect(page.locator(".vl-card")).to_contain_text(f"{other[0]}/{other[1]}")

    # Python -> view.
    host.run(f"explorer.selected = {one}; explorer.labels = {{{one}: 'ears'}}")
    page.mouse.move(0, 0)
    expect(heat_title(page)).to_have_text(f"Layer {one[0]}, feature {one[1]}: ears")

    # Walk by keys.
    node(page, twin, one).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    host.wait("explorer.selected is not None and explorer.selected[0] == 1")

    # A pinned node stays when the slider prunes; the circuit in Python is the one in sight.
    node(page, twin, one).click(modifiers=["ControlOrMeta"])
    host.wait(f"explorer.pinned == ({one},)")
    page.locator("input[data-rule=nodes_per_layer]").fill("1")
    host.wait("explorer.nodes_per_layer == 1")
    count = host.ask("len(explorer.circuit.nodes)")
    expect(page.locator(".vl-diagram-count")).to_contain_text(f"{count} nodes")

    # A patch: the features that are active there.
    page.locator(".vl-heat-stage").click(position={"x": 100, "y": 60})
    expect(page.locator(".vl-heat-features")).to_contain_text("Layer 2")
    host.wait("len(explorer.patches) == 1")

    open_tab(page, "Layer health")
    expect(page.locator(".vl-x-health")).to_contain_text("Missing for this lens")


def test_images_and_targets(jupyter_host: Host, tmp_path: Path, twin: Explorer) -> None:
    page = jupyter_host.drive(CELLS)
    expect(page.locator(".vl-node").first).to_be_visible()
    page.get_by_role("radio").nth(1).click()
    jupyter_host.wait(
        "explorer.image_choice == 1 and explorer.graph_info and not explorer.progress"
    )
    expect(page.get_by_role("radio").nth(1)).to_have_attribute("aria-checked", "true")
    apart(lambda: twin.set_trait("image_choice", 1))
    expect(page.locator(".vl-x-prediction")).to_contain_text(prediction(twin))

    page.get_by_label("Explain").select_option("2")
    jupyter_host.wait("explorer.explained['name'] == 'fruit' and explorer.graph_info")
    expect(page.locator(".vl-node[data-key=target]")).to_contain_text("fruit")

    picture(5).save(tmp_path / "mine.png")
    page.locator("input[type=file]").set_input_files(tmp_path / "mine.png")
    jupyter_host.wait("explorer.image_name == 'mine.png' and explorer.graph_info")
    expect(page.locator(".vl-x-name")).to_have_text("mine.png")
    (tmp_path / "no.png").write_text("no image")
    page.locator("input[type=file]").set_input_files(tmp_path / "no.png")
    expect(page.locator(".vl-notice")).to_contain_text("no.png is damaged, or not an image")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator(".vl-notice")).to_be_hidden()

    page.get_by_label("Path of an image").fill("/nowhere/at/all.png")
    page.keyboard.press("Enter")
    expect(page.locator(".vl-notice")).to_contain_text("There is no image")
    assert jupyter_host.ask("explorer.image_name") == "mine.png"


def test_ablation_and_curves(jupyter_host: Host) -> None:
    page = jupyter_host.drive(CELLS)
    expect(page.locator(".vl-node").first).to_be_visible()
    jupyter_host.run("explorer.selected = (2, explorer.circuit.features(2)[0])")
    open_tab(page, "Ablate")
    page.locator(".vl-ablation").get_by_role("button", name="Switch off").click()
    jupyter_host.wait("len(explorer.ablations) == 1 and explorer.outcome")
    difference = jupyter_host.ask(
        "float((explorer.logits_with(explorer.ablations)"
        "[explorer.outcome['indices']]"
        " - __import__('torch').tensor(explorer.outcome['after']['logits'])).abs().max())"
    )
    assert float(str(difference)) < 1e-5

    # Its Cancel goes back to what is known, and stops nothing else.
    jupyter_host.run(SLOW_ABLATION)
    jupyter_host.run("explorer.selected = (2, explorer.circuit.features(2)[1])")
    panel = page.locator(".vl-ablation")
    panel.get_by_role("button", name="Switch off").click()
    jupyter_host.wait("len(explorer.ablations) == 2")
    panel.get_by_role("button", name="Cancel").click()
    jupyter_host.wait("explorer.ablations == before")
    jupyter_host.run("go.set(); ablation._outcome_payload = real")
    expect(panel.get_by_role("button", name="Cancel")).to_be_hidden()
    assert jupyter_host.ask("asked") == []

    open_tab(page, "Curves")
    page.get_by_role("button", name="Measure on this image").click()
    jupyter_host.wait("bool(explorer.curves)")
    point = page.locator(".vl-curves-handle").first
    point.focus()
    page.keyboard.press("ArrowRight")
    jupyter_host.wait("explorer.nodes_per_layer == 5")
    expect(page.locator("input[data-rule=nodes_per_layer]")).to_have_value("5")
    page.locator("input[data-rule=nodes_per_layer]").fill("3")
    expect(point).to_have_attribute("aria-valuenow", "3")


def test_cancel_while_it_computes(lab: Host) -> None:
    page = lab.drive([START + SLOW, "explorer = lens.explore(at_most=12)\nexplorer"])
    expect(page.locator(".vl-progress-what")).to_contain_text("edges")
    expect(page.locator(".vl-x-prediction")).to_contain_text("Predicted")
    expect(page.locator(".vl-x-waiting")).to_contain_text("Computing the circuit")
    page.get_by_role("button", name="Cancel").first.click()
    expect(page.locator(".vl-progress")).to_be_hidden()
    expect(page.locator(".vl-x-waiting")).to_contain_text("no circuit yet")
    lab.wait("explorer.progress == {} and explorer.graph_info == {}")
    lab.run("lens.attribute = quick")
    page.get_by_role("button", name="Compute the circuit").click()
    expect(page.locator(".vl-node").first).to_be_visible()


def test_layout(lab: Host) -> None:
    page = lab.drive(CELLS)
    expect(page.locator(".vl-node").first).to_be_visible()
    bar = page.get_by_role("separator", name="Image and circuit")
    before = page.locator(".vl-x-heat").bounding_box()
    bar.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    after = page.locator(".vl-x-heat").bounding_box()
    assert before and after and after["width"] > before["width"] + 30
    open_tab(page, "Curves")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Layer health")).to_have_attribute("aria-selected", "true")


def test_a_stored_notebook_without_its_kernel(
    lab: Jupyter, notebook_with_state: Callable[[Sequence[str]], str], twin: Explorer
) -> None:
    name = notebook_with_state((*CELLS, "await explorer.ready(); None"))
    lab.share_kernel(name)  # a kernel that does not know the widgets
    lab.open(name)
    page = lab.page
    expect(page.locator(".vl-node")).to_have_count(len(twin.circuit.nodes) + 1)
    expect(page.locator(".vl-no-kernel")).to_contain_text("no kernel is running", timeout=20_000)
    one = twin.circuit.nodes[0].key
    node(page, twin, one).hover()
    expect(heat_title(page)).to_contain_text(f"Layer {one[0]}")
    page.locator("input[data-rule=nodes_per_layer]").fill("2")
    twin.nodes_per_layer = 2
    expect(page.locator(".vl-diagram-count")).to_contain_text(f"{len(twin.circuit.nodes)} nodes")


def test_saved_page(static_page: Callable[[Path], Page], tmp_path: Path, twin: Explorer) -> None:
    apart(twin.measure_curves)
    twin.to_html(tmp_path / "explorer.html")
    page = static_page(tmp_path / "explorer.html")
    expect(page.locator(".vl-node")).to_have_count(len(twin.circuit.nodes) + 1)
    expect(page.locator(".vl-no-kernel")).to_contain_text("saved view")
    expect(page.get_by_role("button", name="Upload")).to_be_hidden()

    one = twin.circuit.nodes[0].key
    node(page, twin, one).hover()
    expect(heat_title(page)).to_contain_text(f"Layer {one[0]}")
    page.locator("input[data-rule=nodes_per_layer]").fill("2")
    twin.nodes_per_layer = 2
    expect(page.locator(".vl-diagram-count")).to_contain_text(f"{len(twin.circuit.nodes)} nodes")
    kept = twin.circuit.nodes[0].key
    node(page, twin, kept).click(modifiers=["ControlOrMeta"])
    page.locator("input[data-rule=nodes_per_layer]").fill("1")
    expect(node(page, twin, kept)).to_be_visible()
    open_tab(page, "Curves")
    expect(page.locator(".vl-curves-place")).to_contain_text("1 node per layer")

    open_tab(page, "Map")
    expect(page.locator(".vl-map")).to_contain_text("There is no map")
    node(page, twin, kept).click()  # a map that is not there does not mind
    expect(node(page, twin, kept)).to_have_attribute("aria-pressed", "true")

    page.set_viewport_size({"width": 600, "height": 900})
    expect(page.locator(".vl-explorer")).to_have_attribute("data-layout", "stacked")
    assert page.evaluate("document.documentElement.scrollWidth") <= 600
    expect(page.locator(".vl-node").first).to_be_visible()


def test_a_page_of_a_lens_with_saes_after_some_blocks(
    static_page: Callable[[Path], Page], tmp_path: Path
) -> None:
    lens = lens_with("jumprelu", layers=(0, 2))
    explorer = apart(lambda: lens.explore(picture(1), at_most=12, nodes_per_layer=3))
    explorer.to_html(tmp_path / "explorer.html")
    page = static_page(tmp_path / "explorer.html")
    expect(page.locator(".vl-layer-head")).to_have_text(["layer 0", "layer 2", "target"])
    expect(page.get_by_role("combobox", name="layer").locator("option")).to_have_text(["0", "2"])
    one = next(n.key for n in explorer.circuit.nodes if n.layer == 2 and n.feature >= 0)
    node(page, explorer, one).hover()
    expect(heat_title(page)).to_have_text(f"Layer 2, feature {one[1]}")
    node(page, explorer, one).click()
    expect(page.locator(".vl-card-id")).to_have_text(f"2/{one[1]}")
    ends = page.locator(".vl-card ul[aria-label=in] .vl-card-link").all()
    assert {str(end.get_attribute("data-node")).split("/")[0] for end in ends} == {"0"}
    node(page, explorer, one).focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator(".vl-card-id")).to_have_text(re.compile("^0/"))
    page.locator(".vl-heat-stage").click(position={"x": 100, "y": 60})
    expect(page.locator(".vl-heat-layer-name")).to_have_text(["Layer 0", "Layer 2"])

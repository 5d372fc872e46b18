"""The circuit's diagram as people use it, in every notebook program and as a page."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.builders import tiny_image, tiny_lens
from tests.widgets.browser.hosts import Host
from vitlens.circuits.circuit import Circuit
from vitlens.circuits.graph import AttributionGraph
from vitlens.widgets import CircuitDiagram

CELLS = (
    """
from tests.builders import tiny_image, tiny_lens
from vitlens.widgets import CircuitDiagram
lens = tiny_lens(1)
diagram = CircuitDiagram.of(lens, tiny_image(1), at_most=12, nodes_per_layer=4)
diagram
""",
)
STEPS, MOST = 200, {"node_share": 0.5, "edge_share": 0.25}


def attribution() -> AttributionGraph:
    return tiny_lens(1).attribute(tiny_image(1), at_most=12)


def node(page: Page, known: AttributionGraph, key: tuple[int, int]) -> Locator:
    number = "target" if key[1] == -2 else known.keys.index(key)
    return page.locator(f'.vl-node[data-key="{number}"]')


def shown(page: Page, known: AttributionGraph) -> set[tuple[int, int]]:
    """The nodes that are visible, the target left out."""
    script = "nodes => nodes.map(n => n.dataset.key).filter(k => k !== 'target').map(Number)"
    return {known.keys[i] for i in page.locator(".vl-node").evaluate_all(script)}


def expect_circuit(page: Page, known: AttributionGraph, circuit: Circuit) -> None:
    expect(page.locator(".vl-diagram-count")).to_have_text(
        f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges"
    )
    assert shown(page, known) == {n.key for n in circuit.nodes}


def wait(page: Page, reached: Callable[[], bool], *, seconds: float = 10) -> None:
    for _ in range(round(seconds / 0.05)):
        if reached():
            return
        page.wait_for_timeout(50)
    raise AssertionError("what was waited for did not come")


def slide(page: Page, rule: str, at: int) -> None:
    page.locator(f"input[data-rule={rule}]").fill(str(at))


def share_at(rule: str, at: int) -> float:
    """What a slider's place means, as bar.js has it."""
    return float(f"{MOST[rule] * (at / STEPS) ** 3:.2g}")


def strongest(circuit: Circuit, key: tuple[int, int], *, after: bool) -> tuple[int, int]:
    """Where an arrow to the right (after) or left leads from a node."""
    edges = [e for e in circuit.edges if (e.source if after else e.target) == key]
    best = max(edges, key=lambda edge: abs(edge.weight))
    return best.target if after else best.source


def test_it_works_in_a_notebook(host: Host) -> None:
    known = attribution()
    page = host.drive(CELLS)
    expect(page.locator(".vl-node")).to_have_count(13)
    circuit = known.prune(4)
    expect_circuit(page, known, circuit)
    keys = [n.key for n in circuit.nodes if n.feature >= 0]
    first, second, last = keys[0], keys[1], keys[-1]
    side = page.locator(".vl-side-name")

    node(page, known, second).hover()
    expect(side).to_have_text(f"Layer {second[0]}, feature {second[1]}")
    expect(page.locator(".vl-stage")).to_have_class("vl-stage vl-dimmed")
    host.wait(f"diagram.hovered == {second}")
    node(page, known, first).click()
    host.wait(f"diagram.selected == {first}")
    expect(node(page, known, first)).to_have_attribute("aria-pressed", "true")
    node(page, known, last).click(modifiers=["ControlOrMeta"])
    host.wait(f"diagram.pinned == ({last},)")

    slide(page, "nodes_per_layer", 1)
    host.wait("diagram.nodes_per_layer == 1")
    expect_circuit(page, known, known.prune(1, pinned=[last]))
    slide(page, "edge_share", 120)
    share = share_at("edge_share", 120)
    host.wait(f"diagram.edge_share == {share}")
    expect_circuit(page, known, known.prune(1, edge_share=share, pinned=[last]))

    host.run("diagram.nodes_per_layer = 5; diagram.edge_share = 0; diagram.pinned = []")
    host.run(f"diagram.labels = {{{first}: 'left ear'}}; diagram.selected = {second}")
    expect_circuit(page, known, known.prune(5))
    expect(node(page, known, first).locator(".vl-node-name")).to_have_text("left ear")
    expect(node(page, known, second)).to_have_attribute("aria-pressed", "true")
    assert host.ask("diagram.circuit == diagram.graph.prune(5, labels=diagram.labels)")
    host.dark()
    expect(page.locator(".vl-root")).to_have_class("vl-root vl-circuit-diagram vl-dark")


def test_the_keyboard_walks_and_marks(host: Host) -> None:
    known = attribution()
    page = host.drive(CELLS)
    circuit = known.prune(4)
    start = next(n.key for n in circuit.nodes if n.feature >= 0)
    node(page, known, start).focus()
    path = [start]
    while path[-1][1] != -2:
        page.keyboard.press("ArrowRight")
        path.append(strongest(circuit, path[-1], after=True))
        expect(node(page, known, path[-1])).to_be_focused()
    page.keyboard.press("ArrowLeft")
    here = strongest(circuit, path[-1], after=False)
    expect(node(page, known, here)).to_be_focused()
    expect(page.locator(".vl-node[tabindex='0']")).to_have_count(1)

    page.keyboard.press("Enter")
    page.keyboard.press("p")
    expect(node(page, known, here)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".vl-hint[role=status]").first).to_contain_text("Pinned")
    page.keyboard.press("F2")
    page.keyboard.type("grass p")
    page.keyboard.press("Enter")
    expect(node(page, known, here).locator(".vl-node-name")).to_have_text("grass p")
    expect(node(page, known, here)).to_be_focused()
    host.wait(f"diagram.pinned == ({here},) and diagram.labels == {{{here}: 'grass p'}}")
    host.wait(f"diagram.selected == {here}")

    node(page, known, here).focus()
    page.keyboard.press("Control+z")
    expect(node(page, known, here).locator(".vl-node-name")).not_to_have_text("grass p")
    page.keyboard.press("Escape")
    expect(node(page, known, here)).to_have_attribute("aria-pressed", "false")
    host.wait(f"diagram.labels == {{}} and diagram.pinned == ({here},) and not diagram.selected")


def test_groups(lab: Host) -> None:
    known = attribution()
    page = lab.drive(CELLS)
    circuit = known.prune(4)
    one, two = [n.key for n in circuit.nodes if n.layer == 1][:2]
    for key in (one, two):
        node(page, known, key).click(modifiers=["Shift"])
    expect(page.locator(".vl-chosen")).to_have_count(2)
    page.locator("[data-action=group]").click()
    page.keyboard.type("ears")
    page.keyboard.press("Enter")
    lab.wait(f"diagram.groups == {{'ears': ({one}, {two})}}")
    supernode = page.locator(".vl-node-group")
    expect(supernode).to_have_count(1)
    expect(supernode.locator(".vl-node-name")).to_have_text("ears")
    expect(page.locator(".vl-node")).to_have_count(12)
    expect(supernode).to_be_focused()

    page.keyboard.press("e")
    expect(page.locator(".vl-node-member")).to_have_count(2)
    page.keyboard.press("e")
    expect(supernode).to_be_focused()
    page.keyboard.press("r")
    page.keyboard.type("left ear")
    page.keyboard.press("Enter")
    lab.wait("list(diagram.groups) == ['left ear']")
    expect(supernode).to_be_focused()
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    lab.wait("diagram.groups == {}")
    lab.run(f"diagram.groups = {{'both': [{one}, {two}]}}")
    expect(supernode.locator(".vl-node-name")).to_have_text("both")
    supernode.focus()
    page.keyboard.press("G")
    lab.wait("diagram.groups == {}")


def test_a_live_ablation(host: Host) -> None:
    known = attribution()
    page = host.drive(CELLS)
    panel = page.locator(".vl-ablation")
    keys = [n.key for n in known.prune(4).nodes if n.feature >= 0 and n.layer == 2]
    node(page, known, keys[0]).click()
    node(page, known, keys[0]).focus()
    page.keyboard.press("x")
    expect(panel.locator(".vl-bars-table tbody tr")).to_have_count(5)
    expect(node(page, known, keys[0])).to_contain_class("vl-off vl-selected")
    layer, feature = keys[0]
    host.wait(f"diagram.ablations == (({layer}, {feature}, None),)")
    equal = (
        "max(abs(a - float(lens.run_with(tiny_image(1), keep=[[f for f in range(s.n_features) if "
        f"(l, f) != {keys[0]}] for l, s in enumerate(lens.saes)])[i])) "
        "for a, i in zip(diagram.outcome['after']['logits'], diagram.outcome['indices'])) < 1e-5"
    )
    assert host.ask(equal) is True

    panel.get_by_label(f"Value of {layer}/{feature}, as a number").fill("1.5")
    page.keyboard.press("Enter")
    host.wait(f"diagram.ablations == (({layer}, {feature}, 1.5),) and len(diagram.history) == 2")
    expect(panel.locator("summary")).to_have_text("History (2)")
    expected = host.ask("[c for c, p in zip(diagram.outcome['classes'], range(9))]")
    assert isinstance(expected, list)
    rows = panel.locator(".vl-bars-table tbody th").all_inner_texts()
    assert sorted(rows) == sorted(expected)
    panel.get_by_role("button", name="Reset").click()
    expect(panel.locator(".vl-bars")).to_be_hidden()
    panel.locator("summary").click()
    panel.locator(".vl-history button").last.click()
    host.wait(f"diagram.ablations == (({layer}, {feature}, None),)")
    host.run("diagram.ablations = [(0, -1, None)]")
    expect(panel.locator(".vl-ablation-name")).to_have_text("0/error")


def test_an_error_in_python_is_reported_in_words(lab: Host) -> None:
    known = attribution()
    page = lab.drive(CELLS)
    lab.run(
        "import vitlens.widgets.diagram as a\ndef fail(*_): raise RuntimeError('out of luck')\n"
        "a._outcome_payload = fail"
    )
    lab.discard_kernel = True
    node(page, known, known.prune(4).nodes[0].key).focus()
    page.keyboard.press("x")
    expect(page.locator(".vl-notice")).to_contain_text("RuntimeError: out of luck")


def test_zoom_and_drag(lab: Host) -> None:
    page = lab.drive(CELLS)
    world, stage = page.locator(".vl-world"), page.locator(".vl-stage")

    def place() -> tuple[float, float, float]:
        script = "w => { const m = new DOMMatrix(getComputedStyle(w).transform); "
        script += "return [m.a, m.e, m.f]; }"
        scale, x, y = world.evaluate(script)
        return scale, x, y

    page.locator(".vl-node").first.wait_for()
    before = place()
    box = stage.bounding_box()
    assert box is not None
    corner = (box["x"] + 20, box["y"] + box["height"] - 20)
    page.mouse.move(*corner)
    page.mouse.wheel(0, -200)
    assert place() == before  # the page scrolls until the diagram has the focus
    page.locator(".vl-node").last.focus()
    before = place()
    page.mouse.move(*corner)
    page.mouse.wheel(0, -200)
    wait(page, lambda: place()[0] > 1.2 * before[0])
    scale, x, y = place()
    page.mouse.down()
    page.mouse.move(corner[0] + 50, corner[1] - 30, steps=3)
    page.mouse.up()
    assert place() == (scale, pytest.approx(x + 50), pytest.approx(y - 30))
    page.locator("[data-action=fit]").click()
    wait(page, lambda: place()[0] < scale)  # with the next frame
    page.locator("[data-action=full]").click()
    page.wait_for_function("() => document.fullscreenElement?.classList.contains('vl-diagram')")
    page.locator("[data-action=full]").click()
    page.wait_for_function("() => !document.fullscreenElement")


def test_a_page_prunes_as_python_does(static_page: Callable[[Path], Page], tmp_path: Path) -> None:
    lens, image = tiny_lens(2, features=120), tiny_image(2)
    known = lens.attribute(image, at_most=40)
    CircuitDiagram(known).to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    drawn = random.Random(0)
    for _ in range(24):
        rules: dict[str, Any] = {"nodes_per_layer": drawn.randint(1, 40)}
        slide(page, "nodes_per_layer", rules["nodes_per_layer"])
        for rule in MOST:
            at = drawn.choice([0, drawn.randint(1, STEPS)])
            slide(page, rule, at)
            rules[rule] = share_at(rule, at)
        expect_circuit(page, known, lens.circuit(image, **rules, select="walk"))


def test_a_page_needs_no_python(static_page: Callable[[Path], Page], tmp_path: Path) -> None:
    known = attribution()
    diagram = CircuitDiagram.of(tiny_lens(1), tiny_image(1), at_most=12, nodes_per_layer=3)
    key = diagram.circuit.nodes[0].key
    diagram.labels, diagram.selected = {key: "<b>fur</b>"}, key
    diagram.to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    expect(node(page, known, key).locator(".vl-node-name")).to_have_text("<b>fur</b>")
    other = node(page, known, diagram.circuit.nodes[1].key)
    other.hover()
    expect(page.locator(".vl-side-text")).to_contain_text("of its layer")
    other.click(modifiers=["ControlOrMeta"])
    expect(other).to_contain_class("vl-pinned")
    slide(page, "nodes_per_layer", 1)
    expect(other).to_be_visible()
    other.focus()
    page.keyboard.press("x")
    expect(page.locator(".vl-notice")).to_contain_text("needs a running kernel")


def test_a_drag_ends_when_the_button_is_let_go_outside(
    static_page: Callable[[Path], Page], tmp_path: Path
) -> None:
    CircuitDiagram(attribution(), nodes_per_layer=4).to_html(tmp_path / "circuit.html")
    page = static_page(tmp_path / "circuit.html")
    page.locator(".vl-node-target").wait_for()
    stage = page.locator(".vl-stage").bounding_box()
    assert stage
    left, y = stage["x"], stage["y"] + 60
    page.mouse.move(left + 3, y)
    page.mouse.down()
    page.mouse.move(left - 5, y)
    page.mouse.up()
    place = page.locator(".vl-world").get_attribute("style")
    page.mouse.move(left + 200, y + 60, steps=5)
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert page.locator(".vl-world").get_attribute("style") == place


def test_a_target_of_zero_has_no_shares(
    static_page: Callable[[Path], Page], tmp_path: Path
) -> None:
    known = attribution()
    edge = known.prune(4).edges[0]
    measured = {(edge.source, edge.target): (0.5, 0.25)}
    diagram = CircuitDiagram(known, nodes_per_layer=4, measured=measured, selected=edge.source)
    diagram.graph_info = {
        **diagram.graph_info,
        "target": {**diagram.graph_info["target"], "value": 0.0},
    }
    diagram.to_html(tmp_path / "circuit.html")
    page = static_page(tmp_path / "circuit.html")
    expect(page.locator(".vl-side-measured td[title]")).to_have_text(["–", "–"])


def test_what_was_measured_is_shown(static_page: Callable[[Path], Page], tmp_path: Path) -> None:
    lens, known = tiny_lens(1), attribution()
    circuit = known.prune(4)
    checked = lens.verify(circuit, tiny_image(1), control=False).by_edge()
    diagram = CircuitDiagram(known, nodes_per_layer=4, measured=checked)
    diagram.to_html(tmp_path / "circuit.html")
    page = static_page(tmp_path / "circuit.html")
    middle = circuit.nodes[len(circuit.nodes) // 2].key
    node(page, known, middle).click()
    table = page.locator(".vl-side-measured")
    expect(table).to_be_visible()
    rows = table.locator("th[aria-label^='from ']")
    into = sorted(
        (pair for pair in checked.items() if pair[0][1] == middle), key=lambda p: -abs(p[1][0])
    )
    assert into
    assert rows.count() == min(4, len(into))
    for row, ((source, _), changes) in zip(rows.all(), into, strict=False):
        name = f"{source[0]}/{'error' if source[1] == -1 else source[1]}"
        expect(row).to_have_attribute("aria-label", f"from {name}")
        for cell, change in zip(row.locator("xpath=../td").all(), changes, strict=True):
            raw = float(str(cell.get_attribute("title")).replace("−", "-"))
            assert raw == pytest.approx(change, rel=0.05)  # as written for people
            share = f"{100 * change / known.target_value:.1f}"
            assert cell.inner_text().replace("−", "-") == ("0.0" if share == "-0.0" else share)

    # Under the pointer: along an edge, from where it leaves a node, the words come and go.
    edge = max(circuit.edges, key=lambda e: abs(e.weight) if e.source == middle else -1)
    start = node(page, known, edge.source).bounding_box()
    end = node(page, known, edge.target).bounding_box()
    assert start
    assert end
    found = set()
    left, right = start["x"] + start["width"], end["x"]
    for i in range(1, 30):
        for y in range(int(min(start["y"], end["y"])), int(max(start["y"], end["y"])) + 50, 4):
            page.mouse.move(left + (right - left) * i / 30, y)
            found.add(page.locator(".vl-stage").get_attribute("title") or "")
        if len(found) > 1:
            break
    words_found = [words for words in found if words]
    assert words_found
    assert all("predicted" in w and "measured" in w for w in words_found)
    page.mouse.move(2, 2)

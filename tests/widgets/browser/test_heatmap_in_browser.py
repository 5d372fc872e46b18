"""The heatmap as people use it, in every notebook program and as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.builders import tiny_image, tiny_lens
from tests.widgets.browser.hosts import Host, Jupyter
from vitlens.widgets import PatchHeatmap

CELLS = (
    """
from tests.builders import tiny_image, tiny_lens
from vitlens.widgets import PatchHeatmap
lens = tiny_lens()
heatmap = PatchHeatmap.of(lens, tiny_image(), layer=1, feature=3)
heatmap
""",
)


def at(picture: Locator, row: int, column: int) -> dict[str, float]:
    """Where the patch lies, on a grid of 3 x 3."""
    box = picture.bounding_box()
    assert box is not None
    return {"x": box["width"] * (column + 0.5) / 3, "y": box["height"] * (row + 0.5) / 3}


def pixel(page: Page, row: int, column: int) -> list[int]:
    """Colour in the middle of a patch."""
    script = """(canvas, [row, column]) => Array.from(canvas.getContext("2d").getImageData(
        canvas.width * (column + .5) / 3, canvas.height * (row + .5) / 3, 1, 1).data)"""
    return page.locator(".vl-heat-canvas").first.evaluate(script, [row, column])


def colours(page: Page) -> list[list[int]]:
    """Colours in the middle of all patches."""
    return [pixel(page, row, column) for row in range(3) for column in range(3)]


def press(page: Page, *keys: str) -> None:
    page.locator(".vl-heat-stage").focus()
    for key in keys:
        page.keyboard.press(key)


def test_it_works_in_a_notebook(host: Host) -> None:
    page = host.drive(CELLS)
    picture = page.locator(".vl-heat-image")
    readout = page.locator(".vl-heat-readout")
    expect(page.locator(".vl-heatmap .vl-title").first).to_have_text("Layer 1, feature 3")
    expect(page.locator(".vl-heat-name")).to_have_text("CLS")

    picture.hover(position=at(picture, 1, 2))
    value = host.ask("round(float(heatmap.array[0, 1 + 5]), 6)")
    expect(readout).to_contain_text("row 2, column 3: ")
    shown = readout.inner_text().split(": ")[1].replace("−", "-")
    assert float(shown) == pytest.approx(value, rel=0.01, abs=1e-6)

    picture.click(position=at(picture, 1, 2))
    host.wait("heatmap.patches == ((1, 2),)")
    first = page.locator(".vl-heat-feature").first
    active = host.ask("heatmap.features_at(6)['features']")
    assert isinstance(active, list)
    expect(first).to_contain_text(str(active[0][0][0]))
    expect(page.locator(".vl-heat-layer")).to_have_count(3)
    first.click()
    host.wait(f"heatmap.selected == (0, {active[0][0][0]})")
    expect(page.locator(".vl-title").first).to_have_text(f"Layer 0, feature {active[0][0][0]}")

    picture.hover(position=at(picture, 0, 0))
    press(page, "ArrowRight", "ArrowDown", "Enter")
    host.wait("heatmap.patches == ((1, 1),)")
    press(page, "Home", "ArrowLeft", " ")
    host.wait("heatmap.patches == ((-1, 0),)")
    expect(readout).to_contain_text("CLS: ")
    press(page, "Escape")
    host.wait("heatmap.patches == ()")
    expect(page.locator(".vl-heat-features")).to_be_hidden()

    before = pixel(page, 1, 1)
    host.run("heatmap.grey = False; heatmap.opacity = 0.1; heatmap.patches = [(2, 0)]")
    expect(page.locator(".vl-heat-chosen.vl-heat-light")).to_have_count(1)
    assert page.locator(".vl-heat-chosen.vl-heat-light").get_attribute("y") == "2"
    assert pixel(page, 1, 1) != before
    page.locator(".vl-heatmap").get_by_label("Patch grid").check()
    host.wait("heatmap.show_grid")
    expect(page.locator(".vl-heat-lines")).to_have_count(2)
    before = colours(page)
    page.locator(".vl-heatmap .vl-select").first.select_option("activation")
    host.wait("heatmap.value_name == 'activation'")
    expect(page.locator(".vl-legend-label")).to_have_text("activation")
    assert colours(page) != before

    host.dark()
    expect(page.locator(".vl-heatmap")).to_have_class("vl-root vl-heatmap vl-dark")


def test_a_saved_notebook_without_its_kernel(
    lab: Jupyter, notebook_with_state: Callable[[Sequence[str]], str]
) -> None:
    name = notebook_with_state(CELLS)
    lab.share_kernel(name)  # a kernel that does not know the widgets
    lab.open(name)
    page = lab.page
    picture = page.locator(".vl-heat-image")
    picture.hover(position=at(picture, 1, 2))
    expect(page.locator(".vl-heat-readout")).to_contain_text("row 2, column 3: ")
    expect(page.locator(".vl-no-kernel")).to_contain_text("no kernel is running", timeout=20_000)


def test_heatmaps_are_linked_through_their_traits(lab: Host) -> None:
    page = lab.drive(
        [
            *CELLS,
            """
import traitlets
other = PatchHeatmap.of(lens, tiny_image(1), layer=0, feature=2)
link = traitlets.link((heatmap, "patches"), (other, "patches"))
link_2 = traitlets.link((heatmap, "selected"), (other, "selected"))
other
""",
        ]
    )
    second = page.locator(".vl-heatmap").nth(1)
    expect(second.locator(".vl-title").first).to_have_text("Layer 1, feature 3")
    picture = page.locator(".vl-heat-image").first
    picture.click(position=at(picture, 0, 2))
    expect(second.locator(".vl-heat-chosen.vl-heat-light")).to_have_attribute("x", "2")
    lab.run("other.selected = (2, 7)")
    expect(page.locator(".vl-title").first).to_have_text("Layer 2, feature 7")


def test_an_error_in_python_is_reported_in_words(lab: Host) -> None:
    page = lab.drive(CELLS)
    page.locator(".vl-heat-image").wait_for()
    lab.run("heatmap._scenes = heatmap._scenes * 0; heatmap._answer_features_at = lambda *_: 1 / 0")
    lab.run("heatmap.patches = [(0, 0)]")
    notice = page.locator(".vl-notice")
    expect(notice).to_contain_text("ZeroDivisionError: division by zero")
    notice.get_by_role("button").click()
    expect(notice).to_be_hidden()
    lab.wait("heatmap.notice == ''")


def test_a_page_needs_no_python_and_no_network(
    static_page: Callable[[Path], Page], tmp_path: Path
) -> None:
    lens = tiny_lens()
    heatmap = PatchHeatmap.of(
        lens, [tiny_image(0), tiny_image(1)], 1, 3, image_titles=["</script>", "<!-- b"]
    )
    heatmap.labels = {(1, 3): "</script><script>alert(1)</script>"}
    heatmap.to_html(tmp_path / "page.html", title="A <title>")
    page = static_page(tmp_path / "page.html")
    assert page.title() == "A <title>"
    expect(page.locator(".vl-title").first).to_contain_text("</script><script>alert(1)")
    expect(page.locator(".vl-heat-caption")).to_have_text(["</script>", "<!-- b"])
    second = page.locator(".vl-heat-image").nth(1)
    second.hover(position=at(second, 0, 1))
    expect(page.locator(".vl-heat-readout")).to_contain_text("row 1, column 2: ")
    second.click(position=at(second, 0, 1))
    top = heatmap.features_at(2, image=1)["features"][0][0]
    expect(page.locator(".vl-heat-feature").first).to_contain_text(str(top[0]))
    page.get_by_label("Smooth").check()
    expect(page.get_by_label("Show")).to_be_hidden()
    expect(page.locator(".vl-no-kernel")).to_contain_text("a saved view")


@pytest.mark.parametrize(
    "traits",
    [
        {"opacity": 0.8},
        {"opacity": 0.3},
        {"limits": (0.4, 1.0), "signed": False},
        {"limits": (0.4, 1.0), "signed": False, "colours": "cividis", "opacity": 1.0},
        {"limits": (-1.0, 0.5), "signed": False},
        {"limits": (0.4, 2.0), "signed": True},
    ],
    ids=str,
)
def test_colours_are_those_of_the_figures(
    static_page: Callable[[Path], Page], tmp_path: Path, traits: dict[str, object]
) -> None:
    heatmap = PatchHeatmap(None, [[1.0, -1, 0], [0.5, 0, 0.45], [0.3, 0.8, 0.25]], **traits)
    heatmap.to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    page.locator(".vl-heat-canvas").wait_for()
    drawn = heatmap.figure().axes[0].images[0].get_array()
    assert drawn is not None
    side = len(drawn) // 3
    for row in range(3):
        for column in range(3):
            wanted = drawn[row * side + side // 2, column * side + side // 2]
            assert pixel(page, row, column)[:3] == pytest.approx(wanted.tolist(), abs=4)

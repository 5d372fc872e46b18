"""The curves in JupyterLab, in Notebook 7 and in a saved page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.widgets.browser.hosts import Host
from tests.widgets.test_curves import make_curves
from vitlens.widgets import CurvePlot

CELL = """
from tests.widgets.test_curves import make_curves
from vitlens.widgets import CurvePlot
plot = CurvePlot(make_curves(), nodes_per_layer=6)
plot
"""


def handle(page: Page) -> Locator:
    return page.get_by_role("slider", name="Nodes per layer").first


def panel(page: Page, heading: str) -> Locator:
    return page.get_by_role("group", name=heading)


def hover(page: Page, heading: str, share: float) -> None:
    """Put the pointer at a part of the panel's width."""
    box = panel(page, heading).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def test_in_a_notebook(jupyter_host: Host) -> None:
    page = jupyter_host.drive([CELL])
    expect(handle(page)).to_have_attribute("aria-valuenow", "6")
    expect(page.locator(".vl-curves-place")).to_have_text(
        "At the marker: 6 nodes per layer, 20% of the largest dictionary"
    )

    hover(page, "Insertion", 0.25)
    tip = page.locator(".vl-curves-tip")
    expect(tip).to_contain_text("10%: 3 per layer")
    expect(tip).to_contain_text("0.600 [0.")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()

    handle(page).focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    expect(handle(page)).to_have_attribute("aria-valuenow", "7")
    page.keyboard.press("PageUp")  # to the next measured step
    jupyter_host.wait("plot.nodes_per_layer == 15")
    page.keyboard.press("End")
    jupyter_host.wait("plot.nodes_per_layer == 30")

    page.get_by_role("button", name="random").click()
    jupyter_host.wait("plot.hidden_methods == ['random']")
    expect(page.get_by_role("button", name="random")).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".vl-curves-panel .vl-curve-random")).to_have_count(0)
    page.get_by_role("button", name="linear").click()
    jupyter_host.wait("plot.axis == 'linear'")

    jupyter_host.run("plot.nodes_per_layer = 3; plot.direction = 'deletion'")
    expect(handle(page)).to_have_attribute("aria-valuenow", "3")
    expect(panel(page, "Insertion")).to_have_count(0)
    expect(page.locator(".vl-curves-values")).to_contain_text("0.900 [0.")


def test_the_point_is_dragged(lab: Host) -> None:
    page = lab.drive([CELL])
    box = panel(page, "Deletion").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.4 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 2 * box["width"], y, steps=5)
    page.mouse.up()
    lab.wait("plot.nodes_per_layer == 30")
    lab.run("plot.show_curves(make_curves(1))")
    expect(page.locator(".vl-curves-values")).not_to_contain_text("[")


def test_saved_page(static_page: Callable[[Path], Page], tmp_path: Path) -> None:
    CurvePlot(make_curves(), nodes_per_layer=6).to_html(tmp_path / "curves.html")
    page = static_page(tmp_path / "curves.html")
    hover(page, "Insertion", 0.25)
    expect(page.locator(".vl-curves-tip")).to_contain_text("0.600 [0.")
    handle(page).press("PageDown")
    expect(handle(page)).to_have_attribute("aria-valuenow", "3")
    page.get_by_role("button", name="rrm").click()
    expect(page.locator(".vl-curves-table tbody tr").last).to_contain_text("random")
    page.set_viewport_size({"width": 600, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 600

"""DebiasPanel in JupyterLab and as a page: ticks, undo, keys, the file that it hands out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Locator, Page, expect

from tests.planted import BIRD, LAND, WATER, planted_images, planted_lens
from tests.widgets.browser.hosts import Host
from tests.widgets.browser.test_pages import CONTRAST
from vitlens.debias import DebiasedModel
from vitlens.widgets import DebiasPanel

COUNTS = (20, 8, 6, 18)
SHORTCUT = ((1, WATER), (1, LAND))
INKS = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, 112, 112);
  return new Set(new Uint32Array(data.buffer)).size; }"""
CELLS = (
    f"""
import traitlets
from tests.planted import planted_images, planted_lens
from vitlens.widgets import DebiasPanel, FeatureCard
lens, groups = planted_lens(), planted_images({COUNTS})
panel = DebiasPanel(lens, groups, name="validation images")
panel
""",
    """
card = FeatureCard(lens, groups.images[0])
links = [traitlets.link((panel, n), (card, n)) for n in ("selected", "labels")]
card
""",
)


def tick(page: Page, feature: tuple[int, int]) -> Locator:
    name = f"Ablate {feature[0]}/{feature[1]}"
    return page.locator(f".vl-debias-tick input[aria-label^='{name}']")


def accuracies(page: Page) -> list[str]:
    """What the table says: the average, then every group."""
    return page.locator(".vl-debias-groups tbody td:nth-child(3)").all_inner_texts()


def percent(report: dict[str, dict]) -> list[str]:  # type: ignore[type-arg]
    rows = [report["average"], *report["groups"]]
    return [f"{100 * row['accuracy']:.1f}%" for row in rows]


def with_model(model: DebiasedModel) -> list[str]:
    """The same from a model alone, image by image."""
    groups, lens = planted_images(COUNTS), planted_lens()
    inputs = torch.stack([lens.tensor(image) for image in groups.images])
    right = (model(inputs).argmax(1) == groups.labels).double()
    parts = [right, *(right[groups.groups == g] for g in range(4))]
    return [f"{100 * float(part.mean()):.1f}%" for part in parts]


def test_in_a_notebook(lab: Host, tmp_path: Path) -> None:
    page = lab.drive(CELLS)
    lens = planted_lens()
    before = with_model(DebiasedModel(lens, ()))
    expect(page.locator(".vl-debias-groups tbody tr")).to_have_count(5)
    assert accuracies(page) == before
    undo, redo = (page.get_by_role("button", name=n, exact=True) for n in ("Undo", "Redo"))
    summary = page.locator(".vl-debias-summary")
    expect(summary).to_contain_text("No features ablated")
    expect(undo).to_be_disabled()

    # Tick: the figures change, to those of the model without these features.
    tick(page, SHORTCUT[0]).check()
    lab.wait("panel.report['chosen'] == [[1, 2]]")
    expect(summary).to_contain_text("1 feature ablated.")
    one = with_model(DebiasedModel(lens, SHORTCUT[:1]))
    assert accuracies(page) == one != before
    expect(page.locator(".vl-debias-tag")).to_have_count(1)
    tick(page, SHORTCUT[1]).focus()
    page.keyboard.press("Space")  # by keyboard
    expect(summary).to_contain_text("2 features ablated.")
    both = with_model(DebiasedModel(lens, SHORTCUT))
    assert accuracies(page) == both == ["100.0%"] * 5
    expect(page.locator(".vl-debias-tag")).to_have_count(0)  # equal groups: none is the worst
    expect(summary).to_contain_text("no group has a lower accuracy")

    # The file, as the browser gets it.
    with page.expect_download() as download:
        page.get_by_role("button", name="Export choice").click()
    download.value.save_as(tmp_path / "choice.json")
    loaded = DebiasedModel.load(tmp_path / "choice.json", lens)
    assert loaded.features == SHORTCUT
    assert with_model(loaded) == accuracies(page)

    # Undo and redo, by mouse and by keys, which the notebook does not take.
    undo.click()
    expect(summary).to_contain_text("1 feature ablated.")
    assert accuracies(page) == one
    expect(tick(page, SHORTCUT[1])).not_to_be_checked()
    tick(page, SHORTCUT[1]).focus()
    page.keyboard.press("Control+z")
    expect(summary).to_contain_text("No features ablated")
    expect(undo).to_be_disabled()
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+y")
    expect(summary).to_contain_text("2 features ablated.")
    expect(redo).to_be_disabled()
    page.locator(".vl-debias-panel summary").click()
    page.locator(".vl-debias-history button").nth(1).click()
    lab.wait("panel.choice == 1 and panel.chosen == ((1, 2),)")
    page.get_by_role("button", name="Reset").click()
    lab.wait("panel.chosen == ()")

    # From Python; the true feature's loss is said.
    lab.run("panel.chosen = [(1, 2), (1, 3), (1, 0)]")
    expect(summary).to_contain_text("3 features ablated.")
    expect(page.locator(".vl-debias-damage .vl-debias-loss")).to_contain_text("bird, ")
    expect(tick(page, (1, 0))).to_be_checked()  # a card of its own
    assert accuracies(page) == percent(lab.ask("panel.report"))  # type: ignore[arg-type]

    # Linked with a feature card, both ways.
    page.locator(".vl-debias-id", has_text="1/3").click()
    lab.wait("card.selected == (1, 3)")
    expect(page.locator(".vl-card-id")).to_have_text("1/3")
    lab.run("card.labels = {(1, 3): 'dark land'}")
    expect(page.locator(".vl-debias-card[data-node='1/3'] .vl-debias-name")).to_have_text(
        "dark land"
    )
    lab.run("card.selected = (0, 9)")
    page.get_by_role("button", name="Add 0/9").click()
    expect(tick(page, (0, 9))).to_be_visible()

    # The trade-off curve, and its slider.
    page.get_by_role("button", name="Measure the curve").click()
    lab.wait("panel.trade_off")
    slider = page.locator(".vl-debias-curve input")
    slider.focus()
    for key in ("Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    lab.wait("[list(k) for k in panel.chosen] == panel.trade_off['order'][:2]")
    assert "2 features: worst" in str(slider.get_attribute("aria-valuetext"))

    # What Python refuses is said, and the ticks go on to say what the figures are of.
    lab.run("panel.set_state({'chosen': [[1, 4711]]})")
    expect(page.locator(".vl-debias .vl-notice")).to_contain_text("there is no 4711")


PROJECTING = (
    f"""
from tests.planted import planted_images, planted_lens
from vitlens.widgets import DebiasPanel
lens, groups = planted_lens(), planted_images({COUNTS})
panel = DebiasPanel(lens, groups, name="validation images", project=True)
panel
""",
)


def test_ticks_in_every_program(host: Host, tmp_path: Path) -> None:
    page = host.drive(PROJECTING)
    lens = planted_lens()
    summary = page.locator(".vl-debias-summary")
    expect(summary).to_contain_text("No features projected out.")
    before = with_model(DebiasedModel(lens, ()))
    assert accuracies(page) == before
    inks = page.locator(".vl-debias-example canvas").first.evaluate(INKS)
    assert inks > 3

    box = page.get_by_label(f"Project out {SHORTCUT[0][0]}/{SHORTCUT[0][1]}")
    box.focus()
    page.keyboard.press("Space")  # the program does not take the key
    expect(summary).to_contain_text("1 feature projected out.")
    after = with_model(DebiasedModel(lens, SHORTCUT[:1], project=True))
    assert accuracies(page) == after != before
    with page.expect_download() as download:
        page.get_by_role("button", name="Export choice").click()
    download.value.save_as(tmp_path / "choice.json")
    assert with_model(DebiasedModel.load(tmp_path / "choice.json", lens)) == after

    box.focus()
    page.keyboard.press("Control+z")
    expect(summary).to_contain_text("No features projected out.")
    expect(box).not_to_be_checked()
    assert accuracies(page) == before
    page.get_by_role("button", name="Redo", exact=True).click()
    expect(summary).to_contain_text("1 feature projected out.")
    host.run("panel.chosen = ()")
    expect(summary).to_contain_text("No features projected out.")
    host.dark()
    expect(page.locator(".vl-debias.vl-dark")).to_be_visible()


@pytest.fixture
def panel() -> DebiasPanel:
    panel = DebiasPanel(planted_lens(), planted_images(COUNTS), name="validation images")
    panel.chosen = SHORTCUT
    panel.update_report()  # Playwright's loop runs: the background would take its time
    return panel


@pytest.fixture
def saved(panel: DebiasPanel, tmp_path: Path) -> Path:
    panel.to_html(tmp_path / "panel.html")
    return tmp_path / "panel.html"


def test_as_a_page(static_page: Callable[[Path], Page], saved: Path, tmp_path: Path) -> None:
    page = static_page(saved)
    expect(page.locator(".vl-debias-summary")).to_contain_text("2 features ablated.")
    assert accuracies(page) == ["100.0%"] * 5
    expect(page.get_by_text("Ticking needs a running kernel")).to_be_visible()
    expect(tick(page, SHORTCUT[0])).to_be_disabled()
    expect(tick(page, SHORTCUT[0])).to_be_checked()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export choice").click()
    download.value.save_as(tmp_path / "choice.json")
    assert json.loads((tmp_path / "choice.json").read_text())["features"] == [[1, 2], [1, 3]]
    inks = [canvas.evaluate(INKS) for canvas in page.locator(".vl-debias-example canvas").all()]
    assert len(inks) % 8 == 0
    assert min(inks) > 3  # pictures, not empty canvases


def test_an_effect_keeps_its_sign(
    static_page: Callable[[Path], Page], panel: DebiasPanel, tmp_path: Path
) -> None:
    first, *_ = panel.debias_cards
    panel.debias_cards = [{**first, "effect": -0.5, "class_effect": 0.25}]
    panel.to_html(tmp_path / "panel.html")
    page = static_page(tmp_path / "panel.html")
    expect(page.locator(".vl-debias-effects .vl-debias-number")).to_have_text(
        ["d = −0.50", "d = 0.25"]
    )


@pytest.mark.parametrize("width", [600, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_everything_has_a_name(
    static_page: Callable[[Path], Page], saved: Path, width: int, theme: str
) -> None:
    page = static_page(saved)
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 900})
    expect(page.locator(f".vl-root.vl-{theme}")).to_have_count(1)
    assert page.evaluate(
        "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll(
          ".vl-debias :is(button, input, [role=img]):not([hidden])")]
          .filter(e => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
          .map(e => e.outerHTML)"""
    )
    assert unnamed == []
    bare = page.evaluate(
        """() => [...document.querySelectorAll(".vl-debias :is(button, input, summary)")]
          .filter(e => e.dataset.lmSuppressShortcuts !== "true").map(e => e.outerHTML)"""
    )
    assert bare == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_loss_is_readable(
    static_page: Callable[[Path], Page], panel: DebiasPanel, tmp_path: Path, theme: str
) -> None:
    panel.chosen = (*SHORTCUT, (1, BIRD))
    panel.update_report()
    panel.to_html(tmp_path / "panel.html")
    page = static_page(tmp_path / "panel.html")
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    expect(page.locator(f".vl-root.vl-{theme}")).to_have_count(1)
    expect(page.locator(".vl-debias-damage .vl-debias-loss")).to_be_visible()
    assert page.evaluate(CONTRAST) == []

"""FeatureCard and FeatureBrowser in notebooks and as pages, driven by mouse and keys."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

from tests.widgets.browser.hosts import Host
from tests.widgets.tiny import tiny_lens, tiny_picture
from vitlens.widgets import FeatureBrowser, FeatureCard
from vitlens.widgets.base import encode_strip, to_bytes
from vitlens.widgets.browser import order
from vitlens.widgets.card import CardPart
from vitlens.widgets.diagram import DiagramPart
from vitlens.widgets.scene import Scene

CELLS = (
    """
from tests.widgets.tiny import tiny_lens, tiny_picture
from vitlens.widgets import FeatureBrowser, FeatureCard
from vitlens.widgets.scene import Scene
from traitlets import link
scene = Scene.of(tiny_lens(), tiny_picture())
browser = FeatureBrowser(scene.lens, scene)
card = FeatureCard(scene.lens, scene)
links = [link((card, n), (browser, n)) for n in ("selected", "labels", "hovered")]
browser
""",
    "card",
)


logged = logging.getLogger(__name__).info


def scene() -> Scene:
    return Scene.of(tiny_lens(), tiny_picture())


def active(page: Page) -> str:
    """The row that keys act on, as a screen reader finds it."""
    grid = page.locator(".vl-browser-grid")
    return page.locator(f"#{grid.get_attribute('aria-activedescendant')}").inner_text()


def test_in_a_notebook(jupyter_host: Host) -> None:
    host = jupyter_host
    page = host.drive(CELLS)
    grid, card = page.locator(".vl-browser-grid"), page.locator(".vl-card")
    expect(page.locator(".vl-browser-row:visible").first).to_be_visible()
    expect(card.locator(".vl-card-id")).to_have_text(
        "/".join(map(str, host.ask("card.selected")))  # type: ignore[call-overload]
    )

    # The mouse: hover, choose; the card follows through Python.
    rows = host.ask("[list(node) for node in browser.listed[:4]]")
    page.locator(".vl-browser-row[data-index='2']").hover()
    host.wait(f"browser.hovered == {tuple(rows[2])}")  # type: ignore[index]
    page.locator(".vl-browser-row[data-index='2']").click()
    host.wait(f"card.selected == {tuple(rows[2])}")  # type: ignore[index]
    expect(card.locator(".vl-card-id")).to_have_text("/".join(map(str, rows[2])))  # type: ignore[index]
    expect(card).to_have_attribute("aria-busy", "false")
    expect(page.locator(".vl-browser-row[data-index='2']")).to_have_attribute(
        "aria-selected", "true"
    )

    # The keyboard: walk, choose, change the layer; the notebook does not take the keys.
    grid.focus()
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    host.wait(f"browser.selected == {tuple(rows[3])}")  # type: ignore[index]
    page.keyboard.press("ArrowLeft")
    host.wait("browser.layer == 1")
    expect(grid).to_have_attribute("aria-label", "Features of layer 1")
    page.keyboard.press("End")
    assert active(page).split()[0] == str(host.ask("browser.listed[-1][1]"))
    page.keyboard.press("ArrowRight")
    host.wait("browser.layer == 2")

    # A name given on the card is found in the browser.
    name = card.get_by_label("Name")
    name.fill("edges of discs")
    name.press("Enter")
    host.wait("'edges of discs' in browser.labels.values()")
    page.get_by_placeholder("number or name").fill("DISC")
    expect(page.locator(".vl-browser-row:visible")).to_have_count(1)
    expect(page.locator(".vl-browser-row:visible")).to_contain_text("edges of discs")
    host.wait("browser.query == 'DISC' and len(browser.listed) == 1")

    # From Python: another node, another order.
    host.run("browser.query = ''; browser.sort = 'feature'; browser.descending = False")
    expect(page.locator(".vl-browser-feature[aria-sort=ascending]")).to_be_visible()
    host.run("card.selected = (2, -1)")
    expect(card.locator(".vl-card-id")).to_have_text("2/error")
    host.run("card.selected = (1, 5)")
    host.wait("browser.layer == 1 and card.card['node'] == [1, 5]")
    expect(card.locator(".vl-card-id")).to_have_text("1/5")

    # An edge followed.
    card.locator(".vl-card-link").first.click()
    host.wait("card.selected[0] == 0 and card.card['node'] == list(card.selected)")

    # What Python refuses is said in words.
    host.run("card.set_state({'selected': [0, 4711]})")
    expect(page.locator(".vl-notice:visible").first).to_contain_text("there is no 4711")


def test_in_marimo(marimo: Host) -> None:
    page = marimo.drive(CELLS)
    expect(page.locator(".vl-card-id")).to_have_text(
        "/".join(map(str, marimo.ask("card.selected")))  # type: ignore[call-overload]
    )
    wanted = marimo.ask("browser.listed[1]")
    page.locator(".vl-browser-row[data-index='1']").click()
    marimo.wait(f"browser.selected == {wanted}")


def test_a_card_as_a_page(static_page: Callable[[Path], Page], tmp_path: Path) -> None:
    found = scene()
    card = FeatureCard(found.lens, found)
    card.to_html(tmp_path / "card.html")
    page = static_page(tmp_path / "card.html")
    expect(page.locator(".vl-card-id")).to_have_text("/".join(map(str, card.selected)))
    expect(page.locator(".vl-card-class").first).to_have_text(card.card["up"][0][0])
    lens = page.locator(".vl-card-section:visible", has_text="logit lens")
    expect(lens).to_contain_text("bypassing the blocks above")
    expect(page.locator(".vl-card")).to_contain_text("This lens has no atlas")
    name = page.get_by_label("Name")
    name.fill("kept <b>here</b>")
    name.press("Enter")
    page.locator(".vl-card-link").first.click()
    expect(page.locator(".vl-card-empty")).to_have_text("This needs a running kernel.")


def test_a_silent_feature_shows_no_blanks(
    static_page: Callable[[Path], Page], tmp_path: Path
) -> None:
    found = scene()
    silent = (0, int(found.trace.features[0].sum(0).argmin()))
    card = FeatureCard(found.lens, found, selected=silent)
    card.to_html(tmp_path / "card.html")
    page = static_page(tmp_path / "card.html")
    note = page.locator(".vl-card-silent")
    expect(note).to_have_text("Not active on this image.")
    expect(page.locator(".vl-card-body")).to_be_hidden()
    expect(page.get_by_label("Name")).to_be_visible()

    # One that the baseline has counts by its absence.
    found.lens.baselines.features[0][:, silent[1]] = 1.0
    other = Scene.of(found.lens, tiny_picture())
    FeatureCard(other.lens, other, selected=silent).to_html(tmp_path / "card.html")
    page = static_page(tmp_path / "card.html")
    expect(note).to_contain_text("absence")
    heats = page.locator(".vl-card-heat:visible figcaption")
    expect(heats).to_have_text(["importance"])

    most = found.most_important(2)
    FeatureCard(found.lens, found, selected=most).to_html(tmp_path / "card.html")
    page = static_page(tmp_path / "card.html")
    expect(heats).to_have_text(["activation", "importance"])
    expect(note).to_be_hidden()


class _Both(DiagramPart, CardPart, bundle="card"):
    """A card next to a diagram, as in the Explorer."""


def test_without_a_kernel_a_card_says_what_the_diagram_knows(
    static_page: Callable[[Path], Page], tmp_path: Path
) -> None:
    found = scene()
    both = _Both()
    graph = found.lens.attribute(tiny_picture(), at_most=64)
    both.show_scene(replace(found, graph=graph))
    both.selected = found.most_important(2)
    both.update_card()
    both.to_html(tmp_path / "card.html")
    page = static_page(tmp_path / "card.html")
    page.locator(".vl-card-link").first.click()  # from layer 2 back to layer 1
    expect(page.locator(".vl-card")).to_have_attribute("aria-busy", "false")
    link = found.strongest_in(both.selected, 1)[0]
    expect(page.locator(".vl-card-id")).to_have_text("/".join(map(str, link.node)))
    expect(page.locator(".vl-card-facts")).to_contain_text(f"{100 * found.share(link.node):.1f}%")
    for words, links in (
        ("in", found.strongest_in(link.node, 6)),
        ("out", found.strongest_out(link.node, 6)),
    ):
        shown = page.locator(f".vl-card ul[aria-label='{words}'] .vl-card-link")
        nodes = [shown.nth(i).get_attribute("data-node") for i in range(shown.count())]
        assert nodes == [f"{layer}/{feature}" for (layer, feature), *_ in links]
    expect(page.locator(".vl-card")).to_contain_text("This needs a running kernel.")


def test_a_browser_as_a_page(static_page: Callable[[Path], Page], tmp_path: Path) -> None:
    found = scene()
    browser = FeatureBrowser(found.lens, found, layer=1)
    browser.to_html(tmp_path / "browser.html")
    page = static_page(tmp_path / "browser.html")
    first = page.locator(".vl-browser-row[data-index='0']")
    expect(first).to_contain_text(str(browser.listed[0][1]))
    page.get_by_role("button", name="tokens").click()
    browser.sort = "active_tokens"
    expect(first).to_contain_text(str(browser.listed[0][1]))
    first.click()
    expect(first).to_have_attribute("aria-selected", "true")
    page.get_by_label("Next layer").click()
    expect(page.locator(".vl-notice")).to_contain_text("This needs a running kernel.")
    expect(page.locator(".vl-browser-grid")).to_have_attribute("aria-label", "Features of layer 1")
    expect(page.get_by_role("combobox", name="layer")).to_have_value("1")


ORDERS = [
    {"sort": "importance", "descending": True, "active_only": True},
    {"sort": "importance", "descending": False, "active_only": False},
    {"sort": "max_activation", "descending": True, "min_activation": 2.1},
    {"sort": "mean_activation", "descending": True, "query": "1"},
    {"sort": "active_tokens", "descending": False},
    {"sort": "feature", "descending": True, "active_only": False},
    {"sort": "label", "descending": False, "active_only": False},
    {"sort": "label", "descending": True, "active_only": False, "query": "É"},
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(map(str, order.values())))
def test_python_and_the_view_list_the_same(
    static_page: Callable[[Path], Page], tmp_path: Path, order: dict[str, object]
) -> None:
    found = scene()
    labels = {(1, 7): "Été", (1, 40): "zebra", (1, 3): "étoile", (1, 30): "Zebra", (0, 2): "no"}
    browser = FeatureBrowser(found.lens, found, layer=1, labels=labels, **order)  # type: ignore[arg-type]
    browser.to_html(tmp_path / "browser.html")
    page = static_page(tmp_path / "browser.html")
    page.set_viewport_size({"width": 700, "height": 3000})
    page.add_style_tag(content=".vl-browser-viewport { flex: none !important; height: 2000px }")
    expect(page.locator(".vl-browser-row:visible")).to_have_count(len(browser.listed))
    shown = page.evaluate(
        """() => [...document.querySelectorAll(".vl-browser-row:not([hidden])")]
          .sort((a, b) => a.dataset.index - b.dataset.index)
          .map(row => Number(row.firstElementChild.textContent))"""
    )
    assert shown == [feature for _, feature in browser.listed]


class _Top(FeatureCard, bundle="card"):
    """A card as an atlas will fill it."""

    def show_top(self, n: int) -> None:
        self.update_card()  # Playwright's loop runs: the background would take its time
        pictures = [torch.randint(0, 255, (48, 48, 3), dtype=torch.uint8) for _ in range(n)]
        heats = torch.rand(n, *self.grid)
        items = [{"label": f"image {i}", "activation": float(heats[i].max())} for i in range(n)]
        self.top_strip = encode_strip(pictures)
        self.top_heats = to_bytes(heats, "float16")
        self.card = {**self.card, "top_images": {"available": True, "items": items}}


def test_there_is_room_for_top_images(static_page: Callable[[Path], Page], tmp_path: Path) -> None:
    found = scene()
    card = _Top(found.lens, found)
    card.show_top(5)
    card.to_html(tmp_path / "card.html")
    page = static_page(tmp_path / "card.html")
    expect(page.locator(".vl-card-top li")).to_have_count(5)
    inks = page.evaluate(
        """() => [...document.querySelectorAll(".vl-card-top canvas")].map(canvas => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, 192, 192);
          return new Set(new Uint32Array(data.buffer)).size; })"""
    )
    assert len(inks) == 10
    assert min(inks) > 20  # a picture, not an empty canvas


def test_a_hundred_thousand_features_stay_fluid(
    static_page: Callable[[Path], Page], tmp_path: Path
) -> None:
    found = scene()
    n = 100_000
    rng = np.random.default_rng(0)
    browser = FeatureBrowser(found.lens, found, layer=1, active_only=False)
    columns = rng.gamma(0.3, 1.0, (4, n)).astype(np.float32)
    browser.browser_table = to_bytes(columns)
    browser.browser = {**browser.browser, "n_features": n}
    browser.to_html(tmp_path / "browser.html")
    page = static_page(tmp_path / "browser.html")
    expect(page.locator(".vl-browser-grid")).to_have_attribute("aria-rowcount", str(n + 1))
    assert page.locator(".vl-browser-row").count() < 60  # only what is in sight exists
    frames = page.evaluate(
        """() => new Promise(done => {
          const view = document.querySelector(".vl-browser-viewport");
          const times = [];
          let last = performance.now(), step = 0;
          const frame = now => {
            times.push(now - last); last = now;
            view.scrollTop = step % 10 ? view.scrollTop + 900 : Math.random() * view.scrollHeight;
            if (++step < 240) requestAnimationFrame(frame); else done(times.slice(2));
          };
          requestAnimationFrame(frame);
        })"""
    )
    typical = float(np.median(frames))
    slow = float(np.mean(np.array(frames) > 34))
    logged(f"scrolling: median frame {typical:.1f} ms, {slow:.1%} of frames over 34 ms")
    assert typical < 34  # two shared cores: at least every other frame
    page.locator(".vl-browser-grid").focus()
    page.keyboard.press("End")
    wanted = order(columns, {}, sort="importance", descending=True)
    assert active(page).split()[0] == str(wanted[-1])
    sorting = page.evaluate(
        """async () => {
          const start = performance.now();
          document.querySelector(".vl-browser-max_activation button").click();
          await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
          return performance.now() - start;
        }"""
    )
    logged(f"sorting 100,000 rows: {sorting:.0f} ms")
    wanted = order(columns, {}, sort="max_activation", descending=True)
    expect(page.locator(".vl-browser-row[data-index='0']")).to_contain_text(str(wanted[0]))
    assert sorting < 1000


@pytest.mark.parametrize("width", [600, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits(
    static_page: Callable[[Path], Page], tmp_path: Path, width: int, theme: str
) -> None:
    found = scene()
    for widget in (FeatureCard(found.lens, found), FeatureBrowser(found.lens, found)):
        widget.to_html(tmp_path / "page.html")
        page = static_page(tmp_path / "page.html")
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 900})
        expect(page.locator(f".vl-root.vl-{theme}")).to_have_count(1)
        assert page.evaluate(
            "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )

"""The atlas in notebooks and as pages: browse, sort, filter, search, name, open again, lasso."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

import vitlens
from tests.widgets.browser.hosts import Host
from tests.widgets.tiny import tiny_atlas, tiny_lens, tiny_picture
from vitlens.atlas.atlas import Atlas
from vitlens.widgets import FeatureBrowser, FeatureCard, FeatureMap
from vitlens.widgets.base import from_bytes
from vitlens.widgets.browser import COLUMNS
from vitlens.widgets.columns import ATLAS_COLUMNS

MARGIN = 14  # pixels around the map, in vitlens/widgets/js/src/map/view.js


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved atlas."""
    out = tmp_path_factory.mktemp("atlas") / "atlas"
    tiny_atlas(tiny_lens(), out)
    return out


@pytest.fixture
def lens(folder: Path, tmp_path: Path) -> vitlens.Lens:
    """A lens with the atlas, and a file of names of its own."""
    lens = tiny_lens()
    lens.atlas = Atlas.load(folder, lens, names=tmp_path / "names.jsonl")
    return lens


def cells(folder: Path, names: Path) -> tuple[str, ...]:
    return (
        f"""
from tests.widgets.tiny import tiny_lens, tiny_picture
from traitlets import link
from vitlens.atlas.atlas import Atlas
from vitlens.widgets import FeatureBrowser, FeatureCard, FeatureMap
lens = tiny_lens()
lens.atlas = Atlas.load({str(folder)!r}, lens, names={str(names)!r})
browser = FeatureBrowser(lens, layer=1)
card = FeatureCard(lens, selected=(1, 0))
features = FeatureMap(lens)
links = [link((card, n), (w, n)) for w in (browser, features) for n in ("selected", "labels")]
browser
""",
        "card",
        "features",
    )


def rows(page: Page) -> Locator:
    return page.locator(".vl-browser-row:visible")


def shown(page: Page) -> list[int]:
    """The features of the rows in sight, in their order."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".vl-browser-row:not([hidden])")]
          .sort((a, b) => a.dataset.index - b.dataset.index)
          .map(row => Number(row.firstElementChild.textContent))"""
    )


def test_browse_sort_filter_search_name_close_and_open_again(
    jupyter_host: Host, folder: Path, tmp_path: Path
) -> None:
    host, names = jupyter_host, tmp_path / "names.jsonl"
    page = host.drive(cells(folder, names))
    expect(rows(page).first).to_be_visible()

    # Sort, by a score of the atlas.
    page.locator(".vl-browser-orientation button").click()
    host.wait("browser.sort == 'orientation' and browser.descending")
    wanted = [feature for _, feature in host.ask("browser.listed[:6]")]  # type: ignore[attr-defined]
    assert shown(page)[:6] == wanted

    # Filter, by another.
    page.get_by_label("Column to filter by").select_option("frequency")
    page.get_by_label("Minimum").fill("0.05")
    host.wait("browser.at_least == {'frequency': 0.05}")
    n = host.ask("len(browser.listed)")
    expect(page.locator(".vl-browser-tools [role=status]")).to_have_text(f"{n} of 60 features")
    page.get_by_label("Remove the filter: frequency").click()
    host.wait("browser.at_least == {} and len(browser.listed) == 60")

    # Browse: the card follows, with images, and scores next to chance.
    page.locator(".vl-browser-row[data-index='2']").click()
    host.wait("card.selected == browser.listed[2] and card.card['node'] == list(card.selected)")
    card = page.locator(".vl-card")
    expect(card.locator(".vl-card-top li").first).to_be_visible()
    score = card.locator(".vl-card-score", has_text="orientation").first
    expect(score).to_contain_text("chance")
    card.locator(".vl-card-near .vl-card-link").first.click()
    host.wait("card.selected[0] == 0 and browser.layer == 0")

    # Name it; find it by that name.
    card.get_by_label("Name").fill("edges of discs")
    card.get_by_label("Name").press("Enter")
    host.wait("lens.atlas.names.get(*card.selected) == 'edges of discs'")
    page.get_by_placeholder("number or name").fill("DISC")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("edges of discs")
    node = host.ask("card.selected")

    # Close, open again: another notebook with another kernel.
    page.wait_for_timeout(400)  # views send what is hovered with a delay
    host.discard_kernel = True
    host.close()
    host.discard_kernel = False
    page = host.drive(cells(folder, names))
    host.run(f"card.selected = {node}")
    expect(page.locator(".vl-card").get_by_label("Name")).to_have_value("edges of discs")
    host.run("browser.query = 'edges'")
    expect(rows(page)).to_contain_text("edges of discs")


def test_the_lasso_reaches_python(lab: Host, folder: Path, tmp_path: Path) -> None:
    page = lab.drive(cells(folder, tmp_path / "names.jsonl"))
    stage = page.locator(".vl-map-stage")
    stage.scroll_into_view_if_needed()
    expect(stage).to_be_visible()
    box = stage.bounding_box()
    assert box is not None

    # All of it in one lasso.
    page.get_by_label("Draw around features").click()
    corners = [(3, 3), (box["width"] - 3, 3), (box["width"] - 3, box["height"] - 3)]
    draw(page, stage, [*corners, (3, box["height"] - 3)])
    lab.wait("len(features.chosen) == 180")
    page.get_by_label("Clear the choice").click()
    lab.wait("features.chosen == ()")

    # Layers that are not shown are not chosen.
    page.get_by_label("Layer 0", exact=True).click()
    lab.wait("features.map_layers == (1, 2)")
    draw(page, stage, [*corners, (3, box["height"] - 3)])
    lab.wait("len(features.chosen) == 120 and all(layer for layer, _ in features.chosen)")

    # From Python.
    lab.run("features.chosen = [(1, 5), (2, 7)]; features.labels = {(1, 5): 'corners'}")
    chosen = page.locator(".vl-map-chosen")
    expect(chosen).to_contain_text("2 features chosen")
    chosen.get_by_text("1/5 corners").click()
    lab.wait("card.selected == (1, 5)")

    # By keyboard: walk, select, choose, a circle.
    stage.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowUp"):  # one of them may lead nowhere
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    lab.wait("features.selected != (1, 5)")
    page.keyboard.press(" ")
    lab.wait("len(features.chosen) == 3 and features.selected in features.chosen")
    for key in ("o", "]", "]", "]", "]", "]", "]", "Enter"):
        page.keyboard.press(key)
    lab.wait("len(features.chosen) != 3 and features.selected in features.chosen")
    for key in ("Escape", "Escape"):  # the lasso, then what is chosen
        page.keyboard.press(key)
    lab.wait("features.chosen == ()")


def test_the_map_in_marimo(marimo: Host, folder: Path, tmp_path: Path) -> None:
    page = marimo.drive(cells(folder, tmp_path / "names.jsonl"))
    page.get_by_label("Choose all features").click()
    marimo.wait("len(features.chosen) == 180")
    stage = page.locator(".vl-map-stage")
    stage.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowUp"):  # one of them may lead nowhere
        page.keyboard.press(key)
    expect(stage).to_have_attribute("data-hovered", re.compile(r"\d+/\d+"))
    page.keyboard.press("Enter")
    marimo.wait("features.selected not in (None, (1, 0)) and card.selected == features.selected")
    expect(page.locator(".vl-card-top li").first).to_be_visible()


def draw(page: Page, stage: Locator, corners: list[tuple[float, float]]) -> None:
    """Draw a closed line with the mouse."""
    box = stage.bounding_box()
    assert box is not None
    first, *others = [(box["x"] + x, box["y"] + y) for x, y in corners]
    page.mouse.move(*first)
    page.mouse.down()
    for x, y in [*others, first]:
        page.mouse.move(x, y, steps=6)
    page.mouse.up()


def placed(features: FeatureMap, width: float, height: float) -> np.ndarray:
    """Where the map's points lie on the stage: the larger extent fills what the margin leaves."""
    points = from_bytes(features.map_points, shape=(-1, 2)).astype(float) * (1, -1)
    middle = (points.max(0) + points.min(0)) / 2
    scale = min(width, height) - 2 * MARGIN
    return (points - middle) / np.ptp(points, axis=0).max() * scale + (width / 2, height / 2)


def test_a_page_of_the_map(
    static_page: Callable[[Path], Page], lens: vitlens.Lens, tmp_path: Path
) -> None:
    features = FeatureMap(lens, labels={(1, 5): "corners"}, colour_by="kind")
    features.to_html(tmp_path / "map.html")
    page = static_page(tmp_path / "map.html")
    stage = page.locator(".vl-map-stage")
    expect(page.locator(".vl-map-legend")).to_contain_text("none above chance")
    inks = page.evaluate(
        """() => { const c = document.querySelector(".vl-map-canvas");
          const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
          return new Set(new Uint32Array(data.buffer)).size; }"""
    )
    assert inks > 10
    size = stage.evaluate("el => [el.clientWidth, el.clientHeight]")
    at = placed(features, *size)

    # Hover the named one: its words are shown; click selects it.
    x, y = at[60 + 5]
    alone = np.hypot(*(at - at[65]).T).argsort()[1]
    assert np.hypot(*(at[alone] - at[65])) > 1  # nothing lies on the very same place
    box = stage.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 1 + x, box["y"] + 1 + y)
    expect(page.locator(".vl-map-tip")).to_contain_text("1/5 corners")
    page.mouse.down()
    page.mouse.up()
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Fit: Show all", exact=True).click()

    # The lasso: exactly the points on one side of a line.
    half = float(np.median(at[:, 0]))
    half += (np.abs(at[:, 0] - half).min() < 1.5) * 2  # not through a point
    page.get_by_label("Draw around features").click()
    draw(page, stage, [(1, 1), (half + 1, 1), (half + 1, size[1] - 1), (1, size[1] - 1)])
    inside = int((at[:, 0] < half).sum())
    near = int((np.abs(at[:, 0] - half) < 2).sum())
    status = page.locator(".vl-map-chosen [role=status]")
    expect(status).to_contain_text(re.compile("^[1-9]"))  # drawn in the next frame
    assert abs(int(status.inner_text().split()[0]) - inside) <= near


def test_a_drag_on_the_map_ends_when_the_button_is_let_go_outside(
    static_page: Callable[[Path], Page], lens: vitlens.Lens, tmp_path: Path
) -> None:
    features = FeatureMap(lens, labels={(1, 5): "corners"})
    features.to_html(tmp_path / "map.html")
    page = static_page(tmp_path / "map.html")
    stage = page.locator(".vl-map-stage")
    box = stage.bounding_box()
    assert box is not None
    left, y = box["x"], box["y"] + box["height"] / 2
    page.mouse.move(left + 3, y)
    page.mouse.down()
    page.mouse.move(left - 5, y)
    page.mouse.up()
    size = stage.evaluate("el => [el.clientWidth, el.clientHeight]")
    x, y = placed(features, *size)[60 + 5]
    page.mouse.move(box["x"] + 1 + x, box["y"] + 1 + y, steps=5)
    expect(page.locator(".vl-map-tip")).to_contain_text("1/5 corners")  # it moves no view


def test_a_proposal_says_which_score_it_has(
    static_page: Callable[[Path], Page], lens: vitlens.Lens, tmp_path: Path
) -> None:
    card = FeatureCard(lens, selected=(1, 5))
    card.update_card()
    atlas = {**card.card["atlas"], "proposals": [["bird", 0.4, "class"]]}
    card.card = {**card.card, "atlas": atlas}
    card.to_html(tmp_path / "card.html")
    page = static_page(tmp_path / "card.html")
    proposal = page.locator(".vl-card-proposal")
    expect(proposal).to_contain_text("bird")
    expect(proposal).to_have_attribute("title", re.compile("share of its variance .* classes"))


@pytest.mark.parametrize(
    "options",
    [
        {"sort": "trust", "descending": True},
        {"sort": "position", "descending": False, "at_least": {"frequency": 0.03}},
        {"sort": "hue", "descending": True, "at_least": {"trust": 0.05, "orientation": 0.0}},
        {"sort": "frequency", "descending": True, "query": "4"},
        {"sort": "curvature", "descending": False, "query": "strip"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("image", [False, True])
def test_python_and_the_view_list_the_same(
    static_page: Callable[[Path], Page],
    lens: vitlens.Lens,
    tmp_path: Path,
    options: dict[str, object],
    image: bool,
) -> None:
    picture = tiny_picture() if image else None
    browser = FeatureBrowser(lens, picture, layer=1, active_only=False, **options)  # type: ignore[arg-type]
    texts = ["stripes" if f % 7 == 0 else "" for f in range(60)]
    browser.browser = {**browser.browser, "texts": texts}
    table = from_bytes(browser.browser_table, shape=(len(browser.browser["columns"]), -1))
    table[browser.browser["columns"].index("hue"), ::5] = np.nan
    browser.browser_table = table.tobytes()
    browser.to_html(tmp_path / "browser.html")
    page = static_page(tmp_path / "browser.html")
    page.set_viewport_size({"width": 1300, "height": 2600})
    page.add_style_tag(content=".vl-browser-viewport { flex: none !important; height: 2000px }")
    assert browser.listed
    expect(rows(page)).to_have_count(len(browser.listed))
    assert shown(page) == [feature for _, feature in browser.listed]


def test_names_have_a_column_once_there_is_one(
    static_page: Callable[[Path], Page], lens: vitlens.Lens, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as thread:  # in this one Playwright's loop runs
        explorer = thread.submit(lens.explore, tiny_picture()).result()
    explorer.browser = {**explorer.browser, "texts": ["stripes"] * 60}
    explorer.to_html(tmp_path / "explorer.html")
    page = static_page(tmp_path / "explorer.html")
    page.set_viewport_size({"width": 1600, "height": 900})
    page.get_by_role("tab", name="All features").click()
    expect(page.locator(".vl-browser-head .vl-browser-proposed")).to_be_visible()
    expect(page.locator(".vl-browser-label")).to_have_count(0)
    name = page.locator(".vl-card").get_by_label("Name")
    name.fill("edges")
    name.press("Enter")
    expect(page.locator(".vl-browser-head .vl-browser-label")).to_be_visible()
    expect(rows(page).filter(has_text="edges")).to_have_count(1)


def test_tooltips_tell_the_names_of_scores(
    static_page: Callable[[Path], Page], lens: vitlens.Lens, tmp_path: Path
) -> None:
    assert lens.atlas is not None
    FeatureBrowser(lens, tiny_picture(), at_least={"monosemanticity": 0.0}).to_html(
        tmp_path / "browser.html"
    )
    page = static_page(tmp_path / "browser.html")
    heads = page.locator(".vl-browser-head button")
    titles = [head.get_attribute("title") or "" for head in heads.all()]
    wanted = ["feature", *COLUMNS, *ATLAS_COLUMNS]
    assert [title.split(":")[0] for title in titles] == wanted
    expect(page.locator("button.vl-browser-filter")).to_have_attribute("title", "monosemanticity")
    FeatureCard(lens, selected=(1, 5)).to_html(tmp_path / "card.html")
    page = static_page(tmp_path / "card.html")
    names: dict[str, str] = {}
    for score in page.locator(".vl-card-score").all():
        names[score.locator(".vl-card-class").inner_text()] = score.get_attribute("title") or ""
    for words, name in {"class": "class_information", "arc direction": "direction"}.items():
        assert names[words].startswith(f"{name}: ")
    assert {title.split(":")[0] for title in names.values()} <= set(lens.atlas.scores(1).values)


def test_all_columns_can_be_reached_where_there_is_little_room(
    static_page: Callable[[Path], Page], lens: vitlens.Lens, tmp_path: Path
) -> None:
    FeatureBrowser(lens, tiny_picture()).to_html(tmp_path / "browser.html")
    page = static_page(tmp_path / "browser.html")
    page.set_viewport_size({"width": 600, "height": 800})
    page.locator(".vl-browser-head button", has_text="one meaning").focus()
    expect(page.locator(".vl-browser-head button", has_text="one meaning")).to_be_in_viewport()
    places = page.evaluate(
        """() => [".vl-browser-head", ".vl-browser-row"].map(where => document.querySelector(
          `${where} .vl-browser-monosemanticity`).getBoundingClientRect().right)"""
    )
    assert places[0] == pytest.approx(places[1], abs=1)
    number = page.locator(".vl-browser-row .vl-browser-feature").first
    expect(number).to_be_in_viewport()  # it stays where it is


@pytest.mark.parametrize("width", [600, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits(
    static_page: Callable[[Path], Page],
    lens: vitlens.Lens,
    tmp_path: Path,
    width: int,
    theme: str,
) -> None:
    for widget in (FeatureCard(lens, tiny_picture()), FeatureBrowser(lens), FeatureMap(lens)):
        if isinstance(widget, FeatureCard):
            widget.update_card()
        widget.to_html(tmp_path / "page.html")
        page = static_page(tmp_path / "page.html")
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 900})
        expect(page.locator(f".vl-root.vl-{theme}")).to_have_count(1)
        assert page.evaluate(
            "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )

"""What every widget owes its readers, looked at in a saved page: contrast, keys, small screens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.builders import tiny_image, tiny_lens
from tests.widgets import tiny
from tests.widgets.test_curves import make_curves
from vitlens.widgets import CircuitDiagram, CurvePlot, FeatureBrowser, FeatureCard, PatchHeatmap
from vitlens.widgets.base import Widget

Show = Callable[[Path], Page]

MADE: dict[str, Callable[[], Widget]] = {
    "heatmap": lambda: PatchHeatmap.of(tiny_lens(), tiny_image(), 1, 3, patches=[(1, 1)]),
    "card": lambda: FeatureCard(tiny_lens(), tiny_image()),
    "browser": lambda: FeatureBrowser(tiny_lens(), tiny_image()),
    "diagram": lambda: CircuitDiagram.of(tiny_lens(), tiny_image()),
    "curves": lambda: CurvePlot(make_curves()),
    "explorer": lambda: tiny_lens().explore(tiny_image()),
}

# Of every piece of text that is seen: the contrast with the plain colour it stands on, as WCAG
# counts. Text on gradients and pictures is left out.
CONTRAST = """() => {
  const parse = (css) => {
    const n = css.match(/[\\d.]+(e-?\\d+)?/g).map(Number);
    const unit = css.startsWith("color(") ? 255 : 1;
    return { rgb: n.slice(0, 3).map((x) => x * unit), a: n[3] ?? 1 };
  };
  const over = (top, under) => ({
    rgb: top.rgb.map((x, i) => x * top.a + under.rgb[i] * (1 - top.a)), a: 1 });
  const light = ({ rgb }) => {
    const [r, g, b] = rgb.map((x) => x / 255).map((x) => x <= 0.04045 ? x / 12.92
      : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    if (!element) return { rgb: [255, 255, 255], a: 1 };
    const style = getComputedStyle(element);
    if (style.backgroundImage !== "none") return null;
    const own = parse(style.backgroundColor);
    if (own.a === 1) return own;
    const under = ground(element.parentElement);
    return under && over(own, under);
  };
  const low = [];
  const walk = document.createTreeWalker(document.querySelector(".vl-root"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    const words = walk.currentNode.textContent.trim();
    if (!words || element.closest("option, [disabled], [aria-hidden=true], .vl-hint")) continue;
    if (!element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    const under = ground(element);
    if (!under) continue;
    const style = getComputedStyle(element);
    const svg = element instanceof SVGElement;
    const ink = over(parse(svg ? style.fill : style.color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) low.push(`${words.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return low;
}"""

UNMARKED = """() => [...document.querySelectorAll(
  ".vl-root :is(button, input, select, textarea, a, summary, [tabindex])")]
  .filter((x) => x.dataset.lmSuppressShortcuts !== "true").map((x) => x.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module", params=list(MADE))
def page_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / f"{request.param}.html"
    MADE[request.param]().to_html(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_and_fits_a_narrow_screen(
    static_page: Show, page_file: Path, scheme: str
) -> None:
    page = static_page(page_file)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 600, "height": 900})
    expect(page.locator(f".vl-root.vl-{scheme}")).to_be_visible()
    expect(page.locator(".vl-no-kernel")).to_contain_text("a saved view")
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 600


def test_keys_reach_everything_and_the_focus_is_seen(static_page: Show, page_file: Path) -> None:
    page = static_page(page_file)
    page.locator(".vl-root").wait_for()
    assert page.evaluate(UNMARKED) == []
    for _ in range(3):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(({ outlineStyle, outlineWidth }) => [outlineStyle, parseFloat(outlineWidth)])"
            "(getComputedStyle(document.activeElement))"
        )
        assert style[0] != "none"
        assert style[1] >= 1


@pytest.mark.parametrize(
    ("mark", "theme"),
    [
        ("document.body.dataset.jpThemeLight = 'false'", "dark"),
        ("document.body.dataset.vscodeThemeKind = 'vscode-dark'", "dark"),
        ("document.body.dataset.vscodeThemeKind = 'vscode-high-contrast'", "dark"),
        ("document.body.dataset.vscodeThemeKind = 'vscode-high-contrast-light'", "light"),
        ("document.documentElement.setAttribute('theme', 'dark')", "dark"),
        ("document.body.classList.add('dark')", "dark"),
    ],
)
def test_the_host_says_which_theme_it_is(
    static_page: Show, tmp_path: Path, mark: str, theme: str
) -> None:
    PatchHeatmap(None, [[1.0]]).to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    page.emulate_media(color_scheme="light" if theme == "dark" else "dark")
    page.locator(".vl-root").wait_for()
    page.evaluate(mark)
    expect(page.locator(f".vl-root.vl-{theme}")).to_be_visible()


def test_forced_colours_leave_what_stands_for_values_and_mark_what_is_on(
    static_page: Show, tmp_path: Path
) -> None:
    lens, image = tiny_lens(), tiny_image()
    made = {
        "card": FeatureCard(lens, image),
        "browser": FeatureBrowser(lens, image, layer=1),
        "diagram": CircuitDiagram.of(lens, image),
        "curves": CurvePlot(make_curves()),
    }
    made["browser"].selected = (1, int(made["browser"].listed[0][1]))
    for name, widget in made.items():
        widget.to_html(tmp_path / f"{name}.html")

    def show(name: str, forced: Literal["active", "none"] = "active") -> Page:
        page = static_page(tmp_path / f"{name}.html")
        page.emulate_media(forced_colors=forced)
        page.locator(".vl-root").wait_for()
        return page

    def style(page: Page, what: str, name: str) -> str:
        return str(page.locator(what).first.evaluate(f"x => getComputedStyle(x).{name}"))

    unforced = style(show("card", "none"), ".vl-card-effect", "backgroundColor")
    page = show("card")
    assert "gradient" in style(page, ".vl-legend-bar", "backgroundImage")
    assert style(page, ".vl-card-effect", "backgroundColor") == unforced
    page = show("diagram")
    assert "gradient" in style(page, ".vl-legend-heat", "backgroundImage")
    page = show("browser")
    row = ".vl-browser-row[aria-selected={}]"
    other = style(page, row.format("false"), "backgroundColor")
    assert style(page, row.format("true"), "backgroundColor") != other
    bar = f"{row.format('false')} .vl-browser-bar"
    assert style(page, bar, "backgroundColor") != other
    page = show("curves")
    button = ".vl-curves-choice .vl-button[aria-pressed={}]"
    pressed = style(page, button.format("true"), "backgroundColor")
    assert pressed != style(page, button.format("false"), "backgroundColor")


# Words that leave the box they belong to, or that lie on each other.
OUTSIDE = """([inner, outer]) => [...document.querySelectorAll(inner)].filter((x) => {
  const [a, b] = [x.getBoundingClientRect(), x.closest(outer).getBoundingClientRect()];
  return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1);
}).map((x) => x.textContent)"""
OVERLAPPING = """(what) => {
  const boxes = [...document.querySelectorAll(what)].map((x) => x.getBoundingClientRect());
  return boxes.some((a, i) => boxes.slice(i + 1).some((b) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
}"""


@pytest.mark.parametrize("width", [400, 700])
def test_the_words_of_curves_fit(static_page: Show, tmp_path: Path, width: int) -> None:
    plot = CurvePlot(make_curves(), direction="both")
    plot.to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    page.set_viewport_size({"width": width, "height": 900})
    page.locator(".vl-curves-panel").first.wait_for()
    assert page.evaluate(OUTSIDE, [".vl-curves-panel text", ".vl-curves-panel"]) == []
    assert not page.evaluate(OVERLAPPING, ".vl-curves-panel .vl-curves-tick")


def test_long_names_and_shares_stay_in_their_places(static_page: Show, tmp_path: Path) -> None:
    lens = tiny_lens()
    lens.class_names = ("<script>alert('a_long_word')</script>",) * 5
    diagram = CircuitDiagram.of(lens, tiny_image(), target=0)
    diagram.to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    page.locator(".vl-node-target").wait_for()
    assert page.evaluate(OUTSIDE, [".vl-node-target .vl-node-name", ".vl-node-target"]) == []
    # A share with a sign next to the longest name: one line, whatever it is.
    share = page.locator(".vl-node:not(.vl-node-target) .vl-node-share").first
    high = "x => x.parentElement.getBoundingClientRect().height"
    before = share.evaluate(high)
    share.evaluate("x => { x.previousSibling.textContent = '1021'; x.textContent = '−18.7%'; }")
    assert share.evaluate(high) == before


def test_many_tokens_before_the_patches_and_a_long_target(
    static_page: Show, tmp_path: Path
) -> None:
    lens = tiny.tiny_lens()
    lens.class_names = ("a class name that goes on and on until it has sixty letters",) * 8
    heatmap = PatchHeatmap.of(lens, tiny.tiny_picture(), layer=1, feature=3)
    heatmap.to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    page.set_viewport_size({"width": 270, "height": 900})
    box = page.locator(".vl-heat-image").bounding_box()
    assert box is not None
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert not page.evaluate(OVERLAPPING, ".vl-legend-ends > span")
    assert page.evaluate(OUTSIDE, [".vl-legend-body", ".vl-heatmap"]) == []


def test_what_nobody_can_compute_is_said_and_not_shown_as_done(
    static_page: Show, tmp_path: Path
) -> None:
    CircuitDiagram.of(tiny_lens(), tiny_image()).to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    # The region must be there before its words are, or a screen reader does not say them.
    region = page.locator("[role=status]:has(.vl-notice)")
    expect(region).to_have_text("")
    assert region.evaluate("x => x.checkVisibility()")
    node = page.locator(".vl-node:not(.vl-node-target)").first
    node.focus()
    page.keyboard.press("x")
    expect(region).to_contain_text("This needs a running kernel.")
    expect(page.locator(".vl-node.vl-off")).to_have_count(0)
    expect(page.locator(".vl-ablation")).not_to_contain_text("computing")


def test_hints_in_fields_are_readable_in_the_dark(static_page: Show, tmp_path: Path) -> None:
    FeatureBrowser(tiny_lens(), tiny_image()).to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    page.emulate_media(color_scheme="dark")
    field = page.locator(".vl-input").first
    expect(field).to_be_visible()
    ink = field.evaluate("x => getComputedStyle(x, '::placeholder').color")
    muted = page.locator(".vl-muted").first.evaluate("x => getComputedStyle(x).color")
    assert ink == muted  # whose contrast is measured above


def test_escape_leaves_the_full_screen_of_a_frame(static_page: Show, tmp_path: Path) -> None:
    CircuitDiagram.of(tiny_lens(), tiny_image()).to_html(tmp_path / "page.html")
    page = static_page(tmp_path / "page.html")
    page.evaluate("() => { Element.prototype.requestFullscreen = () => Promise.reject(); }")
    page.get_by_role("button", name="Full screen").click()
    expect(page.locator(".vl-diagram.vl-full")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".vl-diagram.vl-full")).to_have_count(0)

"""What a diagram draws on its canvases, and how soon, in a saved page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.builders import tiny_image, tiny_lens
from vitlens.widgets import CircuitDiagram

# The colour of the edges that is seen most, after so many frames; null when nothing is drawn.
EDGES = """async (frames) => {
  for (let i = 0; i < frames; i++) await new Promise(requestAnimationFrame);
  const canvas = document.querySelector("canvas.vl-edges");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const found = new Map();
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] < 60) continue;
    const warm = data[i] > data[i + 2];
    const kind = warm ? "negative" : "positive";
    const one = found.get(kind) ?? [0, 0, 0, 0];
    found.set(kind, one.map((sum, j) => sum + (j < 3 ? data[i + j] : 1)));
  }
  return Object.fromEntries([...found].map(([kind, [r, g, b, n]]) =>
    [kind, [r / n, g / n, b / n]]));
}"""
COLOURS = {  # lib/style.css
    "light": {"positive": (0, 114, 178), "negative": (193, 79, 0)},
    "dark": {"positive": (86, 180, 233), "negative": (240, 136, 62)},
}

# Of every node in sight, how far the pixels of its thumbnail are from one colour.
THUMBS = """() => {
  const canvas = document.querySelector("canvas.vl-thumbs");
  const g = canvas.getContext("2d");
  const box = canvas.getBoundingClientRect();
  const ratio = canvas.width / box.width;
  return [...document.querySelectorAll(".vl-node:not(.vl-node-target)")].map((node) => {
    const at = node.getBoundingClientRect();
    const side = (46 / 62) * at.width * ratio;
    const left = (at.left - box.left) * ratio;
    const { data } = g.getImageData(left, (at.top - box.top) * ratio, side, side);
    const red = data.filter((_, i) => i % 4 === 0);
    const filled = data.filter((x, i) => i % 4 === 3 && x === 255).length / red.length;
    return { filled, spread: Math.max(...red) - Math.min(...red) };
  });
}"""


@pytest.fixture
def diagram(tmp_path: Path, static_page: Callable[[Path], Page]) -> Page:
    widget = CircuitDiagram.of(tiny_lens(), tiny_image(), nodes_per_layer=4)
    path = tmp_path / "diagram.html"
    widget.to_html(path)
    page = static_page(path)
    page.wait_for_selector(".vl-node-target")
    page.wait_for_timeout(500)
    return page


def test_a_theme_is_drawn_in_the_next_frame(diagram: Page) -> None:
    for theme in ("dark", "light", "dark"):
        diagram.evaluate(
            "(dark) => (document.body.dataset.jpThemeLight = String(!dark))", theme == "dark"
        )
        # One frame to draw in, and another to be sure that it is over.
        seen = diagram.evaluate(EDGES, 2)
        assert seen
        for sign, colour in seen.items():
            assert colour == pytest.approx(COLOURS[theme][sign], abs=12), theme


def test_every_node_has_its_thumbnail(diagram: Page) -> None:
    def check() -> None:
        thumbs = diagram.evaluate(THUMBS)
        assert len(thumbs) >= 12
        assert all(one["filled"] > 0.9 and one["spread"] > 20 for one in thumbs)

    diagram.locator("[data-action=fit]").click()
    diagram.wait_for_timeout(300)
    check()
    slider = diagram.locator("input[data-rule=nodes_per_layer]")
    slider.fill("6")
    diagram.wait_for_timeout(500)
    check()
    assert diagram.locator("canvas").count() == 4  # edges, lit edges, thumbnails, the image

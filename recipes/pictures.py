"""Draw the pictures of README and docs: ``python -m recipes.pictures [NAME ...]``.

Widgets are shown as saved pages in Chromium. The figures that come with a measurement are drawn by
it (`recipes.everyday.faithfulness`, `recipes.everyday.verify`).
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import vitlens
from vitlens.plots import circuit_figure, evolution_figure, save_figure
from vitlens.widgets import Explorer, FeatureCard, FeatureMap

DOCS = Path(__file__).parents[1] / "docs"
_DPI = 120
_SETTLED = 2500  # ms until a page has drawn all it shows


@cache
def _lens() -> vitlens.Lens:
    return vitlens.load("everyday")


def circuit() -> None:
    """The circuit that `vitlens demo` draws."""
    lens = _lens()
    _figure(circuit_figure(lens.circuit(lens.samples[0], nodes_per_layer=8)), "circuit")


def evolution() -> None:
    """The course of the atlas's scores, with both controls."""
    atlas = _lens().atlas
    assert atlas is not None
    _figure(evolution_figure(atlas.evolution()), "evolution")


def explorer() -> None:
    """The Explorer, light and dark."""
    shown = _lens().explore()
    shown.nodes_per_layer = 6
    for scheme, name in (("light", "explorer"), ("dark", "explorer-dark")):
        with _page(shown, width=1100, scheme=scheme) as page:
            _photograph(page, ".vl-explorer", name)


def feature_card() -> None:
    """The card of the feature that matters most to the first sample."""
    with _page(FeatureCard(_lens(), _lens().samples[0]), width=1100) as page:
        _photograph(page, ".vl-card", "feature-card")


def feature_map() -> None:
    """The map of all features by kind, with a lasso drawn."""
    with _page(FeatureMap(_lens(), colour_by="kind"), width=1100) as page:
        page.get_by_role("button", name="Lasso").click()
        box = page.locator(".vl-map canvas").first.bounding_box()
        assert box is not None
        corners = ((0.47, 0.56), (0.59, 0.56), (0.6, 0.76), (0.47, 0.76), (0.47, 0.56))
        for step, (x, y) in enumerate(corners):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
            if step == 0:
                page.mouse.down()
        page.mouse.up()
        page.mouse.move(box["x"] + 0.535 * box["width"], box["y"] + 0.66 * box["height"], steps=4)
        _photograph(page, "#vl-page", "feature-map")


PICTURES: dict[str, Callable[[], None]] = {
    "circuit": circuit,
    "evolution": evolution,
    "explorer": explorer,
    "feature-card": feature_card,
    "feature-map": feature_map,
}


def _figure(figure: Figure, name: str) -> None:
    """Store a figure at half the resolution it is drawn in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        save_figure(figure, path, dpi=2 * _DPI)
        large = Image.open(path).convert("RGB")
    small = large.resize((large.width // 2, large.height // 2), Image.Resampling.BOX)
    # 256 colours, of which the few strong ones must survive: a third of the size, no loss to see.
    _store(small.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1), name)


@contextmanager
def _page(widget: Explorer | FeatureCard | FeatureMap, *, width: int, scheme: Any = "light"):
    """A page with the widget on it, drawn."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    browser = next(path for name in names if name and (path := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "page.html"
        widget.to_html(path)
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(
            viewport={"width": width, "height": 1060}, color_scheme=scheme, offline=True
        )
        page.goto(path.as_uri())
        page.wait_for_timeout(_SETTLED)
        yield page
        chromium.close()


def _photograph(page: Page, what: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        page.locator(what).first.screenshot(path=path)
        _store(Image.open(path).convert("RGB"), name)


def _store(picture: Image.Image, name: str) -> None:
    path = DOCS / f"{name}.png"
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names or list(PICTURES)
    for name in names:
        PICTURES[name]()


if __name__ == "__main__":
    main()

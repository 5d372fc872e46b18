"""Draw the images of README and docs: ``python -m recipes.pictures [NAME ...]``.

Widgets are photographed in Chromium. Figures of a measurement are drawn by the measurement
(`recipes.everyday.faithfulness`, `recipes.everyday.verify`).
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import cos, pi, sin
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import vitlens
from tests.widgets.browser import hosts
from vitlens.plots import circuit_figure, evolution_figure, save_figure
from vitlens.widgets import FeatureCard, FeatureMap
from vitlens.widgets.base import Widget

DOCS = Path(__file__).parents[1] / "docs"
_DPI = 120
_SETTLED = 2500  # ms until a page is fully drawn


@cache
def _lens() -> vitlens.Lens:
    return vitlens.load("everyday")


def circuit() -> None:
    """Draw the circuit of `vitlens demo`."""
    lens = _lens()
    _figure(circuit_figure(lens.circuit(lens.samples[0], nodes_per_layer=8)), "circuit")


def evolution() -> None:
    """Draw the scores of the atlas over the layers, with both controls."""
    atlas = _lens().atlas
    assert atlas is not None
    _figure(evolution_figure(atlas.evolution()), "evolution")


def explorer() -> None:
    """Photograph the Explorer in JupyterLab, light and dark."""
    cells = [
        'import vitlens\nlens = vitlens.load("everyday")',
        "explorer = lens.explore()\nexplorer",
    ]
    with (
        TemporaryDirectory() as folder,
        hosts.jupyter(Path(folder)) as server,
        _chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": 1680, "height": 1150})
        lab = hosts.Jupyter(page, server, "lab")
        lab.drive(cells)
        page.wait_for_selector(".vl-node", timeout=hosts.PATIENCE)
        lab.run("explorer.nodes_per_layer = 6")
        for name in ("explorer", "explorer-dark"):
            page.wait_for_timeout(_SETTLED)
            _photograph(page, ".vl-explorer", name)
            lab.dark()
        lab.close()


def feature_card() -> None:
    """Photograph the card of the most important feature of the first sample."""
    with _page(FeatureCard(_lens(), _lens().samples[0])) as page:
        _photograph(page, "body", "feature-card")


def feature_map() -> None:
    """Photograph the map of all features by kind, with a lasso."""
    with _page(FeatureMap(_lens(), colour_by="kind")) as page:
        page.get_by_text("Lasso", exact=True).click()
        box = page.locator(".vl-map canvas").first.bounding_box()
        assert box is not None
        for step in range(40):
            turn = 2 * pi * step / 39
            reach = 1 + 0.12 * cos(3 * turn)
            x, y = 0.535 + 0.065 * reach * cos(turn), 0.66 + 0.1 * reach * sin(turn)
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if step == 0:
                page.mouse.down()
        page.mouse.up()
        page.mouse.move(box["x"] + 0.535 * box["width"], box["y"] + 0.66 * box["height"], steps=4)
        _photograph(page, "body", "feature-map")


PICTURES: dict[str, Callable[[], None]] = {
    "circuit": circuit,
    "evolution": evolution,
    "explorer": explorer,
    "feature-card": feature_card,
    "feature-map": feature_map,
}


def _figure(figure: Figure, name: str) -> None:
    """Store a figure at half the resolution at which it is drawn."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        save_figure(figure, path, dpi=2 * _DPI)
        large = Image.open(path).convert("RGB")
    small = large.resize((large.width // 2, large.height // 2), Image.Resampling.BOX)
    # 256 colours, with the few strong ones kept: a third of the size without visible loss.
    _store(small.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1), name)


@contextmanager
def _chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=hosts.chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )


@contextmanager
def _page(widget: Widget) -> Iterator[Page]:
    """A browser page with the saved widget."""
    with TemporaryDirectory() as folder, _chromium() as browser:
        path = Path(folder) / "page.html"
        widget.to_html(path)
        page = browser.new_page(viewport={"width": 1100, "height": 638})
        page.goto(path.as_uri())
        page.wait_for_timeout(_SETTLED)
        yield page


def _photograph(page: Page, what: str, name: str) -> None:
    with TemporaryDirectory() as folder:
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

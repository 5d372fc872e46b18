"""FeatureBrowser: its list and its order, with an image, an atlas or both."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import traitlets

import vitlens
from tests.builders import noise_image, tiny_lens
from tests.widgets.tiny import tiny_picture
from vitlens.errors import OptionError
from vitlens.lens import Lens
from vitlens.widgets import FeatureBrowser
from vitlens.widgets.base import from_bytes
from vitlens.widgets.browser import COLUMNS, order, table
from vitlens.widgets.columns import ATLAS_COLUMNS
from vitlens.widgets.scene import Scene


@pytest.fixture
def lens() -> Lens:
    lens = tiny_lens()
    lens.fit_baselines([noise_image()], kind="zero", progress=False)
    return lens


@pytest.fixture
def scene(lens: Lens) -> Scene:
    return Scene.of(lens, noise_image(), target="fruit")


@pytest.fixture
def browser(scene: Scene) -> FeatureBrowser:
    return FeatureBrowser(scene.lens, scene)


def test_the_list_holds_the_layer(scene: Scene, browser: FeatureBrowser) -> None:
    assert browser.layer == 2
    assert browser.browser["layers"] == [0, 1, 2]
    assert browser.browser["n_features"] == 30
    sent = from_bytes(browser.browser_table, shape=(len(COLUMNS), -1))
    np.testing.assert_array_equal(sent, table(scene, 2))
    z = scene.trace.features[2]
    np.testing.assert_allclose(sent[1], z.max(0).values)
    np.testing.assert_array_equal(sent[3], (z > 0).sum(0))
    best = int(z.sum(0).argmax())
    assert sent[2][best] == pytest.approx(float(z[:, best][z[:, best] > 0].mean()))
    active = int((sent[3] > 0).sum())
    assert len(browser.listed) == active < 30
    browser.active_only = False
    browser.sort, browser.descending = "feature", False
    assert browser.listed == [(2, f) for f in range(30)]
    browser.layer = 0
    assert browser.listed[0] == (0, 0)
    for layer in (-1, 3):
        with pytest.raises(traitlets.TraitError):
            browser.layer = layer
    with pytest.raises(OptionError, match=r"sort must be one of importance, .* not 'beauty'"):
        browser.sort = "beauty"


def test_order_by_hand() -> None:
    columns = np.array([[3, -1, 3, 0], [1, 5, 0, 2], [1, 2, 0, 2], [1, 3, 0, 1]], np.float32)
    labels = {1: "Beak", 3: "eye"}

    def of(sort: str, *, descending: bool = True, **rest: object) -> list[int]:
        found = order(columns, labels, sort=sort, descending=descending, **rest)  # type: ignore[arg-type]
        return found.tolist()

    assert of("importance") == [0, 2, 3, 1]
    assert of("importance", descending=False) == [1, 3, 0, 2]
    assert of("importance", active_only=True) == [0, 3, 1]
    assert of("max_activation", min_activation=2) == [1, 3]
    assert of("active_tokens") == [1, 0, 3, 2]
    assert of("feature") == [3, 2, 1, 0]
    assert of("label", descending=False) == [1, 3, 0, 2]
    assert of("label") == [3, 1, 0, 2]
    assert of("feature", query=" EY ") == [3]
    assert of("feature", query="1") == [1]
    assert of("feature", query="none such") == []


def test_the_browser_lists_all_features_of_a_layer(atlas_lens: vitlens.Lens) -> None:
    atlas = atlas_lens.atlas
    assert atlas is not None
    browser = FeatureBrowser(atlas_lens, layer=1)
    assert browser.browser["columns"] == list(ATLAS_COLUMNS)
    assert len(browser.listed) == 60
    trust = atlas.scores(1)["trust"].numpy()
    assert [f for _, f in browser.listed] == np.argsort(-trust, kind="stable").tolist()
    browser.at_least = {"frequency": 0.05}
    kept = set(np.flatnonzero(atlas.scores(1)["frequency"].numpy() >= 0.05).tolist())
    assert {f for _, f in browser.listed} == kept
    assert 0 < len(kept) < 60
    browser.at_least = {}
    both = FeatureBrowser(atlas_lens, tiny_picture(), layer=1, active_only=False)
    assert both.browser["columns"] == [*COLUMNS, *ATLAS_COLUMNS]
    both.sort = "trust"
    assert both.listed == browser.listed
    json.dumps(both.browser, allow_nan=False)


def test_the_browser_searches_proposals(atlas_lens: vitlens.Lens) -> None:
    browser = FeatureBrowser(atlas_lens, layer=1)
    texts = ["zebra, stripes" if f == 7 else "" for f in range(60)]
    browser.browser = {**browser.browser, "texts": texts}
    browser.query = " STRI"
    assert browser.listed == [(1, 7)]
    browser.labels = {(1, 9): "Stripes of tigers"}
    assert set(browser.listed) == {(1, 7), (1, 9)}


@pytest.mark.parametrize("image", [False, True])
def test_a_figure_of_the_list_marks_proposed_names(atlas_lens: vitlens.Lens, image: bool) -> None:
    browser = FeatureBrowser(
        atlas_lens, tiny_picture() if image else None, layer=1, active_only=False
    )
    first, second, third = (feature for _, feature in browser.listed[:3])
    texts = ["stripes" if f in (first, second) else "" for f in range(60)]
    browser.browser = {**browser.browser, "texts": texts}
    browser.labels = {(1, second): "zebra", (1, third): "claw"}
    (axes,) = browser.figure().axes
    words = [text.get_text() for text in axes.texts]
    assert [word for word in words if word in ("stripes?", "stripes", "zebra", "claw")] == [
        "stripes?",
        "zebra",
        "claw",
    ]
    assert not [word for word in words if re.search(r"\de-\d", word)]


def test_the_order_puts_unmeasured_values_last() -> None:
    columns = np.array([[0.2, np.nan, 0.9, np.nan], [1, 2, 3, 4]], np.float32)
    names = ("trust", "hue")

    def of(**request: object) -> list[int]:
        return order(columns, {}, names=names, **request).tolist()  # type: ignore[arg-type]

    assert of(sort="trust", descending=True) == [2, 0, 1, 3]
    assert of(sort="trust", descending=False) == [0, 2, 1, 3]
    assert of(sort="trust", descending=True, at_least={"trust": 0.0}) == [2, 0]
    assert of(sort="hue", descending=True, at_least={"hue": 2, "trust": 0.5}) == [2]
    assert of(sort="importance", descending=True) == [0, 1, 2, 3]  # there is no such column
    assert of(sort="hue", descending=False, at_least={"curvature": 9}) == [0, 1, 2, 3]
    assert of(sort="hue", descending=False, active_only=True, min_activation=3) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "least", [{"beauty": 1}, {"trust": "high"}, {"trust": np.nan}, {"hue": True}]
)
def test_a_filter_is_a_number_for_a_known_column(
    atlas_lens: vitlens.Lens, least: dict[str, object]
) -> None:
    with pytest.raises(traitlets.TraitError):
        FeatureBrowser(atlas_lens, at_least=least)

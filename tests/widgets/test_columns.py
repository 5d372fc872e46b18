"""Columns of an atlas, and widgets on an atlas with a damaged layer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

import vitlens
from tests.widgets.tiny import texts_of, tiny_picture
from vitlens.widgets import FeatureBrowser, FeatureCard, FeatureMap
from vitlens.widgets.base import from_bytes
from vitlens.widgets.columns import MAP_COLUMNS


def test_widgets_work_with_a_damaged_layer(
    damaged_lens: vitlens.Lens, atlas_lens: vitlens.Lens
) -> None:
    why = r"The atlas cannot be read for layer 1\..*layer_01\.safetensors is damaged: .*intact copy"
    card, sound = (
        FeatureCard(damaged_lens, selected=(1, 5)),
        FeatureCard(atlas_lens, selected=(1, 5)),
    )
    assert "atlas" not in card.card
    assert card.card["top_images"]["available"] is False
    assert re.match(why, card.card["top_images"]["why"])
    card.selected = sound.selected = (0, 5)
    assert card.card == sound.card
    on_image, sound = (
        FeatureCard(with_atlas, tiny_picture(), selected=(1, 5))
        for with_atlas in (damaged_lens, atlas_lens)
    )
    for name in ("importance", "edges_in", "up"):
        assert on_image.card[name] == sound.card[name]

    browser, sound_browser = (
        FeatureBrowser(damaged_lens, layer=1),
        FeatureBrowser(atlas_lens, layer=1),
    )
    assert re.match(why, browser.browser["unreadable"])
    assert browser.browser["columns"] == sound_browser.browser["columns"]
    assert np.isnan(from_bytes(browser.browser_table)).all()
    assert browser.listed == [(1, feature) for feature in range(60)]
    browser.layer = sound_browser.layer = 2
    assert browser.browser["unreadable"] == ""
    assert browser.browser == sound_browser.browser
    assert browser.browser_table == sound_browser.browser_table

    features = FeatureMap(damaged_lens, colour_by="kind")
    assert len(features.map["unreadable"]) == 1
    assert re.match(why, features.map["unreadable"][0])
    columns = from_bytes(features.map_columns, "float16", (len(MAP_COLUMNS), 180))
    assert np.isnan(columns[:, 60:120]).all()
    assert not np.isnan(columns[0, :60]).any()
    assert features.map_points == FeatureMap(atlas_lens).map_points
    for widget in (card, browser, features):
        json.dumps([widget.trait_values().get(name) for name in ("card", "browser", "map")],
                   allow_nan=False)  # fmt: skip


def test_the_explorer_opens_with_a_damaged_layer(damaged_lens: vitlens.Lens) -> None:
    explorer = damaged_lens.explore(tiny_picture())
    assert explorer.notice == ""
    assert explorer.graph_info["counts"]
    for (layer, feature), words in zip(
        explorer.graph.keys, explorer.graph_info["kinds"], strict=True
    ):
        assert ("cannot be read" in words) == (layer == 1 and feature >= 0)
    explorer.selected = (1, 5)
    assert "layer_01" in explorer.card["top_images"]["why"]
    assert "layer_01" in explorer.browser["unreadable"]
    explorer.selected = (2, 5)
    assert explorer.card["top_images"]["available"] is True
    assert explorer.browser["unreadable"] == ""


def test_figures_report_a_damaged_layer(damaged_lens: vitlens.Lens, tmp_path: Path) -> None:
    card = FeatureCard(damaged_lens, selected=(1, 5))
    text = " ".join(texts_of(card.figure()).split())
    assert "The atlas cannot be read for layer 1" in text
    for widget in (
        card,
        FeatureBrowser(damaged_lens, layer=1),
        FeatureMap(damaged_lens, colour_by="trust"),
    ):
        widget.to_html(tmp_path / "page.html")
        data, _ = widget._repr_mimebundle_()  # type: ignore[misc]
        assert "image/png" in data
        assert widget.notice == ""

"""Widgets on a lens with an atlas, without a browser: what they say, names, what they refuse."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets

import vitlens
from tests.widgets.tiny import tiny_atlas, tiny_lens, tiny_picture
from vitlens.atlas.atlas import Atlas
from vitlens.errors import FeatureError
from vitlens.widgets import CircuitDiagram, FeatureBrowser, FeatureCard, FeatureMap
from vitlens.widgets.atlas_card import spread
from vitlens.widgets.atlas_table import ATLAS_COLUMNS, MAP_COLUMNS
from vitlens.widgets.browser import COLUMNS, order
from vitlens.widgets.buffers import decode_strip, from_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved atlas; tests that write names copy what they need."""
    out = tmp_path_factory.mktemp("atlas") / "atlas"
    tiny_atlas(tiny_lens(), out)
    return out


@pytest.fixture
def lens(folder: Path, tmp_path: Path) -> vitlens.Lens:
    """A lens with the atlas, and a file of names of its own."""
    return opened(folder, tmp_path)


def opened(folder: Path, names: Path) -> vitlens.Lens:
    lens = tiny_lens()
    lens.atlas = Atlas.load(folder, lens, names=names / "names.jsonl")
    return lens


def silent_feature(card: FeatureCard) -> int:
    """A feature of layer 0 that is active nowhere on the card's image."""
    return int(card.scene.trace.features[0].sum(0).argmin())


def test_a_card_says_what_the_atlas_says(lens: vitlens.Lens) -> None:
    atlas = lens.atlas
    assert atlas is not None
    card = FeatureCard(lens, selected=(1, 5))
    profile, said = atlas.feature(1, 5), card.card["atlas"]
    assert "importance" not in card.card  # there is no image
    assert said["frequency"] == profile.frequency
    assert said["active"] == pytest.approx(profile.frequency * said["n_tokens"])
    assert sum(said["histogram"]["counts"]) == said["active"]
    assert len(said["histogram"]["edges"]) == len(said["histogram"]["counts"]) + 1
    scores = {name: (value, chance) for name, value, chance in said["scores"]}
    assert scores["position"][0] == pytest.approx(profile.scores["position"])
    assert scores["position"][1] == pytest.approx(profile.chance["position"])
    assert [tuple(row[:2]) for row in said["neighbours"]["before"]] == [
        node for node, _ in profile.neighbours["before"][:4]
    ]
    assert said["up"][0] == list(profile.logit_lens[0])
    assert said["down"][0] == list(profile.logit_lens[-1])
    np.testing.assert_allclose(from_bytes(card.mean_map), profile.mean_map, rtol=1e-6)
    assert profile.tuning is not None
    assert said["tuning"]["arcs"]["radii"][-1] is None
    np.testing.assert_allclose(said["tuning"]["arcs"]["values"], profile.tuning.direction)
    json.dumps(card.card, allow_nan=False)


def test_a_card_shows_the_images_of_the_atlas_with_their_heat(lens: vitlens.Lens) -> None:
    atlas = lens.atlas
    assert atlas is not None
    card = FeatureCard(lens, selected=(1, 5))
    items = card.card["top_images"]["items"]
    top = atlas.top(1, 5, n=8)
    assert [item["activation"] for item in items[: len(top)]] == [one.peak for one in top]
    assert [item["lower"] for item in items] == [False] * len(top) + [True] * (
        len(items) - len(top)
    )
    heats = from_bytes(card.top_heats, "float16", (len(items), 36))
    for heat, one in zip(heats, top, strict=False):
        np.testing.assert_allclose(heat, one.heatmap[3:], rtol=2e-3, atol=1e-3)
    pictures = decode_strip(card.top_pictures, len(items))
    assert all(picture is not None and picture.shape == (48, 48, 3) for picture in pictures)
    for item, one in zip(items, top, strict=False):
        assert (item["token"] == "") == (one.token >= 3)
        assert item["patch"] == max(-1, one.token - 3)


def test_heats_that_are_not_stored_come_after_the_pictures(tmp_path: Path) -> None:
    lens = tiny_lens()
    lens.atlas = tiny_atlas(lens, heats=False)

    async def look() -> list[str]:
        card = FeatureCard(lens, selected=(1, 5))
        seen = []
        card.observe(lambda change: seen.append(change["name"]), ["card", "top_heats"])
        while card.background("card").busy or card.background("heats").busy:
            await asyncio.sleep(0.01)
        assert card.top_pictures
        assert from_bytes(card.top_heats, "float16").max() > 0
        return seen

    assert asyncio.run(look()) == ["card", "top_heats"]


def test_a_card_of_an_image_has_both(lens: vitlens.Lens) -> None:
    card = FeatureCard(lens, tiny_picture())
    assert card.card["importance"]
    assert card.card["atlas"]["n_images"] == 16
    card.selected = (1, -1)
    assert "atlas" not in card.card
    assert card.top_pictures == b""
    card.selected = (0, silent_feature(card))
    assert "not active on this image" in card.figure().get_suptitle()
    card.selected = (3, -2)
    assert "atlas" not in card.card


def test_without_an_atlas_it_is_as_before() -> None:
    lens = tiny_lens()
    card = FeatureCard(lens, tiny_picture())
    assert card.card["top_images"]["available"] is False
    assert "no atlas" in card.card["top_images"]["why"]
    for widget in (FeatureCard, FeatureBrowser, FeatureMap):
        with pytest.raises(FeatureError, match="atlas"):
            widget(lens)
    browser = FeatureBrowser(lens, tiny_picture())
    assert browser.browser["columns"] == list(COLUMNS)


def test_without_an_image_there_are_only_features(lens: vitlens.Lens) -> None:
    for widget in (FeatureCard(lens), FeatureBrowser(lens), FeatureMap(lens)):
        for node in ((1, -1), (3, -2), (1, 60), (3, 0)):
            with pytest.raises(traitlets.TraitError):
                widget.selected = node


def test_the_browser_lists_all_features_of_a_layer(lens: vitlens.Lens) -> None:
    atlas = lens.atlas
    assert atlas is not None
    browser = FeatureBrowser(lens, layer=1)
    assert browser.browser["columns"] == list(ATLAS_COLUMNS)
    assert len(browser.listed) == 60
    trust = atlas.scores(1)["trust"].numpy()
    assert [f for _, f in browser.listed] == np.argsort(-trust, kind="stable").tolist()
    browser.at_least = {"frequency": 0.05}
    kept = set(np.flatnonzero(atlas.scores(1)["frequency"].numpy() >= 0.05).tolist())
    assert {f for _, f in browser.listed} == kept
    assert 0 < len(kept) < 60
    browser.at_least = {}
    both = FeatureBrowser(lens, tiny_picture(), layer=1, active_only=False)
    assert both.browser["columns"] == [*COLUMNS, *ATLAS_COLUMNS]
    both.sort = "trust"
    assert both.listed == browser.listed
    json.dumps(both.browser, allow_nan=False)


def test_the_browser_searches_proposals(lens: vitlens.Lens) -> None:
    browser = FeatureBrowser(lens, layer=1)
    texts = ["zebra, stripes" if f == 7 else "" for f in range(60)]
    browser.browser = {**browser.browser, "texts": texts}
    browser.query = " STRI"
    assert browser.listed == [(1, 7)]
    browser.labels = {(1, 9): "Stripes of tigers"}
    assert set(browser.listed) == {(1, 7), (1, 9)}


@pytest.mark.parametrize("image", [False, True])
def test_a_figure_of_the_list_marks_what_is_only_proposed(lens: vitlens.Lens, image: bool) -> None:
    browser = FeatureBrowser(lens, tiny_picture() if image else None, layer=1, active_only=False)
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


def test_order_puts_what_was_not_measured_last() -> None:
    columns = np.array([[0.2, np.nan, 0.9, np.nan], [1, 2, 3, 4]], np.float32)
    names = ("trust", "hue")

    def of(**wish: object) -> list[int]:
        return order(columns, {}, names=names, **wish).tolist()  # type: ignore[arg-type]

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
def test_a_filter_is_a_number_of_a_column(lens: vitlens.Lens, least: dict[str, object]) -> None:
    with pytest.raises(traitlets.TraitError):
        FeatureBrowser(lens, at_least=least)


def test_a_name_is_there_when_it_is_opened_again(folder: Path, tmp_path: Path) -> None:
    card = FeatureCard(opened(folder, tmp_path), selected=(1, 5), author="ada")
    card.set_state({"labels": [[1, 5, "edges of discs"]]})
    card.labels = {**card.labels, (2, 7): "corners"}
    lens = opened(folder, tmp_path)
    assert lens.atlas is not None
    (name,) = lens.atlas.names.of(1, 5)
    assert (name.name, name.author) == ("edges of discs", "ada")
    wanted = {(1, 5): "edges of discs", (2, 7): "corners"}
    for widget in (
        FeatureBrowser(lens),
        FeatureCard(lens, tiny_picture()),
        FeatureMap(lens),
        CircuitDiagram.of(lens, tiny_picture(), at_most=4),
        lens.explore(tiny_picture()),
    ):
        assert widget.labels == wanted


def test_a_view_takes_a_name_away_but_an_empty_dictionary_does_not(
    folder: Path, tmp_path: Path
) -> None:
    lens = opened(folder, tmp_path)
    browser = FeatureBrowser(lens, author="ada", labels={(0, 1): "given"})
    assert lens.atlas is not None
    names = lens.atlas.names
    assert names.labels == {}  # what is given at the start is shown, not written
    browser.set_state({"labels": [[1, 5, "beak"], [1, 6, "claw"]]})
    assert names.labels == {(1, 5): "beak", (1, 6): "claw"}
    browser.labels = {}
    assert names.labels == {(1, 5): "beak", (1, 6): "claw"}
    browser.read_names()
    browser.set_state({"labels": [[1, 6, "claw"]]})
    assert names.labels == {(1, 6): "claw"}
    names.set(1, 6, "talon", author="bob")
    browser.set_state({"labels": []})
    assert browser.labels == {(1, 6): "talon"}
    assert "Somebody else" in browser.notice


def test_linked_widgets_write_a_name_once(lens: vitlens.Lens) -> None:
    assert lens.atlas is not None
    browser, card = FeatureBrowser(lens, author="ada"), FeatureCard(lens, author="bob")
    traitlets.link((browser, "labels"), (card, "labels"))
    card.set_state({"labels": [[1, 5, "beak"]]})
    assert browser.labels == {(1, 5): "beak"}
    (name,) = lens.atlas.names.entries
    assert name.author == "bob"


def test_names_of_a_circuit_are_shown_and_not_written(lens: vitlens.Lens) -> None:
    assert lens.atlas is not None
    diagram = CircuitDiagram.of(lens, tiny_picture(), at_most=4)
    node = diagram.candidates.keys[0]
    circuit = diagram.candidates.prune(4, labels={node: "theirs"})
    diagram.circuit = circuit
    assert diagram.labels[node] == "theirs"
    again = CircuitDiagram(circuit, lens=lens, image=tiny_picture())
    assert again.labels[node] == "theirs"
    assert len(lens.atlas.names) == 0
    diagram.set_state({"labels": [[*node, "mine"], [0, -1, "what is missed"]]})
    assert lens.atlas.names.labels == {node: "mine"}  # an error node is no feature


def test_a_name_that_cannot_be_written_is_said_and_stays_in_sight(
    folder: Path, tmp_path: Path
) -> None:
    lens = opened(folder, tmp_path)
    card = FeatureCard(lens, selected=(1, 5))
    (tmp_path / "names.jsonl").write_text("no names\n")
    card.set_state({"labels": [[1, 5, "beak"]]})
    assert "names.jsonl" in card.notice
    assert card.labels == {(1, 5): "beak"}
    assert (tmp_path / "names.jsonl").read_text() == "no names\n"


def test_the_map_holds_all_features(lens: vitlens.Lens) -> None:
    atlas = lens.atlas
    assert atlas is not None
    assert atlas.layout is not None
    features = FeatureMap(lens, colour_by="orientation", selected=(1, 5))
    np.testing.assert_array_equal(from_bytes(features.map_points, shape=(-1, 2)), atlas.layout)
    columns = from_bytes(features.map_columns, "float16", (len(MAP_COLUMNS), 180))
    assert features.map["columns"] == list(MAP_COLUMNS)
    for name in ("position", "direction"):
        wanted = torch.cat([atlas.scores(layer)[name] for layer in range(3)])
        found = columns[MAP_COLUMNS.index(name)]
        np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=1e-3)
    assert features.map["behind"]["curve"] == "direction"
    assert set(features.map["behind"].values()) <= set(MAP_COLUMNS)
    assert features.map["chance"][1]["direction"] == atlas.scores(1).chance["direction"]
    kinds = from_bytes(features.map_kinds, "uint8")
    names = features.map["kinds"]
    assert names[kinds[60 + 5]] == atlas.scores(1).kind(5).name
    json.dumps(features.map, allow_nan=False)
    features.chosen = [(0, 1), (2, 59), (0, 1)]
    assert features.chosen == ((0, 1), (2, 59))
    for chosen in ([(0, 60)], [(3, 0)], [(0, -1)], "nonsense"):
        with pytest.raises(traitlets.TraitError):
            features.chosen = chosen
    features.map_layers = [2, 0]
    assert features.map_layers == (0, 2)
    for layers in ([3], [-1], ["a"], [True]):
        with pytest.raises(traitlets.TraitError):
            features.map_layers = layers
    with pytest.raises(traitlets.TraitError):
        FeatureMap(lens, chosen=[(0, 60)])
    with pytest.raises(traitlets.TraitError):
        features.colour_by = "beauty"


def test_a_map_needs_a_layout(folder: Path) -> None:
    lens = tiny_lens()
    atlas = Atlas.load(folder, lens)
    lens.atlas = atlas
    type_ = type("NoLayout", (Atlas,), {"layout": None})
    atlas.__class__ = type_
    with pytest.raises(FeatureError, match="layout=True"):
        FeatureMap(lens)
    assert lens.explore(tiny_picture()).map == {}


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> vitlens.Lens:
    """A lens with an atlas whose layer 1 has other bytes than were written."""
    copy = tmp_path / "atlas"
    shutil.copytree(folder, copy)
    file = copy / "layer_01.safetensors"
    data = bytearray(file.read_bytes())
    data[-400:-300] = bytes(100)
    file.write_bytes(data)
    return opened(copy, tmp_path)


def test_views_go_on_beside_a_damaged_layer(damaged: vitlens.Lens, lens: vitlens.Lens) -> None:
    why = r"The atlas cannot be read for layer 1\..*layer_01\.safetensors is damaged: .*intact copy"
    card, sound = FeatureCard(damaged, selected=(1, 5)), FeatureCard(lens, selected=(1, 5))
    assert "atlas" not in card.card
    assert card.card["top_images"]["available"] is False
    assert re.match(why, card.card["top_images"]["why"])
    card.selected = sound.selected = (0, 5)
    assert card.card == sound.card
    on_image, sound = (
        FeatureCard(with_atlas, tiny_picture(), selected=(1, 5)) for with_atlas in (damaged, lens)
    )
    for name in ("importance", "edges_in", "up"):
        assert on_image.card[name] == sound.card[name]

    browser, sound_browser = FeatureBrowser(damaged, layer=1), FeatureBrowser(lens, layer=1)
    assert re.match(why, browser.browser["unreadable"])
    assert browser.browser["columns"] == sound_browser.browser["columns"]
    assert np.isnan(from_bytes(browser.browser_table)).all()
    assert browser.listed == [(1, feature) for feature in range(60)]
    browser.layer = sound_browser.layer = 2
    assert browser.browser["unreadable"] == ""
    assert browser.browser == sound_browser.browser
    assert browser.browser_table == sound_browser.browser_table

    features = FeatureMap(damaged, colour_by="kind")
    assert len(features.map["unreadable"]) == 1
    assert re.match(why, features.map["unreadable"][0])
    columns = from_bytes(features.map_columns, "float16", (len(MAP_COLUMNS), 180))
    assert np.isnan(columns[:, 60:120]).all()
    assert not np.isnan(columns[0, :60]).any()
    assert features.map_points == FeatureMap(lens).map_points
    for widget in (card, browser, features):
        json.dumps([widget.trait_values().get(name) for name in ("card", "browser", "map")],
                   allow_nan=False)  # fmt: skip


def test_the_explorer_opens_beside_a_damaged_layer(damaged: vitlens.Lens) -> None:
    explorer = damaged.explore(tiny_picture())
    assert explorer.notice == ""
    assert explorer.graph["counts"]
    for (layer, feature), words in zip(
        explorer.candidates.keys, explorer.graph["kinds"], strict=True
    ):
        assert ("cannot be read" in words) == (layer == 1 and feature >= 0)
    explorer.selected = (1, 5)
    assert "layer_01" in explorer.card["top_images"]["why"]
    assert "layer_01" in explorer.browser["unreadable"]
    explorer.selected = (2, 5)
    assert explorer.card["top_images"]["available"] is True
    assert explorer.browser["unreadable"] == ""


def test_figures_say_that_a_layer_is_damaged(damaged: vitlens.Lens, tmp_path: Path) -> None:
    card = FeatureCard(damaged, selected=(1, 5))
    text = " ".join(t.get_text() for t in card.figure().texts)
    assert "The atlas cannot be read for layer 1" in text
    for widget in (card, FeatureBrowser(damaged, layer=1), FeatureMap(damaged, colour_by="trust")):
        widget.to_html(tmp_path / "page.html")
        data, _ = widget._repr_mimebundle_()  # type: ignore[misc]
        assert "image/png" in data
        assert widget.notice == ""


def test_a_diagram_knows_the_kind_of_its_nodes(lens: vitlens.Lens) -> None:
    atlas = lens.atlas
    assert atlas is not None
    diagram = CircuitDiagram.of(lens, tiny_picture(), at_most=4)
    keys, kinds = diagram.candidates.keys, diagram.graph["kinds"]
    assert len(keys) == len(kinds)
    for (layer, feature), words in zip(keys, kinds, strict=True):
        if feature < 0:
            assert words == ""
            continue
        kind = atlas.scores(layer).kind(feature).name
        assert words.startswith("no score" if kind == "none" else kind)
        assert kind == "none" or "chance" in words
    assert "kinds" not in CircuitDiagram(diagram.circuit).graph


def test_files_without_an_image(lens: vitlens.Lens, tmp_path: Path) -> None:
    for widget in (FeatureCard(lens), FeatureBrowser(lens), FeatureMap(lens, colour_by="kind")):
        name = type(widget).__name__
        for ending in ("png", "svg", "html"):
            getattr(widget, f"to_{ending}")(tmp_path / f"{name}.{ending}")
        data, _ = widget._repr_mimebundle_()  # type: ignore[misc]
        assert "image/png" in data
        assert widget.notice == ""
    features = FeatureMap(lens, chosen=[(0, 1)], map_layers=[0, 2])
    for by in ("layer", "frequency", "trust"):
        features.colour_by = by
        features.figure()


def test_spread_takes_the_ends_and_between() -> None:
    class Image:
        def __init__(self, quantile: float) -> None:
            self.quantile = quantile

    images = [Image(q / 10) for q in (3, 9, 1, 5, 7, 0)]
    found = [image.quantile for image in spread(images, 3)]  # type: ignore[type-var]
    assert found[0] == 0.9
    assert found[-1] == 0.0
    assert len(found) == 3

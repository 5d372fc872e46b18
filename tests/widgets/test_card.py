"""FeatureCard and FeatureBrowser on one image, and FeatureCard with an atlas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets

import vitlens
from tests.builders import noise_image, tiny_lens
from tests.widgets import tiny
from tests.widgets.tiny import tiny_picture
from vitlens.errors import FeatureError
from vitlens.lens import Lens
from vitlens.method.logit_lens import logit_lens
from vitlens.widgets import FeatureBrowser, FeatureCard
from vitlens.widgets.base import decode_strip, from_bytes
from vitlens.widgets.card import image_payload, spread_quantiles, token_values
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
def card(scene: Scene) -> FeatureCard:
    return FeatureCard(scene.lens, scene)


@pytest.fixture
def browser(scene: Scene) -> FeatureBrowser:
    return FeatureBrowser(scene.lens, scene)


def test_a_card_shows_the_values_of_the_lens(scene: Scene, card: FeatureCard) -> None:
    layer, feature = node = scene.most_important(2)
    assert card.selected == node
    said, lens = card.card, scene.lens
    assert said["node"] == [layer, feature]
    assert said["importance"] == pytest.approx(float(scene.importances.nodes[2][feature]))
    assert said["target"] == "fruit"
    activation = scene.trace.features[2][:, feature]
    assert said["active"] == int((activation > 0).sum()) == sum(said["histogram"]["counts"])
    assert said["histogram"]["edges"][-1] == pytest.approx(float(activation.max()))
    effects = logit_lens(lens.replacement, scene.trace, layer, feature)
    name, effect = said["up"][0]
    assert name == lens.class_names[int(effects.argmax())]  # type: ignore[index]
    assert effect == pytest.approx(float(effects.max()))
    assert len(said["up"]) + len(said["down"]) == len(effects)
    assert all(e < 0 for _, e in said["down"])
    assert said["edges_out"] == [[3, -2, said["importance"], said["share"]]]
    assert [tuple(edge[:2]) for edge in said["edges_in"]] == [
        link.node for link in scene.strongest_in(node, 6)
    ]
    assert said["top_images"]["available"] is False
    assert "atlas" in said["top_images"]["why"]
    sent = from_bytes(card.card_data, shape=(2, -1))
    np.testing.assert_allclose(sent[0], activation, rtol=1e-6)
    np.testing.assert_allclose(sent[1], scene.importances.tokens[2][:, feature], rtol=1e-6)


def test_cards_of_error_node_target_and_nothing(scene: Scene, card: FeatureCard) -> None:
    card.selected = (1, -1)
    assert card.card["kind"] == "error"
    assert card.card["active"] == card.card["n_tokens"]
    assert card.card["edges_in"] == []
    card.selected = (3, -2)
    assert card.card["kind"] == "target"
    assert card.card["importance"] == pytest.approx(scene.importances.target_value)
    assert card.card["edges_in"]
    assert card.card_data == b""
    card.selected = None
    assert card.card == {}
    with pytest.raises(FeatureError, match="Select a feature"):
        card.figure()


def test_a_silent_feature_has_a_card(scene: Scene) -> None:
    silent = int(scene.trace.features[0].sum(0).argmin())
    said = image_payload(scene, (0, silent))
    assert said["histogram"] == {"edges": [], "counts": []}
    assert said["up"] == said["down"] == said["edges_in"] == said["edges_out"] == []
    assert not token_values(scene, (0, silent)).any()
    figure = FeatureCard(scene.lens, scene, selected=(0, silent)).figure()
    assert tiny.texts_of(figure).strip() == f"Layer 0, feature {silent}: not active on this image"


@pytest.mark.parametrize("node", [(0, 30), (3, 0), (2, -2), "nonsense", (1,), (0.5, 1)])
def test_unknown_nodes_are_refused(
    scene: Scene, card: FeatureCard, browser: FeatureBrowser, node: object
) -> None:
    before = card.selected
    for widget in (card, browser):
        with pytest.raises(traitlets.TraitError):
            widget.selected = node
    assert card.selected == before
    with pytest.raises(traitlets.TraitError):
        FeatureCard(scene.lens, scene, selected=node)  # type: ignore[arg-type]


def test_an_invalid_request_of_the_browser_is_reported(card: FeatureCard) -> None:
    before = card.selected
    card.set_state({"selected": [0, 999]})
    assert card.selected == before
    assert "there is no 999" in card.notice


def test_another_image_keeps_the_node(
    scene: Scene, card: FeatureCard, browser: FeatureBrowser
) -> None:
    other = Scene.of(scene.lens, 1 - scene.trace.image)
    card.selected = browser.selected = (1, 4)
    card.show_scene(other)
    browser.show_scene(other)
    assert card.selected == browser.selected == (1, 4)
    assert card.card["importance"] == pytest.approx(other.importance((1, 4)))
    assert browser.browser["target"] == other.importances.target


def test_in_a_running_loop_the_latest_request_wins(card: FeatureCard) -> None:
    async def walk() -> None:
        for feature in range(10):
            card.selected = (0, feature)
        while card.background("card").busy:
            await asyncio.sleep(0.01)

    asyncio.run(walk())
    assert card.card["node"] == [0, 9]


def test_a_scene_belongs_to_one_lens(scene: Scene, lens: Lens) -> None:
    with pytest.raises(FeatureError, match="own lens and target"):
        FeatureCard(scene.lens, scene, target=1)


def test_linked_widgets_share_a_selection(card: FeatureCard, browser: FeatureBrowser) -> None:
    traitlets.link((card, "selected"), (browser, "selected"))
    traitlets.link((card, "labels"), (browser, "labels"))
    browser.selected = (0, 7)
    assert card.card["node"] == [0, 7]
    assert browser.layer == 0
    card.labels = {(0, 7): "stripes"}
    assert browser.labels == {(0, 7): "stripes"}
    browser.query = "STRI"
    browser.active_only = False
    assert browser.listed == [(0, 7)]


def test_files(scene: Scene, card: FeatureCard, browser: FeatureBrowser, tmp_path: Path) -> None:
    card.labels = browser.labels = {scene.most_important(2): "costs $5 </script>"}
    for name, widget in (("card", card), ("browser", browser)):
        widget.to_png(tmp_path / f"{name}.png")
        widget.to_svg(tmp_path / f"{name}.svg")
        widget.to_html(tmp_path / f"{name}.html")
        page = (tmp_path / f"{name}.html").read_text()
        assert "https://" not in page.replace("https://www.w3.org", "")
        data, _ = widget._repr_mimebundle_()  # type: ignore[misc]
        assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(data)
    card.selected = (0, -1)
    card.to_png(tmp_path / "error.png")


def test_a_figure_states_the_limits_of_its_logit_lens(card: FeatureCard) -> None:
    assert "bypassing the blocks above" in tiny.texts_of(card.figure())


def test_an_empty_card_shows_no_error(scene: Scene) -> None:
    card = FeatureCard(scene.lens, scene)
    card.selected = None
    data, _ = card._repr_mimebundle_()  # type: ignore[misc]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert card.notice == ""


def test_a_page_holds_the_selected_feature(card: FeatureCard, tmp_path: Path) -> None:
    async def select_and_write() -> None:
        card.selected = (1, 3)  # its card is still being made in the background
        card.to_html(tmp_path / "card.html")

    asyncio.run(select_and_write())
    assert card.card["node"] == [1, 3]


def test_a_transform_that_cannot_be_undone(lens: Lens) -> None:
    lens.transform = lambda image: torch.rand(3, 24, 24)
    card = FeatureCard(lens, torch.rand(3, 24, 24))
    assert card.image_strip == b""
    card.figure()


def silent_feature(card: FeatureCard) -> int:
    """A feature of layer 0 that is active nowhere on the card's image."""
    return int(card.scene.trace.features[0].sum(0).argmin())


def test_a_card_shows_the_values_of_the_atlas(atlas_lens: vitlens.Lens) -> None:
    atlas = atlas_lens.atlas
    assert atlas is not None
    card = FeatureCard(atlas_lens, selected=(1, 5))
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


def test_a_card_shows_the_images_of_the_atlas_with_their_heat(atlas_lens: vitlens.Lens) -> None:
    atlas = atlas_lens.atlas
    assert atlas is not None
    card = FeatureCard(atlas_lens, selected=(1, 5))
    items = card.card["top_images"]["items"]
    top = atlas.top(1, 5, n=8)
    assert [item["activation"] for item in items[: len(top)]] == [one.peak for one in top]
    assert [item["lower"] for item in items] == [False] * len(top) + [True] * (
        len(items) - len(top)
    )
    heats = from_bytes(card.top_heats, "float16", (len(items), 36))
    for heat, one in zip(heats, top, strict=False):
        np.testing.assert_allclose(heat, one.heatmap[3:], rtol=2e-3, atol=1e-3)
    pictures = decode_strip(card.top_strip, len(items))
    assert all(picture is not None and picture.shape == (48, 48, 3) for picture in pictures)
    for item, one in zip(items, top, strict=False):
        assert (item["token"] == "") == (one.token >= 3)
        assert item["patch"] == max(-1, one.token - 3)


def test_heats_that_are_not_stored_arrive_after_the_images(tmp_path: Path) -> None:
    lens = tiny.tiny_lens()
    lens.atlas = tiny.tiny_atlas(lens, heats=False)

    async def look() -> list[str]:
        card = FeatureCard(lens, selected=(1, 5))
        seen = []
        card.observe(lambda change: seen.append(change["name"]), ["card", "top_heats"])
        while card.background("card").busy or card.background("heats").busy:
            await asyncio.sleep(0.01)
        assert card.top_strip
        assert from_bytes(card.top_heats, "float16").max() > 0
        return seen

    assert asyncio.run(look()) == ["card", "top_heats"]


def test_a_card_of_an_image_also_shows_the_atlas(atlas_lens: vitlens.Lens) -> None:
    card = FeatureCard(atlas_lens, tiny_picture())
    assert card.card["importance"]
    assert card.card["atlas"]["n_images"] == 16
    card.selected = (1, -1)
    assert "atlas" not in card.card
    assert card.top_strip == b""
    card.selected = (0, silent_feature(card))
    assert "not active on this image" in tiny.texts_of(card.figure())
    card.selected = (3, -2)
    assert "atlas" not in card.card


def test_lower_quantiles_are_evenly_spread() -> None:
    class Image:
        def __init__(self, quantile: float) -> None:
            self.quantile = quantile

    images = [Image(q / 10) for q in (3, 9, 1, 5, 7, 0)]
    found = [image.quantile for image in spread_quantiles(images, 3)]  # type: ignore[type-var]
    assert found[0] == 0.9
    assert found[-1] == 0.0
    assert len(found) == 3

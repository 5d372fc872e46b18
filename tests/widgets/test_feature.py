"""FeatureCard and FeatureBrowser without a browser: traits, what they refuse, files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets

from tests.lens.test_lens import lens, picture  # noqa: F401 - fixtures
from vitlens.attribution.logit_lens import logit_lens
from vitlens.errors import FeatureError
from vitlens.lens import Lens
from vitlens.widgets import FeatureBrowser, FeatureCard
from vitlens.widgets.base import from_bytes
from vitlens.widgets.browser import COLUMNS, order, table
from vitlens.widgets.card import image_payload, token_values
from vitlens.widgets.scene import Scene


@pytest.fixture
def scene(lens: Lens, picture: object) -> Scene:  # noqa: F811
    return Scene.of(lens, picture, target="fruit")  # type: ignore[arg-type]


@pytest.fixture
def card(scene: Scene) -> FeatureCard:
    return FeatureCard(scene.lens, scene)


@pytest.fixture
def browser(scene: Scene) -> FeatureBrowser:
    return FeatureBrowser(scene.lens, scene)


def test_a_card_says_what_the_lens_says(scene: Scene, card: FeatureCard) -> None:
    layer, feature = node = scene.most_important(2)
    assert card.selected == node
    said, lens = card.card, scene.lens  # noqa: F811
    assert said["node"] == [layer, feature]
    assert said["importance"] == pytest.approx(float(scene.importances.nodes[2][feature]))
    assert said["target"] == "fruit"
    activation = scene.trace.features[2][:, feature]
    assert said["active"] == int((activation > 0).sum()) == sum(said["histogram"]["counts"])
    assert said["histogram"]["edges"][-1] == pytest.approx(float(activation.max()))
    effects = logit_lens(lens.vision, lens.saes, scene.trace, lens.baselines, layer, feature)
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


def test_error_node_target_and_nothing(scene: Scene, card: FeatureCard) -> None:
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
    assert [text.get_text() for text in figure.texts] == [
        f"Layer 0, feature {silent}: not active on this image"
    ]


@pytest.mark.parametrize("node", [(0, 30), (3, 0), (2, -2), "nonsense", (1,), (0.5, 1)])
def test_there_must_be_such_a_node(
    scene: Scene, card: FeatureCard, browser: FeatureBrowser, node: object
) -> None:
    before = card.selected
    for widget in (card, browser):
        with pytest.raises(traitlets.TraitError):
            widget.selected = node
    assert card.selected == before
    with pytest.raises(traitlets.TraitError):
        FeatureCard(scene.lens, scene, selected=node)  # type: ignore[arg-type]


def test_a_view_that_asks_for_nonsense_hears_about_it(card: FeatureCard) -> None:
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


def test_in_a_running_loop_the_last_wish_wins(card: FeatureCard) -> None:
    async def walk() -> None:
        for feature in range(10):
            card.selected = (0, feature)
        while card.background("card").busy:
            await asyncio.sleep(0.01)

    asyncio.run(walk())
    assert card.card["node"] == [0, 9]


def test_a_scene_is_of_one_lens(scene: Scene, lens: Lens) -> None:  # noqa: F811
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


def test_the_list_is_the_layer(scene: Scene, browser: FeatureBrowser) -> None:
    assert browser.layer == 2
    assert browser.browser["sizes"] == [30, 30, 30]
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
    with pytest.raises(traitlets.TraitError):
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


def test_a_figure_says_what_its_logit_lens_leaves_out(card: FeatureCard) -> None:
    assert "past the blocks above" in card.figure().get_suptitle()


def test_a_card_that_waits_shows_no_error(scene: Scene) -> None:
    card = FeatureCard(scene.lens, scene)
    card.selected = None
    data, _ = card._repr_mimebundle_()  # type: ignore[misc]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert card.notice == ""


def test_an_export_is_of_the_selected_feature(card: FeatureCard, tmp_path: Path) -> None:
    async def select_and_write() -> None:
        card.selected = (1, 3)  # its card is still being made in the background
        card.to_html(tmp_path / "card.html")

    asyncio.run(select_and_write())
    assert card.card["node"] == [1, 3]


def test_a_picture_that_cannot_be_undone(lens: Lens) -> None:  # noqa: F811
    lens.transform = lambda image: torch.rand(3, 24, 24)
    card = FeatureCard(lens, torch.rand(3, 24, 24))
    assert card.image_strip == b""
    card.figure()

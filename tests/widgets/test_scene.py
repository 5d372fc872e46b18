"""One image's numbers as the widgets read them, and the names of an atlas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import traitlets

import vitlens
from tests.builders import lens_with_readout
from tests.widgets.tiny import open_atlas, tiny_lens, tiny_picture
from vitlens.errors import FeatureError
from vitlens.widgets import CircuitDiagram, FeatureBrowser, FeatureCard, FeatureMap
from vitlens.widgets.browser import COLUMNS
from vitlens.widgets.scene import Scene


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture(scope="module")
def scene(image: torch.Tensor) -> Scene:
    return Scene.of(lens_with_readout("cls"), image, target=2)


def test_numbers_are_the_lens_own(scene: Scene, image: torch.Tensor) -> None:
    lens = scene.lens
    found = lens.importances(image, target=2)
    assert scene.class_names == tuple(f"class {i}" for i in range(5))
    for layer, nodes in enumerate(found.nodes):
        best = int(nodes.argmax())
        assert scene.importance((layer, best)) == float(nodes[best])
        assert scene.share((layer, best)) == pytest.approx(
            float(nodes[best] / nodes.clamp(min=0).sum())
        )
        assert torch.equal(scene.token_importance((layer, best)), found.tokens[layer][:, best])
        assert torch.equal(scene.activation((layer, best)), scene.trace.features[layer][:, best])
    error = scene.activation((0, -1))
    assert torch.equal(error, scene.trace.errors[0].norm(dim=1))


def test_strongest_edges(scene: Scene, image: torch.Tensor) -> None:
    edges = scene.lens.importances(image, target=2).edges[0]
    best = int(scene.importances.nodes[1][:-1].argmax())
    found = scene.strongest_in((1, best), 3)
    expected = edges[:, best].abs().sort(descending=True).values[:3]
    assert [abs(link.weight) for link in found] == pytest.approx(expected.tolist())
    for link in found:
        layer, feature = link.node
        assert layer == 0
        assert link.weight == pytest.approx(float(edges[feature, best]))
        assert link.share == pytest.approx(link.weight / scene.positive(0))
    (first, *_) = scene.strongest_out((0, -1), 2)
    assert abs(first.weight) == pytest.approx(float(edges[-1].abs().max()))
    assert scene.strongest_in((0, 1), 3) == ()
    (only,) = scene.strongest_out((1, best), 3)
    assert only.node == (2, -2)
    assert only.weight == scene.importance((1, best))


def test_unknown_nodes_are_refused(scene: Scene) -> None:
    with pytest.raises(FeatureError, match="no SAE at 9"):
        scene.activation((9, 0))


def test_widgets_without_an_atlas() -> None:
    lens = tiny_lens()
    card = FeatureCard(lens, tiny_picture())
    assert card.card["top_images"]["available"] is False
    assert "no atlas" in card.card["top_images"]["why"]
    for widget in (FeatureCard, FeatureBrowser, FeatureMap):
        with pytest.raises(FeatureError, match="atlas"):
            widget(lens)
    browser = FeatureBrowser(lens, tiny_picture())
    assert browser.browser["columns"] == list(COLUMNS)


def test_without_an_image_there_are_only_features(atlas_lens: vitlens.Lens) -> None:
    for widget in (FeatureCard(atlas_lens), FeatureBrowser(atlas_lens), FeatureMap(atlas_lens)):
        for node in ((1, -1), (3, -2), (1, 60), (3, 0)):
            with pytest.raises(traitlets.TraitError):
                widget.selected = node


def test_a_name_is_saved_and_loaded_again(atlas_folder: Path, tmp_path: Path) -> None:
    card = FeatureCard(open_atlas(atlas_folder, tmp_path), selected=(1, 5), author="ada")
    card.set_state({"labels": [[1, 5, "edges of discs"]]})
    card.labels = {**card.labels, (2, 7): "corners"}
    lens = open_atlas(atlas_folder, tmp_path)
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


def test_the_browser_deletes_a_saved_name_but_an_empty_dictionary_does_not(
    atlas_folder: Path, tmp_path: Path
) -> None:
    lens = open_atlas(atlas_folder, tmp_path)
    browser = FeatureBrowser(lens, author="ada", labels={(0, 1): "given"})
    assert lens.atlas is not None
    names = lens.atlas.names
    assert names.labels == {}  # what is given at the start is shown, not written
    browser.set_state({"labels": [[1, 5, "beak"], [1, 6, "claw"]]})
    assert names.labels == {(1, 5): "beak", (1, 6): "claw"}
    browser.labels = {}
    assert names.labels == {(1, 5): "beak", (1, 6): "claw"}
    browser.reload_names()
    browser.set_state({"labels": [[1, 6, "claw"]]})
    assert names.labels == {(1, 6): "claw"}
    names.set(1, 6, "talon", author="bob")
    browser.set_state({"labels": []})
    assert browser.labels == {(1, 6): "talon"}
    assert "Another author" in browser.notice


def test_linked_widgets_save_a_name_once(atlas_lens: vitlens.Lens) -> None:
    assert atlas_lens.atlas is not None
    browser, card = FeatureBrowser(atlas_lens, author="ada"), FeatureCard(atlas_lens, author="bob")
    traitlets.link((browser, "labels"), (card, "labels"))
    card.set_state({"labels": [[1, 5, "beak"]]})
    assert browser.labels == {(1, 5): "beak"}
    (name,) = atlas_lens.atlas.names.entries
    assert name.author == "bob"


def test_names_of_a_circuit_are_shown_and_not_saved(atlas_lens: vitlens.Lens) -> None:
    assert atlas_lens.atlas is not None
    diagram = CircuitDiagram.of(atlas_lens, tiny_picture(), at_most=4)
    node = diagram.graph.keys[0]
    circuit = diagram.graph.prune(4, labels={node: "theirs"})
    diagram.circuit = circuit
    assert diagram.labels[node] == "theirs"
    again = CircuitDiagram(circuit, lens=atlas_lens, image=tiny_picture())
    assert again.labels[node] == "theirs"
    assert len(atlas_lens.atlas.names) == 0
    diagram.set_state({"labels": [[*node, "mine"], [0, -1, "what is missed"]]})
    assert atlas_lens.atlas.names.labels == {node: "mine"}  # an error node is no feature


def test_a_name_that_cannot_be_saved_is_reported_and_stays_visible(
    atlas_folder: Path, tmp_path: Path
) -> None:
    lens = open_atlas(atlas_folder, tmp_path)
    card = FeatureCard(lens, selected=(1, 5))
    (tmp_path / "names.jsonl").write_text("no names\n")
    card.set_state({"labels": [[1, 5, "beak"]]})
    assert "names.jsonl" in card.notice
    assert card.labels == {(1, 5): "beak"}
    assert (tmp_path / "names.jsonl").read_text() == "no names\n"


def test_files_without_an_image(atlas_lens: vitlens.Lens, tmp_path: Path) -> None:
    for widget in (
        FeatureCard(atlas_lens),
        FeatureBrowser(atlas_lens),
        FeatureMap(atlas_lens, colour_by="kind"),
    ):
        name = type(widget).__name__
        for ending in ("png", "svg", "html"):
            getattr(widget, f"to_{ending}")(tmp_path / f"{name}.{ending}")
        data, _ = widget._repr_mimebundle_()  # type: ignore[misc]
        assert "image/png" in data
        assert widget.notice == ""
    features = FeatureMap(atlas_lens, chosen=[(0, 1)], map_layers=[0, 2])
    for by in ("layer", "frequency", "trust"):
        features.colour_by = by
        features.figure()

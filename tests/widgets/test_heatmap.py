"""PatchHeatmap without a browser: what it takes, what it holds, what it answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets as t
from PIL import Image

from tests.builders import tiny_image, tiny_lens
from vitlens.errors import FeatureError, ImageError, OptionError, TargetError
from vitlens.lens import Lens
from vitlens.widgets import PatchHeatmap
from vitlens.widgets.base import decode_strip
from vitlens.widgets.scene import Scene


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("colours", "jet", "colours must be one of heat, cividis, not 'jet'"),
        ("show", "gradient", "show must be one of activation, importance, not 'gradient'"),
    ],
)
def test_unknown_options_are_refused_with_the_choices(name: str, value: str, words: str) -> None:
    heatmap = PatchHeatmap(None, [[1.0, 2]])
    before = getattr(heatmap, name)
    with pytest.raises(OptionError, match=words):
        setattr(heatmap, name, value)
    heatmap.set_state({name: value})  # from the browser: a message
    assert words in heatmap.notice
    assert getattr(heatmap, name) == before


@pytest.fixture(scope="module")
def lens() -> Lens:
    return tiny_lens()


def test_values_of_ones_own() -> None:
    values = np.arange(6.0).reshape(2, 3)
    heatmap = PatchHeatmap(
        Image.new("RGB", (30, 20), "red"),
        values,
        prefix=[7, 8],
        prefix_names=("CLS", "register 1"),
        value_name="depth",
    )
    assert heatmap.grid == (2, 3)
    assert heatmap.array.tolist() == [[7, 8, 0, 1, 2, 3, 4, 5]]
    assert not heatmap.signed
    assert decode_strip(heatmap.image_strip, 1)[0].shape == (20, 30, 3)
    heatmap.patches = [(1, 2), (-1, 1)]
    with pytest.raises(t.TraitError, match="no patch"):
        heatmap.patches = [(2, 0)]
    with pytest.raises(FeatureError, match="holds values only"):
        heatmap.features_at(0)


def test_patches_from_the_start(lens: Lens) -> None:
    assert PatchHeatmap(None, [[1.0, 2]], patches=[(0, 1)]).patches == ((0, 1),)
    assert PatchHeatmap.of(lens, tiny_image(), 0, 2, patches=[(2, 2)]).patches == ((2, 2),)
    with pytest.raises(t.TraitError, match="no patch"):
        PatchHeatmap(None, [[1.0, 2]], patches=[(1, 1)])


def test_several_images_on_one_scale() -> None:
    heatmap = PatchHeatmap([None, None], torch.tensor([[[1.0]], [[-3.0]]]), signed=True)
    assert heatmap.n_images == 2
    assert heatmap.array.tolist() == [[1], [-3]]
    assert heatmap.signed


def test_signed_when_a_value_is_below_zero() -> None:
    assert PatchHeatmap(None, [[1.0, -1]]).signed
    assert not PatchHeatmap(None, [[1.0, 0]]).signed


@pytest.mark.parametrize(
    ("pictures", "values", "options", "words"),
    [
        (None, [1.0, 2], {}, "rows, columns"),
        ([None, None], [[1.0]], {}, "n = 2 images"),
        (None, [[float("nan")]], {}, "finite"),
        (None, [["a"]], {}, "must be numbers"),
        (None, np.zeros((0, 3)), {}, "rows, columns"),
        (None, [[1.0]], {"prefix": [1.0]}, "as many prefix_names"),
        (None, [[1.0]], {"prefix_names": ("CLS",)}, "as many prefix_names"),
        ("missing.png", [[1.0]], {}, "no image"),
    ],
)
def test_bad_input(pictures: object, values: object, options: dict, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        PatchHeatmap(pictures, values, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("opacity", 1.5),
        ("opacity", "much"),
        ("limits", (2.0, 1.0)),
        ("limits", (0.0, float("inf"))),
        ("values", b"123"),
        ("selected", "3/5"),
    ],
)
def test_nonsense_is_refused(name: str, value: object) -> None:
    heatmap = PatchHeatmap(None, [[1.0, 2]])
    with pytest.raises(t.TraitError):
        setattr(heatmap, name, value)


@pytest.mark.parametrize(
    ("traits", "bar"),
    [
        ({}, (0, 1)),
        ({"limits": (0.5, 1.0)}, (0.5, 1)),
        ({"limits": (0.5, 2.0), "signed": True}, (-2, 2)),
        ({"signed": True}, (-1, 1)),
    ],
)
def test_the_figures_bar_goes_from_the_weakest_colour_to_the_strongest(
    traits: dict, bar: tuple[float, float]
) -> None:
    heatmap = PatchHeatmap(None, [[0.0, 0.5], [0.75, 1.0]], **traits)
    assert heatmap.figure().axes[-1].get_ylim() == bar


def test_importance_and_activation_of_a_feature(lens: Lens) -> None:
    image = tiny_image()
    scene = Scene.of(lens, image, target="fruit")
    heatmap = PatchHeatmap.of(lens, image, 1, 3, target="fruit")
    assert heatmap.array[0] == pytest.approx(scene.token_importance((1, 3)).numpy())
    assert heatmap.value_name == "importance for fruit"
    assert heatmap.title == "Layer 1, feature 3"
    assert heatmap.signed
    assert heatmap.prefix_names == lens.vision.prefix_names
    heatmap.show = "activation"
    assert heatmap.array[0] == pytest.approx(scene.trace.features[1][:, 3].numpy())
    assert not heatmap.signed
    heatmap.selected = (2, -1)
    assert heatmap.array[0] == pytest.approx(scene.trace.errors[2].norm(dim=1).numpy())
    assert heatmap.title == "Layer 2, error node"
    heatmap.labels = {(2, -1): "rest"}
    assert heatmap.title == "Layer 2, error node: rest"


def test_the_target_and_nothing_keep_what_is_shown(lens: Lens) -> None:
    heatmap = PatchHeatmap.of(lens, tiny_image(), 1, 3)
    before = heatmap.values
    heatmap.selected = (3, -2)
    assert heatmap.values == before
    with pytest.raises(t.TraitError, match="selected"):
        heatmap.selected = (1, 99)


def test_several_images_of_a_lens(lens: Lens) -> None:
    images = [tiny_image(seed) for seed in range(3)]
    heatmap = PatchHeatmap.of(lens, images, 0, 2, show="activation")
    wanted = torch.stack([lens.trace(image).features[0][:, 2] for image in images])
    assert heatmap.array == pytest.approx(wanted.numpy())
    assert heatmap.image_titles == tuple(lens.predict(image)[0][0] for image in images)
    heatmap.show = "importance"
    assert heatmap.value_name == (
        "importance for its target"
        if len(set(heatmap.image_titles)) > 1
        else f"importance for {heatmap.image_titles[0]}"
    )


def test_features_at_a_token(lens: Lens) -> None:
    heatmap = PatchHeatmap.of(lens, [tiny_image(0), tiny_image(1)], 0, 2, labels={(1, 4): "x"})
    features = lens.trace(tiny_image(1)).features
    found = heatmap.features_at(5, image=1)
    for layer, ranked in enumerate(found["features"]):
        z = features[layer][5]
        assert found["counts"][layer] == len(ranked) == int((z > 0).sum())
        assert [a for _, a, _ in ranked] == sorted((a for _, a, _ in ranked), reverse=True)
        for feature, activation, label in ranked:
            assert activation == pytest.approx(float(z[feature]))
            assert label == ("x" if (layer, feature) == (1, 4) else "")
    for token, image in ((99, 0), (-1, 0), (0, 2)):
        with pytest.raises(FeatureError, match="There is no"):
            heatmap.features_at(token, image=image)


def test_an_exported_page_knows_every_patch(lens: Lens) -> None:
    heatmap = PatchHeatmap.of(lens, [tiny_image(0), tiny_image(1)], 0, 2)
    known = heatmap.offline_answers()["features_at"]
    assert len(known) == 2 * lens.vision.n_tokens
    payload, answer = known[-1]
    assert payload == {"image": 1, "token": lens.vision.n_tokens - 1}
    assert answer["counts"] == heatmap.features_at(payload["token"], image=1)["counts"]


def test_bad_input_to_of(lens: Lens) -> None:
    with pytest.raises(FeatureError):
        PatchHeatmap.of(lens, tiny_image(), 1, 99)
    with pytest.raises(FeatureError):
        PatchHeatmap.of(lens, tiny_image(), 9, 0)
    with pytest.raises(TargetError):
        PatchHeatmap.of(lens, tiny_image(), 1, 3, target="moon")
    with pytest.raises(ImageError, match="image is needed"):
        PatchHeatmap.of(lens, [], 1, 3)


def test_files(lens: Lens, tmp_path: Path) -> None:
    heatmap = PatchHeatmap.of(lens, [tiny_image(0), tiny_image(1)], 0, 2, image_titles=["$a", "b"])
    heatmap.to_png(tmp_path / "a.png")
    heatmap.to_svg(tmp_path / "a.svg")
    assert Image.open(tmp_path / "a.png").width > 800

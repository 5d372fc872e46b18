"""Images in folders of other classes than the model's: logits keep the model's names."""

import numpy as np
import pytest
from PIL import Image

from tests.tiny import CLASSES, tiny_lens
from vitlens.atlas.atlas import Atlas


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name in ("beach", "forest"):
        (folder / name).mkdir()
        for number in range(6):
            pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_the_logit_lens_names_the_models_logits(photos, tmp_path):
    lens = tiny_lens()
    options = {"stimuli": False, "layout": False, "progress": False}
    own = Atlas.build(lens, photos, out=tmp_path / "atlas", **options)
    predicted = Atlas.build(lens, photos, labels="predictions", **options)
    assert own.class_names == ("beach", "forest") and predicted.class_names == CLASSES
    for atlas in (own, Atlas.load(tmp_path / "atlas", lens)):
        shown = atlas.feature(1, 3).logit_lens
        assert [name for name, _ in shown] == [
            name for name, _ in predicted.feature(1, 3).logit_lens
        ]
        assert {name for name, _ in shown} <= set(CLASSES)
        assert atlas.logit_lens(1, 3) == predicted.logit_lens(1, 3)


def test_a_model_without_class_names_numbers_its_logits(photos):
    lens = tiny_lens()
    lens.class_names = None
    atlas = Atlas.build(lens, photos, stimuli=False, layout=False, progress=False)
    assert {name for name, _ in atlas.logit_lens(0, 0)} == {f"class {i}" for i in range(5)}

"""FeatureMap: its points, colours, layers and choice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets

import vitlens
from tests.widgets.tiny import tiny_lens, tiny_picture
from vitlens.atlas.atlas import Atlas
from vitlens.errors import FeatureError, OptionError
from vitlens.widgets import FeatureMap
from vitlens.widgets.base import from_bytes
from vitlens.widgets.columns import MAP_COLUMNS


def test_the_map_holds_all_features(atlas_lens: vitlens.Lens) -> None:
    atlas = atlas_lens.atlas
    assert atlas is not None
    assert atlas.layout is not None
    features = FeatureMap(atlas_lens, colour_by="orientation", selected=(1, 5))
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
        FeatureMap(atlas_lens, chosen=[(0, 60)])
    with pytest.raises(OptionError, match=r"colour_by must be one of layer, .* not 'beauty'"):
        features.colour_by = "beauty"


def test_a_map_needs_a_layout(atlas_folder: Path) -> None:
    lens = tiny_lens()
    atlas = Atlas.load(atlas_folder, lens)
    lens.atlas = atlas
    type_ = type("NoLayout", (Atlas,), {"layout": None})
    atlas.__class__ = type_
    with pytest.raises(FeatureError, match="layout=True"):
        FeatureMap(lens)
    assert lens.explore(tiny_picture()).map == {}

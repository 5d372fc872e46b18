"""Neighbours and lineages of features."""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from tests.builders import tiny_lens
from vitlens.atlas.profile import lineage, neighbours
from vitlens.errors import FeatureError


def test_neighbours_are_the_highest_cosines() -> None:
    lens = tiny_lens()
    rows = [sae.W_dec for sae in lens.saes]
    found = neighbours(lens.saes, lens.layers, 1, 4, n=3)
    for place, other in (("before", 0), ("same", 1), ("after", 2)):
        cosines = {
            (other, f): float(F.cosine_similarity(rows[1][4], row, dim=0))
            for f, row in enumerate(rows[other])
            if (other, f) != (1, 4)
        }
        best = sorted(cosines, key=lambda node: -cosines[node])[:3]
        assert [node for node, _ in found[place]] == best
        assert [c for _, c in found[place]] == pytest.approx([cosines[node] for node in best])
    assert neighbours(lens.saes, lens.layers, 0, 0)["before"] == ()
    assert neighbours(lens.saes, lens.layers, 2, 0)["after"] == ()
    assert len(neighbours(lens.saes, lens.layers, 1, 0, n=99)["same"]) == 29
    with pytest.raises(FeatureError, match="n must be"):
        neighbours(lens.saes, lens.layers, 0, 0, n=0)
    for node in ((3, 0), (0, 30), (0, -1), (-1, 0)):
        with pytest.raises(FeatureError):
            neighbours(lens.saes, lens.layers, *node)


def test_a_lineage_follows_copies_through_depth() -> None:
    lens = tiny_lens(depth=5)
    line = [3, 8, 2, 9]
    for layer, feature in enumerate(line[1:], 1):
        lens.saes[layer].W_dec.data[feature] = lens.saes[0].W_dec[3]
    found = lineage(lens.saes, lens.layers, 2, 2)
    assert [node for node, _ in found] == list(enumerate(line))
    assert [cosine for _, cosine in found] == pytest.approx([1, 1, 1, 1])

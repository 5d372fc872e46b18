"""One node's edges are its row and its column of all edges."""

from __future__ import annotations

import pytest
import torch

from tests.test_logit_lens import lens_of
from vitlens.attribution.node_edges import edges_into, edges_out_of
from vitlens.errors import FeatureError


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
def test_row_and_column_of_all_edges(gradient: str) -> None:
    lens = lens_of("cls")
    image = torch.randn(3, 24, 24, dtype=torch.float64)
    trace = lens.trace(image)
    found = lens.importances(image, gradient=gradient)  # type: ignore[arg-type]
    known = (lens.vit, lens.saes, trace, lens.baselines, found)
    for feature in (*range(30), -1):
        row = edges_out_of(*known, 0, feature)
        torch.testing.assert_close(row, found.edges[0][feature], atol=1e-12, rtol=1e-8)
        column = edges_into(*known, 1, feature)
        expected = torch.zeros(31).double() if feature == -1 else found.edges[0][:, feature]
        torch.testing.assert_close(column, expected, atol=1e-12, rtol=1e-8)
    assert len(edges_into(*known, 0, 3)) == len(edges_out_of(*known, 1, 3)) == 0
    with pytest.raises(FeatureError, match="there is no 30"):
        edges_into(*known, 1, 30)
    with pytest.raises(FeatureError, match="there is no 5"):
        edges_out_of(*known, 5, 0)


def test_edges_past_attention_whose_weights_are_zero() -> None:
    lens = lens_of("cls")
    for block in lens.vit.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)  # type: ignore[union-attr, arg-type]
    image = torch.randn(3, 24, 24, dtype=torch.float64)
    exact, slow = (lens.importances(image, engine=engine) for engine in ("exact", "vjp"))
    for found, expected in zip(exact.edges, slow.edges, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-8)

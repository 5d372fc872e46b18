"""One node's edges are its row and its column of all edges."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

import vitlens
from tests.builders import lens_with_readout
from vitlens.errors import FeatureError
from vitlens.method.engines import EdgeColumns, edge_rows, edges_into, edges_out_of
from vitlens.method.importance import Engine, node_importances, resolve_target


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
def test_row_and_column_of_all_edges(gradient: str) -> None:
    lens = lens_with_readout("cls")
    image = torch.randn(3, 24, 24, dtype=torch.float64)
    trace = lens.trace(image)
    found = lens.importances(image, gradient=gradient)  # type: ignore[arg-type]
    known = (lens.replacement, trace, found)
    for feature in (*range(30), -1):
        row = edges_out_of(*known, 0, feature)
        torch.testing.assert_close(row, found.edges[0][feature], atol=1e-12, rtol=1e-8)
        column = edges_into(*known, 1, feature)
        expected = torch.zeros(31).double() if feature == -1 else found.edges[0][:, feature]
        torch.testing.assert_close(column, expected, atol=1e-12, rtol=1e-8)
    some = edge_rows(*known, 0, [7, 2, 19])
    torch.testing.assert_close(some, found.edges[0][[7, 2, 19, -1]], atol=1e-12, rtol=1e-8)
    assert len(edges_into(*known, 0, 3)) == len(edges_out_of(*known, 1, 3)) == 0
    with pytest.raises(FeatureError, match="there is no 30"):
        edges_into(*known, 1, 30)
    with pytest.raises(FeatureError, match="no SAE at 5"):
        edges_out_of(*known, 5, 0)


def test_edges_past_attention_whose_weights_are_zero() -> None:
    lens = lens_with_readout("cls")
    for block in lens.vision.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)  # type: ignore[union-attr, arg-type]
    image = torch.randn(3, 24, 24, dtype=torch.float64)
    exact, slow = (lens.importances(image, engine=engine) for engine in ("closed_form", "vjp"))
    for found, expected in zip(exact.edges, slow.edges, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-8)


def test_edges_of_an_error_node_where_no_feature_is_active() -> None:
    lens = lens_with_readout("cls")
    torch.nn.init.zeros_(lens.saes[0].W_enc)
    bare = vitlens.Lens(lens.vision, lens.saes)
    image = torch.randn(3, 24, 24, dtype=torch.float64)
    exact, slow = (bare.importances(image, engine=engine) for engine in ("closed_form", "vjp"))
    assert slow.edges[0][-1].abs().sum() > 0
    for found, expected in zip(exact.edges, slow.edges, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize("engine", get_args(Engine))
def test_the_top_k_are_those_of_the_trace(engine: Engine) -> None:
    """Rounding may choose others at a near tie when the block is run again."""
    lens = lens_with_readout("cls")
    trace = lens.trace(torch.randn(3, 24, 24, dtype=torch.float64))
    layer, token = 1, 4
    pre = torch.relu(
        (lens.saes[layer].normalize(trace.residuals[layer]).values - lens.saes[layer].b_dec)
        @ lens.saes[layer].W_enc
    )
    order = pre[token].argsort(descending=True)
    last, next_one = order[lens.saes[layer].k - 1], order[lens.saes[layer].k]
    assert pre[token, next_one] > 0
    swapped = trace.features[layer].clone()
    swapped[token, last], swapped[token, next_one] = 0, pre[token, next_one]
    other = replace(trace, features=(trace.features[0], swapped))
    wanted = resolve_target(1, trace.logits)
    found = node_importances(lens.replacement, other, wanted, engine=engine)
    (edges,) = EdgeColumns(lens.replacement, other, found).all()
    torch.testing.assert_close(edges.sum(1), found.nodes[0], atol=1e-12, rtol=1e-8)
    alone = torch.zeros_like(swapped, dtype=torch.bool)
    alone[token, next_one] = True
    as_chosen = node_importances(lens.replacement, trace, wanted, engine=engine)
    (edges_as_chosen,) = EdgeColumns(lens.replacement, trace, as_chosen).all()
    # What the swap adds to the column of the feature that came in is that one token's part.
    gained = edges[:, next_one] - edges_as_chosen[:, next_one]
    assert gained.abs().max() > 1e-6

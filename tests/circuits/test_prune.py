import math

import pytest
import torch

from vitlens.circuits.prune import (
    Rules,
    edge_columns,
    filter_shares,
    keeps_edge,
    reachable,
    select,
    walk,
)
from vitlens.errors import FeatureError

# Two layers of three features and an error node each, then two layers of edges, by hand.
NODES = (
    torch.tensor([0.5, 0.1, 0.2, 9.0]),
    torch.tensor([1.0, 2.0, 3.0, 0.0]),
    torch.tensor([5.0, -1.0, 4.0, 1.0]),
)
EDGES = (
    torch.tensor([[1.0, 0.0, 7.0], [0.0, 6.0, 0.0], [2.0, 5.0, 0.0], [0.0, 0.0, 8.0]]),
    torch.tensor([[3.0, 9.0, -3.0], [1.0, 0.0, 4.0], [2.0, 0.0, 1.5], [0.0, 0.0, 0.5]]),
)


def test_count_keeps_the_highest_and_ties_go_to_the_lower_index():
    scores = torch.tensor([1.0, 3.0, -2.0, 3.0, 1.0])
    assert select(scores, count=1).tolist() == [1]
    assert select(scores, count=3).tolist() == [1, 3, 0]
    assert select(scores, count=99).tolist() == [1, 3, 0, 4, 2]


def test_signed_zeros_are_ties():
    assert select(torch.tensor([-0.0, 0.0, -0.0]), count=3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("share", "kept"), [(0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1.0, 4)]
)
def test_share_rounds_up(share, kept):
    assert len(select(torch.tensor([4.0, 3.0, 2.0, 1.0]), share=share)) == kept


def test_share_is_not_rounded_up_for_floating_point_dust():
    assert 0.07 * 100 > 7
    assert len(select(torch.arange(100.0), share=0.07)) == 7


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [(0.1, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [1, 3]), (0.9, [1, 3, 0]), (1.0, [1, 3, 0])],
)
def test_threshold_counts_positive_importance_only(threshold, kept):
    # Positive sum 10: shares .5, .3, .2; the negative node is never needed.
    assert select(torch.tensor([2.0, 5.0, -7.0, 3.0]), threshold=threshold).tolist() == kept


def test_something_is_always_kept():
    scores = torch.tensor([-3.0, -1.0, -2.0])
    for rule in ({"count": 1}, {"share": 0.01}, {"threshold": 0.9}):
        assert select(scores, **rule).tolist() == [1]


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"count": 1, "share": 0.5},
        {"count": 0},
        {"share": 0.0},
        {"share": 1.5},
        {"threshold": -0.1},
        {"threshold": math.nan},
        {"count": 2.0},
        {"count": "3"},
        {"count": [2, 3]},
        {"count": True},
        {"share": "0.5"},
        {"threshold": [0.5]},
    ],
)
def test_rules_out_of_range_are_refused(rule):
    with pytest.raises(FeatureError, match=r"exactly one|must be"):
        select(torch.ones(3), **rule)


def test_scores_that_cannot_be_ranked_are_refused():
    with pytest.raises(FeatureError, match="NaN"):
        select(torch.tensor([1.0, math.nan]), count=1)
    with pytest.raises(FeatureError, match="shape"):
        select(torch.ones(2, 2), count=1)
    with pytest.raises(FeatureError, match="shape"):
        select(torch.ones(0), count=1)


def test_walk_by_hand():
    # Top: 0 (5) and 2 (4). Layer 1 scores its edges into both: 0, 5, 3.5, .5 -> 1 and 2.
    # Layer 0 scores its edges into 1 and 2: 7, 6, 5, 8 -> the error node, then 0.
    kept = walk(NODES, EDGES, count=2)
    assert [k.tolist() for k in kept] == [[3, 0], [1, 2], [0, 2]]


def test_walk_without_error_nodes():
    kept = walk(NODES, EDGES, count=2, error_nodes=False)
    assert [k.tolist() for k in kept] == [[0, 1], [1, 2], [0, 2]]


def test_walk_only_counts_edges_into_kept_nodes():
    # Top: 0 alone. Layer 1: 3, 1, 2, 0 -> 0. Layer 0: 1, 0, 2, 0 -> 2, though node 0 has more.
    assert [k.tolist() for k in walk(NODES, EDGES, count=1)] == [[2], [0], [0]]


def test_walk_share_counts_the_error_node():
    # Three features and an error node: half of four nodes.
    assert [len(k) for k in walk(NODES, EDGES, share=0.5)] == [2, 2, 2]
    assert [len(k) for k in walk(NODES, EDGES, share=0.5, error_nodes=False)] == [2, 2, 2]
    assert [len(k) for k in walk(NODES, EDGES, share=0.75)] == [3, 3, 3]


def test_walk_goes_on_by_importance_below_a_lone_error_node():
    nodes = (torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 9.0]))
    assert [k.tolist() for k in walk(nodes, (torch.ones(3, 2),), count=1)] == [[1], [2]]


def test_walk_asks_a_provider_for_the_kept_columns_only():
    asked = []

    def provider(layer, features):
        asked.append((layer, features.tolist()))
        return EDGES[layer][:, features]

    kept = walk(NODES, provider, count=2)
    assert [k.tolist() for k in kept] == [k.tolist() for k in walk(NODES, EDGES, count=2)]
    assert asked == [(1, [0, 2]), (0, [1, 2])]


def test_walk_refuses_what_does_not_fit():
    with pytest.raises(FeatureError, match="need 2 layers of edges, not 1"):
        walk(NODES, EDGES[:1], count=1)
    with pytest.raises(FeatureError, match="rows"):
        walk(NODES, (EDGES[0][:-1], EDGES[1]), count=1)
    with pytest.raises(FeatureError, match="column"):
        edge_columns(lambda layer, features: EDGES[layer], 0, torch.tensor([1]))
    with pytest.raises(FeatureError, match="no layers"):
        walk((), (), count=1)


def test_edges_are_added_up_in_ascending_order():
    # In the order of importance, 0, 2, 1, the first row's sum would be 1.
    edges = torch.tensor([[1e16, 1, -1e16], [0.5, 0, 0], [-1, 0, 0], [-2, 0, 0]]).double()
    nodes = [torch.zeros(4).double(), torch.tensor([3.0, 1, 2, 0]).double()]
    kept = walk(nodes, [edges], count=3)
    assert [layer.tolist() for layer in kept] == [[1, 0, 2], [0, 2, 1]]


def test_edges_into_features_that_nothing_leads_into_do_not_count():
    torch.manual_seed(0)
    nodes = [torch.randn(41), torch.randn(31)]
    edges = torch.randn(41, 30)
    edges[:, ::2] = 0
    for count in (1, 7, 31):
        kept = walk(nodes, [edges], count=count)
        features = [f for f in kept[1].sort().values.tolist() if f < 30]
        scores = edges[:, features].double().sum(1) if features else nodes[0]
        torch.testing.assert_close(kept[0], select(scores, count=count))
    (kept, _) = walk(nodes, [torch.zeros(41, 30)], count=3)
    assert kept.tolist() == [0, 1, 2]


def test_the_first_node_stays_and_others_by_their_share():
    kept, shares = [torch.tensor([2, 0, 1])], [[0.1, 0.09, 0.01]]
    assert [x.tolist() for x in filter_shares(kept, shares, node_share=0.1)] == [[2, 0]]
    assert [x.tolist() for x in filter_shares(kept, shares, node_share=0)] == [[2, 0, 1]]


def test_shares_by_hand() -> None:
    kept = (torch.tensor([2, 0, 1]), torch.tensor([1, 0]))
    shares = [[0.3, 0.05, -0.2], [0.1, 0.2]]
    assert [k.tolist() for k in filter_shares(kept, shares, node_share=0)] == [[2, 0, 1], [1, 0]]
    # The first of a layer stays, however small; the others need the share, exactly or more.
    assert [k.tolist() for k in filter_shares(kept, shares, node_share=0.1)] == [[2, 0], [1, 0]]
    assert [k.tolist() for k in filter_shares(kept, shares, node_share=9)] == [[2], [1]]


def test_edges_by_share() -> None:
    assert keeps_edge(1.0, 0.1, edge_share=0.1, pinned=False)
    assert keeps_edge(-1.0, -0.1, edge_share=0.1, pinned=False)
    assert not keeps_edge(1.0, 0.0999, edge_share=0.1, pinned=False)
    assert keeps_edge(1.0, 0.0999, edge_share=0.1, pinned=True)
    assert not keeps_edge(0.0, 0.0, edge_share=0.0, pinned=True)


def test_walking_among_the_nodes_that_are_reached_is_walking_among_all():
    random = torch.Generator().manual_seed(0)
    nodes = [torch.randn(31, generator=random) for _ in range(4)]
    edges = [torch.randn(31, 30, generator=random) for _ in range(3)]
    reached = reachable(nodes, edges, at_most=6)
    for count in range(1, 7):
        whole = walk(nodes, edges, count=count)
        assert all(set(k.tolist()) <= set(r.tolist()) for k, r in zip(whole, reached, strict=True))
        part = walk(
            [scores[r] for scores, r in zip(nodes, reached, strict=True)],
            [
                torch.nn.functional.pad(block, (0, 1))[here][:, there]
                for block, here, there in zip(edges, reached[:-1], reached[1:], strict=True)
            ],
            features=[r < 30 for r in reached],
            count=count,
        )
        found = [r[k].tolist() for k, r in zip(part, reached, strict=True)]
        assert found == [k.tolist() for k in whole]


def test_nodes_within_reach_ask_for_each_layer_once():
    asked = []

    def provider(position, features):
        asked.append((position, features.tolist()))
        return EDGES[position][:, features]

    # One node per layer walks by way of 0 and 0, two by way of 0 and 2, then 1 and 2.
    found = reachable(NODES, provider, at_most=2)
    assert [r.tolist() for r in found] == [[0, 2, 3], [0, 1, 2], [0, 2]]
    assert asked == [(1, [0, 2]), (0, [0, 1, 2])]


def test_rules_are_checked_and_default_to_eight_nodes_per_layer():
    assert Rules().settings == {"select": "walk", "nodes_per_layer": 8}
    assert Rules(threshold=0.5, edge_share=0.1).settings == {
        "select": "walk",
        "threshold": 0.5,
        "edge_share": 0.1,
    }
    with pytest.raises(FeatureError, match="exactly one of nodes_per_layer, share and threshold"):
        Rules(nodes_per_layer=2, share=0.5)
    with pytest.raises(FeatureError, match="node_share must be"):
        Rules(node_share=-1)


def reference_walk(data, n_layers, count, n_candidates):
    """The walk in plain Python over the reference's importances; the error node is last."""
    scores, kept = data[f"image0.libragrad.leaf.nodes.{n_layers - 1}"].tolist(), []
    for layer in reversed(range(n_layers)):
        best = sorted(range(n_candidates(len(scores))), key=lambda f: (-scores[f], f))[:count]
        kept.insert(0, best)
        if layer:
            edges = data[f"image0.libragrad.leaf.edges.{layer - 1}"]
            n_features = edges.shape[1]
            scores = [sum(float(row[n]) for n in best if n < n_features) for row in edges]
    return kept


@pytest.mark.parametrize("count", [2, 5, 8])
def test_walk_follows_the_reference_edges(case, count):
    found = case.nodes
    n_layers = len(found.nodes)
    kept = walk(found.nodes, case.edges, count=count)
    assert [k.tolist() for k in kept] == reference_walk(case.data, n_layers, count, lambda n: n)
    kept = walk(found.nodes, case.edges, count=count, error_nodes=False)
    expected = reference_walk(case.data, n_layers, count, lambda n: n - 1)
    assert [k.tolist() for k in kept] == expected


@pytest.mark.parametrize("count", [1, 3, 8])
def test_ranking_features_gives_the_kept_sets_of_the_reference(case, count):
    found = case.nodes
    for layer, scores in enumerate(found.nodes):
        expected = set(case.data[f"image0.kept{count}.features.{layer}"].tolist())
        kept = set(select(scores[:-1], count=count).tolist())
        # Where features have no importance at all, either may come first.
        assert {f for f in kept if scores[f]} == {f for f in expected if scores[f]}

"""Supernodes: planted groups are found, sums are exact, and hand-made groups are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitlens
from tests.builders import tiny_image, tiny_lens
from tests.circuits.test_verify import linear_lens
from tests.interventions.by_hand import code, streams_of
from vitlens.circuits.circuit import ERROR, Circuit, Edge, Node
from vitlens.circuits.graph import AttributionGraph
from vitlens.circuits.supernodes import agreement, cluster, propose_name, similarity, with_groups
from vitlens.errors import FeatureError, ImageError, TargetError
from vitlens.saes.base import FeatureId

DOUBLE = torch.float64

# Two layers, four tokens: CLS and three patches in a row. Layer 0 has features 1, 4, 6, layer 1
# features 2 and 3 and its error node.
NODES = (
    Node(0, 4, 3.0, 0.5, 2.0),
    Node(0, 1, 2.5, 0.4, 2.0),
    Node(0, 6, -1.0, -0.1, -1.0),
    Node(1, 2, 4.0, 0.8, 4.0),
    Node(1, ERROR, 1.0, 0.2, 1.0),
    Node(1, 3, -2.0, -0.4, -2.0),
)
HEATMAPS = torch.tensor(
    [
        [0.0, 3.0, 0.0, 0.0],
        [0.5, 2.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, -1.0],
        [4.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, -2.0, 0.0],
    ]
)
TARGET_KEY = (2, -2)
EDGES = (
    Edge((0, 4), (1, 2), 1.5, 0.25),
    Edge((0, 4), (1, 3), 0.5, 0.1),
    Edge((0, 1), (1, 2), 2.5, 0.4),
    Edge((0, 1), (1, 3), -0.5, -0.1),
    Edge((0, 6), (1, 3), -1.0, -0.1),
    Edge((1, 2), TARGET_KEY, 4.0, 0.8),
    Edge((1, ERROR), TARGET_KEY, 1.0, 0.2),
    Edge((1, 3), TARGET_KEY, -2.0, -0.4),
)


def by_hand(**changes: object) -> Circuit:
    facts: dict[str, object] = {
        "layers": (0, 1),
        "grid": (1, 3),
        "prefix_names": ("CLS",),
        "target": "mammal",
        "target_index": 2,
        "target_value": 4.0,
        "prediction": ("mammal", 0.75),
        "nodes": NODES,
        "edges": EDGES,
        "heatmaps": HEATMAPS,
    }
    return Circuit(**(facts | changes))  # type: ignore[arg-type]


def partition(circuit: Circuit) -> set[frozenset[FeatureId]]:
    return {frozenset(keys) for keys in circuit.groups.values()}


# --- Similarity and groups ---------------------------------------------------------------------


def test_similarity_by_hand() -> None:
    maps = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    writes = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    ends = torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, -1.0]])
    found = similarity(maps, writes, ends)
    first = 0.5**0.5 / 2 - 1 / 4 + 1 / 4
    # Rows of zeros are like nothing, not even themselves; the diagonal is never looked at.
    expected = [[1, first, 0], [first, 1, 0], [0, 0, 1 / 2]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=DOUBLE))


def planted(sizes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, decoder rows and edges of groups of features, each a noisy copy of its group's."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for width in (200, 100, 50):
        centres = torch.randn(len(sizes), width, generator=generator)
        noise = torch.randn(sum(sizes), width, generator=generator)
        which = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        rows.append(centres[which] + 0.3 * noise)
    return rows[0], rows[1], rows[2]


@pytest.mark.parametrize("sizes", [(5, 4, 3, 1), (1, 1, 1), (6,), (2, 2, 2, 2, 2, 2, 2, 2)])
def test_planted_groups_are_found_with_their_number(sizes: tuple[int, ...]) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    expected = tuple(tuple(range(a, a + n)) for a, n in zip(starts, sizes, strict=True))
    assert cluster(similarity(*planted(sizes))) == expected


def test_the_order_of_features_does_not_matter() -> None:
    rows = planted((4, 3, 3, 2, 1, 1, 1), seed=3)
    expected = {frozenset(group) for group in cluster(similarity(*rows), at_most=3)}
    for seed in range(5):
        order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
        found = cluster(similarity(*(part[order] for part in rows)), at_most=3)
        assert {frozenset(order[list(group)].tolist()) for group in found} == expected


def test_groups_are_joined_down_to_a_mean_similarity_of_a_quarter() -> None:
    alike = torch.tensor([[1.0, 0.6, 0.5], [0.6, 1.0, 0.01], [0.5, 0.01, 1.0]])
    # 0 and 1 come first; then 2 is like them by (.5 + .01) / 2.
    assert cluster(alike) == ((0, 1, 2),)
    alike[1, 2] = alike[2, 1] = -0.01
    assert cluster(alike) == ((0, 1), (2,))
    assert cluster(alike, at_most=1) == ((0, 1, 2),)
    assert cluster(alike, least=0.7) == ((0,), (1,), (2,))
    assert cluster(torch.ones(1, 1)) == ((0,),) and cluster(torch.ones(0, 0)) == ()


def test_no_more_groups_than_asked_for() -> None:
    alike = similarity(*planted((1,) * 12))
    assert len(cluster(alike, at_most=12)) == 12
    assert [len(cluster(alike, at_most=n)) for n in (8, 3, 1)] == [8, 3, 1]
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(FeatureError, match="at_most must be a whole number"):
            cluster(alike, at_most=wrong)  # type: ignore[arg-type]


# --- Sums --------------------------------------------------------------------------------------


def test_a_supernode_is_the_sum_of_its_members_by_hand() -> None:
    made = by_hand(groups={"left": [(0, 1), (0, 4)], "both": [(1, 2), (1, 3)]})
    left, alone, both, error = made.supernodes()
    assert [node.name for node in (left, alone, both, error)] == ["left", "0/6", "both", "1/error"]
    assert left.members == ((0, 4), (0, 1)) and left.key == (0, 4)
    assert (left.importance, left.share) == (5.5, 0.9)
    assert left.heatmap.tolist() == [0.5, 5.0, 0.0, 0.0]
    assert left.edges == (Edge((0, 4), (1, 2), 1.5 + 0.5 + 2.5 - 0.5, 0.25 + 0.1 + 0.4 - 0.1),)
    assert alone.edges == (Edge((0, 6), (1, 2), -1.0, -0.1),)
    assert both.edges == (Edge((1, 2), TARGET_KEY, 2.0, 0.8 - 0.4),)
    assert error.members == ((1, ERROR),) and error.heatmap.tolist() == [0, 0, 1, 0]


def test_edges_that_cancel_are_left_out() -> None:
    edges = (Edge((0, 4), (1, 2), 1.5, 0.25), Edge((0, 1), (1, 2), -1.5, -0.25))
    left = by_hand(edges=edges, groups={"left": [(0, 1), (0, 4)]}).supernodes()[0]
    assert left.edges == ()


def test_a_group_across_layers_is_a_supernode_in_each() -> None:
    made = by_hand(groups={"wheel": [(0, 4), (1, 2), (1, 3)]}).supernodes()
    assert [(n.layer, n.members) for n in made if n.name == "wheel"] == [
        (0, ((0, 4),)),
        (1, ((1, 2), (1, 3))),
    ]


def test_without_groups_supernodes_are_the_nodes() -> None:
    circuit = tiny_lens(1).circuit(tiny_image(1), nodes_per_layer=5)
    made = circuit.supernodes()
    assert [node.key for node in made] == [node.key for node in circuit.nodes]
    assert [node.importance for node in made] == [node.importance for node in circuit.nodes]
    assert [edge for node in made for edge in node.edges] == list(circuit.edges)


# --- A lens's supernodes -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def lens() -> vitlens.Lens:
    return tiny_lens(2)


@pytest.fixture(scope="module")
def circuit(lens: vitlens.Lens) -> Circuit:
    return lens.circuit(tiny_image(2), nodes_per_layer=12)


def test_groups_are_a_partition_of_the_kept_features(lens: vitlens.Lens, circuit: Circuit) -> None:
    made = lens.supernodes(circuit, tiny_image(2), at_most=5)
    members = [key for keys in made.groups.values() for key in keys]
    kept = [node.key for node in circuit.nodes if node.feature != ERROR]
    assert sorted(members) == sorted(kept)
    by_layer = [{layer for layer, _ in keys} for keys in made.groups.values()]
    assert all(len(layers) == 1 for layers in by_layer)
    for layer in circuit.layers:
        assert 1 <= sum(layers == {layer} for layers in by_layer) <= 5
    assert replace(made, groups={}) == circuit
    # It carries what the circuit carries: the same features are kept.
    keep = {layer: [f for at, f in members if at == layer] for layer in circuit.layers}
    assert {layer: sorted(features) for layer, features in keep.items()} == {
        layer: list(circuit.features(layer)) for layer in circuit.layers
    }


def test_groups_are_those_of_equation_47_written_out(lens: vitlens.Lens, circuit: Circuit) -> None:
    """With plain loops, and the SAEs of the slow program."""
    x = tiny_image(2)
    made = lens.supernodes(circuit, x, at_most=6)
    streams = streams_of(lens.vision.module, x)

    def cosine(a: Tensor, b: Tensor) -> float:
        sizes = float(a.norm() * b.norm())
        return float(a @ b) / sizes if sizes else 0.0

    def alike(rows: Sequence[Any], f: int, g: int) -> float:
        weights = (1 / 2, 1 / 4, 1 / 4)
        return sum(w * cosine(part[f], part[g]) for w, part in zip(weights, rows, strict=True))

    every = lens.importances(x, engine="vjp")
    for position, layer in enumerate(lens.layers):
        features = circuit.features(layer)
        sae = lens.saes[position]
        maps = code(sae, streams[layer]).z - lens.baselines.features[position]
        last = layer == lens.layers[-1]
        ends = every.tokens[position].T if last else every.edges[position]
        rows = [{f: maps[:, f] for f in features}, {f: sae.W_dec[f] for f in features}, ends]
        groups = [[f] for f in features]
        while len(groups) > 1:
            score, a, b = max(
                (sum(alike(rows, f, g) for f in a for g in b) / (len(a) * len(b)), i, j)
                for i, a in enumerate(groups)
                for j, b in enumerate(groups)
                if i < j
            )
            if score < 1 / 4 and len(groups) <= 6:
                break
            groups[a] += groups.pop(b)
        found = {keys for keys in partition(made) if next(iter(keys))[0] == layer}
        assert found == {frozenset((layer, f) for f in group) for group in groups}


def test_the_order_of_nodes_in_a_circuit_does_not_matter(
    lens: vitlens.Lens, circuit: Circuit
) -> None:
    order = torch.randperm(len(circuit.nodes), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = replace(
        circuit,
        nodes=tuple(circuit.nodes[i] for i in order),
        heatmaps=circuit.heatmaps[order],
        edges=circuit.edges[::-1],
    )
    made, other = (lens.supernodes(c, tiny_image(2)) for c in (circuit, mixed))
    assert {n: set(keys) for n, keys in made.groups.items()} == {
        n: set(keys) for n, keys in other.groups.items()
    }
    assert lens.supernodes(circuit, tiny_image(2)) == made


def test_the_image_is_the_circuits_own_by_default(lens: vitlens.Lens) -> None:
    pixels = torch.randint(0, 256, (24, 24, 3), generator=torch.Generator().manual_seed(0)).byte()
    circuit = lens.circuit(pixels.permute(2, 0, 1), nodes_per_layer=12)
    assert lens.supernodes(circuit) == lens.supernodes(circuit, pixels.permute(2, 0, 1))
    with pytest.raises(ImageError, match="does not hold its image"):
        lens.supernodes(replace(circuit, image=None))


def test_a_target_that_is_a_function_is_given_again(lens: vitlens.Lens) -> None:
    x = tiny_image(2)
    by_class = lens.circuit(x, target=2, select="walk", nodes_per_layer=12)

    def logit(logits: Tensor) -> Tensor:
        return logits[2] - logits.mean()

    by_function = lens.circuit(x, target=logit, select="walk", nodes_per_layer=12)
    made = lens.supernodes(by_function, x, target=logit)
    assert made.groups == lens.supernodes(by_class, x).groups


def test_a_feature_is_grouped_by_all_its_edges_kept_or_not(lens: vitlens.Lens) -> None:
    """So that groups do not change with what is kept in the next layer."""
    x = tiny_image(2)
    circuit = lens.circuit(x, select="walk", nodes_per_layer=12)
    pruned = AttributionGraph.from_circuit(circuit).prune(
        12, removed=[n.key for n in circuit.nodes if n.layer == 2][:8]
    )
    groups = [
        {keys for keys in partition(lens.supernodes(c, x)) if next(iter(keys))[0] == 1}
        for c in (circuit, pruned)
    ]
    assert groups[0] == groups[1] and pruned.features(2) != circuit.features(2)


def test_progress_is_reported_and_can_cancel(lens: vitlens.Lens, circuit: Circuit) -> None:
    seen: list[float] = []

    def progress(share: float, step: str) -> None:
        assert step == "supernodes"
        seen.append(share)

    lens.supernodes(circuit, tiny_image(2), progress=progress)
    assert seen == sorted(seen) and seen[-1] == 1.0

    def cancel(share: float, step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lens.supernodes(circuit, tiny_image(2), progress=cancel)


def test_groups_made_by_hand_are_kept(lens: vitlens.Lens, circuit: Circuit) -> None:
    first, second, third = circuit.features(1)[:3]
    mine = {"wheel": [(1, first), (1, third)], "sky": [(1, second)]}
    made = lens.supernodes(circuit, tiny_image(2), at_most=4, groups=mine)
    assert made.groups["wheel"] == ((1, first), (1, third))
    assert made.groups["sky"] == ((1, second),)
    in_layer = [keys for keys in made.groups.values() if keys[0][0] == 1]
    assert len(in_layer) <= 4
    assert sorted(f for keys in in_layer for _, f in keys) == list(circuit.features(1))
    # Where there is no room left, the rest is one group.
    made = lens.supernodes(circuit, tiny_image(2), at_most=2, groups=mine)
    assert sum(keys[0][0] == 1 for keys in made.groups.values()) == 3
    # A group made by hand keeps its name where a proposal would be the same.
    taken = {"0/4": [(0, 6)]}
    renamed = with_groups(by_hand(), [[(0, 4), (0, 1)]], by_hand=taken)
    assert renamed.groups == {"0/4": ((0, 6),), "0/4′": ((0, 4), (0, 1))}


def test_what_does_not_fit_is_refused(lens: vitlens.Lens, circuit: Circuit) -> None:
    x = tiny_image(2)
    with pytest.raises(FeatureError, match="at_most must be a whole number and at least 1"):
        lens.supernodes(circuit, x, at_most=0)
    with pytest.raises(FeatureError, match="another model"):
        tiny_lens(3).supernodes(circuit, x)
    with pytest.raises(FeatureError, match="another image"):
        lens.supernodes(circuit, tiny_image(5))
    with pytest.raises(FeatureError, match=r"Node \(1, 99\) is not in this circuit"):
        lens.supernodes(circuit, x, groups={"wheel": [(1, 99)]})
    feature = circuit.features(1)[0]
    with pytest.raises(FeatureError, match="appears twice in the groups"):
        lens.supernodes(circuit, x, groups={"a": [(1, feature)], "b": [(1, feature)]})
    with pytest.raises(FeatureError, match="needs a name"):
        lens.supernodes(circuit, x, groups={"": [(1, feature)]})
    layer = next(node.layer for node in circuit.nodes if node.feature == ERROR)
    with pytest.raises(FeatureError, match=f"error node of layer {layer}"):
        lens.supernodes(circuit, x, groups={"rest": [(layer, ERROR)]})
    with pytest.raises(TargetError, match="Pass the target function again"):
        lens.supernodes(replace(circuit, target_index=None), x)
    of_means = replace(circuit, settings={**circuit.settings, "baselines": "mean"})
    with pytest.raises(FeatureError, match="made with mean baselines"):
        lens.supernodes(of_means, x)


# --- Agreement ---------------------------------------------------------------------------------


def grouped(*groups: str) -> Circuit:
    """A circuit of one layer whose groups hold these digits as features."""
    features = [int(digit) for group in groups for digit in group]
    return by_hand(
        layers=(0,),
        nodes=tuple(Node(0, f, 1.0, 0.1, 1.0) for f in features),
        edges=(),
        heatmaps=torch.ones(len(features), 4),
        groups={f"group {i}": [(0, int(d)) for d in group] for i, group in enumerate(groups)},
    )


def test_agreement_by_hand() -> None:
    # Of the 15 pairs of 6 features, 6 are together in the one, 2 in the other, and these in both.
    (found,) = agreement(grouped("012", "345"), grouped("01", "2", "34", "5"))
    chance, most = 6 * 2 / 15, (6 + 2) / 2
    assert found.index == pytest.approx((2 - chance) / (most - chance))
    assert (found.layer, found.n_features, found.kept) == (0, 6, 1.0)
    assert abs(found.chance) < 0.1
    assert agreement(grouped("012", "345"), grouped("534", "210"))[0].index == 1
    # Only what both keep is compared: here 0, 1, 3 and 4 of 7.
    (found,) = agreement(grouped("012", "345"), grouped("016", "34"))
    assert (found.index, found.n_features, found.kept) == (1, 4, pytest.approx(4 / 7))


def test_there_is_no_agreement_where_no_groups_could_differ() -> None:
    for first, second in ((("0123",), ("0123",)), (("0", "1"), ("0", "1")), (("0",), ("1",))):
        assert math.isnan(agreement(grouped(*first), grouped(*second))[0].index)
    with pytest.raises(FeatureError, match="cannot be compared"):
        agreement(grouped("01"), by_hand())


# --- Names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({}, "0/4 left"),
        ({(0, 4): ("wheel",), (0, 1): ("",)}, "0/4 wheel, left"),
        # 3 of 5.5 is more than half, 2.5 is not.
        ({(0, 4): ("",), (0, 1): ("wheel",)}, "0/4 left"),
        # A class that all share does not go before a name that most share.
        ({(0, 4): ("wheel", "car"), (0, 1): ("", "car")}, "0/4 wheel, left"),
        ({(0, 4): ("wheel", "car"), (0, 1): ("wheel", "bus")}, "0/4 wheel, left"),
        ({(0, 4): ("", "car"), (0, 1): ("hub", "car")}, "0/4 car, left"),
        ({(0, 4): ("", "", "hue"), (0, 1): ("hub",)}, "0/4 hue, left"),
    ],
)
def test_names_are_what_members_share(words: dict[FeatureId, tuple[str, ...]], name: str) -> None:
    assert propose_name(by_hand(), ((0, 4), (0, 1)), words) == name


def test_names_without_words_are_those_of_the_strongest_features() -> None:
    made = with_groups(by_hand(), [[(0, 1), (0, 4)], [(0, 6)]])
    assert made.groups == {"0/4": ((0, 4), (0, 1)), "0/6": ((0, 6),)}


def test_names_come_from_labels_and_from_the_atlas() -> None:
    lens = tiny_lens(2)
    lens.atlas = vitlens.Atlas.build(
        lens, [tiny_image(i) for i in range(6)], labels=[0, 1, 2, 3, 4, 0], progress=False
    )
    circuit = lens.circuit(tiny_image(2), select="walk", nodes_per_layer=1)
    first = next(node.key for node in circuit.nodes if node.feature != ERROR)
    lens.atlas.names.set(*first, "spoke")
    x = tiny_image(2)

    def name_of(made: Circuit) -> str:
        return made.group_of(made.node(*first)).split(",")[0]

    number = f"{first[0]}/{first[1]}"
    assert name_of(lens.supernodes(circuit, x)) == f"{number} spoke"
    labelled = replace(circuit, labels={first: "my wheel"})
    assert name_of(lens.supernodes(labelled, x)) == f"{number} my wheel"
    assert name_of(lens.supernodes(circuit, x, names=False)) == number
    lens.atlas = None
    assert name_of(lens.supernodes(labelled, x)) == f"{number} my wheel"


def test_renaming_keeps_members() -> None:
    made = by_hand(groups={"a": [(0, 4), (0, 1)], "b": [(0, 6)]})
    renamed = made.rename_groups({"a": "wheel"})
    assert renamed.groups == {"wheel": ((0, 4), (0, 1)), "b": ((0, 6),)}
    assert made.rename_groups({"a": "b", "b": "a"}).groups["b"] == ((0, 4), (0, 1))
    with pytest.raises(FeatureError, match="no group 'c'; the circuit has 'a', 'b'"):
        made.rename_groups({"c": "d"})
    with pytest.raises(FeatureError, match="Two groups would be called 'b'"):
        made.rename_groups({"a": "b"})
    with pytest.raises(FeatureError, match="needs a name"):
        made.rename_groups({"a": ""})


# --- Files, pruning, verification --------------------------------------------------------------


def test_supernodes_survive_a_file(lens: vitlens.Lens, circuit: Circuit, tmp_path: Path) -> None:
    made = lens.supernodes(circuit, tiny_image(2), at_most=4)
    made.save(tmp_path / "circuit.safetensors")
    loaded = Circuit.load(tmp_path / "circuit.safetensors")
    assert loaded == made and list(loaded.groups) == list(made.groups)
    for mine, theirs in zip(loaded.supernodes(), made.supernodes(), strict=True):
        assert (mine.name, mine.members, mine.edges) == (theirs.name, theirs.members, theirs.edges)
        assert torch.equal(mine.heatmap, theirs.heatmap)


def test_pruned_groups_shrink_and_empty_ones_are_gone(lens: vitlens.Lens, circuit: Circuit) -> None:
    made = lens.supernodes(circuit, tiny_image(2), at_most=4)
    pruned = AttributionGraph.from_circuit(made).prune(3, groups=made.groups)
    kept = {node.key for node in pruned.nodes}
    expected = {n: tuple(k for k in keys if k in kept) for n, keys in made.groups.items()}
    assert pruned.groups == {name: keys for name, keys in expected.items() if keys}
    assert len(pruned.groups) < len(made.groups)
    names = {node.name for node in pruned.supernodes() if node.members[0][1] != ERROR}
    assert names == set(pruned.groups)


@pytest.mark.parametrize("errors", ["leaf", "through"])
def test_where_all_is_linear_the_sum_of_the_edges_is_measured(errors: str) -> None:
    lens, x = linear_lens(), torch.randn(3, 2, 2, dtype=DOUBLE)
    circuit = lens.circuit(x, target=1, share=1.0, engine="jvp", error_gradients=errors)  # type: ignore[call-overload]
    halves = {"a": (0, 1), "b": (2, 3, 4)}
    groups = {f"{i}{n}": [(i, f) for f in half] for i in range(3) for n, half in halves.items()}
    circuit = replace(circuit, groups=groups)
    checked = lens.verify(circuit, x, supernodes=True)
    # Two groups and an error node in each layer, into two groups, and into the target.
    assert len(checked) == checked.n_given == 2 * 3 * 2 + 3
    torch.testing.assert_close(checked.measured, checked.predicted, rtol=0, atol=1e-10)
    assert checked.predicted.abs().max() > 0.1 and checked.settings["supernodes"]
    edges = [edge for node in circuit.supernodes() for edge in node.edges]
    assert list(checked.edges) == [(edge.source, edge.target) for edge in edges]
    some = lens.verify(circuit, x, n=4, supernodes=True)
    assert len(some) == 4 and str(some).startswith("4 of 15 edges between supernodes, target: ")


@pytest.mark.parametrize("active", ["clean", "running"])
def test_groups_of_one_are_cut_as_edges_are(active: str) -> None:
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    circuit = lens.circuit(x, target=2, nodes_per_layer=4)
    alone = lens.verify(circuit, x, active=active, control=False)  # type: ignore[arg-type]
    single = {f"{a}/{f}": [(a, f)] for a in circuit.layers for f in circuit.features(a)}
    grouped = replace(circuit, groups=single)
    checked = lens.verify(grouped, x, active=active, supernodes=True, batch_size=3)  # type: ignore[arg-type]
    for edge, values in checked.by_edge().items():
        assert values == pytest.approx(alone.by_edge()[edge], abs=1e-10)
    assert checked.measured.abs().max() > 1e-3


def test_members_are_cut_together() -> None:
    """Against one run with hooks: both sources at baseline, both ends encoded again."""
    lens, x = tiny_lens(7, dtype=DOUBLE), tiny_image(7, DOUBLE)
    circuit = lens.circuit(x, target=2, nodes_per_layer=4)
    sources, ends = circuit.features(1)[:2], circuit.features(2)[:2]
    groups = {"a": [(1, f) for f in sources], "b": [(2, f) for f in ends]}
    circuit = replace(circuit, groups=groups)
    checked = lens.verify(circuit, x, supernodes=True)
    by_name = {node.name: node.key for node in circuit.supernodes()}
    _, measured = checked.by_edge()[by_name["a"], by_name["b"]]

    model, saes = lens.vision.module, lens.saes
    with torch.no_grad():
        clean = streams_of(model, x)
        first, second = (code(saes[i], clean[i]) for i in (1, 2))

        def write(i: int, z: Tensor, like: object) -> Tensor:
            return (z @ saes[i].W_dec + saes[i].b_dec) * like.std + like.mean + like.error  # type: ignore[attr-defined]

        z = first.z.clone()
        z[:, list(sources)] = lens.baselines.features[1][:, list(sources)]
        after = model.blocks[2](write(1, z, first)[None])[0]  # type: ignore[index]
        now = code(saes[2], after, mask=second.z > 0).z
        z = second.z.clone()
        z[:, list(ends)] = now[:, list(ends)]
        stream = write(2, z, second)
        logits = model.forward_head(model.norm(model.blocks[3](stream[None])))[0]  # type: ignore[operator,index]
        before = model(x[None])[0]
    expected = (before[2] - before.mean()) - (logits[2] - logits.mean())
    assert measured == pytest.approx(float(expected), abs=1e-10)


def test_paths_have_no_supernodes(lens: vitlens.Lens, circuit: Circuit) -> None:
    edge = circuit.edges[0]
    with pytest.raises(FeatureError, match="Give paths, or"):
        lens.verify(circuit, tiny_image(2), paths=[(edge.source, edge.target)], supernodes=True)

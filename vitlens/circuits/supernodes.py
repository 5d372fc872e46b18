"""Supernodes: a layer's kept features in a few groups, each shown as one node.

Two features belong together when they are active in the same places and do the same: write the same
into the stream, and lead to the same features of the next layer. With maps M = z - z_bar over the
image's tokens, decoder rows W and rows E of edges into all features of the next layer, their
similarity is

    S[f, g] = cos(M_f, M_g) / 2 + cos(W_f, W_g) / 4 + cos(E_f, E_g) / 4    (47)

and features are joined, the most similar first, while the mean similarity between two groups is at
least 1/4. Source: docs/method.md, "Supernodes".

The groups are a partition of the kept features. Nothing is computed for a group that is not a sum
over its members (`Circuit.supernodes`), so that a circuit of supernodes carries exactly what the
circuit carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitlens.circuits.circuit import ERROR, Circuit, check_annotations, location, node_name
from vitlens.errors import FeatureError, check_count
from vitlens.method.engines import edge_rows
from vitlens.method.importance import Importances
from vitlens.method.replacement import ReplacementModel, Trace
from vitlens.progress import Progress, steps
from vitlens.saes.base import FeatureId

#: Largest number of groups per layer, unless asked otherwise.
AT_MOST = 8
#: Least mean similarity of two groups that are joined freely.
LEAST_SIMILARITY = 0.25


def similarity(
    maps: Float[Tensor, "n T"], writes: Float[Tensor, "n D"], ends: Float[Tensor, "n m"]
) -> Float[Tensor, "n n"]:
    """Return how alike the features of a layer are, from -1 to 1, float64; equation (47).

    Parameters
    ----------
    maps
        Where each feature is active: its activations less their baselines, per token.
    writes
        What each writes: its row of the decoder.
    ends
        Where its edges go: its importances through each of the features of the next layer.

    Notes
    -----
    The cosine of a row of zeros with any other row is 0.
    """
    place, direction, effect = (
        unit @ unit.T
        for unit in (
            F.normalize(rows.detach().cpu().double(), dim=1) for rows in (maps, writes, ends)
        )
    )
    return place / 2 + direction / 4 + effect / 4


def cluster(
    similarities: Float[Tensor, "n n"],
    *,
    at_most: int = AT_MOST,
    least: float = LEAST_SIMILARITY,
) -> tuple[tuple[int, ...], ...]:
    """Put the rows of a matrix of similarities into groups, by average linkage.

    The two groups with the highest mean similarity between their members are joined, again and
    again, while this mean is at least `least` or there are more than `at_most` groups.

    Parameters
    ----------
    similarities
        Symmetric; the diagonal does not count.
    at_most
        Largest number of groups, at least 1.
    least
        Least mean similarity of groups that are joined freely.

    Returns
    -------
    tuple of tuple of int
        The groups, a partition of range(n); each ascending, and in the order of their first rows.

    Raises
    ------
    FeatureError
        When `at_most` is not a whole number of at least 1.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    check_count("at_most", at_most)
    n = len(similarities)
    if n < 2:
        return tuple((row,) for row in range(n))
    distances = 1 - similarities.double().numpy()
    distances = (distances + distances.T) / 2  # the same to the last bit, as SciPy demands
    np.fill_diagonal(distances, 0)
    joined = linkage(squareform(distances.clip(min=0)), "average")
    labels = fcluster(joined, 1 - least, "distance")
    if len(set(labels)) > at_most:
        labels = fcluster(joined, at_most, "maxclust")
    groups: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(row)
    return tuple(tuple(rows) for rows in groups.values())


def group_features(
    circuit: Circuit,
    replacement: ReplacementModel,
    trace: Trace,
    nodes: Importances,
    *,
    at_most: int = AT_MOST,
    groups: Mapping[str, Sequence[FeatureId]] | None = None,
    progress: Progress = False,
) -> tuple[tuple[FeatureId, ...], ...]:
    """Return groups of a circuit's features, layer by layer; see `Lens.supernodes`.

    Parameters
    ----------
    circuit
        The circuit.
    replacement, trace, nodes
        The model with its baselines, and the trace and node importances of the circuit's image.
    at_most
        Largest number of groups per layer. Groups made by hand count; where they are as many, the
        other features make up one more.
    groups
        Groups made by hand; their members are left out here.
    progress
        See `vitlens.progress`.

    Returns
    -------
    tuple of tuple of FeatureId
        Each ascending. Error nodes are in none.
    """
    by_hand = {key: name for name, keys in (groups or {}).items() for key in keys}
    found: list[tuple[FeatureId, ...]] = []
    for position, layer in steps(list(enumerate(circuit.layers)), "supernodes", progress):
        free = [f for f in circuit.features(layer) if (layer, f) not in by_hand]
        taken = {name for (at, _), name in by_hand.items() if at == layer}
        if not free:
            continue
        maps = (trace.features[position] - replacement.baselines.features[position])[:, free].T
        if layer == circuit.layers[-1]:
            # All edges go to the target. Which tokens they go through tells them apart.
            ends = nodes.tokens[position][:, free].T
        else:
            ends = edge_rows(replacement, trace, nodes, position, free)[:-1]
        alike = similarity(maps, replacement.saes[position].W_dec[free], ends)
        left = max(1, at_most - len(taken))
        found += [tuple((layer, free[i]) for i in rows) for rows in cluster(alike, at_most=left)]
    return tuple(found)


def with_groups(
    circuit: Circuit,
    groups: Sequence[Sequence[FeatureId]],
    *,
    by_hand: Mapping[str, Sequence[FeatureId]] | None = None,
    words: Mapping[FeatureId, Sequence[str]] | None = None,
) -> Circuit:
    """Return the circuit with named groups.

    Parameters
    ----------
    circuit
        The circuit.
    groups
        The groups to name; see `propose_name`.
    by_hand
        Groups that have names; they come first.
    words
        See `propose_name`; None for groups that are called after their strongest feature alone.
    """
    named = {name: tuple(keys) for name, keys in (by_hand or {}).items()}
    for members in groups:
        keys = sorted(members, key=lambda key: (-abs(circuit.node(*key).importance), key))
        name = node_name(keys[0]) if words is None else propose_name(circuit, keys, words)
        while name in named:  # only a person would have given this name to another group
            name += "′"
        named[name] = tuple(keys)
    return replace(circuit, groups=named)


def propose_name(
    circuit: Circuit, members: Sequence[FeatureId], words: Mapping[FeatureId, Sequence[str]]
) -> str:
    """Propose a name for a group, such as "5/213 bird, upper left".

    First its strongest feature, so that no two groups have the same name. Then the first word that
    its members share: their name, class or kind. Last where on the image the group acts.

    Parameters
    ----------
    circuit
        The circuit that the group is of.
    members
        The group, its strongest feature first.
    words
        Words for some features, one for each rank: a name, a class, a kind; "" where there is none.
        A word is shared when it holds more than half of the members' importance, signs left out.
    """
    sizes = {key: abs(circuit.node(*key).importance) for key in members}
    total = sum(sizes.values())
    shared = ""
    for rank in range(max((len(words.get(key, ())) for key in members), default=0)):
        held: dict[str, float] = {}
        for key in members:
            word = words[key][rank] if rank < len(words.get(key, ())) else ""
            held[word] = held.get(word, 0.0) + sizes[key]
        best = max(held, key=lambda word: held[word])
        if best and held[best] > total / 2:
            shared = best
            break
    rows = [row for row, node in enumerate(circuit.nodes) if node.key in sizes]
    place = location(circuit.heatmaps[rows].sum(0), circuit.grid, circuit.prefix_names)
    return f"{node_name(members[0])} {f'{shared}, ' if shared else ''}{place}"


def check_groups(
    circuit: Circuit, groups: Mapping[str, Sequence[FeatureId]]
) -> dict[str, tuple[FeatureId, ...]]:
    """Return groups made by hand in the circuit's types.

    Raises
    ------
    FeatureError
        When a group names an error node or a node that is not in the circuit, a node is in two
        groups, or a name is empty.
    """
    nodes = {node.key for node in circuit.nodes}
    checked: dict[str, tuple[FeatureId, ...]] = check_annotations(
        nodes, pinned=(), groups=groups, labels={}
    )["groups"]
    for name, keys in checked.items():
        for layer, feature in keys:
            if feature == ERROR:
                raise FeatureError(
                    f"Group {name!r} holds the error node of layer {layer}. Error nodes stay "
                    "alone; leave it out."
                )
    return checked


@dataclass(frozen=True)
class GroupAgreement:
    """How far the groups of two circuits agree in one layer.

    Attributes
    ----------
    layer
        The layer.
    n_features
        How many features both circuits keep and group; only these are compared.
    kept
        Their share of the features that either keeps.
    index
        Adjusted Rand index: 1 for the same groups, 0 on average for groups by chance. NaN where
        there is nothing to agree on: both circuits have all these features in one group, or each
        in its own.
    chance
        Mean index when the features change places among one circuit's groups at random.
    """

    layer: int
    n_features: int
    kept: float
    index: float
    chance: float


def agreement(
    first: Circuit, second: Circuit, *, n_permutations: int = 100, seed: int = 0
) -> tuple[GroupAgreement, ...]:
    """Compare the groups of two circuits, layer by layer, on the features that both keep.

    Parameters
    ----------
    first, second
        Circuits of one model, with groups; for instance of an image and of a crop of it.
    n_permutations, seed
        Random permutations behind the chance level.

    Raises
    ------
    FeatureError
        When the circuits are of different models or have different layers.

    Notes
    -----
    Hubert and Arabie, "Comparing partitions", Journal of Classification, 1985.
    """
    from sklearn.metrics import adjusted_rand_score

    first.compare(second)  # raises where feature numbers mean different things
    generator = np.random.default_rng(seed)
    names = [
        {key: name for name, keys in c.groups.items() for key in keys} for c in (first, second)
    ]
    found = []
    for layer in first.layers:
        mine, theirs = ({key for key in name_of if key[0] == layer} for name_of in names)
        both = sorted(mine & theirs)
        labels = [[name_of[key] for key in both] for name_of in names]
        index = chance = float("nan")
        if any(1 < len(set(each)) < len(both) for each in labels):
            index = float(adjusted_rand_score(*labels))
            drawn = [
                adjusted_rand_score(labels[0], generator.permutation(labels[1]))
                for _ in range(n_permutations)
            ]
            chance = float(np.mean(drawn))
        kept = len(both) / max(1, len(mine | theirs))
        found.append(GroupAgreement(layer, len(both), kept, index, chance))
    return tuple(found)

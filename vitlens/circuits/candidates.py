"""Every node that pruning can reach: enough to prune again without the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitlens.attribution.importances import Importances
from vitlens.circuits.build import (
    build_circuit,
    node_shares,
    positive_sums,
    pruning_settings,
)
from vitlens.circuits.circuit import ERROR, Circuit
from vitlens.circuits.marks import FeatureId, marks_within
from vitlens.circuits.prune import check_count, filter_shares, walk, walk_among
from vitlens.errors import FeatureError
from vitlens.replacement import Trace
from vitlens.repr import ShapeRepr


@dataclass(frozen=True, eq=False, repr=False)
class Candidates(ShapeRepr):
    """The nodes of one image that `walk` keeps for some count up to `at_most`, and their edges.

    Attributes
    ----------
    features
        By layer, feature numbers, ascending; last `ERROR`, where the error node is one of them.
    nodes
        By layer, importances, [n_l].
    edges
        By layer but the last, [n_l, n_{l+1}]; the column of an error node is 0.
    tokens
        By layer, the importances before the sum over tokens, [T, n_l].
    activations
        By layer, features' activations, [T, n_l], an error node's norm; or None.
    positive
        By layer, the sum of the positive importances of all its nodes, which shares refer to.
    sizes
        By layer, how many features the SAE has; or None.
    at_most
        The largest count of nodes a layer.
    grid, prefix_names, target, target_index, target_value, prediction, logits, picture, model
        As in `Circuit`.
    settings
        How the importances were made.
    """

    features: tuple[tuple[int, ...], ...]
    nodes: tuple[Float[Tensor, " n_l"], ...]
    edges: tuple[Float[Tensor, "n_l n_l+1"], ...]
    tokens: tuple[Float[Tensor, "T n_l"], ...]
    activations: tuple[Float[Tensor, "T n_l"], ...] | None
    positive: tuple[float, ...]
    sizes: tuple[int, ...] | None
    at_most: int
    grid: tuple[int, int]
    prefix_names: tuple[str, ...]
    target: str
    target_index: int | None
    target_value: float
    prediction: tuple[str, float]
    logits: Float[Tensor, " C"] | None = None
    picture: UInt8[Tensor, "H W 3"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def keys(self) -> tuple[FeatureId, ...]:
        """(layer, feature) of every node, by layer."""
        return tuple((layer, f) for layer, fs in enumerate(self.features) for f in fs)

    def circuit(
        self,
        nodes_per_layer: int = 8,
        *,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        pinned: Collection[FeatureId] = (),
        groups: Mapping[str, Sequence[FeatureId]] | None = None,
        labels: Mapping[FeatureId, str] | None = None,
    ) -> Circuit:
        """Prune.

        Parameters
        ----------
        nodes_per_layer
            How many nodes the walk keeps in every layer, up to `at_most`.
        node_share, edge_share
            Least shares of nodes and edges, as in `Lens.circuit`.
        pinned
            Nodes to keep whatever the rules say, and their edges to other kept nodes.
        groups, labels
            Marks; those of nodes that are not kept are left out.

        Returns
        -------
        Circuit
            Without pinned nodes the circuit that `Lens.circuit` gives for the same image,
            target and rules, to the node and edge.

        Raises
        ------
        FeatureError
            When a rule is out of range, or a pinned node is no candidate.
        """
        check_count("nodes_per_layer", nodes_per_layer)
        if nodes_per_layer > self.at_most:
            raise FeatureError(
                f"These candidates are for 1 to {self.at_most} nodes a layer, not "
                f"{nodes_per_layer}."
            )
        walked = walk_among(
            self.nodes,
            self.edges,
            [torch.tensor(numbers) != ERROR for numbers in self.features],
            count=nodes_per_layer,
        )
        shares = node_shares(self.nodes, self.positive)
        kept = [
            indices.tolist() for indices in filter_shares(walked, shares, node_share=node_share)
        ]
        for layer, place in self._places(pinned):
            if place not in kept[layer]:
                kept[layer].append(place)
        keys = {
            (layer, self.features[layer][i]) for layer, indices in enumerate(kept) for i in indices
        }
        marks = marks_within(keys, pinned=pinned, groups=groups or {}, labels=labels or {})
        rules = pruning_settings(
            nodes_per_layer=nodes_per_layer,
            node_share=node_share or None,
            edge_share=edge_share or None,
        )
        return build_circuit(
            self,
            [torch.tensor(indices) for indices in kept],
            self.edges,
            grid=self.grid,
            n_prefix=len(self.prefix_names),
            prefix_names=self.prefix_names,
            prediction=self.prediction,
            logits=self.logits,
            picture=self.picture,
            settings={**self.settings, **rules},
            model=self.model,
            edge_share=edge_share,
            names=[torch.tensor(numbers) for numbers in self.features],
            positive=self.positive,
            **marks,
        )

    @classmethod
    def of(cls, circuit: Circuit) -> Candidates:
        """Return the nodes and edges of a circuit as candidates, to be pruned further.

        Raises
        ------
        FeatureError
            When the circuit has a layer without nodes.
        """
        features: list[tuple[int, ...]] = []
        for layer in range(circuit.n_layers):
            has_error = any(node.key == (layer, ERROR) for node in circuit.nodes)
            features.append((*circuit.features(layer), *([ERROR] if has_error else [])))
        if not features or not all(features):
            raise FeatureError("A circuit to be shown needs nodes in every layer.")
        row = {node.key: number for number, node in enumerate(circuit.nodes)}
        rows = [[row[layer, f] for f in fs] for layer, fs in enumerate(features)]
        weight = {(edge.source, edge.target): edge.weight for edge in circuit.edges}
        edges = [
            [
                [weight.get(((layer, f), (layer + 1, g)), 0.0) for g in features[layer + 1]]
                for f in features[layer]
            ]
            for layer in range(len(features) - 1)
        ]
        return cls(
            features=tuple(features),
            nodes=tuple(
                torch.tensor([circuit.nodes[i].importance for i in layer], dtype=torch.float64)
                for layer in rows
            ),
            edges=tuple(torch.tensor(block, dtype=torch.float64) for block in edges),
            tokens=tuple(circuit.heatmaps[layer].T for layer in rows),
            activations=None,
            positive=tuple(_positive([circuit.nodes[i] for i in layer]) for layer in rows),
            sizes=None,
            at_most=max(len(layer) for layer in rows),
            **{name: getattr(circuit, name) for name in _FACTS},
        )

    def _places(self, keys: Collection[FeatureId]) -> list[tuple[int, int]]:
        places = []
        for layer, feature in keys:
            if not 0 <= layer < len(self.features) or feature not in self.features[layer]:
                raise FeatureError(
                    f"Node ({layer}, {feature}) is not among the candidates, the nodes that up "
                    f"to {self.at_most} nodes a layer reach."
                )
            places.append((layer, self.features[layer].index(feature)))
        return places


_FACTS = (
    "grid",
    "prefix_names",
    "target",
    "target_index",
    "target_value",
    "prediction",
    "logits",
    "picture",
    "settings",
    "model",
)


def find_candidates(
    importances: Importances, trace: Trace, *, at_most: int = 64, **facts: Any
) -> Candidates:
    """Gather the nodes that `walk` keeps for any count of nodes a layer up to `at_most`.

    Parameters
    ----------
    importances
        One image's importances, with edges.
    trace
        The image's trace.
    at_most
        The largest count.
    facts
        `grid`, `prefix_names`, `prediction`, `logits`, `picture`, `settings` and `model` of the
        result.

    Raises
    ------
    FeatureError
        When `at_most` is below 1.
    """
    check_count("at_most", at_most)
    largest = max(len(scores) for scores in importances.nodes)
    reached: list[set[int]] = [set() for _ in importances.nodes]
    for count in range(1, min(at_most, largest) + 1):
        kept = walk(importances.nodes, importances.edges, count=count)
        for known, indices in zip(reached, kept, strict=True):
            known.update(indices.tolist())
    chosen = [torch.tensor(sorted(indices)) for indices in reached]
    sizes = tuple(len(scores) - 1 for scores in importances.nodes)
    with_errors = [
        torch.cat([features, error.norm(dim=1, keepdim=True)], dim=1)
        for features, error in zip(trace.features, trace.errors, strict=True)
    ]
    return Candidates(
        features=tuple(
            tuple(ERROR if i == size else i for i in indices.tolist())
            for indices, size in zip(chosen, sizes, strict=True)
        ),
        nodes=_at(importances.nodes, chosen),
        edges=tuple(
            torch.nn.functional.pad(block, (0, 1))[here][:, following].detach().cpu()
            for block, here, following in zip(
                importances.edges, chosen[:-1], chosen[1:], strict=True
            )
        ),
        tokens=_at(importances.tokens, chosen),
        activations=_at(with_errors, chosen),
        positive=positive_sums(importances.nodes),
        sizes=sizes,
        at_most=at_most,
        target=importances.target,
        target_index=importances.target_index,
        target_value=importances.target_value,
        **facts,
    )


def _at(values: Sequence[Tensor], chosen: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Take the chosen entries of the last axis, as tensors of their own on the CPU."""
    pairs = zip(values, chosen, strict=True)
    return tuple(value[..., indices].detach().cpu() for value, indices in pairs)


def _positive(nodes: Sequence[Any]) -> float:
    """Return the sum that the shares of a layer's nodes refer to; 0 where no node has a share."""
    strongest = max(nodes, key=lambda node: abs(node.share))
    return strongest.importance / strongest.share if strongest.share else 0.0

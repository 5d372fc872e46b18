"""A circuit as a networkx graph."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from vitlens.circuits.circuit import ERROR, Circuit

if TYPE_CHECKING:
    import networkx


def to_networkx(circuit: Circuit) -> networkx.DiGraph:
    """Return a circuit as a directed graph; see `Circuit.to_networkx`."""
    import networkx

    graph = networkx.DiGraph(
        target=circuit.target,
        prediction=circuit.prediction[0],
        probability=circuit.prediction[1],
    )
    for node in circuit.nodes:
        graph.add_node(
            node.key,
            kind="error" if node.feature == ERROR else "feature",
            name=node.name,
            where=circuit.where(node),
            pinned=node.key in circuit.pinned,
            group=circuit.group_of(node),
            label=circuit.labels.get(node.key, ""),
            **asdict(node),
        )
    layer, feature = circuit.target_key
    graph.add_node(
        circuit.target_key,
        kind="target",
        name=circuit.target,
        layer=layer,
        feature=feature,
        importance=circuit.target_value,
        share=1.0,
    )
    for edge in circuit.edges:
        graph.add_edge(edge.source, edge.target, weight=edge.weight, share=edge.share)
    return graph

"""A circuit in a file."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlens.circuits.circuit import Circuit, Edge, Node
from vitlens.errors import CheckpointError, FeatureError
from vitlens.io import read_result, write_tensors

_FORMAT = "vitlens.circuit"
_VERSION = 1


def save_circuit(circuit: Circuit, path: str | Path) -> None:
    """Write a circuit to one safetensors file, atomically.

    Raises
    ------
    VitlensError
        When the file cannot be written.
    """
    tensors = {
        "heatmaps": circuit.heatmaps,
        "logits": circuit.logits,
        "picture": circuit.picture,
    }
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "nodes": [list(asdict(node).values()) for node in circuit.nodes],
        "edges": [[*e.source, *e.target, e.weight, e.share] for e in circuit.edges],
        "grid": list(circuit.grid),
        "prefix_names": list(circuit.prefix_names),
        "target": [circuit.target, circuit.target_index, circuit.target_value],
        "prediction": list(circuit.prediction),
        "settings": dict(circuit.settings),
        "model": circuit.model,
        "pinned": [list(key) for key in circuit.pinned],
        "groups": {name: [list(key) for key in keys] for name, keys in circuit.groups.items()},
        "labels": [[*key, label] for key, label in circuit.labels.items()],
    }
    write_tensors(path, {k: v for k, v in tensors.items() if v is not None}, metadata)


def load_circuit(path: str | Path) -> Circuit:
    """Read a circuit that `save_circuit` wrote, of earlier versions too.

    Raises
    ------
    CheckpointError
        When the file is missing, damaged, a pickle, or holds something else.
    """
    tensors, metadata = read_result(path, what="a circuit", format=_FORMAT, version=_VERSION)
    try:
        circuit = _from_file(tensors, metadata)
    except (KeyError, TypeError, ValueError, FeatureError) as error:
        raise CheckpointError(f"{path} holds a damaged circuit: {error!r}.") from error
    n_tokens = circuit.n_prefix + circuit.grid[0] * circuit.grid[1]
    if circuit.heatmaps.shape != (len(circuit.nodes), n_tokens):
        raise CheckpointError(
            f"{path} holds a damaged circuit: heatmaps of shape "
            f"{tuple(circuit.heatmaps.shape)} for {len(circuit.nodes)} nodes and {n_tokens} "
            "tokens."
        )
    return circuit


def _from_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Circuit:
    target, target_index, target_value = metadata["target"]
    predicted, probability = metadata["prediction"]
    rows, columns = metadata["grid"]
    return Circuit(
        nodes=tuple(Node(*values) for values in metadata["nodes"]),
        edges=tuple(
            Edge((layer, feature), (next_layer, next_feature), weight, share)
            for layer, feature, next_layer, next_feature, weight, share in metadata["edges"]
        ),
        heatmaps=tensors["heatmaps"],
        grid=(rows, columns),
        prefix_names=tuple(metadata["prefix_names"]),
        target=target,
        target_index=target_index,
        target_value=target_value,
        prediction=(predicted, probability),
        logits=tensors.get("logits"),
        picture=tensors.get("picture"),
        settings=metadata["settings"],
        model=metadata["model"],
        pinned=tuple((layer, feature) for layer, feature in metadata.get("pinned", ())),
        groups={
            name: tuple((layer, feature) for layer, feature in keys)
            for name, keys in metadata.get("groups", {}).items()
        },
        labels={(layer, feature): label for layer, feature, label in metadata.get("labels", ())},
    )

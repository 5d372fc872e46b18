"""Circuits that are the same to rounding: edges computed with other columns differ in last bits."""

from __future__ import annotations

import pytest
import torch

from vitlens.circuits.circuit import Circuit


def assert_alike(found: Circuit, expected: Circuit) -> None:
    """Compare nodes and edges, their numbers to rounding, and everything else exactly."""
    assert {**found.explanation(), "logits": None, "image": None} == {
        **expected.explanation(),
        "logits": None,
        "image": None,
    }
    assert [node.key for node in found.nodes] == [node.key for node in expected.nodes]
    torch.testing.assert_close(found.heatmaps, expected.heatmaps)
    scale = max((abs(node.importance) for node in expected.nodes), default=1.0)
    for mine, theirs in zip(found.nodes, expected.nodes, strict=True):
        assert mine.importance == pytest.approx(theirs.importance, abs=1e-5 * scale)
        assert mine.share == pytest.approx(theirs.share, abs=1e-5)
        assert mine.kept_importance == pytest.approx(theirs.kept_importance, abs=1e-5 * scale)
    edges = {(edge.source, edge.target): edge for edge in expected.edges}
    assert {(edge.source, edge.target) for edge in found.edges} == edges.keys()
    for edge in found.edges:
        other = edges[edge.source, edge.target]
        assert edge.weight == pytest.approx(other.weight, abs=1e-5 * scale)
        assert edge.share == pytest.approx(other.share, abs=1e-5)
    for annotation in ("pinned", "groups", "labels"):
        assert getattr(found, annotation) == getattr(expected, annotation)

"""One image's numbers, as the widgets read them."""

from __future__ import annotations

import pytest
import torch

from tests.method.test_logit_lens import lens_of
from vitlens.errors import FeatureError
from vitlens.widgets.scene import Scene


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture(scope="module")
def scene(image: torch.Tensor) -> Scene:
    return Scene.of(lens_of("cls"), image, target=2)


def test_numbers_are_the_lens_own(scene: Scene, image: torch.Tensor) -> None:
    lens = scene.lens
    found = lens.importances(image, target=2)
    assert scene.class_names == tuple(f"class {i}" for i in range(5))
    for layer, nodes in enumerate(found.nodes):
        best = int(nodes.argmax())
        assert scene.importance((layer, best)) == float(nodes[best])
        assert scene.share((layer, best)) == pytest.approx(
            float(nodes[best] / nodes.clamp(min=0).sum())
        )
        assert torch.equal(scene.token_importance((layer, best)), found.tokens[layer][:, best])
        assert torch.equal(scene.activation((layer, best)), scene.trace.features[layer][:, best])
    error = scene.activation((0, -1))
    assert torch.equal(error, scene.trace.errors[0].norm(dim=1))


def test_strongest_edges(scene: Scene, image: torch.Tensor) -> None:
    edges = scene.lens.importances(image, target=2).edges[0]
    best = int(scene.importances.nodes[1][:-1].argmax())
    found = scene.strongest_in((1, best), 3)
    expected = edges[:, best].abs().sort(descending=True).values[:3]
    assert [abs(link.weight) for link in found] == pytest.approx(expected.tolist())
    for link in found:
        layer, feature = link.node
        assert layer == 0
        assert link.weight == pytest.approx(float(edges[feature, best]))
        assert link.share == pytest.approx(link.weight / scene.positive(0))
    (first, *_) = scene.strongest_out((0, -1), 2)
    assert abs(first.weight) == pytest.approx(float(edges[-1].abs().max()))
    assert scene.strongest_in((0, 1), 3) == ()
    (only,) = scene.strongest_out((1, best), 3)
    assert only.node == (2, -2)
    assert only.weight == scene.importance((1, best))


def test_there_must_be_such_a_node(scene: Scene) -> None:
    with pytest.raises(FeatureError, match="there is no 9"):
        scene.activation((9, 0))

"""Figures of real results name layers by their block, for SAEs of any kind after some blocks."""

from __future__ import annotations

import pytest

from tests.builders import lens_with, noise_image, tiny_image
from tests.plots.figures import texts
from vitlens.atlas.atlas import Atlas
from vitlens.plots import (
    circuit_figure,
    curves_figure,
    evolution_figure,
    feature_sheet,
    verification_figure,
)

LAYERS = (0, 2, 5)


@pytest.mark.parametrize("kind", ["budget", "relu", "jumprelu", "batchtopk"])
def test_every_figure_names_blocks(kind: str) -> None:
    lens = lens_with(kind, layers=LAYERS, depth=7)
    image = tiny_image()
    circuit = lens.circuit(image, nodes_per_layer=3, select="walk")
    drawn = texts(circuit_figure(circuit))
    assert {f"layer {layer}" for layer in LAYERS} <= drawn and "layer 1" not in drawn

    curves = lens.faithfulness([image], q=(0, 0.5, 1), methods=("rrm", "node"), progress=False)
    assert "error nodes: clean" in curves_figure(curves).get_suptitle()

    checked = lens.verify(circuit, image, n=4)
    bar = verification_figure(checked).axes[-1]
    sources = {
        edge[0][0] for verification in (checked, checked.control) for edge in verification.edges
    }
    assert set(bar.get_yticks()) == sources <= set(LAYERS)

    atlas = Atlas.build(
        lens, [noise_image(seed) for seed in range(6)], n_top=2, layout=False, progress=False
    )
    panel = next(axes for axes in evolution_figure(atlas.evolution()).axes if axes.get_visible())
    assert tuple(panel.get_xticks()) == LAYERS
    assert "5/1" in texts(feature_sheet(atlas, [(5, 1)], n_images=1))

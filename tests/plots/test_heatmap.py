"""Heatmaps: colours by sign, patches in place, bad values refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.plots.figures import texts
from vitlens.errors import ImageError, OptionError
from vitlens.plots import heatmap_figure, heatmaps_figure
from vitlens.plots.heatmap import heat_on_image
from vitlens.plots.style import NEGATIVE, POSITIVE


def test_heat_has_the_colour_of_its_sign_and_zero_stays_grey() -> None:
    heat = np.array([[1.0, -1.0], [0.0, 0.25]])
    pixels = heat_on_image(None, heat, size=(2, 2)).astype(int)
    assert pixels[0, 0].argmax() == 2 and pixels[0, 1].argmax() == 0
    assert len(set(pixels[1, 0])) == 1
    assert pixels[1, 1, 2] - pixels[1, 1, 0] < pixels[0, 0, 2] - pixels[0, 0, 0]
    assert POSITIVE != NEGATIVE


def test_heat_lies_on_its_own_patch() -> None:
    heat = np.zeros((2, 3))
    heat[1, 2] = 1
    pixels = heat_on_image(np.full((20, 30, 3), 90, np.uint8), heat, size=(20, 30)).astype(int)
    coloured = pixels[..., 2] - pixels[..., 0] > 20
    assert coloured[10:, 20:].all() and coloured.sum() == 100


def test_the_bar_is_signed_when_the_heat_is() -> None:
    heat = torch.tensor([[0.5, 2.0], [0.0, 1.0]])
    unsigned = heatmap_figure(None, heat, label="importance of a feature")
    signed = heatmap_figure(
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        heat,
        prefix=[-3.0],
        prefix_names=["CLS"],
        title="x",
    )
    assert unsigned.axes[1].get_ylim() == pytest.approx((0, 2))
    assert unsigned.axes[1].get_ylabel() == "importance of a feature"
    assert signed.axes[1].get_ylim() == pytest.approx((-3, 3))
    assert "CLS" in texts(signed)


@pytest.mark.parametrize(
    ("heat", "prefix", "message"),
    [
        (torch.zeros(4), (), r"\[rows, columns\], not \[4\]"),
        (torch.tensor([[float("nan")]]), (), "NaN"),
        (torch.zeros(1, 1), (1.0,), "as many prefix names"),
    ],
)
def test_bad_heat_is_refused(heat: torch.Tensor, prefix: tuple[float, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        heatmap_figure(None, heat, prefix=prefix)


def test_images_without_a_heatmap_and_unknown_scales_are_refused() -> None:
    with pytest.raises(ImageError, match="one heatmap"):
        heatmaps_figure([None, None], torch.ones(1, 2, 2))
    with pytest.raises(OptionError, match="heat, cividis"):
        heatmaps_figure([None], torch.ones(1, 2, 2), scale="jet")  # type: ignore[arg-type]

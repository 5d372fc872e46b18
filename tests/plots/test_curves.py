"""Insertion and deletion curves as figures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes

from tests.plots.figures import curves, texts
from vitlens.circuits.curves import Axis
from vitlens.errors import OptionError
from vitlens.plots import curves_figure


def legend_title(axes: Axes) -> str:
    legend = axes.get_legend()
    assert legend is not None
    return legend.get_title().get_text()


def test_curves_show_both_panels_with_areas_and_bands() -> None:
    made = curves()
    figure = curves_figure(made)
    left, right = figure.axes
    assert left.get_title().startswith("Insertion") and right.get_title().startswith("Deletion")
    line = left.get_lines()[0]
    assert line.get_ydata() == pytest.approx(made.band("insertion", "rrm").mean)
    assert tuple(np.asarray(line.get_xdata())) == made.q
    assert len(left.collections) == 3
    colours = {line.get_color() for line in left.get_lines()[:3]}
    assert len(colours) == 3


@pytest.mark.parametrize("axis", ["log", "linear"])
def test_the_areas_are_those_of_the_axis_that_is_drawn(axis: Axis) -> None:
    made = curves()
    figure = curves_figure(made, axis=axis)
    left, _ = figure.axes
    spots = left.transScale.transform(left.get_lines()[1].get_xydata())[:, 0]
    heights, widths = np.asarray(left.get_lines()[1].get_ydata()), np.diff(spots)
    area = np.sum(widths * (heights[1:] + heights[:-1]) / 2) / widths.sum()
    assert made.area("insertion", "cla", axis=axis).value == pytest.approx(area)
    assert f"cla  {made.area('insertion', 'cla', axis=axis)}" in texts(figure)
    assert f"({axis} axis)" in legend_title(left)


def test_curves_of_one_image_have_no_bands() -> None:
    figure = curves_figure(curves(1))
    assert not figure.axes[0].collections
    assert "1 image," in figure.get_suptitle()


def test_curves_without_a_span_are_drawn_as_measured() -> None:
    figure = curves_figure(curves(full=-1.0))
    assert figure.axes[0].get_ylabel() == "target, as measured"
    assert "rrm" in texts(figure)


def test_unknown_metrics_and_axes_are_refused_with_the_choices() -> None:
    with pytest.raises(OptionError, match="target, logit, probability, top1, divergence"):
        curves_figure(curves(), metric="accuracy")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="log"):
        curves_figure(curves(), axis="sqrt")  # type: ignore[arg-type]

"""Values of a feature over the patches of images."""

from __future__ import annotations

import traitlets as t

from vitlens.widgets.base import Widget
from vitlens.widgets.traits import ImageTraits


class HeatmapPart(ImageTraits):
    """The traits of a heatmap."""

    values = t.Bytes(b"").tag(sync=True)


class PatchHeatmap(HeatmapPart, Widget, bundle="heatmap"):
    """An image with values over its patches."""

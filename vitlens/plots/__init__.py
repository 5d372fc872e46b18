"""Figures of results, with matplotlib; none needs a display."""

from vitlens.plots.atlas import evolution_figure, map_figure
from vitlens.plots.circuit import circuit_figure
from vitlens.plots.curves import curves_figure
from vitlens.plots.feature import feature_figure, feature_sheet, tuning_figure
from vitlens.plots.groups import groups_figure
from vitlens.plots.heatmap import heatmap_figure, heatmaps_figure
from vitlens.plots.style import save_figure
from vitlens.plots.tables import features_figure, table_figure, text_figure
from vitlens.plots.verify import verification_figure

__all__ = [
    "circuit_figure",
    "curves_figure",
    "evolution_figure",
    "feature_figure",
    "feature_sheet",
    "features_figure",
    "groups_figure",
    "heatmap_figure",
    "heatmaps_figure",
    "map_figure",
    "save_figure",
    "table_figure",
    "text_figure",
    "tuning_figure",
    "verification_figure",
]

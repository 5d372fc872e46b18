"""Figures of results, with matplotlib; none needs a display."""

from vitlens.plots.atlas import feature_sheet
from vitlens.plots.circuit import circuit_figure
from vitlens.plots.curves import curves_figure
from vitlens.plots.evolution import evolution_figure
from vitlens.plots.feature import feature_figure, features_figure
from vitlens.plots.feature_map import map_figure
from vitlens.plots.groups import groups_figure
from vitlens.plots.heatmap import heatmap_figure, heatmaps_figure
from vitlens.plots.save import save_figure
from vitlens.plots.table import table_figure
from vitlens.plots.tuning import tuning_figure
from vitlens.plots.verify import verification_figure
from vitlens.plots.words import words_figure

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
    "tuning_figure",
    "verification_figure",
    "words_figure",
]

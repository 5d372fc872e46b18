"""Widgets for notebooks: views of results that are linked through plain traits.

The names load on first use (PEP 562): ipywidgets is not imported with vitlens.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_MODULE_OF = {
    "CircuitDiagram": "vitlens.widgets.diagram",
    "CurvePlot": "vitlens.widgets.curve_plot",
    "DebiasPanel": "vitlens.widgets.debias",
    "Explorer": "vitlens.widgets.explorer",
    "FeatureBrowser": "vitlens.widgets.browser",
    "FeatureCard": "vitlens.widgets.feature",
    "FeatureMap": "vitlens.widgets.feature_map",
    "PatchHeatmap": "vitlens.widgets.heatmap",
}

if TYPE_CHECKING:
    from vitlens.widgets.browser import FeatureBrowser
    from vitlens.widgets.curve_plot import CurvePlot
    from vitlens.widgets.debias import DebiasPanel
    from vitlens.widgets.diagram import CircuitDiagram
    from vitlens.widgets.explorer import Explorer
    from vitlens.widgets.feature import FeatureCard
    from vitlens.widgets.feature_map import FeatureMap
    from vitlens.widgets.heatmap import PatchHeatmap

__all__ = [
    "CircuitDiagram",
    "CurvePlot",
    "DebiasPanel",
    "Explorer",
    "FeatureBrowser",
    "FeatureCard",
    "FeatureMap",
    "PatchHeatmap",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Widgets for notebooks: views of results, linked through plain traits.

The names load on first use (PEP 562): vitlens does not import ipywidgets.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitlens.widgets.browser import FeatureBrowser
    from vitlens.widgets.card import FeatureCard
    from vitlens.widgets.curves import CurvePlot
    from vitlens.widgets.debias import DebiasPanel
    from vitlens.widgets.diagram import CircuitDiagram
    from vitlens.widgets.explorer import Explorer
    from vitlens.widgets.heatmap import PatchHeatmap
    from vitlens.widgets.map import FeatureMap

_MODULE_OF = {
    "CircuitDiagram": "vitlens.widgets.diagram",
    "CurvePlot": "vitlens.widgets.curves",
    "DebiasPanel": "vitlens.widgets.debias",
    "Explorer": "vitlens.widgets.explorer",
    "FeatureBrowser": "vitlens.widgets.browser",
    "FeatureCard": "vitlens.widgets.card",
    "FeatureMap": "vitlens.widgets.map",
    "PatchHeatmap": "vitlens.widgets.heatmap",
    "explore": "vitlens.widgets.explorer",  # for `Lens.explore`
}

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

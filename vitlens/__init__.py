"""From an image to a faithful circuit: why a Vision Transformer saw what it saw.

The public names load on first use (PEP 562), so that ``import vitlens`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

_MODULE_OF = {
    "Ablate": "vitlens.interventions.kinds",
    "Atlas": "vitlens.atlas.atlas",
    "AttributionGraph": "vitlens.circuits.graph",
    "Baselines": "vitlens.method.replacement",
    "BatchTopKSAE": "vitlens.saes.threshold",
    "Circuit": "vitlens.circuits.circuit",
    "Clamp": "vitlens.interventions.kinds",
    "Curves": "vitlens.circuits.curves",
    "DebiasedModel": "vitlens.debias.model",
    "Debiasing": "vitlens.debias.search",
    "GroupedImages": "vitlens.debias.groups",
    "Importances": "vitlens.method.importance",
    "JumpReLUSAE": "vitlens.saes.threshold",
    "Lens": "vitlens.lens",
    "libragrad": "vitlens.method.libragrad",
    "load": "vitlens.bundle",
    "load_groups": "vitlens.debias.groups",
    "load_saes": "vitlens.saes.io",
    "load_waterbirds": "vitlens.debias.groups",
    "MatryoshkaSAE": "vitlens.saes.threshold",
    "OptionError": "vitlens.errors",
    "Outcome": "vitlens.interventions.outcome",
    "Patch": "vitlens.interventions.kinds",
    "Project": "vitlens.interventions.kinds",
    "ReLUSAE": "vitlens.saes.threshold",
    "ReplacementModel": "vitlens.method.replacement",
    "SAE": "vitlens.saes.base",
    "save_saes": "vitlens.saes.io",
    "Scale": "vitlens.interventions.kinds",
    "spurious": "vitlens.debias.spurious",
    "Steer": "vitlens.interventions.kinds",
    "TopKSAE": "vitlens.saes.topk",
    "Trace": "vitlens.method.replacement",
    "train_saes": "vitlens.training.run",
    "TrainConfig": "vitlens.training.config",
    "tune_saes": "vitlens.training.run",
    "TuneConfig": "vitlens.training.config",
    "Verification": "vitlens.circuits.verify",
    "VisionModel": "vitlens.models.vision",
    "VitlensError": "vitlens.errors",
}

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.bundle import load
    from vitlens.circuits.circuit import Circuit
    from vitlens.circuits.curves import Curves
    from vitlens.circuits.graph import AttributionGraph
    from vitlens.circuits.verify import Verification
    from vitlens.debias.groups import GroupedImages, load_groups, load_waterbirds
    from vitlens.debias.model import DebiasedModel
    from vitlens.debias.search import Debiasing
    from vitlens.debias.spurious import spurious
    from vitlens.errors import OptionError, VitlensError
    from vitlens.interventions.kinds import Ablate, Clamp, Patch, Project, Scale, Steer
    from vitlens.interventions.outcome import Outcome
    from vitlens.lens import Lens
    from vitlens.method.importance import Importances
    from vitlens.method.libragrad import libragrad
    from vitlens.method.replacement import Baselines, ReplacementModel, Trace
    from vitlens.models.vision import VisionModel
    from vitlens.saes.base import SAE
    from vitlens.saes.io import load_saes, save_saes
    from vitlens.saes.threshold import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE
    from vitlens.saes.topk import TopKSAE
    from vitlens.training.config import TrainConfig, TuneConfig
    from vitlens.training.run import train_saes, tune_saes

__all__ = [
    "SAE",
    "Ablate",
    "Atlas",
    "AttributionGraph",
    "Baselines",
    "BatchTopKSAE",
    "Circuit",
    "Clamp",
    "Curves",
    "DebiasedModel",
    "Debiasing",
    "GroupedImages",
    "Importances",
    "JumpReLUSAE",
    "Lens",
    "MatryoshkaSAE",
    "OptionError",
    "Outcome",
    "Patch",
    "Project",
    "ReLUSAE",
    "ReplacementModel",
    "Scale",
    "Steer",
    "TopKSAE",
    "Trace",
    "TrainConfig",
    "TuneConfig",
    "Verification",
    "VisionModel",
    "VitlensError",
    "__version__",
    "libragrad",
    "load",
    "load_groups",
    "load_saes",
    "load_waterbirds",
    "save_saes",
    "spurious",
    "train_saes",
    "tune_saes",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

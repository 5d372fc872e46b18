"""From an image to a faithful circuit: why a Vision Transformer saw what it saw.

The public names load on first use (PEP 562), so that ``import vitlens`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

_MODULE_OF = {
    "Ablate": "vitlens.interventions.kinds",
    "Atlas": "vitlens.atlas.atlas",
    "Baselines": "vitlens.replacement",
    "Circuit": "vitlens.circuits.circuit",
    "Curves": "vitlens.circuits.curves",
    "DebiasedModel": "vitlens.debias.model",
    "Debiasing": "vitlens.debias.search",
    "GroupedImages": "vitlens.debias.groups",
    "Importances": "vitlens.attribution.importances",
    "Lens": "vitlens.lens",
    "Outcome": "vitlens.interventions.outcome",
    "Project": "vitlens.interventions.kinds",
    "Scale": "vitlens.interventions.kinds",
    "Clamp": "vitlens.interventions.kinds",
    "Steer": "vitlens.interventions.kinds",
    "Patch": "vitlens.interventions.kinds",
    "TopKSAE": "vitlens.saes.topk",
    "Trace": "vitlens.replacement",
    "TrainConfig": "vitlens.saes.config",
    "TuneConfig": "vitlens.saes.config",
    "VisionModel": "vitlens.models.vision",
    "Verification": "vitlens.circuits.verify",
    "VitlensError": "vitlens.errors",
    "libragrad": "vitlens.method.libragrad",
    "load": "vitlens.bundle",
    "load_groups": "vitlens.debias.groups",
    "load_waterbirds": "vitlens.debias.groups",
    "spurious": "vitlens.debias.spurious",
    "train_saes": "vitlens.saes.train",
    "tune_saes": "vitlens.saes.tune",
}

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.attribution.importances import Importances
    from vitlens.bundle import load
    from vitlens.circuits.circuit import Circuit
    from vitlens.circuits.curves import Curves
    from vitlens.circuits.verify import Verification
    from vitlens.debias.groups import GroupedImages, load_groups, load_waterbirds
    from vitlens.debias.model import DebiasedModel
    from vitlens.debias.search import Debiasing
    from vitlens.debias.spurious import spurious
    from vitlens.errors import VitlensError
    from vitlens.interventions.kinds import Ablate, Clamp, Patch, Project, Scale, Steer
    from vitlens.interventions.outcome import Outcome
    from vitlens.lens import Lens
    from vitlens.method.libragrad import libragrad
    from vitlens.models.vision import VisionModel
    from vitlens.replacement import Baselines, Trace
    from vitlens.saes.config import TrainConfig, TuneConfig
    from vitlens.saes.topk import TopKSAE
    from vitlens.saes.train import train_saes
    from vitlens.saes.tune import tune_saes

__all__ = [
    "Ablate",
    "Atlas",
    "Baselines",
    "Circuit",
    "Clamp",
    "Curves",
    "DebiasedModel",
    "Debiasing",
    "GroupedImages",
    "Importances",
    "Lens",
    "Outcome",
    "Patch",
    "Project",
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
    "load_waterbirds",
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

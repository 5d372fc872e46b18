"""Training and end-to-end tuning of SAEs, the cost of a run, and measures of SAE quality."""

from vitlens.training.config import TrainConfig, TuneConfig
from vitlens.training.health import CarriedBySize, HealthReport, SAEHealth, measure
from vitlens.training.losses import ChainLosses, chain_losses
from vitlens.training.run import (
    Estimate,
    TrainResult,
    TuneResult,
    estimate,
    estimate_tuning,
    train_saes,
    tune_saes,
)

__all__ = [
    "CarriedBySize",
    "ChainLosses",
    "Estimate",
    "HealthReport",
    "SAEHealth",
    "TrainConfig",
    "TrainResult",
    "TuneConfig",
    "TuneResult",
    "chain_losses",
    "estimate",
    "estimate_tuning",
    "measure",
    "train_saes",
    "tune_saes",
]

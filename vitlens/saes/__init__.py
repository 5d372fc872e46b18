"""Sparse autoencoders of the residual stream: the model, its files, training and health."""

from vitlens.saes.chain import ChainLosses, chain_losses
from vitlens.saes.config import TrainConfig, TuneConfig
from vitlens.saes.estimate import Estimate, TuneEstimate, estimate, estimate_tuning
from vitlens.saes.files import load_sae, load_saes, save_sae, save_saes
from vitlens.saes.health import HealthReport, SAEHealth, measure
from vitlens.saes.topk import Encoded, Normalized, SAEOutput, TopKSAE, check_saes
from vitlens.saes.train import TrainResult, train_saes
from vitlens.saes.tune import TuneResult, tune_saes

__all__ = [
    "ChainLosses",
    "Encoded",
    "Estimate",
    "HealthReport",
    "Normalized",
    "SAEHealth",
    "SAEOutput",
    "TopKSAE",
    "TrainConfig",
    "TrainResult",
    "TuneConfig",
    "TuneEstimate",
    "TuneResult",
    "chain_losses",
    "check_saes",
    "estimate",
    "estimate_tuning",
    "load_sae",
    "load_saes",
    "measure",
    "save_sae",
    "save_saes",
    "train_saes",
    "tune_saes",
]

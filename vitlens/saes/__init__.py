"""Sparse autoencoders of the residual stream: the model, its files, training and health."""

from vitlens.saes.config import TrainConfig
from vitlens.saes.estimate import Estimate, estimate
from vitlens.saes.files import load_sae, load_saes, save_sae, save_saes
from vitlens.saes.health import HealthReport, SAEHealth, measure
from vitlens.saes.topk import Encoded, Normalized, SAEOutput, TopKSAE, check_saes
from vitlens.saes.train import TrainResult, train_saes

__all__ = [
    "Encoded",
    "Estimate",
    "HealthReport",
    "Normalized",
    "SAEHealth",
    "SAEOutput",
    "TopKSAE",
    "TrainConfig",
    "TrainResult",
    "check_saes",
    "estimate",
    "load_sae",
    "load_saes",
    "measure",
    "save_sae",
    "save_saes",
    "train_saes",
]

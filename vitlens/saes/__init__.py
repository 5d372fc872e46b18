"""Sparse autoencoders of the residual stream: the model, its files, training and health."""

from vitlens.saes.base import (
    SAE,
    SAE_KINDS,
    Encoded,
    FeatureId,
    Normalized,
    SAEOutput,
    check_widths,
    register,
)
from vitlens.saes.chain import ChainLosses, chain_losses
from vitlens.saes.config import TrainConfig, TuneConfig
from vitlens.saes.estimate import Estimate, TuneEstimate, estimate, estimate_tuning
from vitlens.saes.health import HealthReport, SAEHealth, measure
from vitlens.saes.io import load_sae, load_saes, save_sae, save_saes
from vitlens.saes.threshold import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE
from vitlens.saes.topk import TopKSAE
from vitlens.saes.train import TrainResult, train_saes
from vitlens.saes.tune import TuneResult, tune_saes

__all__ = [
    "SAE",
    "SAE_KINDS",
    "BatchTopKSAE",
    "ChainLosses",
    "Encoded",
    "Estimate",
    "FeatureId",
    "HealthReport",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "Normalized",
    "ReLUSAE",
    "SAEHealth",
    "SAEOutput",
    "TopKSAE",
    "TrainConfig",
    "TrainResult",
    "TuneConfig",
    "TuneEstimate",
    "TuneResult",
    "chain_losses",
    "check_widths",
    "estimate",
    "estimate_tuning",
    "load_sae",
    "load_saes",
    "measure",
    "register",
    "save_sae",
    "save_saes",
    "train_saes",
    "tune_saes",
]

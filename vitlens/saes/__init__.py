"""Sparse autoencoders of the residual stream: the model, its files, training and health."""

from vitlens.saes.config import TrainConfig
from vitlens.saes.files import load_sae, load_saes, save_sae, save_saes
from vitlens.saes.topk import Encoded, Normalized, SAEOutput, TopKSAE
from vitlens.saes.train import TrainResult, train_saes

__all__ = [
    "Encoded",
    "Normalized",
    "SAEOutput",
    "TopKSAE",
    "TrainConfig",
    "TrainResult",
    "load_sae",
    "load_saes",
    "save_sae",
    "save_saes",
    "train_saes",
]

"""Sparse autoencoders of the residual stream: kinds, files, importers, batches of images."""

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
from vitlens.saes.io import load_sae, load_saes, resolve_saes, save_sae, save_saes
from vitlens.saes.threshold import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE
from vitlens.saes.topk import TopKSAE

__all__ = [
    "SAE",
    "SAE_KINDS",
    "BatchTopKSAE",
    "Encoded",
    "FeatureId",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "Normalized",
    "ReLUSAE",
    "SAEOutput",
    "TopKSAE",
    "check_widths",
    "load_sae",
    "load_saes",
    "register",
    "resolve_saes",
    "save_sae",
    "save_saes",
]

"""Sparse autoencoders of the residual stream: the model, its files, training and health."""

from vitlens.saes.topk import Encoded, Normalized, SAEOutput, TopKSAE

__all__ = ["Encoded", "Normalized", "SAEOutput", "TopKSAE"]

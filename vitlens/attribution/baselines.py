"""Scores of features that other methods would rank by, for the curves to compare with."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.replacement import Trace


def activation_scores(trace: Trace) -> tuple[Float[Tensor, " F"], ...]:
    """Return how active each feature is on the image: its sum over tokens, [F_l] a layer."""
    return tuple(features.sum(0) for features in trace.features)


def random_scores(
    sizes: Sequence[int], *, seed: int, image: int
) -> tuple[Float[Tensor, " F"], ...]:
    """Return uniform random scores, the same for the same seed and image.

    Parameters
    ----------
    sizes
        Number of features by layer.
    seed
        One for the whole experiment.
    image
        The image's number, so that each image has an order of its own.

    Returns
    -------
    tuple of Tensor
        [F_l] a layer, float64, in [0, 1).
    """
    generator = np.random.default_rng([seed, image])
    return tuple(torch.from_numpy(generator.random(size)) for size in sizes)


def cla_top_scores(trace: Trace, gradients: Float[Tensor, "T F"]) -> Float[Tensor, " F"]:
    """Return |a_n| |d target / d a_n| at the last SAE, where Cross-Layer Attribution starts.

    A feature's activation a is its sum over the tokens, and moves in proportion on all of them,
    as in `vitlens.attribution.cla.cla_edges`.

    Parameters
    ----------
    trace
        The image's trace.
    gradients
        The target's plain gradient at the features of the last SAE, [T, F].
    """
    return (trace.features[-1] * gradients).sum(0).abs()

"""Rankings of features to compare with: node importance, CLA, plain gradients, activation, random.

Every ranking gives, for a number of features per site, the features to keep on one image::

    node        N_i[f] of equation (16), LibraGrad, leaf
    plain       N_i[f] with the model's ordinary gradient, through
    activation  sum_t z_i[t, f]
    random      uniform, in a separate order for every image

Cross-Layer Attribution (CLA; Rajaram et al., arXiv 2404.14349) walks back from the target. With a
feature's activation ``A_f = sum_t z_i[t, f]``, moving in proportion on all tokens, its edges are
(38), and its scores at the last site (39)::

    CLA_i[f, g] = |A_f| |d A_g / d A_f|                                    (38)
    CLA[g]      = |A_g| |d target / d A_g|                                 (39)

A feature f scores by the sum of its edges into the features g that are kept at the next site.

The walks over edges, the paper's `rrm` and `cla`, are in `vitlens.circuits.faithfulness`.
docs/method.md, "Cross-Layer Attribution and other rankings".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.method.engines import compute_edges, site_pair
from vitlens.method.importance import (
    Engine,
    ErrorGradients,
    Importances,
    Target,
    node_importances,
)
from vitlens.method.libragrad import Gradient
from vitlens.method.replacement import ErrorNodes, ReplacementModel, Trace

#: Gives, for a number of features per site, the features to keep: indices by site, best first.
Keep: TypeAlias = Callable[[int], Sequence[Int[Tensor, " kept"]]]


def _report_nothing(what: str) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """One image and all that a ranking may use to choose its features.

    Attributes
    ----------
    replacement
        The model, its SAEs and baselines.
    trace
        The untouched model on the image.
    target
        The target that is explained.
    engine
        How edges are computed.
    error_nodes
        Values of the error nodes in the replaced runs.
    seed, index
        Seed of the experiment, and the image's index in it.
    report
        Called with what is being done, before every long step of a ranking; what it raises ends
        the experiment.
    """

    replacement: ReplacementModel
    trace: Trace
    target: Target
    engine: Engine = "closed_form"
    error_nodes: ErrorNodes = "clean"
    seed: int = 0
    index: int = 0
    report: Callable[[str], None] = _report_nothing

    @cached_property
    def nodes(self) -> Importances:
        """Node importances with LibraGrad, error nodes as leaves; without edges."""
        return self._nodes("libragrad", "leaf")

    @cached_property
    def plain(self) -> Importances:
        """Node importances with the model's ordinary gradient; without edges."""
        return self._nodes("plain", "through")

    def _nodes(self, gradient: Gradient, error_gradients: ErrorGradients) -> Importances:
        return node_importances(
            self.replacement,
            self.trace,
            self.target,
            gradient=gradient,
            error_gradients=error_gradients,
            engine=self.engine,
        )


def ranked(scores: Sequence[Float[Tensor, " F"]]) -> Keep:
    """Keep the features with the highest scores of each site, lower index first among equals.

    Parameters
    ----------
    scores
        By site, one score per feature.
    """
    # A stable sort in float64 on the CPU, as `vitlens.circuits.prune.select` ranks.
    orders = [
        torch.from_numpy(np.argsort(-score.detach().cpu().double().numpy(), kind="stable"))
        for score in scores
    ]
    return lambda count: [order[:count] for order in orders]


def node(case: Case) -> Keep:
    """Rank by node importance alone."""
    return ranked([scores[:-1] for scores in case.nodes.nodes])


def plain(case: Case) -> Keep:
    """Rank by node importance with the model's ordinary gradient."""
    return ranked([scores[:-1] for scores in case.plain.nodes])


def activation(case: Case) -> Keep:
    """Rank by activation, summed over tokens."""
    return ranked(activation_scores(case.trace))


def random(case: Case) -> Keep:
    """Rank at random, in a separate order for every image."""
    sizes = [sae.n_features for sae in case.replacement.saes]
    return ranked(random_scores(sizes, seed=case.seed, image=case.index))


def activation_scores(trace: Trace) -> tuple[Float[Tensor, " F"], ...]:
    """How active each feature is on the image: its sum over tokens, [F_i] per site."""
    return tuple(features.sum(0) for features in trace.features)


def random_scores(
    sizes: Sequence[int], *, seed: int, image: int
) -> tuple[Float[Tensor, " F"], ...]:
    """Uniform random scores, the same for the same seed and image.

    Parameters
    ----------
    sizes
        Number of features by site.
    seed
        One for the whole experiment.
    image
        The image's number, so that each image has a separate order.

    Returns
    -------
    tuple of Tensor
        [F_i] per site, float64, in [0, 1).
    """
    generator = np.random.default_rng([seed, image])
    return tuple(torch.from_numpy(generator.random(size)) for size in sizes)


def cla_top_scores(case: Case) -> Float[Tensor, " F"]:
    """Equation (39), at the last site, where CLA starts."""
    return (case.trace.features[-1] * case.plain.gradients[-1]).sum(0).abs()


def cla_edges(
    case: Case, position: int, *, targets: Int[Tensor, " n"] | None = None
) -> Float[Tensor, "F n"]:
    """The terms of equation (38): |A_f| |d A_g / d A_f| with plain gradients.

    Parameters
    ----------
    case
        The image.
    position
        The site of the features f.
    targets
        Only these features g of the next site; all by default.
    """
    trace = case.trace
    pair = site_pair(case.replacement, trace, case.plain, position, targets=targets)
    pair = replace(
        pair,
        coefficients=trace.features[position] * trace.stds[position],
        error=torch.zeros_like(pair.error),
        weights=pair.active.to(pair.stream.dtype),
    )
    return compute_edges(pair, case.engine)[:-1].abs()

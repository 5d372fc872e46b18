"""Baselines of debiasing: linear concept removal, and re-training the last layer.

They see what the search for features sees: the validation images with their groups. x is the input
of the last linear layer, [n, E].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitlens.debias.groups import GroupedImages

Eraser = Callable[[Tensor], Tensor]

_STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # C of the logistic regression
_SUBSETS = 10


def mean_difference(x: Float[Tensor, "n E"], groups: GroupedImages) -> Eraser:
    """Project out the directions in which the attribute values' means differ.

    Means are taken within class and averaged over classes. Along these directions an input is set
    to the mean over attribute values; its other components stay.
    """
    n_attributes = len(groups.attribute_names)
    x = x.double()
    means = torch.stack([x[groups.groups == g].mean(0) for g in range(len(groups.group_names))])
    by_attribute = means.reshape(-1, n_attributes, x.shape[1]).mean(0)
    centre = by_attribute.mean(0)
    basis = torch.linalg.qr((by_attribute[1:] - by_attribute[:1]).T).Q
    return lambda a: a - (a - centre) @ basis @ basis.T


def leace(x: Float[Tensor, "n E"], groups: GroupedImages) -> Eraser | None:
    """LEACE: the smallest change after which no linear classifier can predict the attribute.

    Uses the package ``concept-erasure``; None where it is not installed.

    Notes
    -----
    Belrose et al., "LEACE: perfect linear concept erasure in closed form", NeurIPS 2023,
    arXiv 2306.03819.
    """
    if find_spec("concept_erasure") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it uses torch.jit.script
        from concept_erasure import LeaceEraser

    one_hot = nn.functional.one_hot(groups.attributes, len(groups.attribute_names))
    return LeaceEraser.fit(x.double(), one_hot.double())


def erased(eraser: Eraser, x: Float[Tensor, "n E"], head: nn.Linear) -> Float[Tensor, "n C"]:
    """Logits of the model's own last layer after an eraser."""
    weight, bias = (
        None if part is None else part.detach().cpu().double() for part in (head.weight, head.bias)
    )
    return nn.functional.linear(eraser(x.double()), weight, bias)


def dfr(
    x: Float[Tensor, "n E"], groups: GroupedImages, *, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """Deep feature reweighting (DFR): a new last layer, trained on groups of equal size.

    Logistic regression (scikit-learn, L2) on standardised x. It is fitted on one half of the
    images, and its strength chosen by the worst group's accuracy on the other half; then the
    regressions of ten random subsets with groups of equal size are averaged.

    Returns
    -------
    callable
        From x to logits, [n, C].

    Notes
    -----
    Kirichenko et al., "Last layer re-training is sufficient for robustness to spurious
    correlations", ICLR 2023, arXiv 2204.02937, which uses L1.
    """
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    scaler = StandardScaler().fit(x.double().numpy())
    scaled, labels = scaler.transform(x.double().numpy()), groups.labels.numpy()
    group = groups.groups.numpy()
    half = _equal_groups(group, rng, share=0.5)
    rest = np.setdiff1d(np.arange(len(group)), half)
    worst = [
        _worst(_fit(scaled[half], labels[half], c), scaled, labels, group, rest) for c in _STRENGTHS
    ]
    best = _STRENGTHS[int(np.argmax(worst))]
    fits = []
    for _ in range(_SUBSETS):
        part = _equal_groups(group, rng)
        fits.append(_fit(scaled[part], labels[part], best))
    weight, bias = (torch.from_numpy(np.mean([fit[i] for fit in fits], 0)) for i in (0, 1))

    def logits(a: Float[Tensor, "n E"]) -> Float[Tensor, "n C"]:
        return torch.from_numpy(scaler.transform(a.double().cpu().numpy())) @ weight.T + bias

    return logits


def _equal_groups(
    group: Int[np.ndarray, " n"], rng: np.random.Generator, *, share: float = 1.0
) -> Int[np.ndarray, " m"]:
    """Indices with the same number of images per group, this share of the smallest group."""
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    size = max(1, int(share * min(map(len, members))))
    return np.concatenate([rng.permutation(m)[:size] for m in members])


def _fit(
    x: Float[np.ndarray, "n E"], labels: Int[np.ndarray, " n"], strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [C, E] and biases [C]; a regression of two classes is split between them."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=strength, max_iter=1000).fit(x, labels)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _worst(
    fit: tuple[np.ndarray, np.ndarray],
    x: Float[np.ndarray, "n E"],
    labels: Int[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    index: Int[np.ndarray, " m"],
) -> float:
    right = (x[index] @ fit[0].T + fit[1]).argmax(1) == labels[index]
    return min(float(right[group[index] == g].mean()) for g in np.unique(group[index]))

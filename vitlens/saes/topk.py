"""The top-k SAE of the paper, and the same with an image budget.

Top-k keeps the `k` strongest features of each token (Kim et al., NeurIPS 2025, arXiv 2509.17401,
after Gao et al., arXiv 2406.04093)::

    mask[t] = the k largest a[t, :]

With an image budget of M features, at most M features are active on one image at all: those with
the largest ``sum_t a[t, f]^2`` over the image's tokens (ties: the lowest index). All other
entries of ``a`` are 0 before top-k (docs/method.md, "SAE with an image budget").
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitlens.errors import CheckpointError
from vitlens.saes.base import SAE, Normalization, register


@register
class TopKSAE(SAE):
    """Sparse autoencoder that keeps the `k` strongest features of each token.

    Equations and conventions are those of `vitlens.saes.base`. The choice of the features, per
    token and per image, is a constant in every derivative.

    Parameters
    ----------
    tensors, normalization, subtract_b_dec
        See `vitlens.saes.base.SAE`; `from_weights` names each tensor.
    k
        Largest number of active features per token, 1 to F.
    budget
        Largest number M of active features per image, 1 to F; None for no limit.

    Raises
    ------
    CheckpointError
        If the tensors do not fit together, or `k` or `budget` is outside 1 to F.
    """

    kind: ClassVar[str] = "topk"

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        k: int,
        budget: int | None = None,
        normalization: Normalization = "layer",
        subtract_b_dec: bool = True,
    ) -> None:
        super().__init__(tensors, normalization=normalization, subtract_b_dec=subtract_b_dec)
        self.k = _count("k", k, self.n_features)
        self.budget = None if budget is None else _count("The budget", budget, self.n_features)

    @classmethod
    def from_weights(
        cls,
        *,
        W_enc: Float[Tensor, "D F"],
        W_dec: Float[Tensor, "F D"],
        b_dec: Float[Tensor, " D"],
        k: int,
        b_enc: Float[Tensor, " F"] | None = None,
        budget: int | None = None,
        normalization: Normalization = "layer",
        input_mean: Float[Tensor, " D"] | None = None,
        input_scale: Float[Tensor, ""] | None = None,
        subtract_b_dec: bool = True,
    ) -> TopKSAE:
        """Build an SAE from its weights, which are copied.

        Parameters
        ----------
        W_enc : Tensor [D, F]
            Encoder; column f reads feature f from a normalised token.
        W_dec : Tensor [F, D]
            Decoder; row f is the direction that feature f writes, of unit length as trained.
        b_dec : Tensor [D]
            Bias, subtracted before encoding and added after decoding.
        k : int
            Active features per token, 1 to F.
        b_enc : Tensor [F], optional
            Bias of the encoder; the published encoder has none.
        budget : int, optional
            Active features per image, 1 to F.
        normalization : "layer", "none" or "fixed"
            How tokens are normalised; "fixed" needs `input_mean` and `input_scale`.
        input_mean : Tensor [D], optional
            Mean to subtract.
        input_scale : Tensor [], optional
            Number to divide by.
        subtract_b_dec : bool
            Whether `b_dec` is subtracted before encoding.

        Raises
        ------
        CheckpointError
            As for the class.
        """
        tensors = named_tensors(W_enc, W_dec, b_dec, b_enc, input_mean, input_scale)
        return cls(
            tensors, k=k, budget=budget, normalization=normalization, subtract_b_dec=subtract_b_dec
        )

    @property
    def max_active(self) -> int:
        """`k`, or the budget where it is smaller."""
        return self.k if self.budget is None else min(self.k, self.budget)

    @property
    def needs_whole_images(self) -> bool:
        """With a budget, yes."""
        return self.budget is not None

    def kind_settings(self) -> dict[str, Any]:
        """`k` and `budget`."""
        return {"k": self.k, "budget": self.budget}

    def active_mask(self, activations: Float[Tensor, "*batch F"]) -> Bool[Tensor, "*batch F"]:
        """The image's budget, then the `k` strongest features of each token."""
        fixed = activations.detach()
        if self.budget is None or self.budget == self.n_features:
            return top_k_mask(fixed, self.k)
        allowed = budget_mask(fixed, self.budget)
        return top_k_mask(torch.where(allowed, fixed, 0.0), self.k) & allowed


def with_budget(sae: SAE, budget: int | None) -> TopKSAE:
    """A copy of a top-k SAE with another image budget; at most its number of features.

    Raises
    ------
    CheckpointError
        If the SAE is of another kind, or the budget is below 1.
    """
    if not isinstance(sae, TopKSAE):
        raise CheckpointError(
            f"Only top-k SAEs can have an image budget; this one is of kind {sae.kind!r}."
        )
    most = None if budget is None else min(budget, sae.n_features)
    copied = SAE.from_tensors(dict(sae.state_dict()), {**sae.settings(), "budget": most})
    assert isinstance(copied, TopKSAE)
    return copied


def top_k_mask(activations: Float[Tensor, "*batch F"], k: int) -> Bool[Tensor, "*batch F"]:
    """True at the `k` largest activations of each token, without a gradient."""
    fixed = activations.detach()
    strongest = fixed.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(fixed, dtype=torch.bool).scatter(-1, strongest, True)


def budget_mask(activations: Float[Tensor, "*n T F"], budget: int) -> Bool[Tensor, "*n 1 F"]:
    """True at the features with the largest sum of squares over the image's tokens.

    Raises
    ------
    CheckpointError
        If there is no token axis.
    """
    if activations.ndim < 2:
        raise CheckpointError("An image budget needs all tokens of an image, [..., T, D].")
    strength = activations.detach().square().sum(-2, keepdim=True)
    # A stable sort, so that the lowest index comes first among equals.
    order = strength.sort(dim=-1, descending=True, stable=True).indices[..., :budget]
    return torch.zeros_like(strength, dtype=torch.bool).scatter(-1, order, True)


def named_tensors(
    W_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    b_enc: Tensor | None,
    input_mean: Tensor | None,
    input_scale: Tensor | None,
) -> dict[str, Tensor]:
    """Tensors that every kind has, by name, without those that are absent; scalars as tensors."""
    like = torch.as_tensor(W_enc)
    given = {
        "W_enc": W_enc,
        "W_dec": W_dec,
        "b_dec": b_dec,
        "b_enc": b_enc,
        "input_mean": input_mean,
        "input_scale": None
        if input_scale is None
        else torch.as_tensor(input_scale, dtype=like.dtype, device=like.device),
    }
    return {name: torch.as_tensor(value) for name, value in given.items() if value is not None}


def _count(name: str, value: int, n_features: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise CheckpointError(
            f"{name} must be a whole number of features, not {value!r}."
        ) from None
    if isinstance(value, bool) or not 1 <= number <= n_features:
        raise CheckpointError(
            f"{name} must be between 1 and the {n_features} features of the SAE, not {value}."
        )
    return number

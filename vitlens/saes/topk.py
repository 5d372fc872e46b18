"""The top-k sparse autoencoder of the residual stream (RRM paper, arXiv 2509.17401)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitlens.errors import CheckpointError

STD_EPS = 1e-5


# Named tuples and not dataclasses: torch.func takes them through jvp, vjp and vmap as they are.
class Normalized(NamedTuple):
    """Tokens with mean 0 and standard deviation 1, and what was taken out of them."""

    values: Float[Tensor, "*batch D"]
    mean: Float[Tensor, "*batch 1"]
    std: Float[Tensor, "*batch 1"]


class Encoded(NamedTuple):
    """Feature activations, with the statistics that `TopKSAE.decode` needs."""

    features: Float[Tensor, "*batch F"]
    mean: Float[Tensor, "*batch 1"]
    std: Float[Tensor, "*batch 1"]


class SAEOutput(NamedTuple):
    """One pass through the autoencoder; ``reconstruction + error`` is the input."""

    features: Float[Tensor, "*batch F"]
    reconstruction: Float[Tensor, "*batch D"]
    error: Float[Tensor, "*batch D"]
    mean: Float[Tensor, "*batch 1"]
    std: Float[Tensor, "*batch 1"]


class TopKSAE(nn.Module):
    """Sparse autoencoder that keeps the `k` strongest features of each token.

    For a token ``x`` with mean ``mu`` and Bessel-corrected standard deviation ``sd``::

        xn    = (x - mu) / (sd + 1e-5)
        z     = TopK(ReLU((xn - b_dec) W_enc))
        x_hat = (z W_dec + b_dec) sd + mu
        e     = x - x_hat

    In every derivative ``sd`` and the choice of the k features are constants; ``mu`` is not.
    The parameters are made without `requires_grad`: explaining needs only the input's gradient.

    Parameters
    ----------
    d_model : int
        D, the width of the residual stream.
    n_features : int
        F, the number of features.
    k : int
        Most features that may be active on one token, 1 to F.
    dtype, device
        Of the parameters, which start as zeros; see `from_weights`.

    Raises
    ------
    CheckpointError
        If a size is below 1, or `k` is outside 1 to F.

    Notes
    -----
    Kim et al., NeurIPS 2025, arXiv 2509.17401, after Gao et al., arXiv 2406.04093.
    """

    W_enc: Float[Tensor, "D F"]
    W_dec: Float[Tensor, "F D"]
    b_dec: Float[Tensor, " D"]

    def __init__(
        self,
        d_model: int,
        n_features: int,
        k: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if d_model < 1 or n_features < 1:
            raise CheckpointError(
                f"An SAE needs a width and a size of 1 or more, not {d_model}, {n_features}."
            )
        self.k = _checked_k(k, n_features)
        for name, shape in (
            ("W_enc", (d_model, n_features)),
            ("W_dec", (n_features, d_model)),
            ("b_dec", (d_model,)),
        ):
            zeros = torch.zeros(shape, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(zeros, requires_grad=False))

    @classmethod
    def from_weights(
        cls,
        *,
        W_enc: Float[Tensor, "D F"],
        W_dec: Float[Tensor, "F D"],
        b_dec: Float[Tensor, " D"],
        k: int,
    ) -> TopKSAE:
        """Build an SAE from its weights, which are copied.

        Parameters
        ----------
        W_enc : Tensor [D, F]
            Encoder; column f reads feature f from a normalised token.
        W_dec : Tensor [F, D]
            Decoder; row f is the direction feature f writes, of unit length as trained.
        b_dec : Tensor [D]
            Bias, taken off before encoding and added after decoding.
        k : int
            Active features a token, 1 to F.

        Raises
        ------
        CheckpointError
            If shapes do not fit together, a value is not finite, the weights are not floating
            point of one dtype, or `k` is out of range.
        """
        weights = {
            name: torch.as_tensor(value).detach()
            for name, value in (("W_enc", W_enc), ("W_dec", W_dec), ("b_dec", b_dec))
        }
        _check_weights(weights)
        width, size = weights["W_enc"].shape
        sae = cls(width, size, k, dtype=weights["W_enc"].dtype, device=weights["W_enc"].device)
        sae.load_state_dict(weights)
        return sae

    @property
    def d_model(self) -> int:
        """D, the width of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        """F, the number of features."""
        return self.W_enc.shape[1]

    @property
    def std_eps(self) -> float:
        """What is added to the standard deviation before dividing by it."""
        return STD_EPS

    def extra_repr(self) -> str:
        """Sizes shown by `repr`."""
        return f"d_model={self.d_model}, n_features={self.n_features}, k={self.k}"

    def normalize(self, x: Float[Tensor, "*batch D"]) -> Normalized:
        """Take mean and standard deviation out of each token.

        Parameters
        ----------
        x : Tensor [..., D]
            Residual stream, in its own units.

        Returns
        -------
        Normalized
            Values [..., D], mean [..., 1] and Bessel-corrected std [..., 1]. The std is a
            constant in the backward pass, the mean is not.

        Raises
        ------
        CheckpointError
            If the tokens' width is not the SAE's.
        """
        if x.shape[-1] != self.d_model:
            raise CheckpointError(
                f"This SAE reads a residual stream of width {self.d_model}, the tokens have width"
                f" {x.shape[-1]}: it was trained for another model."
            )
        return normalize_tokens(x)

    def encode(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        """Feature activations of tokens x [..., D]; at most `k` a token are above zero."""
        return self.encode_with_stats(x).features

    def encode_with_stats(
        self, x: Float[Tensor, "*batch D"], *, among: Bool[Tensor, "*batch F"] | None = None
    ) -> Encoded:
        """Feature activations of tokens x [..., D], with their mean and std [..., 1].

        Parameters
        ----------
        x : Tensor [..., D]
            Residual stream, in its own units.
        among : Tensor [..., F], optional
            True for features that may be active, in place of each token's `k` strongest.
        """
        values, mean, std = self.normalize(x)
        return Encoded(self.encode_normalized(values, among=among), mean, std)

    def encode_normalized(
        self, values: Float[Tensor, "*batch D"], *, among: Bool[Tensor, "*batch F"] | None = None
    ) -> Float[Tensor, "*batch F"]:
        """Feature activations of tokens that are normalised already."""
        activations = torch.relu((values - self.b_dec) @ self.W_enc)
        mask = top_k_mask(activations, self.k) if among is None else among
        return torch.where(mask, activations, 0.0)

    def decode(
        self,
        features: Float[Tensor, "*batch F"],
        mean: Float[Tensor, "*batch 1"],
        std: Float[Tensor, "*batch 1"],
    ) -> Float[Tensor, "*batch D"]:
        """Residual stream [..., D] that the features stand for, in the stream's own units."""
        return (features @ self.W_dec + self.b_dec) * std + mean

    def forward(self, x: Float[Tensor, "*batch D"]) -> SAEOutput:
        """Encode and decode tokens x [..., D]."""
        features, mean, std = self.encode_with_stats(x)
        reconstruction = self.decode(features, mean, std)
        return SAEOutput(features, reconstruction, x - reconstruction, mean, std)


def normalize_tokens(x: Float[Tensor, "*batch D"]) -> Normalized:
    """Take mean and (constant, Bessel-corrected) standard deviation out of each token."""
    mean = x.mean(dim=-1, keepdim=True)
    std = x.detach().std(dim=-1, keepdim=True)
    return Normalized((x - mean) / (std + STD_EPS), mean, std)


def top_k_mask(activations: Float[Tensor, "*batch F"], k: int) -> Bool[Tensor, "*batch F"]:
    """True at the `k` largest activations of each token, without a gradient."""
    fixed = activations.detach()
    strongest = fixed.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(fixed, dtype=torch.bool).scatter(-1, strongest, True)


def check_saes(saes: Sequence[TopKSAE], *, depth: int, width: int) -> None:
    """Check that there is one SAE of the model's width for every block but the last.

    Raises
    ------
    CheckpointError
        If there are more or fewer, or one has another width.
    """
    if len(saes) != depth - 1:
        raise CheckpointError(
            f"The model has {depth} blocks and so {depth - 1} SAEs, one after every block but the"
            f" last; got {len(saes)}."
        )
    for layer, sae in enumerate(saes):
        if sae.d_model != width:
            raise CheckpointError(
                f"The SAE of layer {layer} has width {sae.d_model}, the model {width}: it was trained"
                " for another model."
            )


def _checked_k(k: int, size: int) -> int:
    try:
        number = operator.index(k)
    except TypeError:
        raise CheckpointError(f"k is a whole number of features, not {k!r}.") from None
    if isinstance(k, bool) or not 1 <= number <= size:
        raise CheckpointError(f"k must be between 1 and the {size} features of the SAE, not {k}.")
    return number


def _check_weights(weights: dict[str, Tensor]) -> None:
    shapes = ", ".join(f"{name} {list(weight.shape)}" for name, weight in weights.items())
    fitting = weights["W_enc"].ndim == 2 and (
        weights["W_dec"].shape == weights["W_enc"].T.shape
        and weights["b_dec"].shape == weights["W_enc"].shape[:1]
    )
    if not fitting:
        raise CheckpointError(f"Expected W_enc [D, F], W_dec [F, D], b_dec [D], got {shapes}.")
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) > 1 or not weights["W_enc"].is_floating_point():
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise CheckpointError(f"SAE weights must share one floating-point dtype, got {names}.")
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise CheckpointError(f"{name} holds values that are not finite (NaN or infinity).")

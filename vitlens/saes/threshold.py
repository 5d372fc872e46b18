"""SAEs whose features are active above a threshold: ReLU, JumpReLU, BatchTopK, Matryoshka.

With the equations of `vitlens.saes.base`, the mask is::

    ReLU        mask[t, f] = a[t, f] > 0
    JumpReLU    mask[t, f] = a[t, f] > threshold[f]
    BatchTopK   mask[t, f] = a[t, f] > threshold

BatchTopK and Matryoshka SAEs choose features over a batch while they are trained; at inference
they use one stored threshold. A Matryoshka SAE is a BatchTopK SAE whose first features alone are
trained to reconstruct, too; `groups` says how many belong to each level.

Sources: Rajamanoharan et al., arXiv 2407.14435 (JumpReLU); Bussmann et al., arXiv 2412.06410
(BatchTopK); Bussmann et al., arXiv 2503.17547 (Matryoshka).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitlens.errors import CheckpointError
from vitlens.saes.base import SAE, Normalization, register
from vitlens.saes.topk import named_tensors


@register
class ReLUSAE(SAE):
    """Sparse autoencoder in which every positive pre-activation is a feature activation.

    Parameters are those of `vitlens.saes.base.SAE`.
    """

    kind: ClassVar[str] = "relu"

    @classmethod
    def from_weights(
        cls,
        *,
        W_enc: Float[Tensor, "D F"],
        W_dec: Float[Tensor, "F D"],
        b_dec: Float[Tensor, " D"],
        b_enc: Float[Tensor, " F"] | None = None,
        normalization: Normalization = "layer",
        input_mean: Float[Tensor, " D"] | None = None,
        input_scale: Float[Tensor, ""] | None = None,
        subtract_b_dec: bool = True,
    ) -> ReLUSAE:
        """Build an SAE from its weights, which are copied; see `TopKSAE.from_weights`."""
        tensors = named_tensors(W_enc, W_dec, b_dec, b_enc, input_mean, input_scale)
        return cls(tensors, normalization=normalization, subtract_b_dec=subtract_b_dec)

    def active_mask(self, activations: Float[Tensor, "*batch F"]) -> Bool[Tensor, "*batch F"]:
        """Where the activation is above 0."""
        return activations.detach() > 0


class _ThresholdSAE(SAE):
    """An SAE with a stored threshold; features at or below it are inactive."""

    threshold: Tensor

    def active_mask(self, activations: Float[Tensor, "*batch F"]) -> Bool[Tensor, "*batch F"]:
        """Where the activation is above the threshold, and above 0."""
        fixed = activations.detach()
        return (fixed > self.threshold) & (fixed > 0)


@register
class JumpReLUSAE(_ThresholdSAE):
    """Sparse autoencoder with one threshold per feature.

    The gate is a constant in derivatives, so that an active feature is linear in its token.

    Parameters are those of `vitlens.saes.base.SAE`; `tensors` also holds `threshold` [F].
    """

    kind: ClassVar[str] = "jumprelu"
    extra_tensors: ClassVar[Mapping[str, str]] = {"threshold": "F"}

    @classmethod
    def from_weights(
        cls,
        *,
        W_enc: Float[Tensor, "D F"],
        W_dec: Float[Tensor, "F D"],
        b_dec: Float[Tensor, " D"],
        threshold: Float[Tensor, " F"] | float,
        b_enc: Float[Tensor, " F"] | None = None,
        normalization: Normalization = "layer",
        input_mean: Float[Tensor, " D"] | None = None,
        input_scale: Float[Tensor, ""] | None = None,
        subtract_b_dec: bool = True,
    ) -> JumpReLUSAE:
        """Build an SAE from its weights, which are copied; see `TopKSAE.from_weights`.

        Parameters
        ----------
        threshold : Tensor [F] or float
            Features are active above it, in units of pre-activations.
        W_enc, W_dec, b_dec, b_enc, normalization, input_mean, input_scale, subtract_b_dec
            See `TopKSAE.from_weights`.
        """
        tensors = named_tensors(W_enc, W_dec, b_dec, b_enc, input_mean, input_scale)
        n_features = tensors["W_enc"].shape[-1]
        given = torch.as_tensor(threshold, dtype=tensors["W_enc"].dtype)
        tensors["threshold"] = given.to(tensors["W_enc"].device).expand(n_features).clone()
        return cls(tensors, normalization=normalization, subtract_b_dec=subtract_b_dec)


@register
class BatchTopKSAE(_ThresholdSAE):
    """BatchTopK sparse autoencoder at inference: one threshold for all features.

    Parameters are those of `vitlens.saes.base.SAE`; `tensors` also holds `threshold` [].
    """

    kind: ClassVar[str] = "batchtopk"
    extra_tensors: ClassVar[Mapping[str, str]] = {"threshold": ""}

    @classmethod
    def from_weights(
        cls,
        *,
        W_enc: Float[Tensor, "D F"],
        W_dec: Float[Tensor, "F D"],
        b_dec: Float[Tensor, " D"],
        threshold: float,
        b_enc: Float[Tensor, " F"] | None = None,
        normalization: Normalization = "layer",
        input_mean: Float[Tensor, " D"] | None = None,
        input_scale: Float[Tensor, ""] | None = None,
        subtract_b_dec: bool = True,
    ) -> BatchTopKSAE:
        """Build an SAE from its weights, which are copied; see `TopKSAE.from_weights`.

        Parameters
        ----------
        threshold : float
            Features are active above it, in units of pre-activations.
        W_enc, W_dec, b_dec, b_enc, normalization, input_mean, input_scale, subtract_b_dec
            See `TopKSAE.from_weights`.
        """
        tensors = named_tensors(W_enc, W_dec, b_dec, b_enc, input_mean, input_scale)
        tensors["threshold"] = torch.as_tensor(threshold).to(tensors["W_enc"])
        return cls(tensors, normalization=normalization, subtract_b_dec=subtract_b_dec)


@register
class MatryoshkaSAE(_ThresholdSAE):
    """Matryoshka BatchTopK sparse autoencoder at inference.

    Parameters are those of `vitlens.saes.base.SAE`; `tensors` also holds `threshold` [].

    Parameters
    ----------
    groups
        Number of features that each level adds, from the coarsest on; they sum to F.

    Raises
    ------
    CheckpointError
        If the groups do not sum to F.
    """

    kind: ClassVar[str] = "matryoshka"
    extra_tensors: ClassVar[Mapping[str, str]] = {"threshold": ""}

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        groups: Sequence[int],
        normalization: Normalization = "layer",
        subtract_b_dec: bool = True,
    ) -> None:
        super().__init__(tensors, normalization=normalization, subtract_b_dec=subtract_b_dec)
        self.groups = tuple(int(size) for size in groups)
        if sum(self.groups) != self.n_features or any(size < 1 for size in self.groups):
            raise CheckpointError(
                f"The groups {self.groups} must be positive and sum to the {self.n_features} "
                "features of the SAE."
            )

    @classmethod
    def from_weights(
        cls,
        *,
        W_enc: Float[Tensor, "D F"],
        W_dec: Float[Tensor, "F D"],
        b_dec: Float[Tensor, " D"],
        threshold: float,
        groups: Sequence[int],
        b_enc: Float[Tensor, " F"] | None = None,
        normalization: Normalization = "layer",
        input_mean: Float[Tensor, " D"] | None = None,
        input_scale: Float[Tensor, ""] | None = None,
        subtract_b_dec: bool = True,
    ) -> MatryoshkaSAE:
        """Build an SAE from its weights, which are copied; see `TopKSAE.from_weights`.

        Parameters
        ----------
        threshold : float
            Features are active above it, in units of pre-activations.
        groups : sequence of int
            Number of features that each level adds.
        W_enc, W_dec, b_dec, b_enc, normalization, input_mean, input_scale, subtract_b_dec
            See `TopKSAE.from_weights`.
        """
        tensors = named_tensors(W_enc, W_dec, b_dec, b_enc, input_mean, input_scale)
        tensors["threshold"] = torch.as_tensor(threshold).to(tensors["W_enc"])
        return cls(
            tensors, groups=groups, normalization=normalization, subtract_b_dec=subtract_b_dec
        )

    def kind_settings(self) -> dict[str, Any]:
        """`groups`."""
        return {"groups": list(self.groups)}

"""What interventions do at one layer: to activations, and along directions of the stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.interventions.kinds import Intervention, Project
from vitlens.replacement import Baselines
from vitlens.saes.topk import TopKSAE


@dataclass(frozen=True, eq=False)
class Projection:
    """The subspace that a `Project` takes out at one layer.

    Attributes
    ----------
    basis
        Orthonormal columns U that span the features' decoder rows.
    features, error
        What stays along U: the baseline's features, in units of sd, and its error node; zero for a
        projection to zero.
    """

    basis: Float[Tensor, "D r"]
    features: Float[Tensor, "T r"]
    error: Float[Tensor, "T r"]

    def __call__(
        self, v: Float[Tensor, "n T D"], std: Float[Tensor, "n T 1"]
    ) -> Float[Tensor, "n T D"]:
        """What has to be added to v, the stream without the SAE's centre."""
        return (self.features * std + self.error - v @ self.basis) @ self.basis.T


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention at one layer.

    Attributes
    ----------
    intervention
        What is done.
    columns
        Which of the layer's touched features it is about.
    tokens
        True where it acts, [T, 1].
    reference
        What `Intervention.changed` replaces activations with, [T, k], or None.
    projection
        What is taken out of the stream besides, or None.
    """

    intervention: Intervention
    columns: Int[Tensor, " k"]
    tokens: Bool[Tensor, "T 1"]
    reference: Float[Tensor, "T k"] | None
    projection: Projection | None

    def changed(
        self, z: Float[Tensor, "n T k"], clean: Float[Tensor, "*n T k"]
    ) -> Float[Tensor, "n T k"]:
        """Activations of the layer's touched features after this one."""
        part = z[..., self.columns]
        where = self.tokens
        if self.intervention.only_active:
            where = where & (clean[..., self.columns] > 0)
        new = self.intervention.changed(part, self.reference)
        return z.index_copy(-1, self.columns, torch.where(where, new, part))


@dataclass(frozen=True, eq=False)
class LayerEdits:
    """All that is done at one layer: `features` are touched, by `edits` in this order."""

    features: Int[Tensor, " k"]
    edits: tuple[Edit, ...]

    @property
    def need_clean(self) -> bool:
        """Whether they depend on where features are active on the untouched model."""
        return any(edit.intervention.only_active for edit in self.edits)

    def difference(
        self,
        now: Float[Tensor, "n T k"],
        clean: Float[Tensor, "*n T k"],
        rows: Float[Tensor, "k D"],
        std: Float[Tensor, "n T 1"],
        centred: Callable[[], Float[Tensor, "n T D"]],
    ) -> Float[Tensor, "n T D"]:
        """What all edits together add to the stream.

        Parameters
        ----------
        now, clean
            Activations of the touched features in the running and in the untouched stream.
        rows
            Their decoder rows.
        std
            The running stream's sd.
        centred
            Gives the stream without the SAE's centre, before the edits; only projections ask.
        """
        z, taken = now, torch.zeros((), dtype=now.dtype, device=now.device)
        for edit in self.edits:
            z = edit.changed(z, clean)
            if edit.projection is not None:
                v = centred() + (z - now) @ rows * std + taken
                taken = taken + torch.where(edit.tokens, edit.projection(v, std), 0)
        return (z - now) @ rows * std + taken


def projection(
    item: Project, sae: TopKSAE, baselines: Baselines, layer: int, features: list[int]
) -> Projection:
    """The subspace that some features of a layer span, and what a projection leaves in it."""
    rows = sae.W_dec[features]
    # There is no SVD in half precision.
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    left, sizes, _ = torch.linalg.svd(wide.T, full_matrices=False)
    # Parallel rows span less than there are of them.
    limit = float(sizes[0]) * max(rows.shape) * torch.finfo(wide.dtype).eps
    basis = left[:, sizes > limit].to(rows.dtype)
    if item.to == "zero":
        nothing = basis.new_zeros(len(baselines.errors[layer]), basis.shape[1])
        return Projection(basis, nothing, nothing)
    features_along = baselines.features[layer] @ (sae.W_dec @ basis)
    return Projection(basis, features_along, baselines.errors[layer] @ basis)

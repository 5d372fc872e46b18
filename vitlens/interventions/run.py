"""Running the model with interventions: checked once, then quick on any batch.

At every site the running stream x is encoded again: x = x_hat(z) + e. Interventions change z, and
the stream goes on as x_hat(z') plus what the site's error node holds, plus what projections remove
from this sum. `ReplacementModel.run` does it; a `Plan` is the change that it applies.
Source: docs/method.md, "Residual replacement"; Kim et al., NeurIPS 2025, arXiv 2509.17401, section
3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.errors import FeatureError
from vitlens.images import ImageLike
from vitlens.interventions.kinds import (
    Ablate,
    Intervention,
    Interventions,
    InterventionsLike,
    Position,
    Project,
    interventions,
)
from vitlens.method.replacement import (
    Change,
    ErrorNodes,
    ReplacedPass,
    ReplacementModel,
    SiteState,
    SiteValues,
    Trace,
    check_error_nodes,
)
from vitlens.models.vision import VisionModel
from vitlens.saes.base import SAE
from vitlens.saes.data import batched

_BATCH = 16


@dataclass(frozen=True, eq=False)
class Projection:
    """The subspace that a `Project` removes at one site.

    Attributes
    ----------
    basis
        Orthonormal columns U that span the features' decoder rows.
    decoder
        All decoder rows along U; None for a projection to zero.
    """

    basis: Float[Tensor, "D r"]
    decoder: Float[Tensor, "F r"] | None

    @classmethod
    def of(cls, item: Project, sae: SAE, features: list[int]) -> Projection:
        """Return the subspace that some features of a site span."""
        rows = sae.W_dec[features]
        # There is no SVD in half precision.
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        left, sizes, _ = torch.linalg.svd(wide.T, full_matrices=False)
        # Parallel rows span less than there are of them.
        limit = float(sizes[0]) * max(rows.shape) * torch.finfo(wide.dtype).eps
        basis = left[:, sizes > limit].to(rows.dtype)
        return cls(basis, None if item.to == "zero" else sae.W_dec @ basis)

    def __call__(
        self, v: Float[Tensor, "n T D"], std: Float[Tensor, "n T 1"], baseline: SiteValues
    ) -> Float[Tensor, "n T D"]:
        """Return what has to be added to v, the stream without the SAE's centre."""
        stays: Tensor | float = 0.0
        if self.decoder is not None:
            stays = baseline.features @ self.decoder * std + baseline.error @ self.basis
        return (stays - v @ self.basis) @ self.basis.T


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention at one site.

    Attributes
    ----------
    intervention
        What is done.
    features, columns
        Its features, and which of the site's touched features they are.
    tokens
        True where it acts, [T, 1].
    reference
        What `Intervention.changed` replaces activations with, [T, k]; None for zero, or where the
        run's baselines are to be used.
    projection
        What is removed from the stream as well, or None.
    """

    intervention: Intervention
    features: Int[Tensor, " k"]
    columns: Int[Tensor, " k"]
    tokens: Bool[Tensor, "T 1"]
    reference: Float[Tensor, "T k"] | None
    projection: Projection | None

    def changed(
        self, z: Float[Tensor, "n T k"], clean: Float[Tensor, "*n T k"], baseline: SiteValues
    ) -> Float[Tensor, "n T k"]:
        """Return activations of the site's touched features after this one."""
        part = z[..., self.columns]
        acts = self.tokens
        if self.intervention.only_active:
            acts = acts & (clean[..., self.columns] > 0)
        reference = self.reference
        if _to_baseline(self.intervention):
            reference = baseline.features[:, self.features]
        new = self.intervention.changed(part, reference)
        return z.index_copy(-1, self.columns, torch.where(acts, new, part))


@dataclass(frozen=True, eq=False)
class SiteEdits:
    """All that is done at one site: `features` are touched, by `edits` in this order."""

    features: Int[Tensor, " k"]
    edits: tuple[Edit, ...]

    @property
    def need_clean(self) -> bool:
        """Whether they depend on where features are active in the untouched model."""
        return any(edit.intervention.only_active for edit in self.edits)

    def difference(
        self, state: SiteState, stream: Float[Tensor, "n T D"]
    ) -> Float[Tensor, "n T D"]:
        """Return what all edits together add to the stream that would go on without them."""
        now = state.features[..., self.features]
        clean = now if state.clean is None else state.clean.features[..., self.features]
        rows, std = state.sae.W_dec[self.features], state.std
        z, removed = now, torch.zeros((), dtype=now.dtype, device=now.device)
        for edit in self.edits:
            z = edit.changed(z, clean, state.baseline)
            if edit.projection is not None:
                centred = stream - state.mean - state.sae.b_dec * std
                v = centred + (z - now) @ rows * std + removed
                part = edit.projection(v, std, state.baseline)
                removed = removed + torch.where(edit.tokens, part, 0)
        return (z - now) @ rows * std + removed


@dataclass(frozen=True, eq=False)
class Plan(Change):
    """Interventions that were checked against a model, ready to run; made by `make_plan`.

    Attributes
    ----------
    replacement
        The model with its SAEs and baselines.
    interventions
        The interventions.
    error_nodes
        Value of each site's error node: "clean", what it holds in the untouched model; "free",
        what the running stream gives, so that only the changed features' difference is added to
        it; "baseline"; "zero", nothing.
    sites
        What is done at each site; None for nothing.
    """

    replacement: ReplacementModel
    interventions: Interventions
    error_nodes: tuple[ErrorNodes, ...]
    sites: tuple[SiteEdits | None, ...]

    def touches(self, position: int) -> bool:
        """Whether a site's stream is changed."""
        return self.sites[position] is not None

    def needs_clean(self, position: int) -> bool:
        """Whether what is done at a site depends on the untouched model."""
        edits = self.sites[position]
        return edits is not None and edits.need_clean

    def edit(self, state: SiteState, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n T D"]:
        """Return the stream that continues."""
        edits = self.sites[state.position]
        return stream if edits is None else stream + edits.difference(state, stream)

    def logits(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n C"]:
        """Return logits with the interventions."""
        return self.replacement.run(images, self, error_nodes=self.error_nodes)

    def before_and_after(
        self, images: Float[Tensor, "n 3 H W"]
    ) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n C"]]:
        """Return logits of the untouched model, and with the interventions."""
        return self.replacement.before_and_after(images, self, error_nodes=self.error_nodes)

    def logits_of(self, trace: Trace) -> Float[Tensor, "*n C"]:
        """Return logits with the interventions; the trace saves the untouched run."""
        logits = self.replacement.run(trace, self, error_nodes=self.error_nodes)
        return logits if trace.batched else logits[0]

    def passing(self) -> ReplacedPass:
        """Start one forward pass, to be followed block by block.

        Raises
        ------
        FeatureError
            If the plan replaces something by the baselines of several reference images.
        """
        uses_baselines = "baseline" in self.error_nodes or any(
            map(_to_baseline, self.interventions)
        )
        if uses_baselines and self.replacement.baselines.references:
            raise FeatureError(
                "With several reference images, a replaced run is the mean of several runs, but a "
                "forward pass of the model is a single run. Use run_with, or one reference image."
            )
        return ReplacedPass(self.replacement, self, self.error_nodes)


def make_plan(
    replacement: ReplacementModel,
    requested: InterventionsLike,
    *,
    error_nodes: ErrorNodes | Sequence[ErrorNodes] = "clean",
    tensor: Callable[[ImageLike], Float[Tensor, "3 H W"]],
) -> Plan:
    """Check interventions against a model, and prepare them to run.

    Parameters
    ----------
    replacement
        The model with its SAEs and baselines.
    requested
        Interventions; may be empty.
    error_nodes
        For all sites, or for each; see `Plan`.
    tensor
        Makes the model's input of the images in `Patch` and `Ablate`.

    Raises
    ------
    FeatureError
        If a feature or patch does not exist, interventions contradict each other, or there is not
        one `error_nodes` per site.
    OptionError
        If `error_nodes` is unknown.
    """
    vision = replacement.vision
    joined = interventions(requested)
    for item in joined:
        _check_features(item, replacement)
    tokens = {id(item): _tokens(vision, item) for item in joined}
    means = {id(item): _means(replacement, item, tensor) for item in joined if item.images}
    sites: list[SiteEdits | None] = []
    for layer, sae in zip(replacement.layers, replacement.saes, strict=True):
        parts = [(item, [f for at, f in item.features if at == layer]) for item in joined]
        touched = sorted({feature for _, features in parts for feature in features})
        column = {feature: number for number, feature in enumerate(touched)}
        edits = []
        for item, features in parts:
            if not features:
                continue
            edits.append(
                Edit(
                    item,
                    torch.tensor(features, device=vision.device),
                    torch.tensor([column[f] for f in features], device=vision.device),
                    tokens[id(item)],
                    means[id(item)][layer][:, features] if item.images else None,
                    Projection.of(item, sae, features) if isinstance(item, Project) else None,
                )
            )
        chosen = torch.tensor(touched, device=vision.device)
        sites.append(SiteEdits(chosen, tuple(edits)) if edits else None)
    held = check_error_nodes(error_nodes, len(replacement))
    return Plan(replacement, joined, held, tuple(sites))


def _to_baseline(item: Intervention) -> bool:
    return isinstance(item, Ablate | Project) and item.to == "baseline"


def _check_features(item: Intervention, replacement: ReplacementModel) -> None:
    for layer, feature in item.features:
        try:
            replacement.check_node(layer, feature)
        except FeatureError as error:
            raise FeatureError(f"{item!r}: {error} Does it belong to another lens?") from None


def _tokens(vision: VisionModel, item: Intervention) -> Bool[Tensor, "T 1"]:
    if item.patches is None:
        return torch.ones(vision.n_tokens, 1, dtype=torch.bool, device=vision.device)
    mask = torch.zeros(vision.n_tokens, 1, dtype=torch.bool, device=vision.device)
    for patch in item.patches:
        mask[_token(vision, item, patch)] = True
    return mask


def _token(vision: VisionModel, item: Intervention, patch: Position) -> int:
    (row, column), (rows, columns) = patch, vision.grid
    if row == -1 and column < vision.n_prefix:
        return column
    if not (0 <= row < rows and column < columns):
        raise FeatureError(
            f"{item!r}: there is no patch {patch}: the grid has {rows} rows and {columns} columns, "
            f"counted from 0, and {vision.n_prefix} prefix tokens are (-1, number)."
        )
    return vision.n_prefix + row * columns + column


def _means(
    replacement: ReplacementModel, item: Intervention, tensor: Callable[[ImageLike], Tensor]
) -> dict[int, Float[Tensor, "T F"]]:
    """Mean activations over an intervention's images, by layer, for the layers it is about."""
    vision = replacement.vision
    layers = sorted({layer for layer, _ in item.features})
    sums: dict[int, Tensor] = {}
    with torch.no_grad():
        for batch in batched(map(tensor, item.images), _BATCH, vision.image_size):
            for layer, stream in zip(layers, vision.residuals(batch, layers), strict=True):
                total = replacement.sae(layer).encode(stream).sum(0)
                sums[layer] = sums[layer] + total if layer in sums else total
    return {layer: total / len(item.images) for layer, total in sums.items()}

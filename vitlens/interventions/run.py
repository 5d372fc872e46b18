"""Running the model with interventions: checked once, then quick on any batch.

At every layer the running stream x is encoded again: x = x_hat(z) + e. Interventions change z, and
the stream goes on as x_hat(z') plus what the layer's error node holds, plus what projections take
out of this sum. Source: Kim et al., NeurIPS 2025, arXiv 2509.17401, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
from vitlens.models.vision import VisionModel
from vitlens.replacement import Baselines, ErrorNodes, Trace
from vitlens.replacement import error_nodes as check_error_nodes
from vitlens.saes.data import batched
from vitlens.saes.topk import TopKSAE

_BATCH = 16


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


class Clean(NamedTuple):
    """One layer of the untouched model."""

    features: Float[Tensor, "*n T F"]
    error: Float[Tensor, "*n T D"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Interventions that were checked against a model, ready to run; made by `make_plan`.

    Attributes
    ----------
    vit, saes, baselines
        The model.
    interventions
        What is changed.
    error_nodes
        What each layer's error node holds: "clean", what it holds on the untouched model; "free",
        what the running stream gives, so that only the changed features' difference is added to
        it; "baseline".
    layers
        What is done after each block but the last; None for nothing.
    """

    vision: VisionModel
    saes: Sequence[TopKSAE]
    baselines: Baselines
    interventions: Interventions
    error_nodes: tuple[ErrorNodes, ...]
    layers: tuple[LayerEdits | None, ...]

    @property
    def first(self) -> int:
        """The first layer at which the stream changes; B where none does."""
        changed = (
            layer
            for layer, (edits, held) in enumerate(zip(self.layers, self.error_nodes, strict=True))
            if edits is not None or held == "baseline"
        )
        return next(changed, len(self.layers) + 1)

    @property
    def last_clean(self) -> int:
        """The last layer of which something of the untouched model is needed; -1 for none."""
        return max(
            (x for x in range(self.first + 1, len(self.layers)) if self.needs(x)), default=-1
        )

    def needs(self, layer: int) -> bool:
        """Whether what happens at a layer depends on the untouched model."""
        edits = self.layers[layer]
        return self.error_nodes[layer] == "clean" or (edits is not None and edits.need_clean)

    def change(
        self, layer: int, stream: Float[Tensor, "n T D"], clean: Clean | None
    ) -> Float[Tensor, "n T D"]:
        """The stream as it leaves a layer.

        Parameters
        ----------
        stream
            What the block gave.
        clean
            The same layer of the untouched model; None where `stream` still is the untouched
            model's, or the layer does not need it.
        """
        edits, held, sae = self.layers[layer], self.error_nodes[layer], self.saes[layer]
        keeps_error = held == "free" or (held == "clean" and clean is None)
        if edits is None and keeps_error:
            return stream
        features, mean, std = sae.encode_with_stats(stream)
        if keeps_error:
            base = stream
        elif held == "clean" and clean is not None:
            base = sae.decode(features, mean, std) + clean.error
        else:
            base = sae.decode(features, mean, std) + self.baselines.errors[layer]
        if edits is None:
            return base
        now = features[..., edits.features]
        known = now if clean is None else clean.features[..., edits.features]
        return base + edits.difference(
            now, known, sae.W_dec[edits.features], std, lambda: base - mean - sae.b_dec * std
        )

    def logits(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n C"]:
        """Logits with the interventions."""
        with torch.no_grad():
            return self.vision.readout(self._run(images, self.last_clean)[1])

    def before_and_after(
        self, images: Float[Tensor, "n 3 H W"]
    ) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n C"]]:
        """Logits of the untouched model, and with the interventions."""
        with torch.no_grad():
            clean, stream = self._run(images, self.vision.depth)
            after = self.vision.readout(stream)
            return after if clean is None else self.vision.readout(clean), after

    def logits_of(self, trace: Trace) -> Float[Tensor, " C"]:
        """Logits of one image with the interventions; its trace saves the untouched run."""
        if self.first > len(self.saes):
            return trace.logits
        with torch.no_grad():
            blocks = self.vision.embed(trace.image[None]).blocks
            stream = self.change(self.first, trace.residuals[self.first][None], None)
            for layer in range(self.first + 1, len(self.saes)):
                clean = Clean(trace.features[layer], trace.errors[layer])
                stream = self.change(layer, blocks[layer](stream), clean)
            return self.vision.readout(blocks[-1](stream))[0]

    def _run(self, images: Tensor, until: int) -> tuple[Tensor | None, Tensor]:
        """The streams after the last block: the untouched one (see `Pass.clean`), and the other."""
        stem = self.vision.embed(images)
        stream, passing = stem.tokens, Pass(self, until)
        for layer, block in enumerate(stem.blocks):
            stream = passing.after_block(layer, block(stream), block)
        return passing.clean, stream


class Pass:
    """One forward pass. The untouched stream goes along from where the two part.

    Parameters
    ----------
    plan
        What is done.
    until
        The last layer to which the untouched stream is followed.

    Attributes
    ----------
    clean
        The untouched stream after the latest block; None while nothing has changed.
    """

    def __init__(self, plan: Plan, until: int):
        self._plan, self._until = plan, until
        self.clean: Tensor | None = None

    def after_block(
        self, layer: int, stream: Float[Tensor, "n T D"], block: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "n T D"]:
        """What goes on after a block that gave `stream`; called for block after block.

        Parameters
        ----------
        block
            The block itself, for the untouched stream.
        """
        plan = self._plan
        if self.clean is None:
            if layer < plan.first or layer >= len(plan.saes):
                return stream
            self.clean = stream.detach()
            return plan.change(layer, stream, None)
        if layer <= self._until:
            with torch.no_grad():
                self.clean = block(self.clean)
        if layer >= len(plan.saes):
            return stream
        clean = None
        if plan.needs(layer):
            with torch.no_grad():
                out = plan.saes[layer](self.clean)
            clean = Clean(out.features, out.error)
        return plan.change(layer, stream, clean)


def make_plan(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    baselines: Baselines,
    requested: InterventionsLike,
    *,
    error_nodes: ErrorNodes | Sequence[ErrorNodes] = "clean",
    tensor: Callable[[ImageLike], Float[Tensor, "3 H W"]],
) -> Plan:
    """Check interventions against a model, and make them ready to run.

    Parameters
    ----------
    requested
        Interventions; none is allowed, too.
    error_nodes
        For all layers, or for each; see `Plan`.
    tensor
        Makes the model's input of the images in `Patch` and `Ablate`.

    Raises
    ------
    FeatureError
        If a feature or patch does not exist, interventions contradict each other, or `error_nodes`
        is unknown.
    """
    joined = interventions(requested)
    for item in joined:
        _check_features(item, saes)
    by_layer: list[list[tuple[Intervention, list[int]]]] = [[] for _ in saes]
    for item in joined:
        for layer in sorted({layer for layer, _ in item.features}):
            by_layer[layer].append((item, [f for at, f in item.features if at == layer]))
    tokens = {id(item): _tokens(vision, item) for item in joined}
    means = {id(item): _means(vision, saes, item, tensor) for item in joined if item.images}
    layers = []
    for layer, parts in enumerate(by_layer):
        touched = sorted({feature for _, features in parts for feature in features})
        place = {feature: column for column, feature in enumerate(touched)}
        edits = []
        for item, features in parts:
            reference = None
            if item.images:
                reference = means[id(item)][layer][:, features]
            elif isinstance(item, Ablate | Project) and item.to == "baseline":
                reference = baselines.features[layer][:, features]
            taken = None
            if isinstance(item, Project):
                taken = projection(item, saes[layer], baselines, layer, features)
            columns = torch.tensor([place[f] for f in features], device=vision.device)
            edits.append(Edit(item, columns, tokens[id(item)], reference, taken))
        chosen = torch.tensor(touched, device=vision.device)
        layers.append(LayerEdits(chosen, tuple(edits)) if edits else None)
    held = tuple(check_error_nodes(error_nodes, len(saes)))
    return Plan(vision, saes, baselines, joined, held, tuple(layers))


def _check_features(item: Intervention, saes: Sequence[TopKSAE]) -> None:
    for layer, feature in item.features:
        if layer >= len(saes):
            raise FeatureError(
                f"{item!r}: layers with features are 0 to {len(saes) - 1}; there is no {layer}."
            )
        if feature >= saes[layer].n_features:
            raise FeatureError(
                f"{item!r}: layer {layer} has features 0 to {saes[layer].n_features - 1}; there is "
                f"no {feature}. Is it of another lens?"
            )


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
            f"counted from 0, and {vision.n_prefix} prefix tokens come as (-1, number)."
        )
    return vision.n_prefix + row * columns + column


def _means(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    item: Intervention,
    tensor: Callable[[ImageLike], Tensor],
) -> dict[int, Float[Tensor, "T F"]]:
    """Mean activations over an intervention's images, for the layers it is about."""
    layers = sorted({layer for layer, _ in item.features})
    sums: dict[int, Tensor] = {}
    with torch.no_grad():
        for batch in batched(map(tensor, item.images), _BATCH, vision.image_size):
            streams = vision.residuals(batch)
            for layer in layers:
                total = saes[layer].encode(streams[layer]).sum(0)
                sums[layer] = sums[layer] + total if layer in sums else total
    return {layer: total / len(item.images) for layer, total in sums.items()}

"""A grouped set of images run once, and then again and again from the layer that changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.attribution.gradients import Gradient, backward_rules
from vitlens.debias.groups import GroupedImages
from vitlens.debias.readout import last_layer, pooled
from vitlens.debias.report import GroupReport, group_report
from vitlens.errors import FeatureError
from vitlens.interventions.kinds import Ablate, Key, To
from vitlens.interventions.run import Plan, make_plan
from vitlens.lens_base import LensBase
from vitlens.models.adapter import Block
from vitlens.progress import Progress, steps
from vitlens.saes.stream import batched


class GroupRuns:
    """The streams of a set of images at some layers, kept, and what follows from changing them.

    Ablations leave error nodes free: only the changed features' difference is added to the
    stream. So a run starts at the first layer that changes, from the stream kept there.

    Parameters
    ----------
    lens
        The model.
    groups
        Its images are run once, here.
    layers
        Layers whose stream is kept, n x T x D numbers each; features of other layers cannot be
        ablated.
    batch_size
        Images that are run together.
    progress
        Show a progress bar.

    Attributes
    ----------
    logits
        Of the untouched model, [n, C].
    inputs
        What the last linear layer reads, [n, E]; None for a read-out of another kind.
    activations
        Mean over tokens of every feature, for each of the layers, [n, F_l].

    Raises
    ------
    FeatureError
        If there is no such layer.
    """

    def __init__(
        self,
        lens: LensBase,
        groups: GroupedImages,
        layers: Sequence[int],
        *,
        batch_size: int = 16,
        progress: Progress = False,
    ):
        unknown = [layer for layer in layers if not 0 <= layer < len(lens.saes)]
        if unknown or not layers:
            raise FeatureError(
                f"Layers are 0 to {len(lens.saes) - 1}, at least one; not {list(layers)}."
            )
        self.lens, self.groups, self.layers = lens, groups, tuple(sorted(set(layers)))
        self._batch_size = batch_size
        linear = last_layer(lens) is not None
        streams: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        means: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        logits, inputs = [], []
        starts = range(0, len(groups), batch_size)
        tensors = (lens.tensor(image) for image in groups.images)
        batches = batched(tensors, batch_size, lens.vit.image_size)
        with torch.no_grad():
            for _ in steps(starts, "images", progress):
                residuals = lens.vit.residuals(next(batches))
                for layer in self.layers:
                    streams[layer].append(residuals[layer])
                    means[layer].append(lens.saes[layer].encode(residuals[layer]).mean(1).cpu())
                logits.append(lens.vit.readout(residuals[-1]))
                if linear:
                    inputs.append(pooled(lens, residuals[-1]))
        self._streams = {layer: torch.cat(parts) for layer, parts in streams.items()}
        self.activations = {layer: torch.cat(parts) for layer, parts in means.items()}
        self.logits: Float[Tensor, "n C"] = torch.cat(logits)
        self.inputs: Float[Tensor, "n E"] | None = torch.cat(inputs) if linear else None

    def ablated(self, features: Sequence[Key], *, to: To = "baseline") -> Float[Tensor, "n C"]:
        """Logits of all images with features ablated.

        Raises
        ------
        FeatureError
            If a feature does not exist, or is of a layer that is not kept.
        """
        if not features:
            return self.logits
        everything = torch.arange(len(self.groups))
        parts = self.ablated_in_parts(features, everything, to=to)
        return torch.cat([logits for _, logits in parts])

    def ablated_in_parts(
        self, features: Sequence[Key], order: Int[Tensor, " n"], *, to: To = "baseline"
    ) -> Iterator[tuple[Int[Tensor, " m"], Float[Tensor, "m C"]]]:
        """Yield indices of images and their logits, batch by batch; see `ablated`.

        Parameters
        ----------
        features
            At least one.
        order
            Images in the order in which they are run.
        """
        plan, blocks = self._plan(features, to), self._blocks()
        for index in order.split(self._batch_size):
            with torch.no_grad():
                stream = plan.change(plan.first, self._streams[plan.first][index], None)
                for layer in range(plan.first + 1, self.lens.vit.depth):
                    stream = _changed(plan, layer, blocks[layer](stream))
                logits = self.lens.vit.readout(stream)
            yield index, logits

    def activations_of(self, feature: Key, index: Sequence[int]) -> Float[Tensor, "m T"]:
        """Activation of one feature at every token of some images, on the CPU."""
        layer, column = feature
        with torch.no_grad():
            return self.lens.saes[layer].encode(self._streams[layer][index])[..., column].cpu()

    def report(
        self, features: Sequence[Key], *, name: str = "", to: To = "baseline"
    ) -> GroupReport:
        """Accuracy by group with features ablated."""
        found = self.ablated(features, to=to)
        return group_report(name, found, self.groups, n_features=len(features))

    def effects(
        self,
        features: Sequence[Key],
        *,
        given: Sequence[Key] = (),
        to: To = "baseline",
        gradient: Gradient = "plain",
        progress: Progress = False,
    ) -> Float[Tensor, "n k"]:
        """First-order change of every image's margin when a feature is ablated.

        The margin is the true class's logit minus the highest other one's. Like a node's
        importance, with the other sign and along all paths: the sum over tokens of
        ``(new - z) sd <gradient, W_dec[f]>``.

        Parameters
        ----------
        features
            Features of kept layers.
        given
            Features that are ablated already; the change is the one beside theirs.
        to
            What features are taken to.
        gradient
            "libragrad" or "plain".
        progress
            Show a progress bar.
        """
        out = torch.zeros(len(self.groups), len(features), dtype=self.logits.dtype)
        if not features:
            return out
        plan, blocks = self._plan(given, to), self._blocks()
        columns = {
            layer: [i for i, (at, _) in enumerate(features) if at == layer]
            for layer in sorted({layer for layer, _ in features})
        }
        first = min(plan.first, *columns)
        starts = range(0, len(self.groups), self._batch_size)
        for start in steps(starts, "effects", progress):
            part = slice(start, start + self._batch_size)
            stream = self._streams[first][part].detach().requires_grad_(True)
            before, after = {}, {}
            with torch.enable_grad(), backward_rules(self.lens.vit, gradient):
                for layer in range(first, self.lens.vit.depth):
                    stream = stream if layer == first else blocks[layer](stream)
                    before[layer] = stream
                    after[layer] = stream = _changed(plan, layer, stream)
                margin = margins(self.lens.vit.readout(stream), self.groups.labels[part])
                grads = torch.autograd.grad(margin.sum(), [after[layer] for layer in columns])
            for (layer, places), grad in zip(columns.items(), grads, strict=True):
                ids = [features[i][1] for i in places]
                change = self._first_order(layer, ids, before[layer].detach(), grad, to)
                out[part, places] = change.cpu()
        return out

    def _plan(self, features: Sequence[Key], to: To) -> Plan:
        lens = self.lens
        wanted = [Ablate(tuple(features), to)] if features else []
        plan = make_plan(
            lens.vit, lens.saes, lens.baselines, wanted, errors="free", tensor=lens.tensor
        )
        unknown = sorted({layer for layer, _ in features} - set(self.layers))
        if unknown:
            raise FeatureError(
                f"The streams of layers {unknown} are not kept, those of {list(self.layers)} are."
            )
        return plan

    def _first_order(
        self, layer: int, ids: list[int], x: Tensor, grad: Tensor, to: To
    ) -> Float[Tensor, "n k"]:
        sae = self.lens.saes[layer]
        features, _, std = sae.encode_with_stats(x)
        now = features[..., ids]
        new = self.lens.baselines.features[layer][:, ids] if to == "baseline" else 0.0
        return ((grad @ sae.W_dec[ids].T) * (new - now) * std).sum(1)

    def _blocks(self) -> tuple[Block, ...]:
        """The blocks, with all that images of this size bind to them."""
        height, width = self.lens.vit.image_size
        blank = torch.zeros(
            1, 3, height, width, dtype=self.lens.vit.dtype, device=self.lens.vit.device
        )
        with torch.no_grad():
            return self.lens.vit.embed(blank).blocks


def _changed(plan: Plan, layer: int, stream: Tensor) -> Tensor:
    return plan.change(layer, stream, None) if layer < len(plan.saes) else stream


def margins(logits: Float[Tensor, "n C"], labels: Tensor) -> Float[Tensor, " n"]:
    """Logit of the true class minus the highest other one's."""
    index = labels.to(logits.device)[:, None]
    others = logits.scatter(1, index, float("-inf"))
    return logits.gather(1, index).squeeze(1) - others.amax(1)

"""Taking batches of images into an atlas's state."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.atlas import bins
from vitlens.atlas.chance import n_buckets
from vitlens.atlas.codes import Codes, ImageMarks, strongest_features
from vitlens.atlas.image_table import ImageRecord
from vitlens.atlas.labels import Labels, Lookup
from vitlens.atlas.pools import Pool
from vitlens.atlas.reading import Reader, Ready, Unreadable, stack
from vitlens.atlas.state import AtlasState, LayerState
from vitlens.atlas.sums import LayerSums
from vitlens.lens_base import LensBase
from vitlens.models.vision import VisionModel
from vitlens.progress import interrupts_held

_FEW_IMAGES = 1000


class _LayerRun(NamedTuple):
    """What one layer gives for a batch; see `strongest_features`."""

    values: Float[Tensor, "n T k"]
    features: Int[Tensor, "n T k"]
    stds: Float[Tensor, "n T"]


class _Run(NamedTuple):
    """What one forward pass gives."""

    layers: list[_LayerRun]
    stream: Float[Tensor, "n T D"]
    logits: Float[Tensor, "n C"]
    embeddings: Float[Tensor, "n D"]


def new_state(lens: LensBase, labels: Labels, settings: dict[str, Any]) -> AtlasState:
    """A state without images, on the device of the model."""
    vision, device = lens.vision, lens.vision.device
    n_tokens, n_classes = vision.n_tokens, len(labels.class_names)
    heat_tokens = n_tokens if settings["heats"] else 0
    layers = [
        LayerState(
            LayerSums.zeros(
                n_tokens=n_tokens,
                n_prefix=vision.n_prefix,
                n_features=sae.n_features,
                n_classes=n_classes,
                device=device,
            ),
            Pool.empty("top", sae.n_features, settings["n_top"], heat_tokens, device),
            Pool.empty("sampled", sae.n_features, settings["n_sampled"], heat_tokens, device),
        )
        for sae in lens.saes
    ]
    return AtlasState(
        model=lens.fingerprint,
        n_prefix=vision.n_prefix,
        grid=vision.grid,
        class_names=labels.class_names,
        labels_from=labels.origin,
        settings=settings,
        layers=tuple(layers),
        n_images=0,
        per_class=torch.zeros(n_classes, dtype=torch.int64, device=device),
        per_bucket=torch.zeros(n_buckets(n_classes), dtype=torch.int64, device=device),
        final_stream=torch.zeros(n_tokens, vision.d_model, dtype=torch.int64, device=device),
    )


class Gatherer:
    """Runs batches through the model and adds them to a state.

    Parameters
    ----------
    lens, reader, labels
        The model, how images are read, and what class they are of.
    state
        What to add to; it is changed.
    start
        Batches that the state holds already.
    groups, credits
        What the caller says of each image; without groups, those of the same perceptual hash
        are one.

    Attributes
    ----------
    n_batches
        Batches in the state, those of `start` included.
    consistent
        The state holds whole batches only. False when adding one failed half way.
    """

    def __init__(
        self,
        lens: LensBase,
        state: AtlasState,
        reader: Reader,
        labels: Labels,
        *,
        start: int = 0,
        groups: Lookup | None = None,
        credits: Lookup | None = None,
    ):
        self.lens, self.state, self.reader, self.labels = lens, state, reader, labels
        self.groups, self.credits = groups, credits
        self.n_batches = start
        self.consistent = True
        self._many_images = _FEW_IMAGES

    @torch.no_grad()
    def take(self, batch: Sequence[Ready | Unreadable]) -> None:
        """Run a batch and add it; Ctrl-C leaves the state with or without all of it."""
        vision = self.lens.vision
        failed = [(e.item.key, e.why) for e in batch if isinstance(e, Unreadable)]
        ready = [(place, e) for place, e in enumerate(batch) if isinstance(e, Ready)]
        run = marks = None
        if ready:
            images = stack(
                batch,
                self.state.settings["batch_size"],
                vision.image_size,
                dtype=vision.dtype,
                device=vision.device,
            )
            run = _forward(self.lens, images)
            finite = run.stream.isfinite().flatten(1).all(dim=1).tolist()
            failed += [(e.item.key, _NOT_FINITE) for place, e in ready if not finite[place]]
            ready = [(place, e) for place, e in ready if finite[place]]
            marks = self._marks(images, run.logits, ready)
        with interrupts_held():
            self.consistent = False
            if failed:
                self.state.skipped = tuple(sorted({*self.state.skipped, *failed}))
            if ready and run and marks:
                self._add(run, marks, ready)
            self.n_batches += 1
            self.consistent = True

    def _marks(
        self,
        images: Float[Tensor, "n 3 H W"],
        logits: Float[Tensor, "n C"],
        ready: Sequence[tuple[int, Ready]],
    ) -> ImageMarks:
        places = torch.tensor([place for place, _ in ready], device=images.device)
        entries = [entry for _, entry in ready]
        ids = [bins.hash_text(entry.item.key) for entry in entries]
        if self.groups is None:
            groups = bins.perceptual_hash(images[places])
        else:
            names = [str(self.groups(e.position, e.item)) for e in entries]
            groups = self._numbers([bins.hash_text(name, what="group") for name in names])
        if self.labels.origin == "predictions":
            labels = logits[places].argmax(dim=1)
        elif self.labels.origin == "none":
            labels = torch.zeros_like(places)
        else:
            labels = self._numbers(
                [self.labels.index(e.position, e.item, e.label) for e in entries]
            )
        return ImageMarks.of(
            self._numbers(ids),
            groups,
            labels,
            n_classes=len(self.state.class_names),
            n_prefix=self.state.n_prefix,
            n_tokens=self.state.n_tokens,
        )

    def _add(self, run: _Run, marks: ImageMarks, ready: Sequence[tuple[int, Ready]]) -> None:
        state = self.state
        places = torch.tensor([place for place, _ in ready], device=marks.id.device)
        kept = torch.zeros_like(marks.id, dtype=torch.bool)
        for layer, out in zip(state.layers, run.layers, strict=True):
            codes = Codes.of(out.values[places], out.features[places], layer.sums.n_features)
            layer.sums.add(codes, marks, out.stds[places])
            for pool in (layer.top, layer.sampled):
                kept |= pool.add(codes.activations, codes.peak, marks.id, marks.group)
        state.n_images += len(ready)
        known = marks.label >= 0
        for counts, where in ((state.per_class, marks.label), (state.per_bucket, marks.bucket)):
            counts.index_add_(0, where[known], torch.ones_like(where[known]))
        state.final_stream += bins.to_fixed(run.stream[places]).sum(dim=0)
        self._keep(run.embeddings[places], marks, ready, kept)

    def _keep(
        self,
        embeddings: Float[Tensor, "n D"],
        marks: ImageMarks,
        ready: Sequence[tuple[int, Ready]],
        kept: Tensor,
    ) -> None:
        """Note the images that some pool has taken in; now and then forget those it dropped."""
        numbers = zip(
            marks.id.tolist(),
            marks.label.tolist(),
            marks.group.tolist(),
            kept.tolist(),
            strict=True,
        )
        embeddings = embeddings.to("cpu", torch.float16)
        for (image, label, group, is_kept), (_, entry), embedding in zip(
            numbers, ready, embeddings, strict=True
        ):
            if not is_kept:
                continue
            item = entry.item
            credit = self.credits(entry.position, item) if self.credits else None
            self.state.images[image] = ImageRecord(
                key=item.key,
                path=item.path,
                label=label,
                group=group,
                width=entry.size[0],
                height=entry.size[1],
                embedding=embedding,
                picture=self.reader.picture(entry, self.state.settings["quality"]),
                credit=credit or "",
            )
        if len(self.state.images) > self._many_images:
            self.state.drop_unused_images()
            self._many_images = 2 * len(self.state.images) + _FEW_IMAGES

    def _numbers(self, numbers: Sequence[int]) -> Int[Tensor, " n"]:
        return torch.tensor(numbers, dtype=torch.int64, device=self.lens.vision.device)


_NOT_FINITE = "the model's residual stream holds NaN or infinite values on this image"


def _forward(lens: LensBase, images: Float[Tensor, "n 3 H W"]) -> _Run:
    """One pass through the model, encoding the stream after every block but the last."""
    vision = lens.vision
    stem = vision.embed(images)
    stream, layers = stem.tokens, []
    for block, sae in zip(stem.blocks[:-1], lens.saes, strict=True):
        stream = block(stream)
        layers.append(_LayerRun(*strongest_features(sae, stream)))
    stream = stem.blocks[-1](stream)
    return _Run(layers, stream, vision.readout(stream), _embeddings(vision, stream))


def _embeddings(vision: VisionModel, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n D"]:
    """The model's own pooled output, or the mean patch where that is not of the model's width."""
    normed = vision.module.norm(stream)
    if "pre_logits" in inspect.signature(vision.module.forward_head).parameters:
        pooled = vision.module.forward_head(normed, pre_logits=True)
        if isinstance(pooled, Tensor) and pooled.shape == (len(stream), vision.d_model):
            return pooled
    return normed[:, vision.n_prefix :].mean(dim=1)

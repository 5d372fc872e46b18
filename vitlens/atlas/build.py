"""One pass over a data set: all features of all layers, with one forward pass per image.

`build_state` is the pass; an `Accumulator` runs each batch and adds it to the `AtlasState`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from vitlens.atlas import exact
from vitlens.atlas.exact import n_buckets
from vitlens.atlas.image_store import QUALITY, ImageRecord
from vitlens.atlas.reading import Reader, Ready, Unreadable, count_images, read_batches, stack
from vitlens.atlas.sources import Labels, Lookup, Source, find_labels, look_up, open_source
from vitlens.atlas.state import (
    ActiveFeatures,
    AtlasState,
    ImageInfo,
    LayerState,
    LayerSums,
    Pool,
)
from vitlens.errors import CheckpointError, ImageError, VitlensError
from vitlens.interventions.hooks import isolated_model
from vitlens.io import ResumableRun, partial_path
from vitlens.models.vision import VisionModel
from vitlens.progress import Progress, interrupts_held

if TYPE_CHECKING:
    from vitlens.lens import Lens

_KIND = "atlas build"
_SECONDS_BETWEEN_SAVES = 60.0
_FEW_IMAGES = 1000
_NOT_FINITE = "the model's residual stream has NaN or infinite values on this image"


def build_state(
    lens: Lens,
    images: Any,
    *,
    labels: Any = None,
    groups: Any = None,
    credits: Any = None,
    n_top: int = 16,
    n_sampled: int = 16,
    thumbnails: int | None = 160,
    quality: int = QUALITY,
    heatmaps: bool = True,
    batch_size: int = 16,
    out: str | Path | None = None,
    resume: bool = True,
    part: tuple[int, int] | None = None,
    progress: Progress = True,
) -> AtlasState:
    """Run all images through the model once and accumulate statistics of every feature.

    All layers are read from one forward pass. Memory grows with features x images kept for each
    (`n_top`, `n_sampled`) and features x classes, not with the number of images.

    Parameters
    ----------
    lens
        The model and its SAEs.
    images
        See `vitlens.atlas.sources.open_source`. Images that cannot be read are left out and
        listed in `AtlasState.skipped`.
    labels
        Classes of the images: None for those of the data, or else what the model predicts;
        "predictions"; the name of an attribute of the data set; a list; a mapping by key; or a
        function of the key. Each label is an index, a name, or None.
    groups
        Images that count as one in the top pools, such as crops of one photograph or frames of
        one video: given in the same ways as `labels`. By default images with the same perceptual
        hash: most copies that were resized or compressed again, but no crops.
    credits
        Author and licence of each image, given in the same ways.
    n_top, n_sampled
        Images to keep for each feature: those it is most active in, and a sample of those it is
        active in.
    thumbnails, quality
        Longest side of the stored thumbnails in pixels, None to store none; and WebP's quality.
    heatmaps
        Keep the activation per token of each image kept.
    batch_size
        Number of images per batch. All batches have the same shape, so an image gives the same
        numbers whichever images it runs with (on one machine, with one batch size and number of
        threads).
    out
        Folder of the atlas: the unfinished state is saved in ``<out>.partial`` every minute and
        on Ctrl-C.
    resume
        Continue such a state; False starts again.
    part
        (i, n), i from 0: only every n-th batch, from the i-th on. Parts with the same settings
        merge to exactly the state of the whole.
    progress
        Show a bar; or a function of the share done and the name of the step. An exception that
        it raises ends the pass, which can be resumed.

    Raises
    ------
    ImageError
        If there is no image that can be read.
    TargetError
        If labels do not fit the images or the classes.
    CheckpointError
        If the unfinished state is damaged or of another run.
    VitlensError
        If a setting is out of range or a file cannot be written.
    """
    part = _checked_part(part)
    _check_sizes(n_top, n_sampled, thumbnails, quality, batch_size)
    source = open_source(images)
    classes = find_labels(lens, source, labels)
    settings = {
        "n_top": n_top,
        "n_sampled": n_sampled,
        "thumbnails": thumbnails,
        "quality": quality,
        "heatmaps": heatmaps,
        "batch_size": batch_size,
        "groups": "perceptual hash" if groups is None else "given",
        "dtype": str(lens.vision.dtype).removeprefix("torch."),
    }
    run = None
    if out is not None:
        identity = {
            "model and SAEs": lens.fingerprint,
            "settings": settings,
            "classes": [classes.origin, *classes.class_names],
            "images": _fingerprint(source),
            "part": "{} of {}".format(*part),
        }
        run = ResumableRun(out, _KIND, identity, seconds=_SECONDS_BETWEEN_SAVES)
    state, done, finished = new_state(lens, classes, settings), 0, False
    if run is not None and resume and (found := run.load()) is not None:
        state, done, finished = _resumed(run, *found)
        state = state.to(lens.vision.device)
    if not finished:
        state.skipped = tuple(sorted({*state.skipped, *source.skipped}))
        accumulator = Accumulator(
            lens,
            state,
            Reader(lens.transform, lens.vision.image_size, thumbnails),
            classes,
            start=done,
            groups=None if groups is None else look_up(groups, source, "groups", ImageError),
            credits=None if credits is None else look_up(credits, source, "credits", ImageError),
        )
        _accumulate(accumulator, source, part, run, progress)
    if not state.n_images:
        remove_partial(out)
        raise ImageError(_nothing_read(state))
    state.drop_unused_images()
    return state.to("cpu")


@contextmanager
def writing(out: str | Path | None) -> Iterator[None]:
    """Keep other runs from writing the same atlas at the same time.

    Raises
    ------
    VitlensError
        If another run is writing it. A run that was killed does not count.
    """
    if out is None:
        yield
        return
    with ResumableRun(out, _KIND, {}).writing():
        yield


def remove_partial(out: str | Path | None) -> None:
    """Remove the unfinished state of an atlas that has been written."""
    if out is not None:
        partial_path(out).unlink(missing_ok=True)


def _accumulate(
    accumulator: Accumulator,
    source: Source,
    part: tuple[int, int],
    run: ResumableRun | None,
    progress: Progress,
) -> None:
    """Add the remaining batches; save regularly, at the end, and when something stops it."""
    batch_size = accumulator.state.settings["batch_size"]
    total = count_images(source, batch_size, part)
    seen = accumulator.n_batches * batch_size
    batches = read_batches(
        accumulator.reader, source, batch_size, part=part, start=accumulator.n_batches
    )
    saving = nullcontext(lambda: None) if run is None else run.saving(accumulator.saved)
    silent = callable(progress) or not progress
    bar = tqdm(total=total, initial=seen, desc="images", unit="image", disable=silent)
    with closing(batches), saving as save_if_due, bar:
        for batch in batches:
            accumulator.add(batch)
            bar.update(len(batch))
            seen += len(batch)
            if callable(progress):
                progress(min(1.0, seen / total) if total else 0.0, "images")
            save_if_due()
        accumulator.finished = True
        if run is not None and (found := accumulator.saved()) is not None:
            run.save(*found)


def _resumed(
    run: ResumableRun, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]
) -> tuple[AtlasState, int, bool]:
    """The state, the number of batches in it, and whether these are all."""
    try:
        state = AtlasState.from_tensors(tensors, saved["state"])
        return state, int(saved["batches"]), bool(saved["finished"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.path} is damaged: {error!r}.") from error


def _fingerprint(source: Source) -> str | None:
    """Hash of the keys, where they are known without reading images."""
    if source.length is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    if source.parallel:
        for item in source.items():
            digest.update(item.key.encode() + b"\0")
    else:
        digest.update(str(source.length).encode())
    return digest.hexdigest()


def _nothing_read(state: AtlasState) -> str:
    if not state.skipped:
        return "This part has no images: there are fewer batches than parts."
    key, why = state.skipped[0]
    return f"None of the {len(state.skipped)} images could be read. The first, {key}: {why}"


def _checked_part(part: tuple[int, int] | None) -> tuple[int, int]:
    if part is None:
        return 0, 1
    number, of = part
    if not 0 <= number < of:
        raise VitlensError(f"part is (i, n) with i from 0 to n - 1, not {part}.")
    return number, of


def _check_sizes(
    n_top: int, n_sampled: int, thumbnails: int | None, quality: int, batch_size: int
) -> None:
    least = {"n_top": n_top, "n_sampled": n_sampled, "batch_size": batch_size}
    if thumbnails is not None:
        least["thumbnails"] = thumbnails
    for name, value in least.items():
        if value < 1:
            raise VitlensError(f"{name} must be at least 1, not {value}.")
    if not 0 <= quality <= 100:
        raise VitlensError(f"quality must be 0 to 100, not {quality}.")


class _Run(NamedTuple):
    """Results of one forward pass: active features and token scales per layer, and the output."""

    active: list[ActiveFeatures]
    stds: list[Float[Tensor, "n T"]]
    stream: Float[Tensor, "n T D"]
    logits: Float[Tensor, "n C"]
    embeddings: Float[Tensor, "n D"]


def new_state(lens: Lens, labels: Labels, settings: dict[str, Any]) -> AtlasState:
    """A state without images, on the device of the model."""
    vision, device = lens.vision, lens.vision.device
    n_tokens, n_classes = vision.n_tokens, len(labels.class_names)
    heatmap_tokens = n_tokens if settings["heatmaps"] else 0
    layers = [
        LayerState(
            LayerSums.zeros(
                n_tokens=n_tokens,
                n_prefix=vision.n_prefix,
                n_features=sae.n_features,
                n_classes=n_classes,
                device=device,
            ),
            Pool.empty("top", sae.n_features, settings["n_top"], heatmap_tokens, device),
            Pool.empty("sampled", sae.n_features, settings["n_sampled"], heatmap_tokens, device),
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
        layers=lens.layers,
        layer_states=tuple(layers),
        n_images=0,
        per_class=torch.zeros(n_classes, dtype=torch.int64, device=device),
        per_bucket=torch.zeros(n_buckets(n_classes), dtype=torch.int64, device=device),
        final_stream=torch.zeros(n_tokens, vision.d_model, dtype=torch.int64, device=device),
    )


class Accumulator:
    """Runs batches through the model and adds them to a state.

    Parameters
    ----------
    lens, reader, labels
        The model, the reader of images, and their classes.
    state
        The state to add to; it is changed.
    start
        Number of batches that the state already holds.
    groups, credits
        Group and credit of each image, as the caller gave them; without groups, images of the
        same perceptual hash are one group.

    Attributes
    ----------
    n_batches
        Batches in the state, including those of `start`.
    consistent
        The state holds whole batches only. False when adding a batch failed half way.
    finished
        There are no more batches.
    """

    def __init__(
        self,
        lens: Lens,
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
        self.finished = False
        self._many_images = _FEW_IMAGES

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `ResumableRun.save` takes; None while a batch is only partly added."""
        if not self.consistent:
            return None
        self.state.drop_unused_images()
        about = {"state": self.state.about(), "batches": self.n_batches, "finished": self.finished}
        return self.state.tensors(), about

    @torch.no_grad()
    def add(self, batch: Sequence[Ready | Unreadable]) -> None:
        """Run a batch and add it; Ctrl-C leaves the state with or without all of it."""
        vision = self.lens.vision
        failed = [(e.item.key, e.why) for e in batch if isinstance(e, Unreadable)]
        ready = [(row, e) for row, e in enumerate(batch) if isinstance(e, Ready)]
        run = info = None
        if ready:
            images = stack(
                batch,
                self.state.settings["batch_size"],
                vision.image_size,
                dtype=vision.dtype,
                device=vision.device,
            )
            with isolated_model(vision), torch.no_grad():
                run = _forward(self.lens, images)
            finite = run.stream.isfinite().flatten(1).all(dim=1).tolist()
            failed += [(e.item.key, _NOT_FINITE) for row, e in ready if not finite[row]]
            ready = [(row, e) for row, e in ready if finite[row]]
            info = self._image_info(images, run.logits, ready)
        with interrupts_held():
            self.consistent = False
            if failed:
                self.state.skipped = tuple(sorted({*self.state.skipped, *failed}))
            if ready and run and info:
                self._add(run, info, ready)
            self.n_batches += 1
            self.consistent = True

    def _image_info(
        self,
        images: Float[Tensor, "n 3 H W"],
        logits: Float[Tensor, "n C"],
        ready: Sequence[tuple[int, Ready]],
    ) -> ImageInfo:
        rows = torch.tensor([row for row, _ in ready], device=images.device)
        entries = [entry for _, entry in ready]
        ids = [exact.hash_text(entry.item.key) for entry in entries]
        if self.groups is None:
            groups = exact.perceptual_hash(images[rows])
        else:
            names = [str(self.groups(e.position, e.item)) for e in entries]
            groups = self._numbers([exact.hash_text(name, what="group") for name in names])
        if self.labels.origin == "predictions":
            labels = logits[rows].argmax(dim=1)
        elif self.labels.origin == "none":
            labels = torch.zeros_like(rows)
        else:
            labels = self._numbers(
                [self.labels.index(e.position, e.item, e.label) for e in entries]
            )
        return ImageInfo.of(
            self._numbers(ids),
            groups,
            labels,
            n_classes=len(self.state.class_names),
            n_prefix=self.state.n_prefix,
            n_tokens=self.state.n_tokens,
        )

    def _add(self, run: _Run, info: ImageInfo, ready: Sequence[tuple[int, Ready]]) -> None:
        state = self.state
        rows = torch.tensor([row for row, _ in ready], device=info.id.device)
        kept = torch.zeros_like(info.id, dtype=torch.bool)
        for layer, found, stds in zip(state.layer_states, run.active, run.stds, strict=True):
            active = found.of_images(rows)
            layer.sums.add(active, info, stds[rows])
            for pool in (layer.top, layer.sampled):
                kept |= pool.add(active.activations, active.peak, info.id, info.group)
        state.n_images += len(ready)
        known = info.label >= 0
        for counts, where in ((state.per_class, info.label), (state.per_bucket, info.bucket)):
            counts.index_add_(0, where[known], torch.ones_like(where[known]))
        state.final_stream += exact.to_fixed(run.stream[rows]).sum(dim=0)
        self._keep(run.embeddings[rows], info, ready, kept)

    def _keep(
        self,
        embeddings: Float[Tensor, "n D"],
        info: ImageInfo,
        ready: Sequence[tuple[int, Ready]],
        kept: Tensor,
    ) -> None:
        """Record the images that a pool has taken; regularly drop those that no pool holds."""
        numbers = zip(
            info.id.tolist(),
            info.label.tolist(),
            info.group.tolist(),
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
                thumbnail=self.reader.thumbnail(entry, self.state.settings["quality"]),
                credit=credit or "",
            )
        if len(self.state.images) > self._many_images:
            self.state.drop_unused_images()
            self._many_images = 2 * len(self.state.images) + _FEW_IMAGES

    def _numbers(self, numbers: Sequence[int]) -> Int[Tensor, " n"]:
        return torch.tensor(numbers, dtype=torch.int64, device=self.lens.vision.device)


def _forward(lens: Lens, images: Float[Tensor, "n 3 H W"]) -> _Run:
    """One pass through the model, which encodes the stream at every site."""
    vision = lens.vision
    stem = vision.embed(images)
    stream, before = stem.tokens, -1
    active, stds = [], []
    for layer, sae in zip(lens.layers, lens.saes, strict=True):
        stream, before = stem.through(before, layer)(stream), layer
        # What `SAE.encode` does, without an array of all activations that are set to 0.
        values, _, std = sae.normalize(stream)
        activations = torch.relu(sae.pre_activations(values))
        active.append(ActiveFeatures.of(activations, sae.active_mask(activations)))
        stds.append(std.squeeze(-1))
    stream = stem.through(before, vision.depth - 1)(stream)
    return _Run(active, stds, stream, vision.readout(stream), _embeddings(vision, stream))


def _embeddings(vision: VisionModel, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n D"]:
    """The model's own pooled output, or the mean patch where that has another width."""
    normed = vision.module.norm(stream)
    if "pre_logits" in inspect.signature(vision.module.forward_head).parameters:
        pooled = vision.module.forward_head(normed, pre_logits=True)
        if isinstance(pooled, Tensor) and pooled.shape == (len(stream), vision.d_model):
            return pooled
    return normed[:, vision.n_prefix :].mean(dim=1)

"""Training of the SAEs of all layers in one pass over the images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from vitlens.errors import CheckpointError, ImageError
from vitlens.io import fingerprint
from vitlens.models.vision import VisionModel, as_vision_model
from vitlens.progress import interrupts_held
from vitlens.saes.adam import learning_dtype
from vitlens.saes.checkpoint import RunFiles
from vitlens.saes.config import TrainConfig, scheduled_rate
from vitlens.saes.data import (
    TokenBuffer,
    batched,
    first_image,
    iterate_images,
    n_batches,
    planned_images,
    sae_residuals,
)
from vitlens.saes.io import load_saes, save_saes
from vitlens.saes.learner import Learner, StepReport
from vitlens.saes.topk import TopKSAE

_SMOOTHING = 0.9


@dataclass(frozen=True)
class TrainResult:
    """What training gives.

    Attributes
    ----------
    saes
        Of layers 0 to B-2, as saved in `folder`.
    folder
        Opens with `vitlens.saes.load_saes`.
    steps, n_images, n_tokens
        Steps taken; images and tokens seen, over all epochs.
    explained_variance, dead_fraction
        Per layer at the end of training, on training tokens: running mean over batches, in the
        normalised space; share of features silent for `dead_after` batches. For figures on
        unseen images use `vitlens.saes.measure`.
    """

    saes: tuple[TopKSAE, ...]
    folder: Path
    steps: int
    n_images: int
    n_tokens: int
    explained_variance: tuple[float, ...]
    dead_fraction: tuple[float, ...]

    def __str__(self) -> str:
        rows = [
            f"{layer:5d}  {sae.n_features:8d}  {sae.k:4d}  {explained:18.3f}  {dead:6.1%}"
            for layer, (sae, explained, dead) in enumerate(
                zip(self.saes, self.explained_variance, self.dead_fraction, strict=True)
            )
        ]
        head = f"{self.n_tokens:,} tokens of {self.n_images:,} images, {self.steps:,} steps"
        return "\n".join([head, "layer  features     k  explained variance    dead", *rows])


@dataclass(frozen=True)
class _Progress:
    """Where training stands: whole groups of images (one buffer each), then batches of one."""

    epoch: int = 0
    group: int = 0
    batch: int = 0
    n_images: int = 0
    n_tokens: int = 0


def train_saes(
    vision: nn.Module | VisionModel,
    images: Any,
    config: TrainConfig,
    *,
    out: str | Path,
    resume: bool = True,
    n_images: int | None = None,
) -> TrainResult:
    """Train the SAEs of layers 0 to B-2 of a model together.

    Each image goes through the model once an epoch; its tokens, at all layers, wait in a bounded
    buffer, are shuffled and used once. Activations are never written to disk. A checkpoint is
    written now and then and at Ctrl-C; calling again with the same arguments goes on from there,
    and gives what an uninterrupted run gives if `images` comes in the same order. The state of
    torch's global random generator is kept for that, so that a shuffling `DataLoader` qualifies.
    Other images are told by their number, and in tensors and sequences by the first one.

    Parameters
    ----------
    vit
        The model, or a `VisionModel` of it.
    images
        Model inputs, resized and normalised: a sequence, data set or data loader of float tensors
        [3, H, W] or batches [n, 3, H, W] (or tuples that begin with one), which can be iterated
        once an epoch. `Lens.tensor` and `vitlens.images.to_tensor` make one of any picture.
    config
        Sizes and settings.
    out
        Folder for the SAEs; it holds the checkpoint while training is under way.
    resume
        Go on from a checkpoint in `out`, or give back SAEs finished there. If False, start anew.
    n_images
        Images an epoch, where it does not follow from `images`. Needed for a learning rate that
        decays, and for a progress bar that knows its end.

    Returns
    -------
    TrainResult

    Raises
    ------
    ModelError
        If the model is of another structure, or in training mode.
    CheckpointError
        If settings do not fit the model, or `out` holds a run of another model, on other images
        or with other settings.
    ImageError
        If there is no image, or one does not fit the model or is not finite.
    VitlensError
        If a file cannot be written; an earlier checkpoint is left as it was.

    Notes
    -----
    Kim et al., NeurIPS 2025, arXiv 2509.17401.
    """
    return _Run(as_vision_model(vision), images, config, Path(out), n_images).train(resume=resume)


class _Run:
    """One training run: the learner, its place in the images, its files."""

    def __init__(
        self, vision: VisionModel, images: Any, config: TrainConfig, out: Path, n_images: int | None
    ) -> None:
        self.vision, self.images, self.config = vision, images, config
        self.n_layers = vision.depth - 1
        if config.epochs > 1 and isinstance(images, Iterator):
            raise ImageError(
                f"{config.epochs} epochs need images that can be iterated anew; an iterator gives"
                " one pass. Pass a list, a data set or a data loader."
            )
        self.per_epoch = planned_images(images, n_images, needed=bool(config.decay_share))
        self.dtype = learning_dtype(vision.dtype)
        self.low = config.precision == "bfloat16"
        self.group_images = max(1, config.buffer_tokens // vision.n_tokens)
        self.learner = Learner(
            vision.d_model, config, self.n_layers, dtype=self.dtype, device=vision.device
        )
        self.progress = _Progress()
        identity = {
            "model": fingerprint(vision.module.state_dict()),
            "config": config.to_dict(),
            "n_images": self.per_epoch,
            "first_image": first_image(images),
        }
        self.files = RunFiles(out, "vitlens-sae-training", identity)
        self.epoch_rng = torch.get_rng_state()
        self.running: StepReport | None = None
        self.in_step = False

    def train(self, *, resume: bool) -> TrainResult:
        if resume and self.files.path.is_file():
            self._load()
        elif resume and self.files.manifest.is_file():
            return self._finished()
        try:
            self._loop()
            self._finish()
        except BaseException:
            # Between two steps the state is whole, whatever went wrong with an image or a file.
            if not self.in_step and self.progress != _Progress():
                self._save()
            raise
        return self._finished()

    def _loop(self) -> None:
        config, start = self.config, self.progress
        total = None if self.per_epoch is None else self.per_epoch * config.epochs
        last_save = time.monotonic()
        with tqdm(total=total, initial=start.n_images, unit="image", desc="SAEs") as bar:
            while self.progress.epoch < config.epochs:
                for buffer in self._buffers(bar):
                    generator = torch.Generator().manual_seed(self._group_seed())
                    for batch in buffer.batches(
                        config.batch_tokens, generator, start=self.progress.batch
                    ):
                        with interrupts_held():
                            self._step(batch)
                        self._show(bar)
                        if time.monotonic() - last_save > config.checkpoint_seconds:
                            self._save()
                            last_save = time.monotonic()
                    self.progress = replace(
                        self.progress,
                        group=self.progress.group + 1,
                        batch=0,
                        n_images=self.progress.n_images + buffer.n_images,
                        n_tokens=self.progress.n_tokens + buffer.n_tokens,
                    )
                if self.progress.n_images == 0:
                    raise ImageError("There are no images to train on.")
                self.epoch_rng = torch.get_rng_state()
                self.progress = replace(self.progress, epoch=self.progress.epoch + 1, group=0)

    def _buffers(self, bar: tqdm) -> Iterator[TokenBuffer]:
        """Yield the rest of this epoch's images, group by group, as tokens of every layer."""
        each = iterate_images(self.images, self.progress.group * self.group_images)
        while True:
            group = itertools.islice(each, self.group_images)
            dtype = torch.bfloat16 if self.low else self.dtype
            buffer = TokenBuffer(self.n_layers, self.vision.d_model, dtype=dtype)
            for batch in batched(group, self.config.forward_images, self.vision.image_size):
                buffer.add(sae_residuals(self.vision, batch, bfloat16=self.low))
                bar.update(len(batch))
            if buffer.n_images == 0:
                return
            yield buffer

    def _step(self, batch: tuple[torch.Tensor, ...]) -> None:
        self.in_step = True
        total = self._total_steps() if self.config.decay_share else None
        rate = scheduled_rate(self.config, self.learner.step_count, total)
        report = self.learner.step(batch, rate)
        self.progress = replace(self.progress, batch=self.progress.batch + 1)
        if self.running is not None:
            smooth = torch.lerp(
                report.explained_variance, self.running.explained_variance, _SMOOTHING
            )
            report = StepReport(smooth, report.dead_fraction)
        self.running = report
        self.in_step = False

    def _show(self, bar: tqdm) -> None:
        assert self.running is not None
        if bar.disable:
            return
        rate = bar.format_dict["rate"]
        tokens = f"{rate * self.vision.n_tokens:,.0f}" if rate else "?"
        explained = self.running.explained_variance
        bar.set_postfix_str(
            f"{tokens} tokens/s, explained variance {explained.mean():.3f}"
            f" (lowest {explained.min():.3f}), dead {self.running.dead_fraction.mean():.1%}",
            refresh=False,
        )

    def _total_steps(self) -> int:
        assert self.per_epoch is not None
        whole, rest = divmod(self.per_epoch, self.group_images)
        T, size = self.vision.n_tokens, self.config.batch_tokens
        steps = whole * n_batches(self.group_images * T, size)
        return self.config.epochs * (steps + (n_batches(rest * T, size) if rest else 0))

    def _group_seed(self) -> int:
        """Seed of one group's shuffling: it depends on the place alone, so no state is kept."""
        place = torch.tensor([self.config.seed, self.progress.epoch, self.progress.group])
        return int(fingerprint({"place": place})[:15], 16)

    def _save(self) -> None:
        tensors = {**self.learner.state(), "rng": self.epoch_rng}
        if self.running is not None:
            tensors["explained_variance"] = self.running.explained_variance
            tensors["dead_fraction"] = self.running.dead_fraction
        progress = {"step": self.learner.step_count, "progress": asdict(self.progress)}
        self.files.write(tensors, progress)

    def _load(self) -> None:
        tensors, metadata = self.files.read()
        try:
            self.learner.load_state(tensors, metadata["step"])
            self.progress = _Progress(**metadata["progress"])
            self.epoch_rng = tensors["rng"]
            if "explained_variance" in tensors:
                self.running = StepReport(
                    *(
                        tensors[name].to(self.vision.device)
                        for name in ("explained_variance", "dead_fraction")
                    )
                )
        except (KeyError, TypeError, CheckpointError) as error:
            raise CheckpointError(f"{self.files.path} is damaged: {error}.") from error
        torch.set_rng_state(self.epoch_rng)

    def _finish(self) -> None:
        assert self.running is not None
        figures = {
            "steps": self.learner.step_count,
            "n_images": self.progress.n_images,
            "n_tokens": self.progress.n_tokens,
            "explained_variance": self.running.explained_variance.tolist(),
            "dead_fraction": self.running.dead_fraction.tolist(),
        }
        metadata = {**self.files.identity, "training": figures}
        save_saes(self.learner.saes, self.files.folder, metadata=metadata)
        self.files.path.unlink(missing_ok=True)

    def _finished(self) -> TrainResult:
        figures, folder = self.files.figures("training"), self.files.folder
        return TrainResult(
            saes=tuple(load_saes(folder, dtype=self.dtype, device=self.vision.device).values()),
            folder=folder,
            steps=figures["steps"],
            n_images=figures["n_images"],
            n_tokens=figures["n_tokens"],
            explained_variance=tuple(figures["explained_variance"]),
            dead_fraction=tuple(figures["dead_fraction"]),
        )

"""Training of SAEs on the residual stream, and tuning of all of them end to end: one loop.

`train_saes` trains each SAE on the model's own stream, with tokens of many images shuffled in a
buffer. `tune_saes` runs trained SAEs one after another. Both are `_Run`s, which keep their place
in the images and can be interrupted; they differ in their `_Task`.
"""

from __future__ import annotations

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from vitlens.errors import CheckpointError, ImageError, ModelError
from vitlens.io import ResumableRun, check_folder, fingerprint
from vitlens.method.replacement import ReplacementModel
from vitlens.models.vision import VisionModel, as_vision_model, on_the_cpu
from vitlens.progress import interrupts_held
from vitlens.saes.base import SAE
from vitlens.saes.data import (
    TokenBuffer,
    batched,
    first_image,
    iterate_images,
    n_batches,
    planned_images,
    sae_residuals,
)
from vitlens.saes.io import (
    MANIFEST,
    check_layers,
    fingerprint_of_saes,
    load_saes,
    read_manifest,
    resolve_saes,
    save_saes,
)
from vitlens.saes.topk import TopKSAE
from vitlens.tables import text_table
from vitlens.training.config import TrainConfig, TuneConfig, scheduled_rate
from vitlens.training.losses import RunningMeans, SmallCircuits, chain_losses, promoted
from vitlens.training.optimizer import Learner, gradients, learning_dtype, new_sae

_SMOOTHING = 0.9


@dataclass(frozen=True)
class TrainResult:
    """The result of training.

    Attributes
    ----------
    saes
        By layer, as saved in `folder`.
    folder
        Opens with `vitlens.saes.load_saes`.
    steps, n_images, n_tokens
        Steps taken; images and tokens seen, over all epochs.
    explained_variance
        Per layer at the end, on training images: running mean over batches, of normalised tokens
        for `train_saes` and of the stream for `tune_saes`. For figures on unseen images use
        `vitlens.training.health.measure`.
    dead_fraction
        Per layer at the end, the share of features that were silent for `dead_after` batches.
    """

    saes: Mapping[int, SAE]
    folder: Path
    steps: int
    n_images: int
    n_tokens: int
    explained_variance: tuple[float, ...]
    dead_fraction: tuple[float, ...]

    def _columns(self) -> dict[str, list[str]]:
        return {
            "layer": [str(layer) for layer in self.saes],
            "features": [str(sae.n_features) for sae in self.saes.values()],
            "most active": [str(sae.max_active) for sae in self.saes.values()],
            "explained variance": [f"{value:.3f}" for value in self.explained_variance],
            "dead": [f"{value:.1%}" for value in self.dead_fraction],
        }

    def __str__(self) -> str:
        columns = self._columns()
        rows = list(zip(*columns.values(), strict=True))
        head = f"{self.n_tokens:,} tokens of {self.n_images:,} images, {self.steps:,} steps"
        return f"{head}\n{text_table(list(columns), rows, align='r' * len(columns))}"


@dataclass(frozen=True)
class TuneResult(TrainResult):
    """The result of tuning.

    Attributes
    ----------
    chain_explained_variance
        Per layer, with the SAEs of all earlier layers in place, of the model's own stream.
    divergence
        Divergence between the output with all SAEs in place and the model's output, in nats per
        image.
    circuit_divergence
        The same for small circuits; None where they were no part of the loss. All are running
        means over batches at the end of tuning, on its images.
    """

    chain_explained_variance: tuple[float, ...]
    divergence: float
    circuit_divergence: float | None = None

    def _columns(self) -> dict[str, list[str]]:
        chain = [f"{value:.3f}" for value in self.chain_explained_variance]
        return {**super()._columns(), "in chain": chain}

    def __str__(self) -> str:
        tail = f"divergence of the output with all in place: {self.divergence:.3f} nats"
        if self.circuit_divergence is not None:
            tail += f", of small circuits: {self.circuit_divergence:.3f} nats"
        return f"{super().__str__()}\n{tail}"


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run.

    Attributes
    ----------
    seconds
        Duration of the whole run, if the machine stays as busy as it is.
    memory_bytes
        Tokens that wait, weights with gradients and moments, and the largest intermediate
        results; besides the model and the images themselves.
    n_tokens
        Tokens over all epochs.
    seconds_per_image
        Time per image and epoch.
    """

    seconds: float
    memory_bytes: int
    n_tokens: int
    seconds_per_image: float

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        return (
            f"{self.n_tokens:,} tokens, about {minutes} min {seconds:02d} s and"
            f" {self.memory_bytes / 2**30:.1f} GiB of memory"
        )


def train_saes(
    vision: nn.Module | VisionModel,
    images: Any,
    config: TrainConfig,
    *,
    out: str | Path,
    layers: Sequence[int] | None = None,
    resume: bool = True,
    n_images: int | None = None,
) -> TrainResult:
    """Train the SAEs of several layers of a model together.

    Each image goes through the model once per epoch; its tokens, at all layers, wait in a bounded
    buffer, are shuffled and used once. Activations are never written to disk. The unfinished run
    is saved regularly and on Ctrl-C, next to `out`; calling again with the same arguments
    continues it, and gives what an uninterrupted run gives if `images` comes in the same order.
    The state of torch's global random generator is kept for that, so that a shuffling `DataLoader`
    qualifies. Other images are recognised by their number, and in tensors and sequences by the
    first one.

    Parameters
    ----------
    vision
        The model, or a `VisionModel` of it.
    images
        Model inputs, resized and normalised: a sequence, data set or data loader of float tensors
        [3, H, W] or batches [n, 3, H, W] (or tuples that begin with one), which can be iterated
        once per epoch. `Lens.tensor` and `vitlens.images.to_tensor` make one from any image.
    config
        Sizes and settings.
    out
        Folder for the SAEs; the unfinished run is kept in ``<out>.partial``.
    layers
        Numbers of the blocks after which SAEs are trained, ascending; by default every block but
        the last.
    resume
        Continue an unfinished run, or return SAEs finished in `out`. If False, start again.
    n_images
        Images per epoch, where it does not follow from `images`. Needed for a learning rate that
        decays, and for a progress bar that knows its end.

    Returns
    -------
    TrainResult

    Raises
    ------
    ModelError
        If the model is of another structure, or in training mode.
    CheckpointError
        If settings or layers do not fit the model, or `out` holds a run of another model, on other
        images or with other settings.
    ImageError
        If there is no image, or one does not fit the model or is not finite.
    VitlensError
        If another run is writing `out`, or a file cannot be written; what was saved before is left
        as it was.

    Notes
    -----
    Kim et al., NeurIPS 2025, arXiv 2509.17401.
    """
    vision = as_vision_model(vision)
    with _own_context(vision):
        task = _Training(vision, _layers_of(vision, layers), config)
        run = _Run(task, images, Path(out), n_images)
        run.go(resume=resume)
        return TrainResult(**run.result())


def tune_saes(
    vision: nn.Module | VisionModel,
    saes: Mapping[int, SAE] | Iterable[SAE] | str | Path,
    images: Any,
    config: TuneConfig | None = None,
    *,
    out: str | Path,
    layers: Sequence[int] | None = None,
    resume: bool = True,
    n_images: int | None = None,
) -> TuneResult:
    """Tune trained SAEs of any kind end to end, in one pass over the images.

    SAEs trained layer by layer see only the model's own stream. With all of them in place and no
    error nodes, each reads what the earlier ones left over, and small errors grow from layer to
    layer. The loss of a step is the mean share of variance each SAE leaves unexplained alone,
    plus `chain_weight` times the same through all earlier SAEs, plus `output_weight` times the
    divergence of the output, plus `circuit_weight` times that of small circuits (docs/method.md,
    "SAEs for small circuits"), plus `aux_weight` times AuxK's, which keeps features from dying.
    What decides which features are active (k, budget, threshold) and the lengths of the decoder's
    rows stay as they are. For a Matryoshka SAE the loss is of all features together, without losses
    of its groups: its first features alone may reconstruct less well afterwards.

    The unfinished run is saved regularly and on Ctrl-C; calling again with the same arguments
    continues it, as `train_saes` does. The SAEs given are not changed.

    Parameters
    ----------
    vision
        The model, or a `VisionModel` of it; its softmax is compared, so that a tower without a
        classifier needs a head (of the `VisionModel`), or ``output_weight=0``.
    saes
        By layer; or one for every block but the last; or a folder or hub name to load them from.
    images
        Model inputs, as for `train_saes`.
    config
        Settings; ``TuneConfig()`` if left out.
    out
        Folder for the tuned SAEs; the unfinished run is kept in ``<out>.partial``.
    layers
        Which of the SAEs to tune, ascending, the others being left out; by default all. The layers
        of the SAEs, where these are given without.
    resume
        Continue an unfinished run, or return SAEs finished in `out`. If False, start again.
    n_images
        Number of images, if it does not follow from `images`.

    Returns
    -------
    TuneResult

    Raises
    ------
    ModelError
        If the model is of another structure, in training mode, or made in inference mode.
    CheckpointError
        If the SAEs do not fit the model or cannot be loaded, or `out` holds another run.
    ImageError
        If there is no image, or one does not fit the model or is not finite.
    VitlensError
        If another run is writing `out`, or a file cannot be written; what was saved before is left
        as it was.

    Notes
    -----
    Braun et al., "Identifying functionally important features with end-to-end sparse dictionary
    learning", NeurIPS 2024, arXiv 2405.12241, train one SAE at a time in this way; here all
    layers are in place at once.
    """
    vision = as_vision_model(vision)
    with _own_context(vision):
        found, given = resolve_saes(saes, vision, layers)
        task = _Tuning(vision, found, given, config or TuneConfig())
        run = _Run(task, images, Path(out), n_images)
        run.go(resume=resume)
        return TuneResult(**run.result())


def estimate(
    vision: nn.Module | VisionModel,
    config: TrainConfig,
    n_images: int,
    *,
    layers: Sequence[int] | None = None,
) -> Estimate:
    """Estimate time and memory of training on `n_images` images (per epoch).

    One forward pass and one step of every layer are run on random numbers and timed, each after
    a first one that does not count; on slow machines this takes some seconds.

    Parameters
    ----------
    vision, config, layers
        See `train_saes`.
    n_images
        Images per epoch.

    Raises
    ------
    CheckpointError
        If the settings do not fit the model.
    """
    vision = as_vision_model(vision)
    with _own_context(vision):
        task = _Training(vision, _layers_of(vision, layers), config)
        return _estimate(task, n_images)


def estimate_tuning(
    vision: nn.Module | VisionModel,
    saes: Mapping[int, SAE] | Iterable[SAE] | str | Path,
    config: TuneConfig,
    n_images: int,
    *,
    layers: Sequence[int] | None = None,
) -> Estimate:
    """Estimate time and memory of tuning on `n_images` images.

    Two steps are taken on random images, of which the second is timed and what it keeps is
    counted.

    Parameters
    ----------
    vision, saes, config, layers
        See `tune_saes`.
    n_images
        Number of images.

    Raises
    ------
    CheckpointError
        If the SAEs do not fit the model.
    """
    vision = as_vision_model(vision)
    with _own_context(vision):
        found, given = resolve_saes(saes, vision, layers)
        return _estimate(_Tuning(vision, found, given, config), n_images)


@dataclass(frozen=True)
class _Group:
    """Images that are read together, and the batches to be made of them.

    `batches` takes a random generator and the number of batches to skip.
    """

    n_images: int
    n_tokens: int
    batches: Callable[..., Iterator[Any]]


class _Task(ABC):
    """What is learned from the images, and how.

    Attributes
    ----------
    kind, key
        In the words of a message; and of the manifest.
    vision, layers, config
        The model, the layers of the SAEs, the settings.
    learner
        The SAEs.
    identity
        What the result depends on besides model, images and settings.
    epochs, group_images
        Passes over the images; images per group.
    """

    kind: ClassVar[str]
    key: ClassVar[str]
    config: TrainConfig | TuneConfig
    epochs: int
    group_images: int

    def __init__(self, vision: VisionModel, layers: Sequence[int], saes: Sequence[SAE]) -> None:
        self.vision, self.layers = vision, tuple(layers)
        self.dtype = learning_dtype(vision.dtype)
        learning = [_copy_of(sae, self.dtype, vision.device).requires_grad_() for sae in saes]
        self.learner = Learner(
            learning,
            layers,
            learning_rate=self.config.learning_rate,
            dead_after=self.config.dead_after,
        )
        self.identity: dict[str, Any] = {"layers": list(layers)}
        # What a run needs to continue besides weights and moments, now and after this step.
        self.kept: dict[str, Tensor] = {}
        self.next_kept: dict[str, Tensor] = {}

    @property
    def low(self) -> bool:
        """Whether matrix products are in bfloat16."""
        return self.config.precision == "bfloat16"

    @abstractmethod
    def read(self, images: Iterator[Float[Tensor, "3 H W"]], bar: tqdm) -> _Group:
        """Read the images of a group; a group of no images at their end."""

    @abstractmethod
    def n_steps(self, n_images: int) -> int:
        """Steps that a group of `n_images` gives."""

    @abstractmethod
    def gradients(self, batch: Any) -> tuple[dict[str, Tensor], list[Bool[Tensor, " F"]]]:
        """Set the `grad` of all that learns; return figures by name and the active features."""

    @abstractmethod
    def summary(self, figures: Mapping[str, Tensor]) -> str:
        """Figures in a few words, for the progress bar."""

    @abstractmethod
    def random_group(self, n_images: int) -> tuple[Callable[[], object], int, Any]:
        """What an estimate measures: reading of images, how many, and a batch to learn from."""

    @abstractmethod
    def waiting_bytes(self, n_images: int) -> int:
        """Memory of the tokens that wait, and of a step before its gradients."""


class _Training(_Task):
    """Each SAE on the normalised tokens of its own layer."""

    kind, key = "SAE training", "training"
    config: TrainConfig

    def __init__(self, vision: VisionModel, layers: Sequence[int], config: TrainConfig) -> None:
        self.config = config
        self.epochs = config.epochs
        self.sizes = config.for_layers(layers)
        self.whole_images = any(size.budget is not None for size in self.sizes)
        self.group_images = max(1, config.buffer_tokens // vision.n_tokens)
        generator = torch.Generator().manual_seed(config.seed)
        super().__init__(
            vision, layers, [new_sae(vision.d_model, *size, generator) for size in self.sizes]
        )
        self._token_dtype = torch.bfloat16 if self.low else self.dtype

    def read(self, images: Iterator[Float[Tensor, "3 H W"]], bar: tqdm) -> _Group:
        buffer = TokenBuffer(
            len(self.layers), dtype=self._token_dtype, whole_images=self.whole_images
        )
        for batch in batched(images, self.config.forward_images, self.vision.image_size):
            buffer.add(sae_residuals(self.vision, batch, self.layers, bfloat16=self.low))
            bar.update(len(batch))
        batches = partial(buffer.batches, self.config.batch_tokens)
        return _Group(buffer.n_images, buffer.n_tokens, batches)

    def n_steps(self, n_images: int) -> int:
        n_tokens = n_images * self.vision.n_tokens
        n_items = n_images if self.whole_images else n_tokens
        return n_batches(n_tokens, self.config.batch_tokens, n_items)

    @torch.no_grad()
    def gradients(
        self, batch: Sequence[Float[Tensor, "*n N D"]]
    ) -> tuple[dict[str, Tensor], list[Bool[Tensor, " F"]]]:
        explained, active = [], []
        dead = self.learner.dead()
        for sae, silent, tokens in zip(self.learner.saes, dead, batch, strict=True):
            assert isinstance(sae, TopKSAE)
            if self.learner.step_count == 0:
                sae.b_dec.copy_(tokens.to(sae.b_dec.dtype).flatten(0, -2).mean(0))
            found = gradients(
                sae,
                tokens,
                silent,
                aux_weight=self.config.aux_weight,
                aux_features=self.config.aux_features,
                matmul_dtype=self._token_dtype,
            )
            for name in ("W_enc", "W_dec", "b_dec"):
                getattr(sae, name).grad = getattr(found, name)
            explained.append(1 - found.squared_error / found.total_square)
            active.append(found.active)
        return {"explained_variance": torch.stack(explained)}, active

    def summary(self, figures: Mapping[str, Tensor]) -> str:
        explained = figures["explained_variance"]
        return f"explained variance {explained.mean():.3f} (lowest {explained.min():.3f})"

    def random_group(self, n_images: int) -> tuple[Callable[[], object], int, Any]:
        n_forward = min(self.config.forward_images, n_images)
        images = _noise(self.vision, n_forward, 3, *self.vision.image_size)
        T = self.vision.n_tokens
        n_tokens = min(self.config.batch_tokens, n_images * T)
        shape = (max(1, n_tokens // T), T) if self.whole_images else (n_tokens,)
        tokens = _noise(self.vision, *shape, self.vision.d_model)

        def read() -> object:
            return sae_residuals(self.vision, images, self.layers, bfloat16=self.low)

        return read, n_forward, [tokens] * len(self.layers)

    def waiting_bytes(self, n_images: int) -> int:
        config, D, T = self.config, self.vision.d_model, self.vision.n_tokens
        own, low = self.dtype.itemsize, self._token_dtype.itemsize
        n_layers = len(self.layers)
        # The buffer, and one layer of it twice while its parts are joined.
        buffer = min(config.buffer_tokens, n_images * T) * D * low * (n_layers + 1)
        # Of a step: pre-activations, features and their gradients; tokens, reconstruction, errors.
        largest = max(size.n_features for size in self.sizes)
        step = config.batch_tokens * (4 * largest * low + 6 * D * own + D * low * n_layers)
        # Of a forward pass: every layer's stream, and in one block qkv and the MLP's hidden layer.
        forward = config.forward_images * T * D * (n_layers + 12) * own
        return buffer + max(step, forward)


class _Tuning(_Task):
    """All SAEs one after another, and each alone."""

    kind, key = "SAE tuning", "tuning"
    config: TuneConfig
    epochs = 1

    def __init__(
        self, vision: VisionModel, layers: Sequence[int], saes: Sequence[SAE], config: TuneConfig
    ) -> None:
        if any(weight.is_inference() for weight in vision.module.parameters()):
            raise ModelError(
                "The model was made in `torch.inference_mode`, and gradients cannot pass through"
                " it. Create or load it outside."
            )
        self.config = config
        self.group_images = config.batch_images
        super().__init__(vision, layers, saes)
        self.identity["SAEs"] = fingerprint_of_saes(layers, saes)
        self.replacement = ReplacementModel(
            promoted(vision, self.dtype), self.learner.saes, self.layers
        )

    def read(self, images: Iterator[Float[Tensor, "3 H W"]], bar: tqdm) -> _Group:
        found = list(batched(images, self.group_images, self.vision.image_size))
        n_images = sum(map(len, found))
        bar.update(n_images)

        def batches(_generator: torch.Generator, start: int = 0) -> Iterator[Tensor]:
            yield from found[start:]

        return _Group(n_images, n_images * self.vision.n_tokens, batches)

    def n_steps(self, n_images: int) -> int:
        return 1

    def gradients(
        self, batch: Float[Tensor, "n 3 H W"]
    ) -> tuple[dict[str, Tensor], list[Bool[Tensor, " F"]]]:
        config = self.config
        losses = chain_losses(
            self.replacement,
            batch,
            dead=self.learner.dead(),
            aux_features=config.aux_features,
            bfloat16=self.low,
            circuits=self._circuits() if config.circuit_weight else None,
        )
        loss = losses.alone.mean() + config.chain_weight * losses.chain.mean()
        loss = loss + config.output_weight * losses.output + config.aux_weight * losses.aux.mean()
        if losses.means is not None:
            loss = loss + config.circuit_weight * losses.circuit
            self.next_kept = losses.means.to_tensors(self.layers)
        if not torch.isfinite(loss):
            raise ImageError(
                "The loss is NaN or infinite. Either an image holds such values, the model "
                "overflows in this precision, or the learning rate is too large."
            )
        # Not loss.backward(), which would also leave gradients in the user's model.
        parameters = self.learner.parameters
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        figures = {
            "explained_variance": 1 - losses.alone.detach(),
            "chain_explained_variance": 1 - losses.chain.detach(),
            "divergence": losses.output.detach(),
        }
        if losses.means is not None:
            figures["circuit_divergence"] = losses.circuit.detach()
        return figures, list(losses.active)

    def _circuits(self) -> SmallCircuits:
        """The size of this step's circuits, and what their error nodes hold."""
        config = self.config
        # From the step alone, so that a run that continues draws the same.
        random = np.random.default_rng([config.seed, self.learner.step_count])
        low, high = map(math.log, config.circuit_features)
        n_features = round(math.exp(random.uniform(low, high)))
        at_means = random.random() < config.circuit_error_means
        means = RunningMeans.from_tensors(self.kept, self.layers)
        return SmallCircuits(n_features, "baseline" if at_means else "clean", means)

    def summary(self, figures: Mapping[str, Tensor]) -> str:
        text = (
            f"explained variance {figures['explained_variance'].mean():.3f}, in chain"
            f" {figures['chain_explained_variance'].mean():.3f}, divergence"
            f" {figures['divergence']:.3f}"
        )
        if "circuit_divergence" in figures:
            text += f", of small circuits {figures['circuit_divergence']:.3f}"
        return text

    def random_group(self, n_images: int) -> tuple[Callable[[], object], int, Any]:
        n_batch = min(self.config.batch_images, n_images)
        return lambda: None, n_batch, _noise(self.vision, n_batch, 3, *self.vision.image_size)

    def waiting_bytes(self, n_images: int) -> int:
        return 0


@dataclass(frozen=True)
class _Place:
    """Where a run stands: whole groups of images, then batches of one."""

    epoch: int = 0
    group: int = 0
    batch: int = 0
    n_images: int = 0
    n_tokens: int = 0


class _Run:
    """One run of a task: its place in the images, its figures, its files."""

    def __init__(self, task: _Task, images: Any, out: Path, n_images: int | None) -> None:
        self.task, self.learner, self.images = task, task.learner, images
        config = task.config
        if task.epochs > 1 and isinstance(images, Iterator):
            raise ImageError(
                f"{task.epochs} epochs need images that can be iterated again; an iterator gives"
                " one pass. Pass a list, a data set or a data loader."
            )
        self.per_epoch = planned_images(images, n_images, needed=bool(config.decay_share))
        settings = config.to_dict()
        seconds = settings.pop("checkpoint_seconds")
        identity = {
            "model": _fingerprint(task.vision),
            **task.identity,
            "number of images": "unknown" if self.per_epoch is None else self.per_epoch,
            "first image": first_image(images),
            "settings": settings,
        }
        check_folder(out)
        self.files = ResumableRun(out, task.kind, identity, seconds=seconds)
        self.place = _Place()
        self.epoch_rng = torch.get_rng_state()
        self.figures: dict[str, Tensor] = {}
        self.in_step = False

    def go(self, *, resume: bool) -> None:
        with self.files.writing():
            if resume and (found := self.files.load()):
                self._continue(*found)
            elif resume and (self.files.out / MANIFEST).is_file():
                return
            with self.files.saving(self._state) as save_if_due:
                self._loop(save_if_due)
                self._finish()
            self.files.remove()

    def result(self) -> dict[str, Any]:
        """Fields of the result, from the finished folder."""
        folder = self.files.out
        metadata = read_manifest(folder)["metadata"]
        self.files.check(metadata.get("run"), folder / MANIFEST)
        figures = dict(metadata[self.task.key])
        del figures["settings"]
        fields = {n: tuple(v) if isinstance(v, list) else v for n, v in figures.items()}
        saes = load_saes(folder, dtype=self.task.dtype, device=self.task.vision.device)
        return {**fields, "saes": saes, "folder": folder}

    def _loop(self, save_if_due: Callable[[], None]) -> None:
        task = self.task
        total = None if self.per_epoch is None else self.per_epoch * task.epochs
        with tqdm(total=total, initial=self.place.n_images, unit="image", desc=task.kind) as bar:
            while self.place.epoch < task.epochs:
                each = iterate_images(self.images, self.place.group * task.group_images)
                while True:
                    group = task.read(itertools.islice(each, task.group_images), bar)
                    if not group.n_images:
                        break
                    generator = torch.Generator().manual_seed(self._group_seed())
                    for batch in group.batches(generator, start=self.place.batch):
                        self._step(batch)
                        self._show(bar)
                        save_if_due()
                    self.place = replace(
                        self.place,
                        group=self.place.group + 1,
                        batch=0,
                        n_images=self.place.n_images + group.n_images,
                        n_tokens=self.place.n_tokens + group.n_tokens,
                    )
                    del group  # before the next one is read: it may hold most of the memory
                if self.place.n_images == 0:
                    raise ImageError("There are no images to train on.")
                self.epoch_rng = torch.get_rng_state()
                self.place = replace(self.place, epoch=self.place.epoch + 1, group=0)

    def _step(self, batch: Any) -> None:
        config = self.task.config
        figures, active = self.task.gradients(batch)
        total = self._total_steps() if config.decay_share else None
        rate = scheduled_rate(config, self.learner.step_count, total)
        with interrupts_held():
            self.in_step = True
            self.learner.step(rate, active)
            self.task.kept = self.task.next_kept
            self.place = replace(self.place, batch=self.place.batch + 1)
            self.figures = {
                name: torch.lerp(value, self.figures[name], _SMOOTHING) if self.figures else value
                for name, value in figures.items()
            }
            self.in_step = False

    def _show(self, bar: tqdm) -> None:
        if bar.disable:
            return
        rate = bar.format_dict["rate"]
        tokens = f"{rate * self.task.vision.n_tokens:,.0f}" if rate else "?"
        dead = sum(self._dead_fraction()) / len(self.task.layers)
        bar.set_postfix_str(
            f"{tokens} tokens/s, {self.task.summary(self.figures)}, dead {dead:.1%}", refresh=False
        )

    def _total_steps(self) -> int:
        assert self.per_epoch is not None
        whole, rest = divmod(self.per_epoch, self.task.group_images)
        steps = whole * self.task.n_steps(self.task.group_images)
        return self.task.epochs * (steps + (self.task.n_steps(rest) if rest else 0))

    def _group_seed(self) -> int:
        """Seed of one group's shuffling: it depends on the place alone, so no state is kept."""
        seed = getattr(self.task.config, "seed", 0)
        place = torch.tensor([seed, self.place.epoch, self.place.group])
        return int(fingerprint({"place": place})[:15], 16)

    def _dead_fraction(self) -> list[float]:
        dead = zip(self.learner.dead(), self.learner.saes, strict=True)
        return [len(silent) / sae.n_features for silent, sae in dead]

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """All that a run needs to continue; None in a step, and before anything is learned."""
        if self.in_step or self.place == _Place():
            return None
        figures = {f"figures.{name}": value for name, value in self.figures.items()}
        own = {f"task.{name}": value for name, value in self.task.kept.items()}
        tensors = {**self.learner.state(), **own, **figures, "rng": self.epoch_rng}
        return tensors, {"step": self.learner.step_count, "place": asdict(self.place)}

    def _continue(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        try:
            self.learner.load_state(tensors, state["step"])
            self.place = _Place(**state["place"])
            self.epoch_rng = tensors["rng"]
            self.task.kept = self.task.next_kept = {
                name.removeprefix("task."): value.to(self.task.vision.device)
                for name, value in tensors.items()
                if name.startswith("task.")
            }
            self.figures = {
                name.removeprefix("figures."): value.to(self.task.vision.device)
                for name, value in tensors.items()
                if name.startswith("figures.")
            }
        except (KeyError, TypeError, CheckpointError) as error:
            raise CheckpointError(f"{self.files.path} is damaged: {error}.") from error
        torch.set_rng_state(self.epoch_rng)

    def _finish(self) -> None:
        figures = {
            "settings": self.task.config.to_dict(),
            "steps": self.learner.step_count,
            "n_images": self.place.n_images,
            "n_tokens": self.place.n_tokens,
            **{name: value.tolist() for name, value in self.figures.items()},
            "dead_fraction": self._dead_fraction(),
        }
        saes = dict(zip(self.task.layers, self.learner.saes, strict=True))
        metadata = {"run": self.files.stamp(), self.task.key: figures}
        save_saes(saes, self.files.out, metadata=metadata)


def _estimate(task: _Task, n_images: int) -> Estimate:
    """Time one group's share of reading and of a step, and count what they keep."""
    read, n_read, batch = task.random_group(n_images)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            _, active = task.gradients(batch)
        task.learner.step(task.config.learning_rate, active)

    device = task.vision.device
    if isinstance(batch, Tensor):
        images_per_step = float(len(batch))
    else:
        images_per_step = batch[0].shape[:-1].numel() / task.vision.n_tokens
    per_image = _seconds(read, device) / n_read + _seconds(step, device) / images_per_step
    n_seen = task.epochs * n_images
    weights = 4 * sum(parameter.nbytes for parameter in task.learner.parameters)
    return Estimate(
        seconds=n_seen * per_image,
        memory_bytes=weights + task.waiting_bytes(n_images) + sum(kept.values()),
        n_tokens=n_seen * task.vision.n_tokens,
        seconds_per_image=per_image,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    _wait_for(device)
    start = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _noise(vision: VisionModel, *shape: int) -> Tensor:
    # A generator of its own: an estimate before a run must not change what the run draws.
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(vision.device)


@contextmanager
def _own_context(vision: VisionModel) -> Iterator[None]:
    """Inside, no inference mode, autocast, `no_grad` or default device of the caller counts."""
    with (
        on_the_cpu(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(vision.device.type, enabled=False),
    ):
        yield


def _layers_of(vision: VisionModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(range(vision.depth - 1)) if layers is None else check_layers(layers, vision)


def _copy_of(sae: SAE, dtype: torch.dtype, device: torch.device) -> SAE:
    tensors = {n: t.to(dtype=dtype, device=device) for n, t in sae.state_dict().items()}
    return SAE.from_tensors(tensors, sae.settings())


def _fingerprint(vision: VisionModel) -> str:
    tensors = dict(vision.module.state_dict())
    if isinstance(vision.head, nn.Module):
        tensors |= {f"head.{name}": value for name, value in vision.head.state_dict().items()}
    return fingerprint(tensors)

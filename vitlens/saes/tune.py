"""Tuning the SAEs of all layers together, so that they also work one after another."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from vitlens.errors import CheckpointError, ImageError
from vitlens.io import fingerprint
from vitlens.models.vision import VisionModel, as_vision_model
from vitlens.progress import interrupts_held
from vitlens.saes.adam import DictionaryAdam, learning_dtype
from vitlens.saes.chain import chain_losses
from vitlens.saes.checkpoint import RunFiles
from vitlens.saes.config import TuneConfig, scheduled_rate
from vitlens.saes.data import batched, first_image, iterate_images, planned_images
from vitlens.saes.dead import SilentFeatures
from vitlens.saes.io import load_saes, resolve_saes, save_saes
from vitlens.saes.topk import TopKSAE

_SMOOTHING = 0.9


@dataclass(frozen=True)
class TuneResult:
    """What tuning gives.

    Attributes
    ----------
    saes
        Of layers 0 to B-2, as saved in `folder`.
    folder
        Opens with `vitlens.saes.load_saes`.
    steps, n_images
        Steps taken, images seen.
    explained_variance
        Per layer, each SAE alone on the model's own stream.
    chain_explained_variance
        Per layer, with the SAEs of all earlier layers in place, of the model's own stream.
    divergence
        Of the output with all SAEs in place from the model's, in nats a picture. All three are
        running means over batches at the end of tuning, on training images.
    """

    saes: tuple[TopKSAE, ...]
    folder: Path
    steps: int
    n_images: int
    explained_variance: tuple[float, ...]
    chain_explained_variance: tuple[float, ...]
    divergence: float

    def __str__(self) -> str:
        rows = [
            f"{layer:5d}  {alone:18.3f}  {chain:8.3f}"
            for layer, (alone, chain) in enumerate(
                zip(self.explained_variance, self.chain_explained_variance, strict=True)
            )
        ]
        head = f"{self.n_images:,} images, {self.steps:,} steps"
        tail = f"divergence of the output with all in place: {self.divergence:.3f} nats"
        return "\n".join([head, "layer  explained variance  in chain", *rows, tail])


def tune_saes(
    vision: nn.Module | VisionModel,
    saes: Iterable[TopKSAE] | str | Path,
    images: Any,
    config: TuneConfig | None = None,
    *,
    out: str | Path,
    resume: bool = True,
    n_images: int | None = None,
) -> TuneResult:
    """Tune trained SAEs end to end, in one pass over the images.

    SAEs trained layer by layer see only the model's own stream. With all of them in place and no
    error nodes, each reads what the earlier ones left over, and small errors grow from layer to
    layer. The loss of a step is the mean share of variance each SAE leaves unexplained alone,
    plus `chain_weight` times the same through all earlier SAEs, plus `output_weight` times the
    divergence of the output, plus `aux_weight` times AuxK's, which keeps features from dying. The
    number of active features stays as it is.

    A checkpoint is written now and then and at Ctrl-C; calling again with the same arguments goes
    on from there, as `train_saes` does. The SAEs given are not changed.

    Parameters
    ----------
    vit
        The model, or a `VisionModel` of it; its softmax is compared, so that a tower without a
        classifier needs a head (of the `VisionModel`), or ``output_weight=0``.
    saes
        Of layers 0 to B-2; or a folder or hub name to load them from.
    images
        Model inputs, as for `train_saes`.
    config
        Settings; ``TuneConfig()`` if left out.
    out
        Folder for the tuned SAEs; it holds the checkpoint while tuning is under way.
    resume
        Go on from a checkpoint in `out`, or give back SAEs finished there. If False, start anew.
    n_images
        How many images there are, where it does not follow from `images`.

    Returns
    -------
    TuneResult

    Raises
    ------
    ModelError
        If the model is of another structure, or in training mode.
    CheckpointError
        If the SAEs do not fit the model or cannot be loaded, or `out` holds another run.
    ImageError
        If there is no image, or one does not fit the model or is not finite.
    VitlensError
        If a file cannot be written; an earlier checkpoint is left as it was.

    Notes
    -----
    Braun et al., "Identifying functionally important features with end-to-end sparse dictionary
    learning", NeurIPS 2024, arXiv 2405.12241, train one SAE at a time in this way; here all
    layers are in place at once.
    """
    vision = as_vision_model(vision)
    saes = resolve_saes(saes, vision)[1]
    run = _Run(vision, saes, images, config or TuneConfig(), Path(out), n_images)
    return run.tune(resume=resume)


class _Run:
    """One run of tuning: the SAEs, their optimizer, its place in the images, its files."""

    def __init__(
        self,
        vision: VisionModel,
        saes: Sequence[TopKSAE],
        images: Any,
        config: TuneConfig,
        out: Path,
        n_images: int | None,
    ) -> None:
        self.vision, self.images, self.config = vision, images, config
        self.n_images = planned_images(images, n_images, needed=bool(config.decay_share))
        self.dtype = learning_dtype(vision.dtype)
        self.saes = tuple(
            copy.deepcopy(sae).to(device=vision.device, dtype=self.dtype).requires_grad_()
            for sae in saes
        )
        self.adam = DictionaryAdam(self.saes, config.learning_rate)
        self.silent = SilentFeatures(self.saes, config.dead_after)
        identity = {
            "model": fingerprint(vision.module.state_dict()),
            "saes": _fingerprint(saes),
            "config": config.to_dict(),
            "n_images": self.n_images,
            "first_image": first_image(images),
        }
        self.files = RunFiles(out, "vitlens-sae-tuning", identity)
        self.seen = 0
        self.rng = torch.get_rng_state()
        self.running: Tensor | None = None
        self.in_step = False

    def tune(self, *, resume: bool) -> TuneResult:
        if resume and self.files.path.is_file():
            self._load()
        elif resume and self.files.manifest.is_file():
            return self._finished()
        try:
            self._loop()
            self._finish()
        except BaseException:
            # Between two steps the state is whole, whatever went wrong with an image or a file.
            if not self.in_step and self.seen:
                self._save()
            raise
        return self._finished()

    def _loop(self) -> None:
        size = self.config.batch_images
        last_save = time.monotonic()
        each = iterate_images(self.images, self.seen)
        with tqdm(total=self.n_images, initial=self.seen, unit="image", desc="Tuning") as bar:
            for batch in batched(each, size, self.vision.image_size):
                self._step(batch)
                bar.update(len(batch))
                alone, chain, divergence = self._figures()
                bar.set_postfix_str(
                    f"explained variance {sum(alone) / len(alone):.3f}, in chain"
                    f" {sum(chain) / len(chain):.3f}, divergence {divergence:.3f}",
                    refresh=False,
                )
                if time.monotonic() - last_save > self.config.checkpoint_seconds:
                    self._save()
                    last_save = time.monotonic()
        if self.seen == 0:
            raise ImageError("There are no images to tune on.")

    def _step(self, batch: Float[Tensor, "n 3 H W"]) -> None:
        config = self.config
        losses = chain_losses(
            self.vision,
            self.saes,
            batch,
            dead=self.silent.dead(),
            aux_features=config.aux_features,
            bfloat16=config.precision == "bfloat16",
        )
        loss = losses.alone.mean() + config.chain_weight * losses.chain.mean()
        loss = loss + config.output_weight * losses.output + config.aux_weight * losses.aux.mean()
        if not torch.isfinite(loss):
            raise ImageError(
                "The loss is NaN or infinite: an image is, or the model overflows in this"
                " precision, or the learning rate is too large."
            )
        # Not loss.backward(), which would also leave gradients in the user's model.
        gradients = torch.autograd.grad(loss, self.adam.parameters)
        for parameter, gradient in zip(self.adam.parameters, gradients, strict=True):
            parameter.grad = gradient
        figures = torch.cat([losses.alone, losses.chain, losses.output[None]]).detach()
        total = None if self.n_images is None else -(-self.n_images // config.batch_images)
        rate = scheduled_rate(config, self.adam.step_count, total)
        with interrupts_held():
            self.in_step = True
            self.adam.step(rate)
            self.silent.update(losses.active)
            self.seen += len(batch)
            self.running = (
                figures if self.running is None else torch.lerp(figures, self.running, _SMOOTHING)
            )
            self.in_step = False

    def _figures(self) -> tuple[tuple[float, ...], tuple[float, ...], float]:
        """Explained variance alone and in the chain, per layer, and the divergence."""
        assert self.running is not None
        n = len(self.saes)
        explained = (1 - self.running[:-1]).tolist()
        return tuple(explained[:n]), tuple(explained[n:]), float(self.running[-1])

    def _save(self) -> None:
        assert self.running is not None
        tensors = {
            **self.adam.state(),
            **self.silent.state(),
            "rng": self.rng,
            "running": self.running,
        }
        self.files.write(tensors, {"step": self.adam.step_count, "seen": self.seen})

    def _load(self) -> None:
        tensors, metadata = self.files.read()
        try:
            self.adam.load_state(tensors, metadata["step"])
            self.silent.load_state(tensors)
            self.seen = metadata["seen"]
            self.rng = tensors["rng"]
            self.running = tensors["running"].to(self.vision.device)
        except (KeyError, TypeError, CheckpointError) as error:
            raise CheckpointError(f"{self.files.path} is damaged: {error}.") from error
        torch.set_rng_state(self.rng)

    def _finish(self) -> None:
        alone, chain, divergence = self._figures()
        figures = {
            "steps": self.adam.step_count,
            "n_images": self.seen,
            "explained_variance": list(alone),
            "chain_explained_variance": list(chain),
            "divergence": divergence,
        }
        metadata = {**self.files.identity, "tuning": figures}
        save_saes(self.saes, self.files.folder, metadata=metadata)
        self.files.path.unlink(missing_ok=True)

    def _finished(self) -> TuneResult:
        figures, folder = self.files.figures("tuning"), self.files.folder
        return TuneResult(
            saes=tuple(load_saes(folder, dtype=self.dtype, device=self.vision.device).values()),
            folder=folder,
            steps=figures["steps"],
            n_images=figures["n_images"],
            explained_variance=tuple(figures["explained_variance"]),
            chain_explained_variance=tuple(figures["chain_explained_variance"]),
            divergence=figures["divergence"],
        )


def _fingerprint(saes: Sequence[TopKSAE]) -> str:
    weights = {
        f"{layer}.{name}": weight
        for layer, sae in enumerate(saes)
        for name, weight in sae.state_dict().items()
    }
    active = torch.tensor([sae.k for sae in saes])
    return fingerprint({**weights, "k": active})

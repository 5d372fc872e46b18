"""What training or tuning will cost, from a short timed trial."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitlens.models.vision import VisionModel, as_vision_model
from vitlens.saes.adam import learning_dtype
from vitlens.saes.chain import chain_losses
from vitlens.saes.config import TrainConfig, TuneConfig
from vitlens.saes.data import sae_residuals
from vitlens.saes.io import resolve_saes
from vitlens.saes.learner import Learner
from vitlens.saes.topk import TopKSAE


@dataclass(frozen=True)
class Estimate:
    """Time and memory of `train_saes`.

    Attributes
    ----------
    seconds
        Of the whole run, if the machine stays as busy as it is.
    memory_bytes
        Buffer, weights with gradients and moments, and the largest intermediate results; beside
        the model and the images themselves.
    n_tokens
        Tokens over all epochs.
    forward_seconds, step_seconds
        One image through the model; one token's share of a step over all layers.
    """

    seconds: float
    memory_bytes: int
    n_tokens: int
    forward_seconds: float
    step_seconds: float

    def __str__(self) -> str:
        return f"{self.n_tokens:,} tokens, {_cost(self.seconds, self.memory_bytes)}"


@dataclass(frozen=True)
class TuneEstimate:
    """Time and memory of `tune_saes`.

    Attributes
    ----------
    seconds
        Of the whole run, if the machine stays as busy as it is.
    memory_bytes
        Weights with gradients and moments, and what a step keeps for its backward pass; beside
        the model and the images themselves.
    image_seconds
        One image's share of a step.
    """

    seconds: float
    memory_bytes: int
    image_seconds: float

    def __str__(self) -> str:
        return _cost(self.seconds, self.memory_bytes)


def estimate(vision: nn.Module | VisionModel, config: TrainConfig, n_images: int) -> Estimate:
    """Estimate time and memory of training on `n_images` images (an epoch).

    One forward pass and one step of every layer are run on random numbers and timed, each after
    a first one that does not count; on slow machines this takes some seconds.

    Parameters
    ----------
    vit, config
        As for `train_saes`.
    n_images
        Images an epoch.

    Raises
    ------
    CheckpointError
        If the settings do not fit the model.
    """
    vision = as_vision_model(vision)
    low = config.precision == "bfloat16"
    dtype = learning_dtype(vision.dtype)
    learner = Learner(vision.d_model, config, vision.depth - 1, dtype=dtype, device=vision.device)
    n_tokens = config.epochs * n_images * vision.n_tokens
    n_forward = min(config.forward_images, n_images)
    n_step = min(config.batch_tokens, n_images * vision.n_tokens)
    images = _noise(vision, n_forward, 3, *vision.image_size)
    tokens = [_noise(vision, n_step, vision.d_model)] * (vision.depth - 1)
    forward = (
        _seconds(lambda: sae_residuals(vision, images, bfloat16=low), vision.device) / n_forward
    )
    step = _seconds(lambda: learner.step(tokens, config.learning_rate), vision.device) / n_step
    return Estimate(
        seconds=config.epochs * n_images * forward + n_tokens * step,
        memory_bytes=_memory(
            vision, config, n_images, dtype.itemsize, 2 if low else dtype.itemsize
        ),
        n_tokens=n_tokens,
        forward_seconds=forward,
        step_seconds=step,
    )


def estimate_tuning(
    vision: nn.Module | VisionModel,
    saes: Iterable[TopKSAE] | str | Path,
    config: TuneConfig,
    n_images: int,
) -> TuneEstimate:
    """Estimate time and memory of tuning on `n_images` images.

    Two steps' losses and gradients are computed on random images, of which the second is timed
    and what it keeps is counted.

    Parameters
    ----------
    vit, saes, config
        As for `tune_saes`.
    n_images
        How many images there are.

    Raises
    ------
    CheckpointError
        If the SAEs do not fit the model.
    """
    vision = as_vision_model(vision)
    saes = resolve_saes(saes, vision)[1]
    dtype = learning_dtype(vision.dtype)
    learning = [
        copy.deepcopy(sae).to(device=vision.device, dtype=dtype).requires_grad_() for sae in saes
    ]
    parameters = [parameter for sae in learning for parameter in sae.parameters()]
    n_batch = min(config.batch_images, n_images)
    images = _noise(vision, n_batch, 3, *vision.image_size)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def work() -> None:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            losses = chain_losses(vision, learning, images, bfloat16=config.precision == "bfloat16")
            loss = losses.alone.mean() + losses.chain.mean() + losses.output
            torch.autograd.grad(loss, parameters)

    seconds = _seconds(work, vision.device) / n_batch
    weights = 4 * sum(parameter.nbytes for parameter in parameters)
    return TuneEstimate(seconds * n_images, weights + sum(kept.values()), seconds)


def _noise(vision: VisionModel, *shape: int) -> Tensor:
    # A generator of its own: an estimate before a run must not change what the run draws.
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(vision.device)


def _cost(seconds: float, memory_bytes: int) -> str:
    whole, rest = divmod(round(seconds), 60)
    return f"about {whole} min {rest:02d} s and {memory_bytes / 2**30:.1f} GiB of memory"


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


def _memory(
    vision: VisionModel, config: TrainConfig, n_images: int, size: int, low_size: int
) -> int:
    layers = config.layers(vision.depth - 1)
    largest = max(features for features, _ in layers)
    # The buffer, and one layer of it twice while its parts are joined.
    held = min(config.buffer_tokens, n_images * vision.n_tokens) * vision.d_model * low_size
    buffer = held * (len(layers) + 1)
    weights = 4 * size * sum((2 * features + 1) * vision.d_model for features, _ in layers)
    # Of a step: pre-activations, features and their gradients; tokens, reconstruction and errors.
    step = config.batch_tokens * (4 * largest * low_size + 6 * vision.d_model * size)
    step += config.batch_tokens * vision.d_model * low_size * len(layers)
    # Of a forward pass: every layer's stream, and inside one block qkv and the MLP's hidden layer.
    forward = config.forward_images * vision.n_tokens * vision.d_model * (len(layers) + 12) * size
    return buffer + weights + max(step, forward)

"""From images to batches of the residual stream, a bounded number at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from vitlens.errors import CheckpointError, ImageError
from vitlens.io import fingerprint
from vitlens.models.vision import VisionModel
from vitlens.saes.base import normalize_tokens


def count_images(images: Any) -> int | None:
    """How many images one pass over `images` gives, or None when counting them is not cheap."""
    if isinstance(images, DataLoader):
        return _loaded(images)
    if not hasattr(images, "__len__"):
        return None
    if isinstance(images, Tensor):
        return len(images)
    if len(images) == 0:
        return 0
    if hasattr(images, "__getitem__") and _image_of(images[0]).ndim == 3:
        return len(images)
    if isinstance(images, list | tuple):
        return sum(len(batch_of(item)) for item in images)
    return None


def _loaded(loader: DataLoader) -> int | None:
    """How many images a loader gives: its sampler may leave some out, or take some twice."""
    held = count_images(loader.dataset)
    if held is None or isinstance(loader.dataset, IterableDataset):
        return held
    try:
        n = len(loader.sampler)  # type: ignore[arg-type]
    except TypeError:  # a sampler need not know
        return None
    n_items = len(loader.dataset)  # type: ignore[arg-type]
    if loader.batch_size is None:
        return held if loader.batch_sampler is None and n == n_items else None
    if held != n_items:  # items are batches, and the loader makes of them what its collate_fn does
        return held if n == n_items and not loader.drop_last else None
    return n - n % loader.batch_size if loader.drop_last else n


def planned_images(images: Any, n_images: int | None, *, needed: bool) -> int | None:
    """How many images one pass will give: `n_images` where it is given, else what can be counted.

    Raises
    ------
    ImageError
        If there are none.
    CheckpointError
        If the number is `needed`, for a learning rate that decays, and not known.
    """
    planned = count_images(images) if n_images is None else n_images
    if planned == 0:
        raise ImageError("There are no images to train on.")
    if needed and planned is None:
        raise CheckpointError("A decaying learning rate needs the number of images: pass n_images.")
    return planned


def first_image(images: Any) -> str | None:
    """Fingerprint of the first image, where `images` begins with the same one each time.

    A tensor, a `TensorDataset` and a sequence (`collections.abc.Sequence`) do. None for others: a
    data loader may shuffle, a data set draw random crops, and an iterator be used up.

    Raises
    ------
    ImageError
        If it is not an image.
    """
    same_each_time = isinstance(images, Tensor | TensorDataset | Sequence)
    if not same_each_time or len(images) == 0:
        return None
    return fingerprint({"image": batch_of(images[0])[:1]})


def iterate_images(images: Any, start: int = 0) -> Iterator[Float[Tensor, "3 H W"]]:
    """Yield the images of one pass one by one, from number `start` on.

    Parameters
    ----------
    images
        A sequence, map-style or iterable data set, or data loader. Its items are images
        [3, H, W], batches [n, 3, H, W], or tuples that begin with one of them.
    start
        Images to skip at the beginning; not even read where items are single images of a
        sequence.

    Raises
    ------
    ImageError
        If an item is neither an image nor a batch of images, or not of floats.
    """
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        single = len(images) > start and _image_of(images[start]).ndim == 3
        skip, positions = (0, range(start, len(images))) if single else (start, range(len(images)))
        items: Iterable[Any] = (images[position] for position in positions)
    else:
        skip, items = start, images
    each = itertools.chain.from_iterable(map(batch_of, items))
    return itertools.islice(each, skip, None)


def batched(
    images: Iterable[Float[Tensor, "3 H W"]], size: int, image_size: tuple[int, int]
) -> Iterator[Float[Tensor, "n 3 H W"]]:
    """Stack images to batches of `size`, the last one perhaps smaller.

    Raises
    ------
    ImageError
        If an image is not 3 x `image_size`, or `size` is below 1.
    """
    if size < 1:
        raise ImageError(f"The batch size must be at least 1, not {size}.")
    iterator = iter(images)
    while batch := list(itertools.islice(iterator, size)):
        for image in batch:
            if image.shape != (3, *image_size):
                raise ImageError(
                    f"The model takes images of shape {[3, *image_size]}, got {list(image.shape)}."
                )
        yield torch.stack(batch)


def sae_residuals(
    vision: VisionModel,
    images: Float[Tensor, "n 3 H W"],
    layers: Sequence[int],
    *,
    bfloat16: bool = False,
) -> tuple[Float[Tensor, "n T D"], ...]:
    """Residual stream after some blocks, from one forward pass.

    Parameters
    ----------
    vision
        The model; the pass stops after the last of the layers.
    images
        Model inputs on any device.
    layers
        Numbers of the blocks, ascending.
    bfloat16
        Run the blocks' matrix products in bfloat16 (autocast).
    """
    context = torch.autocast(vision.device.type, torch.bfloat16) if bfloat16 else nullcontext()
    with context:
        return vision.residuals(images.to(device=vision.device, dtype=vision.dtype), layers)


class TokenBuffer:
    """Normalised tokens of a group of images, at every trained layer.

    Parameters
    ----------
    n_layers
        Number of layers.
    dtype
        In which the tokens are kept; bfloat16 halves the memory.
    whole_images
        Shuffle images and not tokens; batches are then [n, T, D] and not [N, D].
    """

    def __init__(self, n_layers: int, *, dtype: torch.dtype, whole_images: bool = False) -> None:
        self._layers: list[list[Tensor]] = [[] for _ in range(n_layers)]
        self._dtype = dtype
        self._whole_images = whole_images
        self.n_images = self.n_tokens = 0

    def add(self, residuals: tuple[Float[Tensor, "n T D"], ...]) -> None:
        """Add the residual stream of some images, normalised token by token.

        Raises
        ------
        ImageError
            If it is not finite.
        """
        # What is not finite stays so in later blocks, so that the last layer speaks for all.
        if not torch.isfinite(residuals[-1]).all():
            raise ImageError(
                "The residual stream holds NaN or infinite values: either an image holds them, or "
                "the model overflows in this precision."
            )
        for layer, stream in zip(self._layers, residuals, strict=True):
            tokens = stream if self._whole_images else stream.flatten(0, 1)
            if tokens.dtype in (torch.float16, torch.bfloat16):
                tokens = tokens.float()
            layer.append(normalize_tokens(tokens).values.to(self._dtype))
        self.n_images += len(residuals[0])
        self.n_tokens += residuals[0].shape[:2].numel()

    def batches(
        self, batch_tokens: int, generator: torch.Generator, *, start: int = 0
    ) -> Iterator[tuple[Float[Tensor, "*n N D"], ...]]:
        """Yield shuffled batches of about `batch_tokens`, the same tokens at every layer.

        Parameters
        ----------
        batch_tokens
            The tokens held are split into equal parts of about this many.
        generator
            Generator of the permutation, on the CPU.
        start
            Batches to skip at the beginning.
        """
        for layer, parts in enumerate(self._layers):  # one by one: no second copy of all layers
            self._layers[layer] = [torch.cat(parts)]
        layers = [tokens for (tokens,) in self._layers]
        order = torch.randperm(len(layers[0]), generator=generator)
        for part in order.tensor_split(n_batches(self.n_tokens, batch_tokens, len(order)))[start:]:
            index = part.to(layers[0].device)
            yield tuple(tokens[index] for tokens in layers)


def n_batches(n_tokens: int, batch_tokens: int, n_items: int) -> int:
    """Batches into which a buffer of `n_tokens` is split, of which none can be without an item."""
    return min(n_items, max(1, round(n_tokens / batch_tokens)))


def batch_of(item: Any) -> Float[Tensor, "n 3 H W"]:
    """Model inputs of an item: an image, a batch, or a tuple that begins with one of them.

    Raises
    ------
    ImageError
        If it is none of these, or not of floats: whole numbers are pixels, not yet transformed for
        the model.
    """
    tensor = _image_of(item)
    return tensor if tensor.ndim == 4 else tensor[None]


def _image_of(item: Any) -> Tensor:
    tensor = item[0] if isinstance(item, tuple | list) else item
    if not isinstance(tensor, Tensor):
        what = type(tensor).__name__
    elif tensor.ndim in (3, 4) and tensor.is_floating_point():
        return tensor
    else:
        what = f"{list(tensor.shape)} of {tensor.dtype}"
    raise ImageError(
        "Images must be model inputs here, resized and normalised: float tensors [3, H, W] or "
        f"batches [n, 3, H, W]; got {what}. `Lens.tensor` and `vitlens.images.to_tensor` convert "
        "any image."
    )

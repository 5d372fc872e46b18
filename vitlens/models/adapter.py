"""One view of every Vision Transformer: tokens in, residual stream, read-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitlens.errors import ModelError

Block = Callable[[Tensor], Tensor]

_NEEDED = ("patch_embed", "_pos_embed", "blocks", "norm", "forward_head", "num_prefix_tokens")


@dataclass(frozen=True)
class Stem:
    """An image turned into tokens, and the blocks these tokens go through.

    Attributes
    ----------
    tokens
        The residual stream before the first block, [n, T, D].
    blocks
        One function [n, T, D] -> [n, T, D] a block; what a block needs beside the stream (rotary
        position embeddings) is already bound.
    """

    tokens: Float[Tensor, "n T D"]
    blocks: tuple[Block, ...]


class VisionModel:
    """A timm Vision Transformer as the rest of vitlens sees it.

    Parameters
    ----------
    model
        A timm `VisionTransformer` or a model built like one (DeiT, DINOv2, CLIP and SigLIP
        towers; `Eva` and so DINOv3), in `eval` mode. It is used as it is and never modified.
    head
        Optional function of the model's output, [n, C_model] -> [n, C]; for towers without a
        classifier, such as `vitlens.models.heads.ZeroShotHead` for CLIP.

    Attributes
    ----------
    depth, d_model
        Number of blocks B and of channels D.
    n_prefix, prefix_names
        How many tokens come before the patches (CLS, registers, distillation), and their names.
    grid
        Rows and columns of the patch grid; patches follow the prefix tokens row by row.
    image_size
        Height and width of the input in pixels.

    Raises
    ------
    ModelError
        If the model has another structure, takes other images than those of three channels, or it
        or its head is in training mode, also only in part.
    """

    def __init__(self, model: nn.Module, *, head: Callable[[Tensor], Tensor] | None = None):
        missing = [name for name in _NEEDED if not hasattr(model, name)]
        if missing:
            raise ModelError(
                f"{type(model).__name__} does not look like a timm VisionTransformer: it has no "
                f"{', '.join(missing)}. Use a `VisionTransformer` or `Eva` model of timm, or give "
                "yours these members."
            )
        self.module = cast(Any, model)
        self.head = head
        self._check_mode()
        self.blocks: tuple[nn.Module, ...] = tuple(self.module.blocks)
        self.depth = len(self.blocks)
        if self.depth < 2:
            raise ModelError("The model has fewer than two blocks: there is no circuit to find.")
        channels = getattr(getattr(model.patch_embed, "proj", None), "in_channels", 3)
        if channels != 3:
            raise ModelError(
                f"The model takes images [{channels}, H, W]; vitlens gives it RGB pictures, "
                "[3, H, W]. Create it with `in_chans=3`: timm then adapts pretrained weights."
            )
        self.d_model: int = self.module.embed_dim
        self.n_prefix: int = self.module.num_prefix_tokens
        self.prefix_names = _prefix_names(model)
        rows, cols = self.module.patch_embed.grid_size
        self.grid: tuple[int, int] = (rows, cols)
        height, width = self.module.patch_embed.img_size
        self.image_size: tuple[int, int] = (height, width)
        self._n_classes: int | None = None

    @property
    def n_tokens(self) -> int:
        """Prefix tokens and patches, T."""
        return self.n_prefix + self.grid[0] * self.grid[1]

    @property
    def n_classes(self) -> int:
        """Number of logits, C."""
        if self._n_classes is None:
            with torch.no_grad():
                blank = torch.zeros(1, self.n_tokens, self.d_model)
                self._n_classes = self.readout(blank.to(self.device, self.dtype)).shape[-1]
        return self._n_classes

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def __repr__(self) -> str:
        return (
            f"VisionModel({type(self.module).__name__}: {self.depth} blocks, {self.n_tokens} tokens x "
            f"{self.d_model}, {self.image_size[0]} x {self.image_size[1]} pixels)"
        )

    def token_name(self, token: int) -> str:
        """Name of a token: "CLS", "register 2", or "row 3, column 5" (counted from 1)."""
        if token < self.n_prefix:
            return self.prefix_names[token]
        row, col = divmod(token - self.n_prefix, self.grid[1])
        return f"row {row + 1}, column {col + 1}"

    def embed(self, images: Float[Tensor, "n 3 H W"]) -> Stem:
        """Turn images into tokens and bind the blocks they will go through.

        Raises
        ------
        ModelError
            If the model or its head has been put into training mode, also only in part.
        """
        self._check_mode()
        model = self.module
        tokens = model._pos_embed(model.patch_embed(images))
        rope = None
        if isinstance(tokens, tuple):  # Eva: rotary embeddings go to every block
            tokens, rope = tokens
        if isinstance(getattr(model, "patch_drop", None), nn.Module):
            tokens = model.patch_drop(tokens)
        if isinstance(getattr(model, "norm_pre", None), nn.Module):
            tokens = model.norm_pre(tokens)
        if rope is None:
            return Stem(tokens, self.blocks)
        per_block = getattr(model, "rope_mixed", False)
        return Stem(
            tokens,
            tuple(
                partial(block, rope=rope[i] if per_block else rope)
                for i, block in enumerate(self.blocks)
            ),
        )

    def readout(self, tokens: Float[Tensor, "n T D"]) -> Float[Tensor, "n C"]:
        """Logits from the stream after the last block.

        Raises
        ------
        ModelError
            If the model, or its head, gives something else than a vector of logits an image.
        """
        out = self.module.forward_head(self.module.norm(tokens))
        if isinstance(out, tuple):
            out = torch.stack(out).mean(0)
        return self._logits(out)

    def residuals(self, images: Float[Tensor, "n 3 H W"]) -> tuple[Float[Tensor, "n T D"], ...]:
        """Residual stream after every block, without gradients."""
        with torch.no_grad():
            stem = self.embed(images)
            stream, out = stem.tokens, []
            for block in stem.blocks:
                stream = block(stream)
                out.append(stream)
        return tuple(out)

    def logits(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n C"]:
        """The untouched model's output.

        Raises
        ------
        ModelError
            As for `embed` and `readout`.
        """
        self._check_mode()
        with torch.no_grad():
            return self._logits(self.module(images))

    def _logits(self, out: Tensor) -> Float[Tensor, "n C"]:
        logits = out if self.head is None else self.head(out)
        if logits.ndim == 2:
            return logits
        whose, advice = "head", "It must turn the model's output, [n, C_model], into [n, C]."
        if self.head is None:
            whose = "model"
            advice = (
                'Create it with a pooling of tokens (`global_pool="token"` or "avg" in timm), or '
                "give a `head` that makes logits [n, C] of its output."
            )
        raise ModelError(
            f"The {whose} gives {list(logits.shape)} for a batch of {len(out)}, not one "
            f"vector of logits an image. {advice}"
        )

    def _check_mode(self) -> None:
        for name, top in (("model", self.module), ("head", self.head)):
            if not isinstance(top, nn.Module):
                continue
            for path, module in top.named_modules():
                if module.training and (module is self.module or _asks_for_mode(module.__class__)):
                    part = f" in part ({path})" if path else ""
                    raise ModelError(
                        f"The {name} is{part} in training mode, where dropout makes every result "
                        f"random. Call `{name}.eval()` first."
                    )


@cache
def _asks_for_mode(kind: type[nn.Module]) -> bool:
    """Whether a module's own forward pass looks at `training`.

    New modules are in training mode: a last layer put on afterwards is no reason to refuse a model.
    """
    code = getattr(kind.forward, "__code__", None)
    return code is None or "training" in code.co_names


def as_vision_model(
    model: nn.Module | VisionModel, *, head: Callable[[Tensor], Tensor] | None = None
) -> VisionModel:
    """Return a model as a `VisionModel`, and a `VisionModel` as it is.

    Parameters
    ----------
    model
        The model, or a `VisionModel` of it.
    head
        As for `VisionModel`; only for a model.

    Raises
    ------
    ModelError
        If it cannot be a `VisionModel`, or a head is given for one.
    """
    if isinstance(getattr(model, "vision", None), VisionModel):
        raise ModelError(f"A {type(model).__name__} is no model, but holds one: give its `vision`.")
    if not isinstance(model, VisionModel):
        return VisionModel(model, head=head)
    if head is not None:
        raise ModelError("A head goes with the bare model: give it to `ViT(model, head=...)`.")
    return model


def _prefix_names(model: Any) -> tuple[str, ...]:
    names = []
    if getattr(model, "cls_token", None) is not None:
        names.append("CLS")
    if getattr(model, "dist_token", None) is not None:
        names.append("distillation")
    registers = model.num_prefix_tokens - len(names)
    return (*names, *(f"register {i + 1}" for i in range(registers)))

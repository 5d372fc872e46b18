"""One view of every Vision Transformer: images in, residual stream, read-out; and its sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
class Site:
    """A place where an SAE reads and writes: the residual stream after one block.

    Attributes
    ----------
    layer
        Number of the block, from 0.
    name
        Name of the block in the model.
    n_tokens, d_model
        T and D of the stream there.
    n_prefix
        Number of tokens before the patches.
    grid
        Rows and columns of the patches.
    """

    layer: int
    name: str
    n_tokens: int
    d_model: int
    n_prefix: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class Stem:
    """Images turned into tokens, and the blocks these tokens go through.

    Attributes
    ----------
    tokens
        The residual stream before the first block, [n, T, D].
    blocks
        One function [n, T, D] -> [n, T, D] per block; what a block needs besides the stream
        (rotary position embeddings) is already bound.
    """

    tokens: Float[Tensor, "n T D"]
    blocks: tuple[Block, ...]

    def through(self, start: int, stop: int) -> Block:
        """Return the map from the stream after block `start` to the stream after block `stop`.

        Parameters
        ----------
        start
            A block, or -1 for the tokens before the first block.
        stop
            A block; `start` itself gives the identity.
        """
        blocks = self.blocks[start + 1 : stop + 1]

        def run(stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n T D"]:
            for block in blocks:
                stream = block(stream)
            return stream

        return blocks[0] if len(blocks) == 1 else run


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Context, or decorator, in which a tensor made without a device is on the CPU.

    It makes results independent of `torch.set_default_device`. A user's functions that run inside
    need an explicit device, as they do without a default device.
    """
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


class VisionModel:
    """A timm Vision Transformer as the rest of vitlens sees it.

    Parameters
    ----------
    module
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
        Number of tokens before the patches (CLS, registers, distillation), and their names.
    grid
        Rows and columns of the patch grid; patches follow the prefix tokens row by row.
    image_size
        Height and width of the input in pixels.

    Raises
    ------
    ModelError
        If the model has another structure, its images do not have three channels, or the model
        or its head is in training mode, even in part.
    """

    def __init__(self, module: nn.Module, *, head: Callable[[Tensor], Tensor] | None = None):
        missing = [name for name in _NEEDED if not hasattr(module, name)]
        if missing:
            raise ModelError(
                f"{type(module).__name__} does not look like a timm VisionTransformer: it has no "
                f"{', '.join(missing)}. Use a `VisionTransformer` or `Eva` model of timm, or add "
                "these members to your model."
            )
        self.module = cast(Any, module)
        self.head = head
        self._check_mode()
        self.blocks: tuple[nn.Module, ...] = tuple(self.module.blocks)
        self.depth = len(self.blocks)
        if self.depth < 2:
            raise ModelError("The model has fewer than two blocks: there is no circuit to find.")
        channels = getattr(getattr(module.patch_embed, "proj", None), "in_channels", 3)
        if channels != 3:
            raise ModelError(
                f"The model takes images [{channels}, H, W]; vitlens gives it RGB images, "
                "[3, H, W]. Create it with `in_chans=3`: timm then adapts pretrained weights."
            )
        self.d_model: int = self.module.embed_dim
        self.n_prefix: int = self.module.num_prefix_tokens
        self.prefix_names = _prefix_names(module)
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
                blank = torch.zeros(
                    1, self.n_tokens, self.d_model, device=self.device, dtype=self.dtype
                )
                self._n_classes = self.readout(blank).shape[-1]
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
            f"VisionModel({type(self.module).__name__}: {self.depth} blocks, "
            f"{self.n_tokens} tokens x {self.d_model}, "
            f"{self.image_size[0]} x {self.image_size[1]} pixels)"
        )

    def site(self, layer: int) -> Site:
        """The residual stream after block `layer`.

        Raises
        ------
        ModelError
            If there is no such block.
        """
        if not 0 <= layer < self.depth:
            raise ModelError(
                f"The model has blocks 0 to {self.depth - 1}; there is no block {layer}."
            )
        return Site(
            layer=layer,
            name=f"blocks.{layer}",
            n_tokens=self.n_tokens,
            d_model=self.d_model,
            n_prefix=self.n_prefix,
            grid=self.grid,
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
            If the model or its head is in training mode, even in part.
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
            If the model, or its head, does not give one vector of logits per image.
        """
        out = self.module.forward_head(self.module.norm(tokens))
        if isinstance(out, tuple):
            out = torch.stack(out).mean(0)
        return self._logits(out)

    def residuals(
        self, images: Float[Tensor, "n 3 H W"], layers: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "n T D"], ...]:
        """Residual stream after some blocks, in ascending order, without gradients.

        Parameters
        ----------
        images
            Model inputs.
        layers
            Numbers of the blocks; all by default. Blocks after the last of them do not run.
        """
        wanted = set(range(self.depth) if layers is None else layers)
        with torch.no_grad():
            stem = self.embed(images)
            stream, out = stem.tokens, []
            for layer, block in enumerate(stem.blocks[: max(wanted, default=-1) + 1]):
                stream = block(stream)
                if layer in wanted:
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

    def check(self) -> None:
        """Compare the model's own output with what its blocks and read-out give, on one image.

        The image is noise. Everything vitlens computes follows the path from the tokens through
        the blocks to the read-out; what a model does outside that path would be left out.

        Raises
        ------
        ModelError
            If the outputs differ (the message says where the paths part), the number of tokens is
            another one, the output is not finite, or the head has another dtype or device.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        image = torch.randn(1, 3, *self.image_size, generator=generator, device="cpu")
        image = image.to(self.device, self.dtype)
        self._check_head()
        seen: dict[str, Tensor] = {}

        def first(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if args:
                seen["first"] = args[0].detach().clone()

        def last(_module: nn.Module, _args: Any, out: Tensor) -> None:
            seen["last"] = out.detach().clone()

        with torch.no_grad():
            stem = self.embed(image)
            stream = stem.through(-1, self.depth - 1)(stem.tokens)
            expected = self.readout(stream)
            hooks = [
                self.blocks[0].register_forward_pre_hook(first),
                self.blocks[-1].register_forward_hook(last),
            ]
            try:
                found = self.logits(image)
            finally:
                for hook in hooks:
                    hook.remove()
        if not torch.isfinite(found).all():
            bad = [n for n, w in self.module.named_parameters() if not torch.isfinite(w).all()]
            where = f": the weights {', '.join(bad[:3])} do" if bad else " on an image of noise"
            raise ModelError(f"The model's output holds NaN or infinite values{where}.")
        if stem.tokens.shape[1] != self.n_tokens:
            raise ModelError(
                f"The model makes {stem.tokens.shape[1]} tokens per image, but its settings say "
                f"{self.n_prefix} prefix tokens and {self.grid[0]} x {self.grid[1]} patches."
            )
        if _close(found, expected):
            return
        if "first" in seen and not _close(seen["first"], stem.tokens):
            where = "before its first block"
            if seen["first"].shape != stem.tokens.shape:
                where += f" (it has {seen['first'].shape[1]} tokens there, not {self.n_tokens})"
        elif "last" in seen and not _close(seen["last"], stream):
            where = "between its blocks"
        else:
            where = "after its last block"
        raise ModelError(
            f"The model runs a computation {where} that vitlens does not see: {self._suspect()}. "
            "Its own output differs from the output of its tokens, blocks and head, so every "
            "result would explain another prediction. Move this computation into the blocks, the "
            "head or the transform."
        )

    def _check_head(self) -> None:
        """Raise `ModelError` if the head holds floating-point tensors unlike the model's."""
        tensors: dict[str, Tensor] = {}
        if isinstance(self.head, nn.Module):
            tensors = dict(self.head.state_dict())
        elif self.head is not None:
            held = getattr(self.head, "__dict__", {})
            tensors = {name: held[name] for name in held if isinstance(held[name], Tensor)}
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                continue
            if (tensor.dtype, tensor.device) != (self.dtype, self.device):
                raise ModelError(
                    f"{name} of the head is {tensor.dtype} on {tensor.device}, the model "
                    f"{self.dtype} on {self.device}. Convert the head as you did the model."
                )

    def _suspect(self) -> str:
        """What in the model most likely lies outside the path of tokens, blocks and read-out."""
        kind = type(self.module)
        if self.module._forward_pre_hooks or self.module._forward_hooks:
            return "a forward hook on the model"
        for name in ("forward", "forward_features"):
            method = getattr(kind, name, None)
            if method is not None and not method.__module__.startswith("timm."):
                return f"{kind.__name__}.{name}"
        return f"something in {kind.__name__}.forward"

    def _logits(self, out: Tensor) -> Float[Tensor, "n C"]:
        logits = out if self.head is None else self.head(out)
        if logits.ndim == 2:
            return logits
        whose, advice = "head", "It must turn the model's output, [n, C_model], into [n, C]."
        if self.head is None:
            whose = "model"
            advice = (
                'Create it with a pooling of tokens (`global_pool="token"` or "avg" in timm), or '
                "give a `head` that computes logits [n, C] from its output."
            )
        raise ModelError(
            f"The {whose} gives {list(logits.shape)} for a batch of {len(out)}, not one "
            f"vector of logits per image. {advice}"
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


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results of the same computation agree, but for rounding."""
    if found.shape != expected.shape:
        return False
    tolerance = 100 * torch.finfo(found.dtype).eps ** 0.75
    difference = (found.double() - expected.double()).norm()
    return bool(difference <= min(tolerance, 0.1) * (1e-6 + expected.double().norm()))


@cache
def _asks_for_mode(kind: type[nn.Module]) -> bool:
    """Whether a module's own forward pass looks at `training`.

    New modules are in training mode: a layer added afterwards is no reason to refuse a model.
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
        See `VisionModel`; only for a model.

    Raises
    ------
    ModelError
        If it cannot be a `VisionModel`, or a head is given for one.
    """
    if isinstance(getattr(model, "vision", None), VisionModel):
        raise ModelError(f"A {type(model).__name__} is not a model; pass its `vision`.")
    if not isinstance(model, VisionModel):
        return VisionModel(model, head=head)
    if head is not None:
        raise ModelError(
            "Pass `head` together with the bare model: `VisionModel(model, head=...)`."
        )
    return model


def _prefix_names(model: Any) -> tuple[str, ...]:
    names = []
    if getattr(model, "cls_token", None) is not None:
        names.append("CLS")
    if getattr(model, "dist_token", None) is not None:
        names.append("distillation")
    registers = model.num_prefix_tokens - len(names)
    return (*names, *(f"register {i + 1}" for i in range(registers)))

"""`VisionModel.check`: what a model does outside its tokens, blocks and read-out is not ignored."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitlens.errors import ModelError
from vitlens.models.vision import VisionModel

SIZES = {
    "img_size": 24,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
    "num_classes": 5,
}


def make(kind: type[VisionTransformer] = VisionTransformer) -> VisionTransformer:
    torch.manual_seed(0)
    return kind(**SIZES).eval()


class Scaled(VisionTransformer):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return super().forward(3 * x - 1)


class Prompted(VisionTransformer):
    def forward_features(self, x: Tensor, attn_mask: object = None, **_: object) -> Tensor:
        tokens = self._pos_embed(self.patch_embed(x))
        extra = torch.ones(len(x), 2, tokens.shape[-1])
        return self.norm(self.blocks(torch.cat([tokens, extra], 1)))


class BetweenBlocks(VisionTransformer):
    def forward_features(self, x: Tensor, attn_mask: object = None, **_: object) -> Tensor:
        tokens = self._pos_embed(self.patch_embed(x))
        for block in self.blocks:
            tokens = 0.5 * block(tokens)
        return self.norm(tokens)


def input_hook() -> nn.Module:
    model = make()
    model.register_forward_pre_hook(lambda _, args: (3 * args[0] - 1,))
    return model


def temperature() -> nn.Module:
    model = make()
    model.register_forward_hook(lambda _, args, out: out / 10)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: make(Scaled), r"before its first block.*Scaled\.forward"),
        (lambda: make(Prompted), r"before its first block \(it has 12 tokens.*Prompted\.forward_f"),
        (lambda: make(BetweenBlocks), r"between its blocks.*BetweenBlocks\.forward_features"),
        (input_hook, "before its first block.*a forward hook on the model"),
        (temperature, "after its last block.*a forward hook on the model"),
    ],
)
def test_work_outside_the_path_is_found_and_located(model, message) -> None:
    with pytest.raises(ModelError, match=message):
        VisionModel(model()).check()


def test_an_ordinary_model_passes_and_keeps_no_hook() -> None:
    model = make()
    VisionModel(model).check()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_on_blocks_are_inside_the_path() -> None:
    model = make()
    model.blocks[1].register_forward_hook(lambda _, args, out: 2 * out)
    VisionModel(model).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    VisionModel(make().to(dtype)).check()


def test_weights_that_are_not_finite_are_named() -> None:
    model = make()
    model.head.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match=r"NaN.*head\.weight"):
        VisionModel(model).check()

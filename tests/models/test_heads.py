import pytest
import torch

from vitlens.models.heads import ClsMeanViT


@pytest.fixture
def model():
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    return ClsMeanViT(**size, num_classes=5, reg_tokens=2).eval()


def test_equals_norm_then_concatenation_then_linear(model):
    x = torch.randn(3, 3, 16, 16)
    tokens = model._pos_embed(model.patch_embed(x))
    for block in model.blocks:
        tokens = block(tokens)
    centred = tokens - tokens.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    normed = centred / (variance + model.norm.eps).sqrt() * model.norm.weight + model.norm.bias
    cls, patches = normed[:, 0], normed[:, 3:]  # CLS, two registers, four patches
    expected = cls @ model.head.weight[:, :12].T + patches.mean(1) @ model.head.weight[:, 12:].T
    torch.testing.assert_close(model(x), expected + model.head.bias)


def test_head_before_and_after_a_change(model):
    assert model.head.weight.shape == (5, 24)
    model.reset_classifier(7)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 7)
    model.double().reset_classifier(7)
    assert model.head.weight.dtype == torch.float64
    model.float().reset_classifier(0)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 24)
    with pytest.raises(ValueError, match="fixed"):
        model.reset_classifier(3, "avg")

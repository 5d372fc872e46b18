"""Families of ViTs: the adapter's view, LibraGrad's constants, engines that agree."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, GluMlp, LayerNorm, QuickGELU, SwiGLU
from timm.models import Eva, VisionTransformer, VisionTransformerDistilled
from torch import nn

import vitlens
from tests.builders import FAMILIES, SMALL, double_image, lens_on, model_of_family
from vitlens.errors import ModelError, NetworkError
from vitlens.method.closed_form import _TOKENS
from vitlens.models.families import create
from vitlens.models.heads import ZeroShotHead

# Where the map from stream to keys is not the same for all tokens.
NOT_EXACT_IN_PLAIN = {"swiglu, rms, qk norm", "dinov3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_gives_the_models_own_output(family: str) -> None:
    model = model_of_family(family)
    vision = vitlens.VisionModel(model)
    images = torch.stack([double_image(), -double_image()])
    streams = vision.residuals(images)
    assert len(streams) == vision.depth
    assert streams[0].shape == (2, vision.n_tokens, vision.d_model)
    assert len(vision.prefix_names) == vision.n_prefix
    expected = model(images)
    torch.testing.assert_close(vision.readout(streams[-1]), expected)
    assert vision.n_classes == expected.shape[1]


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_engines_agree(family: str, gradient: str) -> None:
    lens = lens_on(model_of_family(family))
    vjp = lens.importances(double_image(), target=1, gradient=gradient, engine="vjp")
    for nodes, edges in zip(vjp.nodes, vjp.edges, strict=False):
        torch.testing.assert_close(edges.sum(1), nodes)
    engines = ["jvp", "closed_form"]
    if gradient == "plain" and family in NOT_EXACT_IN_PLAIN:
        engines = ["jvp"]
        with pytest.raises(ModelError, match='engine="jvp"'):
            lens.importances(double_image(), target=1, gradient=gradient, engine="closed_form")
    for engine in engines:
        found = lens.importances(double_image(), target=1, gradient=gradient, engine=engine)
        for a, b in zip(found.edges, vjp.edges, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_libragrad_keeps_values_and_model(family: str) -> None:
    model = model_of_family(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) for m in model.modules()]
    expected = model(double_image()[None])
    with vitlens.libragrad(model):
        torch.testing.assert_close(model(double_image()[None]), expected)
    with pytest.raises(RuntimeError, match="stop"), vitlens.libragrad(model):
        raise RuntimeError("stop")
    assert torch.equal(model(double_image()[None]), expected)
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def norm_with_fixed_scale(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    scale = (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    out = x / scale.detach() * norm.weight
    return out + norm.bias if isinstance(norm, nn.LayerNorm) else out


def block_by_hand(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A timm block written out, with LibraGrad's constants detached one by one."""
    attention = block.attn
    n, t, d = x.shape
    qkv = attention.qkv(norm_with_fixed_scale(block.norm1, x))
    q, k, v = qkv.reshape(n, t, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1).detach()
    x = x + block.ls1(attention.proj((weights @ v).transpose(1, 2).reshape(n, t, d)))
    h, mlp = norm_with_fixed_scale(block.norm2, x), block.mlp
    if isinstance(mlp, SwiGLU):
        hidden = F.silu(mlp.fc1_g(h)).detach() * mlp.fc1_x(h)
    elif isinstance(mlp, GluMlp):
        gate, value = mlp.fc1(h).chunk(2, -1)
        hidden = F.silu(gate).detach() * value
    elif isinstance(mlp.act, QuickGELU):
        hidden = mlp.fc1(h)
        hidden = hidden * torch.sigmoid(1.702 * hidden).detach()
    else:
        hidden = mlp.fc1(h)
        normal = torch.distributions.Normal(0.0, 1.0)
        hidden = hidden * normal.cdf(hidden).detach()
    return x + block.ls2(mlp.fc2(hidden))


@pytest.mark.parametrize("family", ["vit", "dinov2", "swiglu, rms, qk norm", "clip"])
def test_libragrad_against_a_block_written_out(family: str) -> None:
    block = model_of_family(family).blocks[1]
    x = torch.randn(1, 10, 24).double().requires_grad_()
    direction = torch.randn(1, 10, 24).double()
    expected = block_by_hand(block, x)
    with vitlens.libragrad(block):
        found = block(x)
    torch.testing.assert_close(found, expected)
    (found_grad,) = torch.autograd.grad(found, x, direction)
    (expected_grad,) = torch.autograd.grad(expected, x, direction)
    torch.testing.assert_close(found_grad, expected_grad)
    (plain_grad,) = torch.autograd.grad(block(x), x, direction)
    assert float((plain_grad - expected_grad).abs().max()) > 1e-3


@pytest.mark.parametrize("mlp", ["dinov2", "swiglu, rms, qk norm"])
def test_libragrad_leaves_other_threads_alone(mlp: str) -> None:
    model, x = model_of_family(mlp), double_image()[None].requires_grad_()

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(model(x).sum(), x)[0]

    plain = gradient()
    with vitlens.libragrad(model), ThreadPoolExecutor(1) as threads:
        assert torch.equal(threads.submit(gradient).result(), plain)
        assert not torch.allclose(gradient(), plain)


def test_unfused_attention_is_put_back() -> None:
    model = model_of_family("vit")
    for block in model.blocks:
        block.attn.fused_attn = False
    lens = lens_on(model)
    exact = lens.importances(double_image(), target=0)
    vjp = lens.importances(double_image(), target=0, engine="vjp")
    torch.testing.assert_close(exact.edges[0], vjp.edges[0])
    assert all(block.attn.fused_attn is False for block in model.blocks)


def test_zero_shot_head() -> None:
    model = VisionTransformer(**SMALL, num_classes=0).double().eval()
    text = torch.randn(4, 24).double()
    lens = lens_on(model, head=ZeroShotHead(text, scale=10.0))
    features = model(double_image()[None])[0]
    expected = 10 * F.cosine_similarity(features[None], text)
    torch.testing.assert_close(lens.trace(double_image()).logits, expected)
    with pytest.raises(ModelError, match="classes, width"):
        ZeroShotHead(text[0])


def test_the_bias_of_a_zero_shot_head_goes_to_every_logit() -> None:
    head = ZeroShotHead(torch.tensor([[3.0, 0], [0, 0.1]]), scale=10, bias=-2)
    torch.testing.assert_close(head(torch.tensor([[0.6, 0.8]])), torch.tensor([[4.0, 6.0]]))


def test_rotary_embeddings_of_each_block_its_own() -> None:
    torch.manual_seed(0)
    model = Eva(
        **SMALL,
        num_classes=5,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        rope_type="mixed",
        dynamic_img_size=False,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    vision = vitlens.VisionModel(model.double().eval())
    found = vision.readout(vision.residuals(double_image()[None])[-1])
    torch.testing.assert_close(found, model(double_image()[None]))


def test_prefix_tokens_are_named_in_their_order() -> None:
    distilled = VisionTransformerDistilled(**SMALL, num_classes=5).eval()
    assert vitlens.VisionModel(distilled).prefix_names == ("CLS", "distillation")
    registers = VisionTransformer(**SMALL, num_classes=5, reg_tokens=2).eval()
    assert vitlens.VisionModel(registers).prefix_names == ("CLS", "register 1", "register 2")


def test_model_is_checked() -> None:
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        vitlens.VisionModel(model_of_family("vit").train())
    part = model_of_family("vit")
    part.blocks[1].train()
    with pytest.raises(ModelError, match=r"model is in part \(blocks\.1.*model\.eval\(\)"):
        vitlens.VisionModel(part)
    with pytest.raises(ModelError, match="does not look like a timm VisionTransformer"):
        vitlens.VisionModel(timm.create_model("resnet18").eval())
    with pytest.raises(ModelError, match=r"no model 'vit_bse_patch16_224'.*vit_base_patch16_224"):
        create("vit_bse_patch16_224")


def test_output_that_is_no_logits() -> None:
    unpooled = VisionTransformer(**SMALL, num_classes=5, global_pool="").double().eval()
    vision = vitlens.VisionModel(unpooled)
    for use in (vision.logits, lambda x: vision.readout(vision.residuals(x)[-1])):
        with pytest.raises(
            ModelError, match=r"model gives \[1, 10, 5\] for a batch of 1.*global_pool"
        ):
            use(double_image()[None])
    with pytest.raises(ModelError, match=r"model gives \[1, 10, 5\]"):
        lens_on(unpooled)
    with pytest.raises(ModelError, match=r"head gives \[1\] for a batch of 1.*\[n, C\]"):
        lens_on(model_of_family("vit"), head=lambda y: y[:, 0])
    pooled = lens_on(unpooled, head=lambda y: y[:, 0])
    torch.testing.assert_close(
        pooled.trace(double_image()).logits, unpooled(double_image()[None])[0, 0]
    )


def test_grey_models() -> None:
    with pytest.raises(ModelError, match=r"images \[1, H, W\].*in_chans=3"):
        vitlens.VisionModel(VisionTransformer(**SMALL, in_chans=1).eval())


def test_training_mode_is_noticed_later() -> None:
    lens = lens_on(model_of_family("vit"))
    for change in (lens.vision.module.train, lens.vision.module.blocks[2].train):
        change()
        for use in (lens.predict, lens.trace, lens.circuit):
            with pytest.raises(ModelError, match=r"training mode.*model\.eval\(\)"):
                use(double_image())
        lens.vision.module.eval()
        lens.trace(double_image())


def test_training_mode_of_a_head() -> None:
    model = model_of_family("vit")
    head = nn.Sequential(nn.Dropout(0.9), nn.Linear(5, 2)).double()
    with pytest.raises(ModelError, match=r"head is in part \(0\) in training.*head\.eval\(\)"):
        vitlens.VisionModel(model, head=head)
    assert vitlens.VisionModel(model, head=head.eval()).n_classes == 2
    # New linear layers are in training mode, and nothing depends on it.
    model.head = nn.Linear(24, 3).double()
    assert vitlens.VisionModel(model, head=nn.Linear(3, 2).double()).n_classes == 2


def test_no_network_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(NetworkError, match=r"Without a network.*vitlens\.Lens"):
        create("vit_tiny_patch16_224")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted(NOT_EXACT_IN_PLAIN))
def test_exact_refuses_what_it_cannot_do_in_every_precision(
    family: str, dtype: torch.dtype
) -> None:
    lens = lens_on(model_of_family(family))
    vision = vitlens.VisionModel(lens.vision.module.to(dtype))
    lens = vitlens.Lens(vision, [sae.to(dtype) for sae in lens.saes], transform=lens.transform)
    with pytest.raises(ModelError, match='engine="jvp"'):
        lens.importances(double_image().to(dtype), target=1, gradient="plain", engine="closed_form")


@pytest.mark.parametrize("norm", [nn.LayerNorm, partial(nn.RMSNorm, eps=1e-6)])
def test_libragrad_norms_in_float16_are_the_models(norm: Callable[[int], nn.Module]) -> None:
    x = torch.randn(2, 384, generator=torch.Generator().manual_seed(0))
    x[0, 7] = 900  # float16 cannot hold its square
    layer = norm(384).half()
    with vitlens.libragrad(model_of_family("vit")):
        found = layer(x.half())
    torch.testing.assert_close(found, layer(x.half()), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    "length",
    [
        lambda x: x.norm(dim=-1, keepdim=True),
        lambda x: torch.norm(x, dim=-1, keepdim=True),
        lambda x: torch.linalg.norm(x, dim=-1, keepdim=True),
        lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    ],
)
def test_an_l2_norm_written_out_is_constant(
    length: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    model, x = model_of_family("vit"), torch.randn(3, 8, dtype=torch.float64)
    weights = torch.randn(3, 8, dtype=torch.float64)

    def gradient(normalise: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        point = x.clone().requires_grad_()
        with vitlens.libragrad(model):
            out = normalise(point)
        return torch.autograd.grad((out * weights).sum(), point)[0]

    expected = weights / x.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(gradient(lambda x: x / length(x)), expected)
    torch.testing.assert_close(gradient(lambda x: F.normalize(x, dim=-1)), expected)


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
def test_engines_agree_on_more_tokens_than_are_looked_at_together(gradient: str) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, "img_size": 48}, num_classes=5).double().eval()
    lens = lens_on(model)
    picture = torch.randn(3, 48, 48, dtype=torch.float64)
    assert lens.vision.n_tokens > 2 * _TOKENS
    exact, slow = (
        lens.importances(picture, target=1, gradient=gradient, engine=engine)
        for engine in ("closed_form", "vjp")
    )
    for a, b in zip(exact.edges, slow.edges, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_edges_that_overflow_are_not_given() -> None:
    lens = lens_on(model_of_family("vit"))
    vision = vitlens.VisionModel(lens.vision.module.half())
    saes = [sae.half() for sae in lens.saes]
    lens = vitlens.Lens(vision, saes, transform=lens.transform)
    with pytest.raises(ModelError, match="float32"):
        lens.importances(
            double_image().half(), target=lambda logits: 6e4 * logits[1] / logits[1].detach()
        )


class Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_new_layers_that_are_the_same_in_training_are_taken() -> None:
    def with_part(**parts: nn.Module) -> nn.Module:
        model = VisionTransformer(**SMALL, num_classes=5).eval()
        for name, part in parts.items():
            setattr(model, name, part)
        return model

    vitlens.VisionModel(with_part(), head=Probe())
    for part in (nn.Sequential(nn.Linear(24, 9), nn.SiLU(), nn.Linear(9, 5)), nn.Linear(24, 5)):
        vitlens.VisionModel(with_part(head=part))
    vitlens.VisionModel(with_part(norm=LayerNorm(24), fc_norm=nn.RMSNorm(24)))
    for part in (
        nn.Dropout(0.1),
        DropPath(0.1),
        nn.Sequential(nn.Linear(24, 5), nn.BatchNorm1d(5)),
    ):
        with pytest.raises(ModelError, match="training mode"):
            vitlens.VisionModel(with_part(head=part))


class Attended(nn.Module):
    """A block around PyTorch's own attention layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x).transpose(0, 1)
        return x + self.attention(y, y, y, need_weights=False)[0].transpose(0, 1)


def test_forward_mode_through_the_attention_layer_of_pytorch() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(**SMALL, num_classes=5).double()
    model.blocks[1] = Attended(24).double()
    lens = lens_on(model.eval())
    forward, reverse = (
        lens.importances(double_image(), target=1, gradient="plain", engine=engine)
        for engine in ("jvp", "vjp")
    )
    for a, b in zip(forward.edges, reverse.edges, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))

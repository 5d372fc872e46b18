"""What the engines refuse, and what they take from the trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitlens
from tests.tiny import tiny_image, tiny_lens
from vitlens.attribution.edges import Engine
from vitlens.attribution.importances import importances
from vitlens.attribution.split import _ROWS
from vitlens.attribution.targets import resolve_target
from vitlens.errors import ModelError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
attention = F.scaled_dot_product_attention


class _Attention(nn.Module):
    """A block's attention by a function of queries, keys and values, [n, heads, T, E]."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.qkv = nn.Linear(24, 72)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        return self.attend(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("attend", "message"),
    [
        (lambda q, k, v: attention(q, k, v, is_causal=True), "plain softmax attention only"),
        (lambda q, k, v: attention(q, k, v, torch.ones(10, 10).tril().bool()), "without masks"),
        (lambda q, k, v: attention(q, k, v, scale=0.1), "plain softmax attention only"),
        (lambda q, k, v: attention(q, k[:, :1], v[:, :1], enable_gqa=True), "grouped queries"),
        (lambda q, k, v: attention(q, k[..., :5, :], v[..., :5, :]), "plain softmax"),
        (lambda q, k, v: attention(q, k, v) + attention(q, v, k), "calls it 2 times"),
        (lambda q, k, v: v, "calls it 0 times"),
    ],
    ids=["causal", "mask", "scale", "grouped", "fewer keys", "twice", "none"],
)
def test_exact_refuses_attention_that_it_does_not_know(attend: Attend, message: str) -> None:
    lens = tiny_lens(depth=3)
    lens.vit.blocks[1].attn = _Attention(attend).eval()
    with pytest.raises(ModelError, match=rf'{message}.*engine="jvp"'):
        lens.importances(tiny_image(), target=0, engine="exact")


@pytest.mark.parametrize("engine", ["exact", "jvp", "vjp"])
def test_the_trace_says_which_features_are_active(engine: Engine) -> None:
    lens = tiny_lens(dtype=torch.float64)
    traced = lens.trace(tiny_image(dtype=torch.float64))
    target = resolve_target(1, traced.logits)
    # As if rounding had brought another feature among the k since.
    others = [
        vitlens.TopKSAE.from_weights(W_enc=s.W_enc, W_dec=s.W_dec, b_dec=s.b_dec, k=1)
        for s in lens.saes
    ]
    here, there = (
        importances(lens.vit, saes, traced, lens.baselines, target, engine=engine)
        for saes in (lens.saes, others)
    )
    for a, b in zip(here.nodes + here.edges, there.nodes + there.edges, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
def test_engines_agree_on_more_features_a_token_than_are_pulled_together(gradient: str) -> None:
    lens = tiny_lens(depth=3, features=80, dtype=torch.float64)
    for sae in lens.saes:
        sae.k = 60
    image = tiny_image(dtype=torch.float64)
    assert lens.trace(image).features[1].gt(0).sum(1).max() > _ROWS
    exact, slow = (
        lens.importances(image, gradient=gradient, engine=engine) for engine in ("exact", "vjp")
    )
    for a, b in zip(exact.edges, slow.edges, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

"""The backward pass of attention in every form that torch has, and of gates written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlens.method.libragrad import libragrad, written_out_attention

attention = F.scaled_dot_product_attention
T = 5
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": torch.arange(T * T).reshape(T, T) % 3 != 1},
    "bias": {"attn_mask": torch.linspace(-2, 2, T * T).reshape(T, T).double()},
    "scale": {"scale": 0.7},
    "grouped": {"enable_gqa": True},
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.sigmoid": torch.sigmoid,
    "F.sigmoid": F.sigmoid,
    "x.sigmoid": Tensor.sigmoid,
    "torch.softmax": lambda x: torch.softmax(x, -1),
    "F.softmax": lambda x: F.softmax(x, -1),
    "x.softmax": lambda x: x.softmax(-1),
    "torch.rsqrt": lambda x: torch.rsqrt(1 + x * x),
    "x.rsqrt": lambda x: (1 + x * x).rsqrt(),
}


def projections(grouped: bool) -> list[Tensor]:
    """Queries, keys and values, [1, heads, T, 3]."""
    generator = torch.Generator().manual_seed(0)
    heads = (4, 2, 2) if grouped else (4, 4, 4)
    return [
        torch.randn(1, n, T, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in heads
    ]


@pytest.mark.parametrize("form", FORMS)
def test_probabilities_are_constant_in_every_form_of_attention(form: str) -> None:
    q, k, v = projections(form == "grouped")
    with libragrad(nn.Identity()):
        found = attention(q, k, v, **FORMS[form])
    torch.testing.assert_close(found, attention(q, k, v, **FORMS[form]))
    # Attention to unit vectors gives the probabilities.
    units = torch.eye(T).double().expand(1, k.shape[1], T, T)
    probabilities = attention(q, k, units, **FORMS[form]).detach()
    weights = torch.linspace(-1, 1, found.numel()).double().reshape(found.shape)
    each_head = probabilities.transpose(-2, -1) @ weights
    expected = each_head.unflatten(1, (k.shape[1], -1)).sum(2)
    q_grad, k_grad, v_grad = torch.autograd.grad(found, (q, k, v), weights, allow_unused=True)
    torch.testing.assert_close(v_grad, expected)
    assert q_grad is None and k_grad is None


@pytest.mark.parametrize("form", FORMS)
def test_attention_written_out_has_its_ordinary_gradient(form: str) -> None:
    given = projections(form == "grouped")
    with written_out_attention():
        found = attention(*given, **FORMS[form])
    expected = attention(*given, **FORMS[form])
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(-1, 1, found.numel()).double().reshape(found.shape)
    for a, b in zip(
        torch.autograd.grad(found, given, weights),
        torch.autograd.grad(expected, given, weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("need_weights", [True, False])
def test_written_out_attention_gives_weights_only_where_they_are_asked_for(
    need_weights: bool,
) -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(6, 2).double(), torch.randn(T, 1, 6).double()
    expected = layer(x, x, x, need_weights=need_weights)
    with written_out_attention():
        found = layer(x, x, x, need_weights=need_weights)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_a_gate_written_by_hand_is_constant(gate: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-2, 2, 7).double().requires_grad_()
    with libragrad(nn.Identity()):
        out = x * gate(x)
    (found,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(found, gate(x.detach()))
    torch.testing.assert_close(out, x * gate(x))


def test_gelu_by_tanh_keeps_its_value_and_its_gate() -> None:
    x = torch.linspace(-3, 3, 13).double().requires_grad_()
    expected = F.gelu(x, approximate="tanh").detach()
    with libragrad(nn.Identity()):
        out = F.gelu(x, approximate="tanh")
    torch.testing.assert_close(out, expected)
    (found,) = torch.autograd.grad(out.sum(), x)
    away = x.detach() != 0
    torch.testing.assert_close(found[away], (expected / x.detach())[away])
    assert found[~away] == 0.5

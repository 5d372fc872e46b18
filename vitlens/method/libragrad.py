"""LibraGrad: a backward pass in which every block is linear.

The forward pass is the model's own. In derivatives these factors are constants (written [.])::

    LayerNorm            y = (x - mean(x)) / [std(x)] * weight + bias     (12)
    RMSNorm              y = x / [rms(x)] * weight
    L2 normalisation     y = x / [norm(x)]
    attention            y = [softmax(q k^T / sqrt(D / H))] v                 (13)
    x * gate(x)          y = x * [gate(x)]     GELU, QuickGELU, SiLU      (14)
    SwiGLU               y = [silu(W_g x)] * (W_x x)

For fixed constants every block is then affine in its input, so that contributions add up.

Source: Mehri et al., "LibraGrad: balancing gradient flow for universally better vision
transformer attributions", CVPR 2025 (arXiv 2411.16760); docs/method.md, "LibraGrad".
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Gradient = Literal["libragrad", "plain"]


def _layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    wide = _wide(x)
    centred = wide - wide.mean(dims, keepdim=True)
    std = (centred.square().mean(dims, keepdim=True) + eps).sqrt().detach()
    out = centred / std
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias).to(x.dtype)


def _rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    wide = _wide(x)
    out = wide / (wide.square().mean(dims, keepdim=True) + eps).sqrt().detach()
    return (out if weight is None else out * weight).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32, in which torch's norms compute; float16 may not hold squares."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))
        gate = 0.5 * (1 + torch.tanh(inner))
    else:
        gate = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * gate.detach()


def _silu(x: Tensor, inplace: bool = False) -> Tensor:
    return x * torch.sigmoid(x).detach()


def _normalize(
    x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Tensor:
    return x / x.norm(p, dim, keepdim=True).clamp_min(eps).detach()


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    constant: bool = True,
) -> Tensor:
    if enable_gqa:
        groups = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask
    probabilities = scores.softmax(-1)
    return F.dropout(probabilities.detach() if constant else probabilities, dropout_p) @ v


def _constant(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: func(*args, **kwargs).detach()


_RULES: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.gelu: _gelu,
    F.silu: _silu,
    F.normalize: _normalize,
    F.scaled_dot_product_attention: _attention,
    # What remains are pieces of the same rules written out by hand in a model's code: attention
    # probabilities, sigmoid gates (QuickGELU, gated attention), norms and their reciprocals.
    **{
        f: _constant(f)
        for f in (
            torch.softmax,
            F.softmax,
            Tensor.softmax,
            torch.sigmoid,
            F.sigmoid,
            Tensor.sigmoid,
            torch.rsqrt,
            Tensor.rsqrt,
            torch.norm,
            Tensor.norm,
            torch.linalg.norm,
            torch.linalg.vector_norm,
        )
    },
}


class _LibraGradMode(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _RULES.get(func, func)(*args, **(kwargs or {}))


class _WrittenOutMode(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}), constant=False)
        if func is F.multi_head_attention_forward:
            # It hides its attention; asked for the weights, it writes it out.
            given = kwargs or {}
            out, weights = func(*args, **{**given, "need_weights": True})
            return out, weights if given.get("need_weights", True) else None
        return func(*args, **(kwargs or {}))


def written_out_attention() -> AbstractContextManager[Any]:
    """Context in which attention is computed step by step, with its ordinary derivatives.

    The fused kernels have no forward-mode derivative. Unlike `torch.nn.attention.sdpa_kernel`,
    which sets the kernels of the whole process, this concerns the thread it is opened in only.
    """
    return _WrittenOutMode()


def backward_rules(module: nn.Module, gradient: Gradient) -> AbstractContextManager[None]:
    """Context in which forward passes of a model get the wanted backward pass.

    Parameters
    ----------
    module
        The network; it is not modified.
    gradient
        "libragrad", or "plain" for the ordinary derivatives.
    """
    return libragrad(module) if gradient == "libragrad" else written_out_attention()


def _gate_activations(model: nn.Module) -> Iterator[nn.Module]:
    from timm.layers import GluMlp, SwiGLU

    for module in model.modules():
        if isinstance(module, GluMlp | SwiGLU):
            yield module.act


@contextmanager
def libragrad(model: nn.Module) -> Iterator[None]:
    """Give every forward pass of `model` inside the context LibraGrad's backward pass.

    The values computed are those of the model; only derivatives (reverse and forward mode)
    change. Constant in the backward pass are: attention probabilities; the standard deviation
    of LayerNorm and RMSNorm (the mean still back-propagates); the gate of ``x * gate(x)``
    activations (GELU, QuickGELU, SiLU); the whole gate branch of SwiGLU; the norm in an L2
    normalisation.

    Parameters
    ----------
    model
        The network. It is not modified: functions are intercepted by a thread-local mode, and
        the hooks on gated MLPs, which leave other threads alone, are removed on exit, also after
        an exception.

    Notes
    -----
    Compute the target outside the context: a softmax written in it would be held constant too.
    """
    thread = threading.get_ident()

    def hold(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return out.detach() if threading.get_ident() == thread else out

    hooks = [gate.register_forward_hook(hold) for gate in _gate_activations(model)]
    try:
        with _LibraGradMode():
            yield
    finally:
        for hook in hooks:
            hook.remove()

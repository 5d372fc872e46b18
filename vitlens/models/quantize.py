"""Small files for large weights: 8-bit integers with one scale per output channel."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

_SCALE = ".scale"
_LEVELS = 127
# Ranges tried per channel: cutting the largest weights off can cost less than a coarser grid.
_SHRINKS = torch.linspace(0.7, 1.0, 31, device="cpu").tolist()


def quantize(state_dict: Mapping[str, Tensor], *, keep: Collection[str] = ()) -> dict[str, Tensor]:
    """Quantise the weight matrices of a model to int8, symmetrically per output channel.

    A channel is one index of the first dimension. Its range is chosen among 31 between 70 % and
    100 % of its largest weight so that the squared error is smallest.

    Parameters
    ----------
    state_dict
        Floating-point weights by name.
    keep
        Names whose values are stored as float16 instead.

    Returns
    -------
    dict of str to Tensor
        For a tensor with a last dimension shared by at least two channels: int8 under its name
        and float32 scales, shape [channels, 1, ...], under ``name.scale``. The tensors in `keep`
        are float16; all others (biases, norms, embeddings with one channel) are float32.

    Raises
    ------
    ValueError
        When a tensor is not of floating point or holds NaN or infinity, or one in `keep` does not
        fit into float16.
    """
    stored = {}
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{name} cannot be quantised: it must hold finite floats.")
        tensor = tensor.detach().float()
        if name in keep:
            stored[name] = tensor.half()
            if not torch.isfinite(stored[name]).all():
                raise ValueError(
                    f"{name} holds values too large for float16 and cannot be stored in it."
                )
        elif tensor.ndim < 2 or tensor.shape[0] < 2:
            stored[name] = tensor.clone()
        else:
            stored[name], stored[name + _SCALE] = _quantize_channels(tensor)
    return stored


def dequantize(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn what `quantize` returns back into float32 weights.

    Parameters
    ----------
    stored
        Quantised weights with their scales, and the tensors kept in floating point.

    Returns
    -------
    dict of str to Tensor
        float32, with the names and shapes that `quantize` was given.

    Raises
    ------
    ValueError
        When the scale of an int8 tensor is missing.
    """
    weights = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            if name + _SCALE not in stored:
                raise ValueError(f"The scale of {name} is missing.")
            weights[name] = tensor.float() * stored[name + _SCALE].float()
        elif not (name.endswith(_SCALE) and name.removesuffix(_SCALE) in stored):
            weights[name] = tensor.float()
    return weights


def _quantize_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 values and float32 scales, the latter broadcastable to `weight`."""
    channels = weight.flatten(1)
    # A channel of zeros has no range; any scale stores it exactly.
    limit = channels.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    best_error = torch.full_like(limit, torch.inf)
    best_scale = limit / _LEVELS
    for shrink in _SHRINKS:
        scale = limit * shrink / _LEVELS
        error = (_round(channels, scale) * scale - channels).square().sum(dim=1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    values = _round(channels, best_scale).to(torch.int8).view(weight.shape)
    return values, best_scale.view(-1, *[1] * (weight.ndim - 1))


def _round(channels: Tensor, scale: Tensor) -> Tensor:
    return (channels / scale).round().clamp(-_LEVELS, _LEVELS)

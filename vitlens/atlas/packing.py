"""Tensors as few bytes: smallest integer type, rounding where it is asked for, deflate."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitlens.errors import CheckpointError

_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_INTEGERS, torch.float16)} | {
    "float32": torch.float32
}


class Packed:
    """Named tensors being packed for one file: `tensors` and `how` go into it.

    `how` is plain JSON, and tells `unpack` what each tensor was.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.how: dict[str, dict[str, Any]] = {}

    def exact(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor without a loss; integers in the smallest type that holds them all."""
        tensor = tensor.detach().cpu()
        if not tensor.is_floating_point():
            tensor = tensor.to(_smallest(tensor))
        data = np.ascontiguousarray(tensor.numpy())
        # Bytes of the same weight side by side: the high ones hardly change, and deflate well.
        planes = data.reshape(-1, 1).view(np.uint8).T.tobytes()
        packed = zlib.compress(planes, 9)
        self.tensors[name] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        self.how[name] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }

    def half(self, name: str, tensor: Float[Tensor, "*any"]) -> None:
        """Keep numbers with 11 bits of precision, those beyond float16's range at its ends."""
        most = torch.finfo(torch.float16).max
        self.exact(name, tensor.float().clamp(-most, most).half())

    def levels(self, name: str, tensor: Float[Tensor, "F n"], levels: int) -> None:
        """Keep numbers from 0 as whole `levels`-ths of the largest in their row."""
        scale = tensor.float().amax(1, keepdim=True) / levels
        self.exact(name, (tensor / scale.clamp_min(1e-30)).round().clamp(0, levels).byte())
        self.exact(f"{name}.scale", scale[:, 0])


def unpack(
    tensors: Mapping[str, Tensor], how: Mapping[str, Mapping[str, Any]], name: str
) -> Tensor:
    """Return one tensor of a `Packed`; integers as int64, numbers as float32, bytes as bytes.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    tensor = _exact(tensors, how, name)
    if f"{name}.scale" in how:
        return tensor.float() * _exact(tensors, how, f"{name}.scale")[:, None]
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def unpack_bytes(
    tensors: Mapping[str, Tensor], how: Mapping[str, Mapping[str, Any]], name: str
) -> UInt8[Tensor, "*any"]:
    """Return one tensor of bytes as it is; see `unpack`."""
    return _exact(tensors, how, name)


def _exact(
    tensors: Mapping[str, Tensor], how: Mapping[str, Mapping[str, Any]], name: str
) -> Tensor:
    if name not in tensors or name not in how:
        raise CheckpointError(f"{name!r} is missing.")
    try:
        dtype, shape = _DTYPES[how[name]["dtype"]], how[name]["shape"]
        data = zlib.decompress(tensors[name].numpy().tobytes())
        return _joined(data, dtype, shape)
    except (zlib.error, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{name!r} is damaged: {error}.") from error


def _joined(data: bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for {list(shape)}")
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return torch.from_numpy(planes.T.flatten()).view(dtype).reshape(shape)


def _smallest(tensor: Tensor) -> torch.dtype:
    if not tensor.numel():
        return torch.uint8
    low, high = int(tensor.min()), int(tensor.max())
    return next(
        dtype
        for dtype in _INTEGERS
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max
    )

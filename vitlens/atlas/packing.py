"""Tensors as few bytes: smallest integer type, rounding where requested, compression.

LZMA for small tensors, whose range coder spends fractions of a bit on a symbol; deflate for large
ones, which it reads and writes much faster.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitlens.errors import CheckpointError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_INTEGERS, torch.float16)} | {
    "float32": torch.float32
}

_LARGE = 2**20  # bytes
# A dictionary no larger than the input: a larger one is cleared each time, which takes long.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": _LARGE, "pb": 0}]


class Packed:
    """Named tensors being packed for one file: `tensors` and `how` go into it.

    `how` is plain JSON and describes each tensor to `unpack`.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.how: dict[str, dict[str, Any]] = {}

    def exact(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor without loss; integers in the smallest type that holds them all."""
        tensor = tensor.detach().cpu()
        if not tensor.is_floating_point():
            tensor = tensor.to(_smallest(tensor))
        data = np.ascontiguousarray(tensor.numpy())
        # Bytes of the same weight together: the high ones hardly change, and deflate well.
        planes = data.reshape(-1, 1).view(np.uint8).T.tobytes()
        packed = _compress(planes)
        self.tensors[name] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        self.how[name] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "crc": zlib.crc32(planes),
        }

    def half(self, name: str, tensor: Float[Tensor, "*any"]) -> None:
        """Keep numbers with 11 bits of precision, those beyond float16's range at its ends."""
        most = torch.finfo(torch.float16).max
        self.exact(name, tensor.float().clamp(-most, most).half())

    def levels(
        self,
        name: str,
        tensor: Float[Tensor, "F n"],
        levels: int,
        *,
        step: Float[Tensor, " F"] | None = None,
    ) -> None:
        """Keep numbers as whole steps of their row, at most `levels` up and down.

        Parameters
        ----------
        step
            The least step of each row; by default, and where a row needs it, the `levels`-th part
            of its largest number.
        """
        needed = tensor.float().abs().amax(1) / levels
        wanted = needed if step is None else torch.maximum(needed, step.float())
        # Half the bytes, and never below the requested step, or the largest would not fit.
        scale = (wanted * (1 + 2**-8)).bfloat16().float()
        whole = (tensor / scale.clamp_min(1e-30)[:, None]).round().clamp(-levels, levels)
        self.exact(name, whole.to(torch.int16))
        self.exact(f"{name}.scale", scale)


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
        length = math.prod(shape) * dtype.itemsize
        data = _decompress(tensors[name].numpy().tobytes(), length)
        if len(data) != length or zlib.crc32(data) != how[name]["crc"]:
            raise ValueError("its bytes are not those that were written")
        return _joined(data, dtype, shape)
    except (lzma.LZMAError, zlib.error, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{name!r} is damaged: {error}.") from error


def _joined(data: bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return torch.from_numpy(planes.T.flatten()).view(dtype).reshape(shape)


def _compress(data: bytes) -> bytes:
    if len(data) > _LARGE:
        return zlib.compress(data, 6)
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _decompress(data: bytes, length: int) -> bytes:
    if length > _LARGE:
        return zlib.decompress(data)
    return lzma.decompress(data, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _smallest(tensor: Tensor) -> torch.dtype:
    if not tensor.numel():
        return torch.uint8
    low, high = int(tensor.min()), int(tensor.max())
    return next(
        dtype
        for dtype in _INTEGERS
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max
    )

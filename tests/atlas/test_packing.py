"""Packed tensors lose what they say and no more."""

from __future__ import annotations

import pytest
import torch

from vitlens.atlas.packing import Packed, unpack, unpack_bytes
from vitlens.errors import CheckpointError


def test_packing_loses_what_it_says_and_no_more() -> None:
    torch.manual_seed(0)
    packed = Packed()
    whole = {
        "small": torch.randint(0, 255, (5, 7)),
        "signed": torch.randint(-300, 300, (4,)),
        "large": torch.randint(-(2**60), 2**60, (3, 2)),
        "none": torch.zeros(0, 3, dtype=torch.int64),
    }
    for name, tensor in whole.items():
        packed.exact(name, tensor)
    numbers = torch.randn(6, 50)
    packed.exact("numbers", numbers)
    packed.half("half", numbers * 1e6)
    packed.levels("levels", numbers.abs(), 15)
    packed.levels("signed levels", numbers, 127)
    least = torch.linspace(0, 1, 6)
    packed.levels("coarse", numbers, 127, step=least)
    packed.levels("silent", torch.zeros(2, 3), 15)
    packed.exact("bytes", torch.arange(256).byte())
    for name, tensor in whole.items():
        assert torch.equal(unpack(packed.tensors, packed.how, name), tensor)
    get = lambda name: unpack(packed.tensors, packed.how, name)  # noqa: E731
    assert torch.equal(get("numbers"), numbers)
    torch.testing.assert_close(get("half"), (numbers * 1e6).clamp(-65504, 65504), rtol=5e-4, atol=0)
    step = numbers.abs().amax(1, keepdim=True) / 15
    assert ((get("levels") - numbers.abs()).abs() <= step * 0.504).all()
    step = numbers.abs().amax(1, keepdim=True) / 127
    assert ((get("signed levels") - numbers).abs() <= step * 0.504).all()
    step = torch.maximum(step, least[:, None])
    assert ((get("coarse") - numbers).abs() <= step * 0.504).all()
    assert torch.equal(get("silent"), torch.zeros(2, 3))
    assert unpack_bytes(packed.tensors, packed.how, "bytes").dtype == torch.uint8
    with pytest.raises(CheckpointError, match="'other' is missing"):
        get("other")
    packed.how["numbers"]["shape"] = [6, 51]
    with pytest.raises(CheckpointError, match="'numbers' is damaged"):
        get("numbers")

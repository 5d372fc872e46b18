"""Arrays and pictures as bytes."""

import numpy as np
import pytest
import torch

from vitlens.widgets.base import decode_strip, encode_strip, from_bytes, to_bytes


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "uint8"])
def test_numbers_come_back(kind: str) -> None:
    numbers = torch.arange(6).reshape(2, 3)
    for values in (numbers, numbers.numpy(), numbers.tolist(), numbers.T.contiguous().T):
        found = from_bytes(to_bytes(values, kind), kind, (2, 3))
        assert found.dtype == np.dtype(kind)
        assert (found == numbers.numpy()).all()


def test_halfs_do_not_overflow() -> None:
    assert from_bytes(to_bytes([1e9, -1e9], "float16"), "float16").tolist() == [65504, -65504]


def test_a_strip_of_pictures() -> None:
    red = torch.zeros(20, 30, 3, dtype=torch.uint8)
    red[..., 0] = 200
    blue = np.zeros((20, 30, 3), dtype=np.uint8)
    blue[..., 2] = 200
    data = encode_strip([red, None, blue])
    first, empty, last = decode_strip(data, 3)
    assert first.shape == (20, 30, 3)
    assert first[10, 15].tolist() == pytest.approx([200, 0, 0], abs=12)
    assert empty[10, 15].tolist() == pytest.approx([235, 235, 235], abs=12)
    assert last[10, 15].tolist() == pytest.approx([0, 0, 200], abs=12)


def test_large_pictures_and_long_strips_are_made_smaller() -> None:
    large = np.zeros((600, 1200, 3), dtype=np.uint8)
    assert decode_strip(encode_strip([large]), 1)[0].shape == (224, 448, 3)
    many = decode_strip(encode_strip([large] * 50), 50)
    assert len(many) == 50
    assert many[0].shape[1] == 327


def test_no_picture() -> None:
    assert encode_strip([None, None]) == b""
    assert decode_strip(b"", 2) == [None, None]

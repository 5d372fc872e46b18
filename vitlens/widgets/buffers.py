"""Arrays and pictures as bytes for the browser; all numbers little-endian."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

Kind = Literal["float32", "float16", "int32", "uint8"]

_LONGEST = 16383  # pixels: what WebP and a browser's canvas can hold
_SIDE = 448  # pixels of a picture's longer side: enough for a page, and small to send


def to_bytes(values: ArrayLike | Tensor, kind: Kind = "float32") -> bytes:
    """Return numbers as bytes, row by row.

    Parameters
    ----------
    values
        Any array or tensor.
    kind
        What the browser reads: "float32", "float16", "int32" or "uint8". Numbers beyond
        float16's range become its largest.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if kind == "float16":
        array = np.clip(array, -65504, 65504)
    return np.ascontiguousarray(array, dtype=np.dtype(kind).newbyteorder("<")).tobytes()


def from_bytes(data: bytes, kind: Kind = "float32", shape: tuple[int, ...] = (-1,)) -> NDArray[Any]:
    """Return the array of `to_bytes`."""
    return np.frombuffer(data, dtype=np.dtype(kind).newbyteorder("<")).reshape(shape).copy()


def encode_strip(
    pictures: Sequence[UInt8[Tensor, "H W 3"] | UInt8[NDArray[np.uint8], "H W 3"] | None],
    *,
    side: int = _SIDE,
) -> bytes:
    """Return pictures side by side as one WebP image.

    Parameters
    ----------
    pictures
        [H, W, 3] each. All get the size of the first one that is known; None leaves its place
        empty.
    side
        Pixels of a picture's longer side, at most; larger ones are made smaller.

    Returns
    -------
    bytes
        Empty when no picture is known.
    """
    images = [None if p is None else Image.fromarray(_pixels(p)) for p in pictures]
    known = next((image for image in images if image is not None), None)
    if known is None:
        return b""
    scale = min(
        1.0, side / max(known.size), _LONGEST / (known.width * len(images)), _LONGEST / known.height
    )
    size = (max(1, int(known.width * scale)), max(1, int(known.height * scale)))
    strip = Image.new("RGB", (size[0] * len(images), size[1]), (235, 235, 235))
    for place, image in enumerate(images):
        if image is not None:
            strip.paste(image.resize(size, Image.Resampling.LANCZOS), (place * size[0], 0))
    file = io.BytesIO()
    strip.save(file, "WEBP", quality=90, method=4)
    return file.getvalue()


def decode_strip(data: bytes, n_images: int) -> list[UInt8[Tensor, "H W 3"] | None]:
    """Return the pictures of `encode_strip`; None for each when there are none."""
    if not data:
        return [None] * n_images
    with Image.open(io.BytesIO(data)) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return list(pixels.chunk(n_images, dim=1))


def _pixels(picture: Tensor | NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = picture.cpu().numpy() if isinstance(picture, Tensor) else picture
    return np.ascontiguousarray(array)

"""Any image in, one tensor out, and back again."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor, nn

from vitlens.errors import CheckpointError, ImageError, near_matches

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_CROP_MODES = ("center", "squash")
_INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)


@dataclass(frozen=True)
class Transform:
    """From an RGB image to a model's input: resize, centre crop, normalise.

    Gives what timm's evaluation transform gives, for the same settings.

    Parameters
    ----------
    size
        (height, width) of the model's input, in pixels.
    mean, std
        Mean and standard deviation of the red, green and blue channels, on pixels in [0, 1].
    crop_pct
        The share of the resized image's shorter side which the crop keeps.
    interpolation
        "bicubic", "bilinear", "lanczos", "box", "hamming" or "nearest".
    crop_mode
        "center" keeps the proportions and crops the rest; "squash" resizes both
        sides, so that nothing is cut off (with `crop_pct` = 1).

    Raises
    ------
    ImageError
        When a setting is out of range or unknown.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ImageError(f"size must be (height, width) in pixels, not {self.size}.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ImageError(
                f"mean and std must have three numbers each, with std above 0, not {self.mean} and "
                f"{self.std}."
            )
        if not 0 < self.crop_pct <= 1:
            raise ImageError(f"crop_pct must be above 0 and at most 1, not {self.crop_pct}.")
        _require_one_of("interpolation", self.interpolation, _INTERPOLATIONS)
        _require_one_of("crop_mode", self.crop_mode, _CROP_MODES)

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        """Return the model's input for an RGB image, in float32.

        Raises
        ------
        ImageError
            When the image is so long and narrow that resizing it would fill the memory.
        """
        pixels = np.array(self.crop(image), dtype=np.float32) / 255
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        mean, std = self._statistics(tensor)
        return ((tensor - mean) / std).contiguous()

    def crop(self, image: Image.Image) -> Image.Image:
        """Return the resized and cropped image that the model sees."""
        height, width = self._resized(image.height, image.width)
        if height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ImageError(
                f"An image of {image.width} × {image.height} pixels is too narrow for a crop of "
                f"{self.size[1]} × {self.size[0]}. Crop it to the part of interest first."
            )
        resample = Image.Resampling[self.interpolation.upper()]
        resized = image.resize((width, height), resample)
        top = round((height - self.size[0]) / 2)
        left = round((width - self.size[1]) / 2)
        return resized.crop((left, top, left + self.size[1], top + self.size[0]))

    def to_pil(self, tensor: Float[Tensor, "3 H W"]) -> Image.Image:
        """Return the image of a model input: the normalisation undone, in 8 bits."""
        tensor = tensor.detach().to("cpu", torch.float64)
        mean, std = self._statistics(tensor)
        pixels = ((tensor * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    @classmethod
    def from_timm(cls, model: nn.Module) -> "Transform":
        """Return the transform a timm model was trained for, at the input size it has now.

        Raises
        ------
        ImageError
            When the model asks for a way of cropping which is not supported.
        """
        from timm.data import resolve_model_data_config  # timm is slow to import

        config = resolve_model_data_config(model)
        # A model created with img_size=... keeps the settings of its pretrained size.
        built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
        height, width = built_for or config["input_size"][1:]
        return cls(
            size=(int(height), int(width)),
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            interpolation=config["interpolation"],
            crop_mode=config["crop_mode"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Transform":
        """Return the transform of settings from `to_dict`, also after a round trip through JSON.

        Raises
        ------
        CheckpointError
            When a setting is missing or unknown.
        """
        as_tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
        }
        try:
            return cls(**as_tuples)
        except TypeError as error:
            raise CheckpointError(f"Invalid Transform settings: {error}.") from error

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.mean)[:, None, None], like.new_tensor(self.std)[:, None, None]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the crop, rounded as torchvision (square) and timm do."""
        target_height, target_width = (math.floor(side / self.crop_pct) for side in self.size)
        if self.crop_mode == "squash":
            return target_height, target_width
        if target_height != target_width:
            ratio = min(height / target_height, width / target_width)
            return round(height / ratio), round(width / ratio)
        if height <= width:
            return target_height, int(target_height * width / height)
        return int(target_width * height / width), target_width


def open_image(image: ImageLike) -> Image.Image:
    """Return any image as RGB.

    Parameters
    ----------
    image
        A path or a sample of a bundle; a PIL image of any mode (rotated as its EXIF data say,
        grey in 16 bits scaled to 8, transparent parts over white; in mode "I", which does not
        tell, grey is in 16 bits where a level is above 255, else in 8); an array [H, W], [H, W, 1],
        [H, W, 3] or [H, W, 4] of uint8, uint16 or of floats in [0, 1]; or a uint8 tensor [H, W] or
        [C, H, W].

    Returns
    -------
    PIL.Image.Image
        Of mode "RGB".

    Raises
    ------
    ImageError
        When the file is missing, damaged or not an image, or the values are not those of an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_path(image)
    if isinstance(image, Image.Image):
        return _from_pil(image, "The image")
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    raise ImageError(
        f"An image must be a path, a PIL image, an array or a tensor, not {type(image).__name__}."
    )


def as_images(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Return images as something to iterate over; a single one counts as a list of one.

    Parameters
    ----------
    images
        A path, a sample of a bundle, a PIL image, or an array or tensor of at most three
        dimensions: one image. An array or tensor of four is a batch, and any other iterable
        gives images one by one.

    Raises
    ------
    ImageError
        When it is none of these.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        return [images] if images.ndim < 4 else images
    if not isinstance(images, Iterable):
        raise ImageError(
            "Images must be one path, PIL image, array or tensor, or a list of these, not "
            f"{type(images).__name__}."
        )
    return images


def to_tensor(
    image: ImageLike,
    transform: Callable[[Image.Image], Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "3 H W"]:
    """Return any image as a model's input.

    Parameters
    ----------
    image
        An image, as for `open_image`, which goes through `transform`; or a *float* tensor
        [3, H, W] or [1, 3, H, W], which is taken as a model input, normalised already.
    transform
        A `Transform`, or any callable that makes a tensor [3, H, W] of an RGB PIL image.
    dtype, device
        Dtype and device of the result.

    Returns
    -------
    Tensor
        [3, H, W], with finite values.

    Raises
    ------
    ImageError
        When the image cannot be read, has the wrong shape, or holds NaN or infinite values.
    """
    if isinstance(image, Tensor) and image.is_floating_point():
        tensor = _checked_input(image, "A float tensor is treated as a normalised model input: it")
        size = getattr(transform, "size", None)
        if isinstance(size, tuple) and tuple(tensor.shape[1:]) != size:
            raise ImageError(
                f"The model's input is {_shape((3, *size))}, and this float tensor is "
                f"{_shape(tensor.shape)}. To have an image resized, pass a path, a PIL image, an "
                "array or a uint8 tensor."
            )
    else:
        output = transform(open_image(image))
        if not isinstance(output, Tensor):
            raise ImageError(f"The transform returned {type(output).__name__}, not a tensor.")
        tensor = _checked_input(output, "The output of the transform")
    return tensor.to(device=device, dtype=dtype)


def _checked_input(tensor: Tensor, what: str) -> Tensor:
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ImageError(f"{what} must be [3, H, W], not {_shape(tensor.shape)}.")
    if not torch.isfinite(tensor).all():
        raise ImageError(f"{what} must be finite, and holds NaN or infinite values.")
    return tensor


def _from_path(path: str | os.PathLike[str]) -> Image.Image:
    if os.fspath(path).startswith(("http://", "https://")):
        raise ImageError(f"{path} is a web address: save the image to a file first.")
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path} is a folder, not an image.")
    if not path.is_file():
        raise ImageError(f"There is no image {path}.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty.")
    try:
        with Image.open(path) as image:
            return _from_pil(image, str(path))
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not an image of a known format, or is damaged. Save it as JPEG or PNG."
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ImageError(f"{path} cannot be read as an image: {error}.") from error


def _from_pil(image: Image.Image, what: str) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # an image opened lazily is only decoded, and found damaged, here
        raise ImageError(f"{what} cannot be read: {error}.") from error
    if 0 in image.size:
        raise ImageError(f"{what} has no pixels.")
    if image.mode.startswith("I"):
        return _from_wide_grey(np.asarray(image), what, sixteen_bits=image.mode != "I")
    if image.mode == "F":
        return _from_array(np.asarray(image))
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(straight.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _from_wide_grey(levels: np.ndarray, what: str, *, sixteen_bits: bool) -> Image.Image:
    """From Pillow's integer modes: grey of 16 bits, or of 8 where mode "I" holds no more."""
    if levels.min() < 0 or levels.max() > 65535:
        raise ImageError(
            f"{what} has grey levels from {levels.min()} to {levels.max()}, beyond 16 bits."
        )
    if sixteen_bits or levels.max() > 255:
        levels = _eight_bits(levels)
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = " Put the channels last: array.transpose(1, 2, 0)."
        raise ImageError(
            "An array must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], "
            f"not {_shape(array.shape)}.{hint}"
        )
    if array.size == 0:
        raise ImageError(f"The array {_shape(array.shape)} has no pixels.")
    if array.dtype == np.uint16:
        array = _eight_bits(array)
    elif np.issubdtype(array.dtype, np.floating):
        array = _eight_bits_of_unit_interval(array)
    elif array.dtype != np.uint8:
        raise ImageError(f"An array must be uint8, uint16 or float in [0, 1], not {array.dtype}.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _from_pil(Image.fromarray(np.ascontiguousarray(array)), "The array")


def _from_tensor(tensor: Tensor) -> Image.Image:
    if tensor.dtype != torch.uint8:
        raise ImageError(
            f"An image tensor must be uint8, not {tensor.dtype}; a float tensor is treated as a "
            "normalised model input."
        )
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.permute(1, 2, 0)
    elif tensor.ndim != 2:
        raise ImageError(
            "A uint8 tensor must be [H, W] or [C, H, W] with 1, 3 or 4 channels, "
            f"not {_shape(tensor.shape)}."
        )
    return _from_array(tensor.detach().cpu().numpy())


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    """From 0..65535 to the nearest of 0..255."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _eight_bits_of_unit_interval(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ImageError("The image holds NaN or infinite pixels.")
    if values.min() < 0 or values.max() > 1:
        raise ImageError(
            f"The pixels go from {values.min():.4g} to {values.max():.4g}; floats must lie in [0, "
            "1]. Divide by the largest possible value, or convert to uint8."
        )
    return (values * 255).round().astype(np.uint8)


def _require_one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ImageError(
            f"{what} is one of {', '.join(allowed)}, not {value!r}.{near_matches(value, allowed)}"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(side) for side in shape)}]"

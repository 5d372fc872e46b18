"""Images of every kind, against values worked out by hand and against timm's own transform."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from vitlens.errors import CheckpointError, ImageError
from vitlens.images import Transform, open_image, to_tensor

HALF = (0.5, 0.5, 0.5)
SMALL = Transform(size=(8, 8), mean=HALF, std=HALF)
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


@pytest.fixture
def noise() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(28, 28), (29, 21), (20, 33)])
def test_transform_is_that_of_timm(noise, size, crop_mode, crop_pct, interpolation):
    from timm.data import create_transform

    settings = {
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.25, 0.3),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "crop_mode": crop_mode,
    }
    reference = create_transform(input_size=(3, *size), **settings)
    for picture in (noise, noise.transpose(Image.Transpose.ROTATE_90)):
        expected = reference(picture)
        torch.testing.assert_close(Transform(size=size, **settings)(picture), expected)


def test_transform_from_timm_takes_the_size_the_model_was_built_for():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    transform = Transform.from_timm(model)
    assert transform.size == (64, 64)
    assert transform.mean == HALF
    assert transform.crop_pct == pytest.approx(0.9)


def test_picture_undoes_the_normalisation(noise):
    transform = Transform(size=(61, 83), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    assert np.array_equal(np.array(transform.to_pil(transform(noise))), np.array(noise))


def test_transform_survives_json():
    transform = Transform(size=(8, 10), mean=HALF, std=HALF, crop_pct=0.9, interpolation="lanczos")
    assert Transform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    with pytest.raises(CheckpointError, match="colour"):
        Transform.from_dict({**transform.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": (8,)}, "height, width"),
        ({"std": (1, 1, 0)}, "above 0"),
        ({"crop_pct": 1.5}, "at most 1"),
        ({"interpolation": "bicubik"}, "'bicubic'"),
        ({"crop_mode": "border"}, "center, squash"),
    ],
)
def test_transform_refuses_wrong_settings(setting, message):
    with pytest.raises(ImageError, match=message):
        Transform(**{**SMALL.to_dict(), **setting})


def test_transform_refuses_a_picture_that_would_fill_the_memory():
    with pytest.raises(ImageError, match="too narrow"):
        Transform(size=(224, 224), mean=HALF, std=HALF)(Image.new("RGB", (1, 100_000)))


def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), RED)
    image.putpixel((1, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left pixel comes to the top
    image.save(tmp_path / "turned.png", exif=exif)
    upright = open_image(tmp_path / "turned.png")
    assert upright.size == (1, 2)
    assert (pixel(upright), pixel(upright, 0, 1)) == (RED, GREEN)


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=100)
    red, green, blue = pixel(open_image(tmp_path / "ink.jpg"))
    assert red > 250
    assert max(green, blue) < 5


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=1)
    opened = open_image(tmp_path / "palette.png")
    assert (pixel(opened), pixel(opened, 1)) == (RED, WHITE)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("LA", (0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("RGBa", (51, 0, 0, 51), (255, 204, 204)),
        ("I;16", 257 * 77, (77, 77, 77)),
        ("I;16", 77, (0, 0, 0)),
        ("I", 65535, WHITE),
        ("I", 30_000, (117, 117, 117)),
        ("I", 257, (1, 1, 1)),
        ("I", 255, WHITE),
        ("I", 77, (77, 77, 77)),
        ("F", 1.0, WHITE),
        ("HSV", (85, 255, 255), GREEN),
    ],
)
def test_modes(mode, colour, expected):
    assert pixel(open_image(Image.new(mode, (3, 2), colour))) == pytest.approx(expected, abs=1)


def test_sixteen_bit_grey_file(tmp_path):
    Image.fromarray(np.full((2, 2), 257 * 200, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert pixel(open_image(tmp_path / "deep.png")) == (200, 200, 200)


def test_arrays_and_tensors_give_the_same_picture(noise):
    values = np.array(noise)
    alike = [
        values,
        values.astype(np.uint16) * 257,
        values / 255,
        (values / 255).astype(np.float32),
        np.dstack([values, np.full(values.shape[:2], 255, np.uint8)]),
        torch.from_numpy(values).permute(2, 0, 1),
        torch.from_numpy(values).permute(2, 0, 1)[None],
    ]
    for image in alike:
        assert np.array_equal(np.array(open_image(image)), values)


def test_grey_arrays_and_tensors():
    grey = np.full((4, 5), 9, np.uint8)
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        opened = open_image(image)
        assert opened.size == (5, 4)
        assert pixel(opened) == (9, 9, 9)


def test_array_that_is_not_contiguous(noise):
    values = np.array(noise)
    assert np.array_equal(np.array(open_image(values[::-1, ::2])), values[::-1, ::2])


def test_to_tensor_takes_pictures_through_the_transform(noise, tmp_path):
    noise.save(tmp_path / "noise.png")
    expected = SMALL(noise)
    for image in (noise, np.array(noise), tmp_path / "noise.png", str(tmp_path / "noise.png")):
        assert torch.equal(to_tensor(image, SMALL), expected)
    assert to_tensor(noise, SMALL, dtype=torch.float64).dtype == torch.float64


def test_to_tensor_takes_float_tensors_as_model_inputs():
    tensor = torch.randn(3, 8, 8, dtype=torch.float64)
    assert torch.equal(to_tensor(tensor, SMALL, dtype=torch.float64), tensor)
    assert torch.equal(to_tensor(tensor[None], SMALL), tensor.float())


def test_to_tensor_takes_any_callable(noise):
    assert to_tensor(noise, lambda picture: torch.zeros(1, 3, 4, 4)).shape == (3, 4, 4)
    with pytest.raises(ImageError, match="returned Image"):
        to_tensor(noise, lambda picture: picture)
    with pytest.raises(ImageError, match=r"must be \[3, H, W\], not \[1, 4, 4\]"):
        to_tensor(noise, lambda picture: torch.zeros(1, 4, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no image"),
        (b"", "is empty"),
        (b"not an image at all", "not an image of a known format, or is damaged. Save it as JPEG"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        open_image(path)
    assert "bad.png" in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files(noise, tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    noise.save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ImageError, match="cut"):
        open_image(path)


def test_truncated_pil_image(noise, tmp_path):
    path = tmp_path / "cut.png"
    noise.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Image.open(path) as lazily_opened, pytest.raises(ImageError, match="cannot be read"):
        open_image(lazily_opened)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_file_without_permission(noise, tmp_path):
    noise.save(tmp_path / "closed.png")
    (tmp_path / "closed.png").chmod(0)
    with pytest.raises(ImageError, match="ermission"):
        open_image(tmp_path / "closed.png")


def test_folder_and_web_address(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="save the image to a file"):
        open_image("https://example.org/cat.jpg")


def test_too_many_pixels(monkeypatch, noise, tmp_path):
    noise.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="exceeds limit"):
        open_image(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), np.inf), "infinite"),
        (np.full((4, 4, 3), 200.0), "Divide"),
        (np.zeros((4, 4, 2), np.uint8), r"not \[4, 4, 2\]"),
        (np.zeros((3, 4, 5), np.uint8), "channels last"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"not \[1, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"not \[2, 4, 4\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8, not torch.int64"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (torch.zeros(1, 8, 8), r"\[3, H, W\], not \[1, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8), r"not \[2, 3, 8, 8\]"),
        (torch.zeros(3, 8, 9), r"is \[3, 8, 8\], and this float tensor is \[3, 8, 9\]"),
        (Image.new("I", (2, 2), 70_000), "beyond 16 bits"),
        (Image.new("F", (2, 2), float("nan")), "NaN"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (None, "not NoneType"),
        ([[1, 2]], "not list"),
    ],
)
def test_bad_values(image, message):
    with pytest.raises(ImageError, match=message):
        to_tensor(image, SMALL)


def test_float_tensor_is_no_picture():
    with pytest.raises(ImageError, match="model input"):
        open_image(torch.zeros(3, 8, 8))

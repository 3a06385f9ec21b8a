import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipelines.storage import images
from pipelines.storage.images import (
    RejectedImage,
    decode_image,
    decode_png,
    encode_png,
    shrink,
    to_tensor,
    to_uint8,
)

SIZE = (64, 48)  # width, height


def gradient() -> np.ndarray:
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    return np.stack([columns * 4, rows * 5, 255 - columns * 3], 2).astype(np.uint8)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture() -> Image.Image:
    return Image.fromarray(gradient())


def animation(format: str) -> bytes:
    other = Image.fromarray(255 - gradient())
    return saved(picture(), format, save_all=True, append_images=[other])


def reason(data: bytes, **options) -> str:
    with pytest.raises(RejectedImage) as caught:
        decode_image(data, **options)
    return caught.value.reason


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_their_pixels(format):
    np.testing.assert_array_equal(decode_image(saved(picture(), format)), gradient())


def test_grey_becomes_three_equal_channels():
    grey = decode_image(saved(picture().convert("L"), "JPEG", quality=95))
    assert grey.shape == (48, 64, 3)
    assert (grey[..., 0] == grey[..., 2]).all()


def test_cmyk_keeps_its_colours():
    decoded = decode_image(saved(picture().convert("CMYK"), "JPEG", quality=100, subsampling=0))
    assert np.abs(decoded.astype(int) - gradient()).mean() < 6


def test_16_bit_is_scaled_not_clipped():
    levels = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    decoded = decode_image(saved(Image.fromarray(levels), "PNG"))
    np.testing.assert_allclose(decoded[..., 0], levels / 257, atol=0.51)


def test_transparency_is_laid_over_white():
    rgba = np.dstack([gradient(), np.full((48, 64), 255, np.uint8)])
    rgba[:, :32, 3] = 0
    decoded = decode_image(saved(Image.fromarray(rgba), "PNG"))
    assert (decoded[:, :32] == 255).all()
    np.testing.assert_array_equal(decoded[:, 32:], gradient()[:, 32:])


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(transparent):
    palette = picture().quantize(16)
    index = int(np.asarray(palette)[0, 0])
    options = {"transparency": index} if transparent else {}
    decoded = decode_image(saved(palette, "PNG", **options))
    expected = [255] * 3 if transparent else np.asarray(palette.convert("RGB"))[0, 0]
    np.testing.assert_array_equal(decoded[0, 0], expected)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    decoded = decode_image(saved(picture(), "PNG", exif=exif))
    np.testing.assert_array_equal(decoded, np.rot90(gradient(), -1))


def test_broken_exif_does_not_matter():
    data = saved(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert decode_image(data).shape == (48, 64, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_is_rejected(format):
    assert reason(animation(format)) == "animated"


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_still_of_an_animated_format_is_taken(format):
    assert decode_image(saved(picture(), format)).shape == (48, 64, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_is_rejected(format, share):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    data = saved(noise, format)
    assert reason(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_no_image_is_rejected(data):
    assert reason(data) in ("unreadable", "truncated")


def test_corrupt_png_is_rejected():
    data = bytearray(saved(picture(), "PNG"))
    middle = data.index(b"IDAT") + 20
    data[middle : middle + 40] = bytes(40)
    assert reason(bytes(data)) in ("unreadable", "truncated")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_never_crash(data):
    original = bytearray(
        saved(picture(), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"])))
    )
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RejectedImage):
        assert decode_image(bytes(original)).dtype == np.uint8


def test_float_is_rejected():
    data = saved(Image.fromarray(np.zeros((48, 64), np.float32)), "TIFF")
    assert reason(data) == "unsupported mode F"


def test_too_small_is_rejected():
    assert reason(saved(picture(), "PNG"), min_side=64) == "too small (48 px < 64)"
    assert decode_image(saved(picture(), "PNG"), min_side=48).shape == (48, 64, 3)


def test_too_large_is_rejected_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 48 * 64 - 1)
    assert reason(saved(picture(), "PNG")) == "too large"


@settings(max_examples=25, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_png_round_trip(array):
    data = encode_png(array)
    assert data == encode_png(array.copy(order="F"))
    np.testing.assert_array_equal(decode_png(data), array)
    np.testing.assert_array_equal(to_uint8(to_tensor(array)), array)


def test_encode_png_names_what_it_needs():
    with pytest.raises(ValueError, match=r"uint8 \(H,W,3\), got float64"):
        encode_png(np.zeros((4, 4, 3)))


def test_to_uint8_rounds_and_clamps():
    image = torch.tensor([-0.5, 0.5019, 1.5]).view(3, 1, 1)
    assert to_uint8(image).ravel().tolist() == [0, 128, 255]


def test_shrink_keeps_the_shape_and_never_enlarges():
    assert shrink(gradient(), 32).shape == (24, 32, 3)
    assert shrink(gradient(), 100) is not None
    np.testing.assert_array_equal(shrink(gradient(), 100), gradient())

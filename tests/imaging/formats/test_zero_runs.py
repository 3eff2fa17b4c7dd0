"""Zeros in place of coded pixels are truncated files; flat pictures, and padding elsewhere, are not."""

import functools
import io
import struct
from typing import Any

import numpy as np
import pytest
from imaging.files import encoded, jpeg_segment
from PIL import Image

from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.imaging.formats.zero_runs import has_zeros

LIMITS = Limits(10**8, 10**8, 100)
CODED: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {}),
    "JPEG with tables of its own": ("JPEG", {"optimize": True}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "WebP": ("WEBP", {}),
    "WebP with metadata": ("WEBP", {"exif": Image.Exif().tobytes(), "xmp": b"<x/>"}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {"speed": 10}),
}
KINDS = CODED | {
    "grey JPEG": ("JPEG", {}),
    "grey progressive JPEG": ("JPEG", {"progressive": True}),
}


@functools.cache
def photo(kind: str) -> bytes:
    """Return a picture with noise, as photos have it, of more than 8 KiB."""
    row, column = np.mgrid[:240, :320]
    smooth = np.stack([127 + 90 * np.sin(column / 37 + row / 51), 255 - column / 2, row + 0.0], axis=2)
    noise = np.random.default_rng(0).normal(0, 12, smooth.shape)
    name, options = CODED[kind]
    return encoded(Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)), name, **options)


def zeroed(data: bytes, start: float, stop: float) -> bytes:
    first, last = (int(len(data) * share) for share in (start, stop))
    return data[:first] + bytes(last - first) + data[last:]


@pytest.mark.parametrize("kind", CODED)
def test_zeros_in_place_of_pixels_are_truncated(kind: str) -> None:
    whole = photo(kind)
    decode_image(whole, LIMITS)
    parts = ((0.5, 1), (0.8, 1)) if "WebP" in kind else ((0.5, 1), (0.8, 1), (0.4, 0.6))
    for start, stop in parts:
        with pytest.raises(ItemError) as caught:
            decode_image(zeroed(whole, start, stop), LIMITS)
        assert caught.value.code == "truncated", (start, stop)
        if kind.endswith("JPEG"):  # with its end marker, as a later part of a download has written it
            assert has_zeros("JPEG", zeroed(whole[:-2], start, stop) + whole[-2:])


@pytest.mark.parametrize("count", [512, 600])
def test_zeros_are_found_wherever_they_begin(count: int) -> None:
    whole = photo("JPEG")
    for start in range(len(whole) // 2, len(whole) // 2 + 130):
        assert has_zeros("JPEG", whole[:start] + bytes(count) + whole[start + count :]), start
    assert not has_zeros("JPEG", whole)


def test_zeros_in_a_heic_are_truncated() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    whole = encoded(Image.open(io.BytesIO(photo("JPEG"))), "HEIF", quality=90)
    assert decode_image(whole, LIMITS).pixels.shape == (240, 320, 3)
    for start, stop in ((0.5, 1), (0.4, 0.6)):
        with pytest.raises(ItemError, match="HEIC: zeros are in place of some of its pixels") as caught:
            decode_image(zeroed(whole, start, stop), LIMITS)
        assert caught.value.code == "truncated"


@pytest.mark.slow
@pytest.mark.parametrize("color", ["white", "red"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_picture_is_read(kind: str, color: str) -> None:
    """Flat pixels are coded as zeros by many encoders: by libwebp, 10,000 of them."""
    name, options = KINDS[kind]
    flat = Image.new("L" if kind.startswith("grey") else "RGB", (2400, 1500), color)
    for more in ({}, {"optimize": True} if name == "JPEG" else {"quality": 10}):
        data = encoded(flat, name, **{"quality": 100} | options | more)
        assert decode_image(data, LIMITS).pixels.shape == (1500, 2400, 3)


def test_a_photo_with_a_flat_lower_half_is_read() -> None:
    """It is white below, so that the last coded bytes may be zeros."""
    image = Image.new("RGB", (320, 2400), "white")
    image.paste(Image.open(io.BytesIO(photo("JPEG"))))
    for name, options in CODED.values():
        assert decode_image(encoded(image, name, **options), LIMITS).pixels.shape == (2400, 320, 3)


def test_padding_after_the_coded_pixels_is_no_loss() -> None:
    """An encoder may have aligned the chunk of the pixels to a sector."""
    webp = photo("WebP")
    size = len(webp) - 20
    padded = webp[:4] + struct.pack("<I", size + 1012) + b"WEBPVP8 " + struct.pack("<I", size + 1000)
    padded += webp[20:] + bytes(1000)
    np.testing.assert_array_equal(decode_image(padded, LIMITS).pixels, decode_image(webp, LIMITS).pixels)


def test_zeros_outside_the_pixels_do_not_matter() -> None:
    jpeg, webp, avif = photo("JPEG"), photo("WebP"), photo("AVIF")
    padded = jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0" + bytes(5000)) + jpeg[2:]
    for data in (padded, jpeg + bytes(5000), webp + bytes(5000), avif + b"\0\0\x10\0free" + bytes(0xFF8)):
        pixels = decode_image(data, LIMITS).pixels
        assert pixels.shape == (240, 320, 3)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "JPEG", "PNG"])
def test_a_file_of_zeros_after_its_signature_says_nothing(kind: str) -> None:
    for head in (b"", b"\xff\xd8\xff\xda", b"\0\0\0\x0cmeta", photo("AVIF")[:60], photo("WebP")[:16]):
        assert not has_zeros(kind, head + bytes(2000))

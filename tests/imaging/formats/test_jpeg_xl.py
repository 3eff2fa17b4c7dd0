"""JPEG XL: the header that is read here says what libjxl decodes, and what is not read is refused by it alone."""

import contextlib
import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from imaging.files import encoded, jpeg_xl_header
from numpy.typing import NDArray
from PIL import Image, ImageOps

from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import DecodedImage, Limits, decode_image, image_size
from maskrcnn.imaging.formats.jpeg_xl import Header, read_header

imagecodecs = pytest.importorskip("imagecodecs")

LIMITS = Limits(2 * 10**7, 10**7, 10**6)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 3), np.uint8)
ALPHA = RNG.integers(1, 256, (24, 32, 1), np.uint8)
SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "


def lossless(values: NDArray[Any], **options: Any) -> bytes:
    data: bytes = imagecodecs.jpegxl_encode(values, lossless=True, effort=1, numthreads=1, **options)
    return data


def decoded(data: bytes) -> DecodedImage:
    result = decode_image(data, LIMITS)
    assert result.pixels.shape == (*image_size(io.BytesIO(data), LIMITS), 3)
    return result


def error_of(data: bytes) -> ItemError:
    with pytest.raises(ItemError) as caught:
        decode_image(data, LIMITS)
    return caught.value


def with_header(data: bytes, before: bytes, after: bytes) -> bytes:
    """Return a file with another header, which is written as libjxl wrote the one before."""
    assert data.startswith(before)
    return after + data[len(before) :]


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


# Pixels


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3, 4]), st.booleans())
@settings(max_examples=30, deadline=None)
@example(48, 40, 3, False)  # each of the ratios that have a number: 6 : 5
@example(20, 15, 1, False)
@example(15, 10, 3, False)
@example(32, 18, 3, False)
@example(15, 12, 3, True)
@example(70, 35, 3, True)
@example(256, 8, 3, False)
@example(3, 9_000, 1, False)  # a side of more than 13 bits
def test_lossless_files_give_the_same_pixels(
    width: int, height: int, channels: int, in_container: bool
) -> None:
    values = np.resize(PIXELS, (height, width, channels))
    data = lossless(values[..., 0] if channels == 1 else values, usecontainer=in_container)
    result = decoded(data)
    np.testing.assert_array_equal(result.pixels, np.broadcast_to(values[..., :3], (height, width, 3)))
    assert result.exif_orientation is None


@pytest.mark.parametrize("bits", [1, 5, 10, 12, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_numbers_of_bits_are_scaled_to_8(bits: int, channels: int) -> None:
    white = 2**bits - 1
    values = RNG.integers(0, white + 1, (24, 32, channels), np.uint8 if bits <= 8 else np.uint16)
    result = decoded(lossless(values[..., 0] if channels == 1 else values, bitspersample=bits))
    exact = np.broadcast_to(values[..., :3] * (255 / white), PIXELS.shape)
    assert np.abs(result.pixels - exact).max() <= 0.5 + 1e-9


def test_dark_pixels_of_16_bits_are_refused() -> None:
    dark = (PIXELS.astype(np.uint16) * 16)[:, :, 0]
    error = error_of(lossless(dark))
    assert error.code == "unsupported_pixels"
    assert error.message.startswith(
        "JPEG XL of 16-bit integers that use only the lowest part of their range (maximum 4080 of 65535)"
    )
    assert decoded(lossless(dark, bitspersample=12)).pixels.max() == round(4080 * 255 / 4095)
    assert not decoded(lossless(dark * 0)).pixels.any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_turned_as_its_header_says(orientation: int) -> None:
    data = with_header(lossless(PIXELS), jpeg_xl_header(), jpeg_xl_header(orientation=orientation))
    result = decoded(data)
    oracle = Image.fromarray(PIXELS)
    oracle.getexif()[274] = orientation
    np.testing.assert_array_equal(result.pixels, np.asarray(ImageOps.exif_transpose(oracle)))
    np.testing.assert_array_equal(result.pixels, imagecodecs.jpegxl_decode(data, numthreads=1))
    assert result.exif_orientation == (None if orientation == 1 else orientation)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_packed_jpeg_gives_its_pixels_and_its_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    smooth = Image.fromarray(np.add.outer(np.arange(48) * 4, np.arange(64)).astype(np.uint8)).convert("RGB")
    jpeg = encoded(smooth, "JPEG", quality=95, exif=exif)
    packed = decoded(imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True, numthreads=1))
    plain = decode_image(jpeg, LIMITS)
    # libjxl and libjpeg round the inverse transform differently.
    assert np.abs(packed.pixels.astype(int) - plain.pixels).max() <= 3


def test_the_first_frame_of_an_animation_is_read() -> None:
    data = lossless(np.stack([PIXELS, 255 - PIXELS, PIXELS[::-1]]), photometric="rgb")
    np.testing.assert_array_equal(decoded(data).pixels, PIXELS)


def test_alpha_is_dropped_and_colours_multiplied_by_it_are_divided() -> None:
    plain = lossless(np.concatenate([PIXELS, ALPHA], axis=2))
    np.testing.assert_array_equal(decoded(plain).pixels, PIXELS)
    stored = (PIXELS.astype(int) * ALPHA // 255).astype(np.uint8)
    data = lossless(np.concatenate([stored, ALPHA], axis=2))
    multiplied = with_header(
        data, jpeg_xl_header(channels=[(0, False)]), jpeg_xl_header(channels=[(0, True)])
    )
    as_png = Image.frombytes("RGBa", (32, 24), np.concatenate([stored, ALPHA], axis=2).tobytes())
    expected = np.asarray(as_png.convert("RGBA").convert("RGB"))
    np.testing.assert_array_equal(decoded(multiplied).pixels, expected)


def test_other_channels_are_left_out() -> None:
    planes = np.moveaxis(PIXELS, 2, 0)
    data = lossless(np.ascontiguousarray(planes), photometric="gray", planar=True)
    np.testing.assert_array_equal(decoded(data).pixels, np.repeat(PIXELS[..., :1], 3, axis=2))


# What the header refuses


@pytest.mark.parametrize(
    ("header", "code", "message"),
    [
        ({"bits": 32, "exponent_bits": 8}, "unsupported_pixels", "JPEG XL of 32-bit floats; convert it"),
        ({"bits": 16, "exponent_bits": 5}, "unsupported_pixels", "JPEG XL of 16-bit floats; convert it"),
        ({"bits": 24}, "unsupported_pixels", "JPEG XL of 24-bit integers; convert it to 8 bits"),
        ({"channels": [(4, False)]}, "unsupported_format", "JPEG XL of inks (CMYK), which is not read"),
        ({"channels": [(1, False), (0, False), (4, False)]}, "unsupported_format", "JPEG XL of inks"),
        ({"channels": [(1, False)] * 5}, "unsupported_format", "JPEG XL with 5 channels besides its colours"),
        ({"color_space": 2}, "unsupported_format", "JPEG XL in the colour space XYB, which is not read"),
    ],
)
def test_what_is_not_read_is_named_from_the_header(header: Any, code: str, message: str) -> None:
    data = jpeg_xl_header(**header)
    for file in (data, SIGNATURE + box(b"jxlc", data)):
        error = error_of(file)
        assert (error.code, error.message[: len(message)]) == (code, message)
        with pytest.raises(ItemError):
            image_size(io.BytesIO(file), LIMITS)


def test_a_header_of_defaults_is_read() -> None:
    assert read_header(io.BytesIO(b"\xff\x0a\xff\xff\xff")) == Header(512, 256)


# Containers


@pytest.mark.parametrize("part", [1, 2, 3, 5, 2**20])
def test_a_codestream_in_parts_behind_metadata(part: int) -> None:
    whole = lossless(PIXELS)
    pieces = [whole[i : i + part] for i in (0, part, 2 * part)]
    pieces.append(whole[3 * part :])
    parts = b"".join(
        box(b"jxlp", struct.pack(">I", number | (number == 3) << 31) + piece)
        for number, piece in enumerate(pieces)
    )
    data = SIGNATURE + box(b"Exif", bytes(100_000)) + parts
    np.testing.assert_array_equal(decoded(data).pixels, PIXELS)


def test_boxes_with_long_sizes_and_without_any() -> None:
    whole = lossless(PIXELS)
    for size, more in ((0, b""), (1, struct.pack(">Q", 16 + len(whole)))):
        data = SIGNATURE + struct.pack(">I4s", size, b"jxlc") + more + whole
        np.testing.assert_array_equal(decoded(data).pixels, PIXELS)


@pytest.mark.parametrize("in_container", [False, True])
def test_a_file_cut_at_any_place_is_truncated(in_container: bool) -> None:
    data = lossless(PIXELS, usecontainer=in_container)
    for length in (*range(8 if in_container else 2, 60), len(data) // 2, len(data) - 1):
        assert error_of(data[:length]).code == "truncated", length


def test_zeros_in_place_of_the_end_are_truncated() -> None:
    data = imagecodecs.jpegxl_encode(np.tile(PIXELS, (4, 4, 1)), level=95, numthreads=1)
    assert error_of(data[: len(data) // 2] + bytes(len(data) - len(data) // 2)).code == "truncated"


@given(st.binary(max_size=60), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_header_gives_pixels_or_a_code(rest: bytes, in_container: bool) -> None:
    data = SIGNATURE + rest if in_container else b"\xff\x0a" + rest
    with contextlib.suppress(ItemError):
        assert decode_image(data, Limits(10**4, 10**7, 100)).pixels.size <= 3 * 10**4


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import imagecodecs, psutil
from maskrcnn.imaging.decode import Limits, decode_image
data = Path(sys.argv[1]).read_bytes()
imagecodecs.jpegxl_decode  # loads libjxl
most = psutil.Process().memory_info().vms + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(decode_image(data, Limits(10**8, 10**8, 100)).pixels.shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("spare", "outcome"), [(2**27, "out_of_memory"), (2**29, "(3000, 4000, 3)")])
def test_too_little_memory_is_not_called_damage(spare: int, outcome: str, tmp_path: Path) -> None:
    file = tmp_path / "flat.jxl"
    file.write_bytes(lossless(np.full((3000, 4000, 3), 7, np.uint8)))
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, str(file), str(spare)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome in done.stdout + done.stderr

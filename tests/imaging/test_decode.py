"""Any file gives either pixels or an error code, whatever its content."""

import contextlib
import gc
import io
import pickle
import struct
import sys
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from maskrcnn.errors import ERROR_CODES, ItemError
from maskrcnn.imaging.decode import DecodedImage, Limits, decode_image
from maskrcnn.imaging.formats.sniff import format_of
from maskrcnn.imaging.formats.webp_chunks import webp_size

LIMITS = Limits(max_pixels=1_000_000, max_bytes=10_000_000, max_aspect=100)
SIZE = (24, 16)  # width, height

GRADIENT = np.stack(
    [
        np.tile(np.arange(24) * 10, (16, 1)),
        np.tile(np.arange(16)[:, None] * 15, (1, 24)),
        np.full((16, 24), 77),
    ],
    -1,
).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes, limits: Limits = LIMITS) -> DecodedImage:
    result = decode_image(data, limits)
    assert result.pixels.dtype == np.uint8
    assert result.pixels.ndim == 3
    assert result.pixels.shape[2] == 3
    assert result.pixels.flags.c_contiguous
    assert result.pixels.flags.writeable
    return result


def code_of(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(ItemError) as caught:
        decode_image(data, limits)
    assert caught.value.message
    return caught.value.code


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int = 8, colour: int = 0, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(pixels: NDArray[Any], photometric: int, **tags: tuple[int, ...]) -> bytes:
    """Return an uncompressed little-endian TIFF of one strip, of any dtype and number of bands."""
    height, width = pixels.shape[:2]
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries = {
        256: (width,),
        257: (height,),
        258: (pixels.dtype.itemsize * 8,) * bands,
        259: (1,),
        262: (photometric,),
        273: (8,),
        277: (bands,),
        278: (height,),
        279: (len(data),),
        339: (kind,) * bands,
    } | {int(tag.removeprefix("t")): value for tag, value in tags.items()}
    extra, table = b"", b""
    start = 8 + len(data)
    after = start + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries.items()):
        raw = struct.pack(f"<{len(values)}I", *values)
        if len(raw) > 4:
            raw, extra = struct.pack("<I", after + len(extra)), extra + raw
        table += struct.pack("<HHI", tag, 4, len(values)) + raw
    directory = struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", start) + data + directory + extra


# Colours


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_same_pixels(kind: str) -> None:
    result = decoded(encoded(Image.fromarray(GRADIENT), kind))
    np.testing.assert_array_equal(result.pixels, GRADIENT)
    assert result.exif_orientation is None


def test_lossless_webp_gives_the_same_pixels() -> None:
    result = decoded(encoded(Image.fromarray(GRADIENT), "WEBP", lossless=True))
    np.testing.assert_array_equal(result.pixels, GRADIENT)


def test_jpeg_gives_similar_pixels() -> None:
    result = decoded(encoded(Image.fromarray(GRADIENT), "JPEG", quality=98, subsampling=0))
    assert np.abs(result.pixels.astype(int) - GRADIENT).max() < 12


def test_one_bit_is_black_and_white() -> None:
    bits = GRADIENT[..., 0] > 100
    result = decoded(encoded(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(result.pixels, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_gives_its_colours(kind: str) -> None:
    image = Image.fromarray(GRADIENT).quantize(64)
    np.testing.assert_array_equal(decoded(encoded(image, kind)).pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_not_blended(kind: str) -> None:
    alpha = np.full((16, 24, 1), 3, np.uint8)
    image = Image.fromarray(np.concatenate([GRADIENT, alpha], axis=2))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decoded(encoded(image, kind, **options)).pixels, GRADIENT)


def test_alpha_of_grey_and_of_palettes_is_dropped() -> None:
    grey = GRADIENT[..., 0]
    image = Image.fromarray(np.stack([grey, np.zeros_like(grey)], axis=2), "LA")
    np.testing.assert_array_equal(
        decoded(encoded(image, "PNG")).pixels, np.repeat(grey[..., None], 3, axis=2)
    )
    palette = Image.fromarray(GRADIENT).quantize(8)
    for transparency in (0, bytes(range(8))):
        result = decoded(encoded(palette, "PNG", transparency=transparency))
        np.testing.assert_array_equal(result.pixels, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")])
def test_other_colour_spaces_are_converted(mode: str, kind: str) -> None:
    flat = Image.new("RGB", SIZE, (200, 100, 50))
    result = decoded(encoded(flat.convert(mode), kind))
    assert np.abs(result.pixels.astype(int) - (200, 100, 50)).max() <= 3


def test_lab_is_converted() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    flat = Image.new("RGB", SIZE, (200, 100, 50))
    image = ImageCms.profileToProfile(flat, srgb, lab, outputMode="LAB")
    assert image is not None
    assert np.abs(decoded(encoded(image, "TIFF")).pixels.astype(int) - (200, 100, 50)).max() <= 3


VALUES_16 = np.array([[0, 1, 128, 129, 256, 257], [385, 386, 32767, 32768, 65406, 65535]], np.uint16)


@pytest.mark.parametrize("source", ["png", "tiff", "tiff-big-endian", "tiff-deflate", "tiff-white-is-zero"])
def test_grey_of_16_bits_is_scaled(source: str) -> None:
    expected = np.round(VALUES_16 / 257).astype(np.uint8)
    data = {
        "png": lambda: encoded(Image.fromarray(VALUES_16), "PNG"),
        "tiff": lambda: tiff(VALUES_16, photometric=1),
        "tiff-big-endian": lambda: encoded(Image.fromarray(VALUES_16.astype(">u2")), "TIFF"),
        "tiff-deflate": lambda: encoded(Image.fromarray(VALUES_16), "TIFF", compression="tiff_adobe_deflate"),
        "tiff-white-is-zero": lambda: tiff(65535 - VALUES_16, photometric=0),
    }[source]()
    np.testing.assert_array_equal(decoded(data).pixels, np.repeat(expected[..., None], 3, axis=2))


def test_grey_of_12_bits_is_scaled() -> None:
    # Two values in three bytes: 0 and 4095, 2048 and 1.
    packed = np.frombuffer(bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x01]), np.uint8).reshape(1, 6)
    data = tiff(packed, photometric=1, t256=(4,), t258=(12,))
    assert decoded(data).pixels[0, :, 0].tolist() == [0, 255, 128, 0]


RASTERS = {"p": "", "t": "; GeoTIFFs are read by the raster mode, with a stated scaling"}


def with_sbit(data: bytes, bits: int) -> bytes:
    return data[:33] + png_chunk(b"sBIT", bytes([bits])) + data[33:]


@pytest.mark.parametrize("source", ["png", "png-sbit", "tiff", "tiff-white-is-zero"])
@pytest.mark.parametrize("largest", [0, 1, 4095, 4096])
def test_grey_of_16_bits_is_never_silently_black(source: str, largest: int) -> None:
    values = np.linspace(0, largest, 12).astype(np.uint16).reshape(3, 4)
    data = {
        "png": lambda: encoded(Image.fromarray(values), "PNG"),
        "png-sbit": lambda: with_sbit(encoded(Image.fromarray(values), "PNG"), 12),
        "tiff": lambda: tiff(values, photometric=1),
        "tiff-white-is-zero": lambda: tiff(values, photometric=0),
    }[source]()
    if 0 < largest < 4096:
        message = (
            r"^unsupported_pixels: 16-bit grey that uses only the lowest part of its range "
            rf"\(maximum {largest} of 65535\); convert it to 8 bits with a scaling of your choice{RASTERS[source[0]]}$"
        )
        with pytest.raises(ItemError, match=message):
            decode_image(data, LIMITS)
    else:
        shown = np.round(values / 257).astype(np.uint8)
        shown = 255 - shown if source == "tiff-white-is-zero" else shown
        np.testing.assert_array_equal(decoded(data).pixels[..., 1], shown)


def test_values_with_sbit_in_a_png_are_already_scaled_up() -> None:
    # PNG, 11.3.2.7: 12 bits v are stored as v << 4 | v >> 8.
    stored = np.array([[0, 1 << 4, 2048 << 4 | 8, 65535]], np.uint16)
    data = with_sbit(encoded(Image.fromarray(stored), "PNG"), 12)
    assert decoded(data).pixels[0, :, 0].tolist() == [0, 0, 128, 255]


def test_grey_of_8_bits_in_12_is_rejected() -> None:
    packed = np.frombuffer(bytes([0x00, 0x00, 0xFF]), np.uint8).reshape(1, 3)
    with pytest.raises(ItemError, match=r"12-bit grey .* \(maximum 255 of 4095\)"):
        decode_image(tiff(packed, photometric=1, t256=(2,), t258=(12,)), LIMITS)


def test_colours_of_16_bits_in_png_keep_their_high_byte() -> None:
    row = b"\0" + struct.pack(">6H", 0xFF00, 0x80FF, 0x0001, 0, 0x7F80, 0xFFFF)
    assert decoded(png(2, 1, bits=16, colour=2, rows=row)).pixels.tolist() == [[[255, 128, 0], [0, 127, 255]]]


@pytest.mark.parametrize(
    ("dtype", "bands", "photometric"),
    [
        ("float32", 1, 1),
        ("float64", 1, 1),
        ("int8", 1, 1),
        ("int16", 1, 1),
        ("int32", 1, 1),
        ("uint32", 1, 1),
        ("uint16", 3, 2),
        ("uint16", 4, 2),
        ("uint16", 13, 1),
        ("uint8", 13, 1),
        ("float32", 3, 2),
    ],
)
def test_pixels_that_need_a_scaling_are_rejected(dtype: str, bands: int, photometric: int) -> None:
    shape = (4, 4) if bands == 1 else (4, 4, bands)
    with pytest.raises(
        ItemError,
        match=r"unsupported_pixels: .*; convert it to 8 bits with a scaling of your choice; GeoTIFFs are read by the "
        "raster mode, with a stated scaling$",
    ):
        decode_image(tiff(np.zeros(shape, dtype), photometric), LIMITS)


def test_extra_bands_are_dropped() -> None:
    four = np.concatenate([GRADIENT, GRADIENT[..., :1]], axis=2)
    np.testing.assert_array_equal(decoded(tiff(four, photometric=2, t338=(0,))).pixels, GRADIENT)


# First pictures


def frames() -> list[Image.Image]:
    return [Image.new("RGB", SIZE, colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_the_first_of_several_pictures_is_decoded(kind: str) -> None:
    first, *others = frames()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=others, **options)
    assert np.abs(decoded(data).pixels.astype(int) - (255, 0, 0)).max() <= 2


RED = Image.new("RGB", (4, 4), "red")


def gif_of(frames: int, *, valid: bool) -> bytes:
    first_frame = encoded(RED, "GIF")
    at = first_frame.index(b"\x2c")
    others = first_frame[at:-1] if valid else b"\x2c" + b"\xff" * (len(first_frame) - at - 2)
    return first_frame[:-1] + others * (frames - 1) + b";"


def riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp_of(frames: int, *, valid: bool) -> bytes:
    first_frame = encoded(RED, "WEBP", lossless=True)[12:]
    others = (
        first_frame if valid else first_frame[:13] + b"\xff" * (len(first_frame) - 13)
    )  # the headers of all frames are checked
    size = (3).to_bytes(3, "little") * 2  # 4 x 4, less one
    pictures = [
        riff(b"ANMF", bytes(6) + size + bytes([10, 0, 0, 0]) + picture) for picture in (first_frame, others)
    ]
    header = riff(b"VP8X", b"\x02\0\0\0" + size) + riff(b"ANIM", bytes(6))
    return riff(b"RIFF", b"WEBP" + header + pictures[0] + pictures[1] * (frames - 1))


def tiff_of(frames: int, *, valid: bool) -> bytes:
    first_frame = tiff(np.asarray(RED), photometric=2)
    [at] = struct.unpack("<I", first_frame[4:8])
    [n] = struct.unpack("<H", first_frame[at : at + 2])
    entries = first_frame[at : at + 2 + 12 * n] if valid else b"\xff" * (2 + 12 * n)
    starts = [len(first_frame) + i * (len(entries) + 4) for i in range(frames - 1)] + [0]
    after_first = at + 2 + 12 * n
    first_frame = first_frame[:after_first] + struct.pack("<I", starts[0]) + first_frame[after_first + 4 :]
    return first_frame + b"".join(entries + struct.pack("<I", start) for start in starts[1:])


def apng_of(frames: int, *, valid: bool) -> bytes:
    first_frame = encoded(RED, "PNG")
    control = struct.pack(">IIIIHHBB", 4, 4, 0, 0, 1, 1, 0, 0)
    chunks = [png_chunk(b"acTL", struct.pack(">II", frames, 0)), png_chunk(b"fcTL", bytes(4) + control)]
    data = zlib.compress((b"\0" + b"\xff\0\0" * 4) * 4) if valid else b"\xff" * 20
    for i in range(frames - 1):
        number = struct.pack(">I", 2 * i + 1)
        chunks += [png_chunk(b"fcTL", number + control), png_chunk(b"fdAT", number + data)]
    return (
        first_frame[:33]
        + chunks[0]
        + chunks[1]
        + first_frame[33:-12]
        + b"".join(chunks[2:])
        + first_frame[-12:]
    )


def calls_of(function: Callable[[], object]) -> int:
    """Return the number of calls of Python and C functions."""
    count = 0

    def seen(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    # The garbage collector may call finalizers of objects that other tests left.
    gc.collect()
    gc.disable()
    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.slow
@pytest.mark.parametrize("build", [gif_of, webp_of, tiff_of, apng_of])
def test_the_cost_does_not_depend_on_the_number_of_frames(build: Callable[..., bytes]) -> None:
    limits = Limits(10**6, 10**8, 100)
    few, many = build(8, valid=True), build(100_000, valid=True)
    assert Image.open(io.BytesIO(few)).n_frames == 8  # type: ignore[attr-defined]
    for data in (few, many, build(100_000, valid=False)):
        assert decoded(data, limits).pixels.tolist() == [[[255, 0, 0]] * 4] * 4
    calls = [calls_of(lambda data=data: decode_image(data, limits)) for data in (few, many)]
    assert calls[0] == calls[1] > 10


# Orientation


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(GRADIENT), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    data = oriented(kind, orientation)
    result = decoded(data)
    oracle = Image.open(io.BytesIO(data))
    oracle.load()
    np.testing.assert_array_equal(result.pixels, np.asarray(ImageOps.exif_transpose(oracle)))
    assert result.exif_orientation == orientation
    assert result.pixels.shape[:2] == ((24, 16) if orientation > 4 else (16, 24))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_invalid_orientations_are_ignored(kind: str, orientation: int) -> None:
    result = decoded(oriented(kind, orientation))
    assert result.exif_orientation is None
    assert result.pixels.shape == (16, 24, 3)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"II*\0\x08\0\0\0\xff"]
)
def test_corrupt_exif_is_ignored(exif: bytes) -> None:
    assert decoded(encoded(Image.fromarray(GRADIENT), "JPEG", exif=exif)).exif_orientation is None


# Limits


def test_limits_are_checked_before_a_pixel_is_decoded() -> None:
    # These files contain no pixels: decoding them would raise `truncated`.
    assert code_of(png(1001, 1000)) == "too_many_pixels"
    assert code_of(png(100_000, 100_000)) == "too_many_pixels"
    assert code_of(png(101, 1)) == "aspect"
    assert code_of(png(1, 101)) == "aspect"
    assert code_of(png(1000, 1000)) == "truncated"
    assert code_of(png(100, 1)) == "truncated"
    assert code_of(png(0, 5)) == "corrupt"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_error_from_the_header_reports_the_size(
    monkeypatch: pytest.MonkeyPatch, kind: str, orientation: int
) -> None:
    data = oriented(kind, orientation)
    size = (16, 24) if orientation > 4 else (24, 16)
    for guard in (10**6, 10):  # rejected by our limit, or by Pillow's
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", guard)
        for limits, code in (
            (Limits(100, 10**6, 100), "too_many_pixels"),
            (Limits(10**6, 10**6, 1.25), "aspect"),
        ):
            with pytest.raises(ItemError) as caught:
                decode_image(data, limits)
            error = pickle.loads(pickle.dumps(caught.value))
            assert (error.code, error.width, error.height) == (code, *size)
            assert error.message.startswith(f"{size[0]} x {size[1]} pixels")
            assert str(error) == str(caught.value)


@pytest.mark.parametrize(
    "options", [{"quality": 80}, {"lossless": True}, {"exif": Image.Exif(), "icc_profile": b"x"}]
)
def test_a_webp_above_the_limit_is_rejected_before_memory_is_allocated(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(Image, "open", None)
    data = encoded(Image.fromarray(GRADIENT), "WEBP", **options)
    assert webp_size(data) == SIZE
    assert [webp_size(data[:end]) for end in (0, 12, 20, 24)] == [None] * 4
    with pytest.raises(ItemError, match="24 x 16 pixels, more than the limit of 100") as caught:
        decode_image(data, Limits(100, 10**6, 100))
    assert (caught.value.width, caught.value.height) == SIZE


def test_a_size_beyond_32_bits_is_only_in_the_message() -> None:
    data = bytearray(encoded(Image.fromarray(GRADIENT), "BMP"))
    data[18:22] = struct.pack("<I", 2**32 - 100)
    with pytest.raises(ItemError, match="too_many_pixels: 4294967196 x 16 pixels") as caught:
        decode_image(bytes(data), LIMITS)
    assert (caught.value.width, caught.value.height) == (None, None)


def test_other_failures_have_no_size() -> None:
    error = pickle.loads(pickle.dumps(ItemError("corrupt", "why")))
    assert (str(error), error.width, error.height) == ("corrupt: why", None, None)


def test_an_image_that_resizing_would_shrink_below_a_pixel_is_rejected() -> None:
    # torchvision resizes the long side to at most 1333 pixels.
    limits = Limits(10**6, 10**6, max_aspect=1333)
    for width, height in ((1, 1), (1, 1333), (1333, 1), (2, 2666)):
        assert decoded(encoded(Image.new("L", (width, height)), "PNG"), limits).pixels.shape[:2] == (
            height,
            width,
        )
    for width, height in ((1, 1334), (1334, 1), (1, 10_000), (10_000, 1), (2, 2667)):
        assert code_of(encoded(Image.new("L", (width, height)), "PNG"), limits) == "aspect"


def test_the_number_of_bytes_is_limited() -> None:
    data = encoded(Image.fromarray(GRADIENT), "PNG")
    assert code_of(data, Limits(10**6, len(data) - 1, 100)) == "too_many_bytes"
    decoded(data, Limits(10**6, len(data), 100))


def test_our_limit_applies_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    data = encoded(Image.fromarray(GRADIENT), "PNG")
    assert decoded(data, Limits(16 * 24, 10**6, 100)).pixels.shape == (16, 24, 3)
    assert code_of(data, Limits(16 * 24 - 1, 10**6, 100)) == "too_many_pixels"


def test_a_gif_with_a_first_frame_larger_than_its_header_states_is_rejected() -> None:
    data = bytearray(encoded(Image.new("L", SIZE), "GIF"))
    frame = data.index(b"\x2c")
    data[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    assert code_of(bytes(data)) == "too_many_pixels"


def test_a_tiff_with_huge_blocks_is_rejected() -> None:
    data = tiff(np.zeros((4, 4), np.uint8), 1, t322=(65_536,), t323=(65_536,))
    assert code_of(data) == "too_many_pixels"


# Files that are not images, and damaged images


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"", "empty_file", "zero bytes"),
        (b"<!DOCTYPE html><html>404</html>", "not_an_image", "HTML"),
        (b"\n  <HTML>", "not_an_image", "HTML"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "not_an_image", "S3 error"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image", "SVG"),
        (b"\xef\xbb\xbf<note/>", "not_an_image", "XML"),
        (b'{"message": "no"}', "not_an_image", "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "not_an_image", "Git LFS"),
        (b"BM is how this text begins, which is no bitmap", "not_an_image", "text"),
        ("größer".encode(), "not_an_image", "text"),
        (b"PK\x03\x04aaaa", "not_an_image", "ZIP"),
        (b"%PDF-1.7", "not_an_image", "PDF"),
        (b"\0\0\0\x20ftypisom....", "not_an_image", "video"),
        (bytes(range(128, 200)), "not_an_image", "80 81 82"),
        (b"\0\0\0\x20ftypavif....", "truncated", "AVIF: the file ends before the image does"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "truncated", "JPEG 2000: the file ends before the image does"),
        (b"8BPS\0\x01", "unsupported_format", "PSD"),
        (b"\0\0\x01\0\x01\0", "unsupported_format", "ICO"),
        (b"P6\n1 1\n255\n", "unsupported_format", "Netpbm"),
    ],
)
def test_errors_name_the_format_found(data: bytes, code: str, message: str) -> None:
    with pytest.raises(ItemError, match=message) as caught:
        decode_image(data, LIMITS)
    assert caught.value.code == code


def test_the_format_is_recognized_by_content() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        assert format_of(encoded(Image.fromarray(GRADIENT), kind)) == kind


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8))
SAMPLES: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: encoded(NOISE, "PNG"),
    "PNG-palette": lambda: encoded(NOISE.quantize(16), "PNG", transparency=3),
    "PNG-16": lambda: encoded(Image.fromarray(VALUES_16), "PNG"),
    "APNG": lambda: encoded(frames()[0], "PNG", save_all=True, append_images=frames()[1:]),
    "JPEG": lambda: encoded(NOISE, "JPEG"),
    "JPEG-exif": lambda: oriented("JPEG", 6),
    "JPEG-progressive": lambda: encoded(NOISE, "JPEG", progressive=True),
    "MPO": lambda: encoded(frames()[0], "MPO", save_all=True, append_images=frames()[1:]),
    "TIFF": lambda: encoded(NOISE, "TIFF"),
    "TIFF-lzw": lambda: encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "TIFF-16": lambda: tiff(VALUES_16, 1),
    "TIFF-oriented": lambda: oriented("TIFF", 6),
    "WEBP": lambda: encoded(NOISE, "WEBP"),
    "WEBP-animated": lambda: encoded(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]),
    "GIF": lambda: encoded(NOISE.quantize(16), "GIF"),
    "GIF-animated": lambda: encoded(frames()[0], "GIF", save_all=True, append_images=frames()[1:]),
    "BMP": lambda: encoded(NOISE, "BMP"),
    "BMP-palette": lambda: encoded(NOISE.quantize(16), "BMP"),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TIFF-lzw"])
def test_a_partial_file_is_truncated(kind: str) -> None:
    data = SAMPLES[kind]()
    for end in (len(data) // 2, len(data) * 3 // 4):
        assert code_of(data[:end]) == "truncated"


def test_a_broken_checksum_is_corrupt() -> None:
    data = bytearray(encoded(NOISE, "PNG"))
    data[data.index(b"IDAT") + 40] ^= 0xFF
    assert code_of(bytes(data)) == "corrupt"


def test_bytes_after_the_end_are_ignored() -> None:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF"):
        whole = SAMPLES[kind]()
        np.testing.assert_array_equal(decoded(whole + b"\0garbage" * 99).pixels, decoded(whole).pixels)


def mutations(data: bytes, n: int, seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for _ in range(n):
        mutated = bytearray(data)
        for _ in range(int(rng.integers(1, 6))):
            # Half of the mutations are near the beginning, which holds the structure.
            span = len(data) if rng.random() < 0.5 else min(80, len(data))
            at = int(rng.integers(span))
            mutated[at] = int(rng.choice([0, 255, 1, 127, 128, int(rng.integers(256))]))
        if rng.random() < 0.2:
            del mutated[int(rng.integers(len(mutated))) :]
        yield bytes(mutated)


@pytest.mark.parametrize("sample", SAMPLES)
def test_mutated_files_give_pixels_or_a_code(sample: str) -> None:
    outcomes = set()
    for data in mutations(SAMPLES[sample](), 200, seed=len(sample)):
        try:
            decoded(data)
            outcomes.add("ok")
        except ItemError as error:
            outcomes.add(error.code)
    assert outcomes & {"corrupt", "truncated", "not_an_image"}, "the mutations were too mild to test anything"


@settings(max_examples=100)
@given(
    st.sampled_from(
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"II*\0",
            b"MM\0*",
            b"BM",
            b"GIF89a",
            b"RIFF\0\0\0\0WEBP",
            b"\0\0\0\x20ftypavif",
            b"\0\0\0\x20ftypheic",
            b"\0\0\0\x0cjP  \r\n\x87\n",
            b"\xff\x4f\xff\x51",
            b"\xff\xd8\xff\xc3",
        ]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_give_a_code(magic: bytes, rest: bytes) -> None:
    refusal = None
    try:
        decoded(magic + rest)
    except ItemError as error:
        refusal = error
    assert refusal is None or (refusal.code in ERROR_CODES and ": " in refusal.message)


# Warnings


def test_no_warning_reaches_the_user(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # Pillow warns above 200 pixels and raises above 400
    transparent = encoded(NOISE.quantize(16), "PNG", transparency=bytes(range(16)))
    noisy = [transparent, SAMPLES["GIF"](), SAMPLES["TIFF"]()[:-20], tiff(np.zeros((4, 4, 13), np.uint8), 1)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        for data in noisy:
            with contextlib.suppress(ItemError):
                decode_image(data, Limits(400, 10**6, 100))
        assert warnings.filters == before
        Image.open(io.BytesIO(transparent)).convert("RGB")
    assert [w.category for w in caught] == [Image.DecompressionBombWarning, UserWarning], (
        "only Pillow's own use, outside of decode_image, warns"
    )
    assert capfd.readouterr() == ("", "")


def test_threads_decode_concurrently_and_restore_the_warning_filters() -> None:
    before = list(warnings.filters)
    samples = [build() for build in SAMPLES.values()]
    expected = [decoded(data).pixels for data in samples]
    different: list[int] = []

    def work() -> None:
        for _ in range(10):
            for i, data in enumerate(samples):
                if not np.array_equal(decoded(data).pixels, expected[i]):
                    different.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert different == []
    assert warnings.filters == before


# Real odd files

ODD = Path(__file__).parents[3] / "shared" / "data" / "odd_images"


@pytest.mark.slow
@pytest.mark.skipif(not ODD.is_dir(), reason="needs shared/data/odd_images")
def test_real_odd_files_give_pixels_or_a_code() -> None:
    found: dict[str, str] = {}
    for path in sorted(path for path in ODD.rglob("*") if path.is_file()):
        try:
            decoded(path.read_bytes(), Limits(178_956_970, 2**29, 1000))
            found[path.name] = "ok"
        except ItemError as error:
            found[path.name] = error.code
    assert Counter(found.values()) == {
        "ok": 66,
        "unsupported_format": 36,
        "unsupported_pixels": 20,
        "truncated": 13,
        "not_an_image": 10,
        "corrupt": 7,
        "too_many_pixels": 2,
    }
    for name, code in {
        "decompression_bomb.gif": "too_many_pixels",
        "truncated_jpeg.jpg": "ok",  # only its end marker is missing
        "truncated_image.png": "truncated",
        "pil_sample_cmyk.jpg": "ok",
        "exif.avif": "ok",
        "hopper_bad_exif.jpg": "ok",
        "tiff_16bit_RGB.tiff": "unsupported_pixels",
    }.items():
        assert found[name] == code, name


@pytest.mark.skipif(not ODD.is_dir(), reason="needs shared/data/odd_images")
@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
def test_real_photographs_of_each_orientation_are_upright(shape: str) -> None:
    small = []
    for i in range(9):
        result = decoded((ODD / "exif" / f"{shape}_{i}.jpg").read_bytes(), Limits(10**7, 10**8, 100))
        assert result.exif_orientation == (i or None)
        small.append(np.asarray(Image.fromarray(result.pixels).resize((36, 36))).astype(int))
    # The pictures differ only by the number of the orientation in the middle.
    for picture in small[1:]:
        assert np.median(np.abs(picture - small[0])) <= 3


def png_of_16_bits(color_type, channels, value):
    """Return a PNG of 4 x 4 pixels of one value, encoded here because Pillow cannot write 16-bit colours."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 4, 4, 16, color_type, 0, 0, 0)
    row = b"\0" + struct.pack(">H", value) * channels * 4
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "LA", "RGBA"])
def test_16_bit_colours_keep_their_high_byte_and_never_become_black(color_type, channels):
    limits = Limits(10**6, 10**6, 100.0)
    bright = decode_image(png_of_16_bits(color_type, channels, 0x8000), limits).pixels
    assert set(bright.ravel().tolist()) == {128}
    with pytest.raises(ItemError, match="lowest part of their range") as caught:
        decode_image(png_of_16_bits(color_type, channels, 0x0FFF), limits)
    assert caught.value.code == "unsupported_pixels"
    assert decode_image(png_of_16_bits(color_type, channels, 0), limits).pixels.max() == 0

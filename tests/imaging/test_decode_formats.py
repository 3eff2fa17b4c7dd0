"""Formats and codecs beyond the common ones: read with the right pixels, or refused by name, never called damaged."""

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from imaging.files import encoded, jpeg_segment, lossless_jpeg, png_chunk, tiff_of_directories
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from maskrcnn.errors import ItemError
from maskrcnn.imaging import decode
from maskrcnn.imaging.decode import Limits, decode_image, image_size
from maskrcnn.imaging.decode_pool import Decoders
from maskrcnn.imaging.formats.tiff_compressions import tiff_compression

LIMITS = Limits(10**6, 10**7, 100)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
SMOOTH = Image.fromarray(
    np.add.outer(np.arange(24) * 5, np.arange(32) * 4)[..., None].repeat(3, 2).astype(np.uint8)
)

HAS_AVIF = features.check("avif")
HAS_JPEG_2000 = features.check("jpg_2000")
pillow_heif = pytest.importorskip("pillow_heif")
pillow_heif.register_heif_opener(thumbnails=False)
imagecodecs = pytest.importorskip("imagecodecs")

LOSSLESS: dict[str, dict[str, Any]] = {
    "JPEG2000": {"irreversible": False},
    "codestream": {"irreversible": False, "no_jp2": True},
    "HEIF": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
}


def lossless(kind: str, image: Image.Image = PICTURE, **options: Any) -> bytes:
    return encoded(image, "JPEG2000" if kind == "codestream" else kind, **LOSSLESS[kind], **options)


def error_of(data: bytes, limits: Limits = LIMITS) -> ItemError:
    with pytest.raises(ItemError) as caught:
        decode_image(data, limits)
    return caught.value


# AVIF, JPEG 2000, HEIC


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_give_the_same_pixels(kind: str) -> None:
    np.testing.assert_array_equal(decode_image(lossless(kind), LIMITS).pixels, PIXELS)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_grey_is_repeated_and_alpha_dropped(kind: str, mode: str) -> None:
    image = (
        PICTURE.convert("L") if mode == "L" else Image.merge("RGBA", (*PICTURE.split(), PICTURE.split()[0]))
    )
    options = {"matrix_coefficients": 1} if kind == "HEIF" and mode == "L" else {}
    data = encoded(image, "JPEG2000" if kind == "codestream" else kind, **(LOSSLESS[kind] | options))
    expected = np.asarray(image.convert("RGB"))
    tolerance = 1 if options else 0
    assert np.abs(decode_image(data, LIMITS).pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.skipif(not HAS_AVIF, reason="Pillow without AVIF")
def test_avif_gives_the_pixels_of_an_independent_path() -> None:
    """libavif is the only decoder here; the oracle is the picture that was encoded, at the best quality."""
    decoded = decode_image(encoded(SMOOTH, "AVIF", quality=100, subsampling="4:4:4"), LIMITS).pixels
    assert np.abs(decoded.astype(int) - np.asarray(SMOOTH)).max() <= 3


@pytest.mark.skipif(not HAS_JPEG_2000, reason="Pillow without JPEG 2000")
@pytest.mark.parametrize("kind", ["JPEG2000", "codestream"])
def test_jpeg_2000_gives_the_pixels_that_gdal_reads(kind: str, tmp_path: Any) -> None:
    rasterio = pytest.importorskip("rasterio")
    data = encoded(SMOOTH, "JPEG2000", irreversible=True, no_jp2=kind == "codestream")
    path = tmp_path / "picture.jp2"
    path.write_bytes(data)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(decode_image(data, LIMITS).pixels, np.moveaxis(dataset.read(), 0, 2))


@pytest.mark.skipif(not HAS_AVIF, reason="Pillow without AVIF")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_its_container_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(SMOOTH, "AVIF", quality=100, subsampling="4:4:4", exif=exif)  # Pillow writes irot and imir
    assert (b"irot" in data or b"imir" in data) == (orientation != 1)
    result = decode_image(data, LIMITS)
    oracle = Image.fromarray(np.asarray(SMOOTH))
    oracle.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(oracle)).astype(int)
    assert result.pixels.shape == expected.shape == (*image_size(io.BytesIO(data), LIMITS), 3)
    assert np.abs(result.pixels - expected).max() <= 3
    assert result.exif_orientation in (orientation, None if orientation == 1 else orientation)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_decoder_turns_a_heic(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = lossless("HEIF", exif=exif.tobytes())
    result = decode_image(data, LIMITS)
    oracle = pillow_heif.open_heif(data).to_pillow()
    np.testing.assert_array_equal(result.pixels, np.asarray(oracle.convert("RGB")))
    assert result.pixels.shape[:2] == image_size(io.BytesIO(data), LIMITS)
    assert result.exif_orientation is None


KINDS = {
    "JPEG2000": lambda: lossless("JPEG2000"),
    "codestream": lambda: lossless("codestream"),
    "HEIF": lambda: lossless("HEIF"),
    "AVIF": lambda: encoded(PICTURE, "AVIF"),
    "JPEGXL": lambda: imagecodecs.jpegxl_encode(PIXELS, level=80),
    "JPEGXL container": lambda: imagecodecs.jpegxl_encode(PIXELS, usecontainer=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_partial_file_is_truncated(kind: str) -> None:
    data = KINDS[kind]()
    for cut in (len(data) - 40, len(data) * 3 // 4, len(data) // 2):
        assert error_of(data[:cut]).code == "truncated"


@pytest.mark.parametrize("kind", ["JPEG2000", "codestream"])
@pytest.mark.parametrize("tile", [None, (16, 16)], ids=["one tile", "tiles"])
def test_a_jpeg_2000_without_its_end_marker_has_all_pixels(kind: str, tile: tuple[int, int] | None) -> None:
    whole = lossless(kind, **({"tile_size": tile} if tile else {}))
    assert whole.endswith(b"\xff\xd9")
    for cut in (1, 2):
        np.testing.assert_array_equal(decode_image(whole[:-cut], LIMITS).pixels, PIXELS)
    for cut in range(3, 60):
        assert error_of(whole[:-cut]).code == "truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_limits_hold_before_a_pixel_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = KINDS[kind]()
    monkeypatch.setattr(Image.Image, "load", None)
    for limits, code in (
        (Limits(100, 10**6, 100), "too_many_pixels"),
        (Limits(10**6, 10**6, 1.25), "aspect"),
    ):
        error = error_of(data, limits)
        assert (error.code, error.width, error.height) == (code, 32, 24)
        with pytest.raises(ItemError, match="32 x 24 pixels"):
            image_size(io.BytesIO(data), limits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_give_pixels_or_a_code(kind: str) -> None:
    """In a decoding process, as in a run."""
    data, outcomes = KINDS[kind](), set()
    rng = np.random.default_rng(len(kind))
    with Decoders(1, timeout_s=10) as decoders:
        for _ in range(150):
            mutated = bytearray(data)
            for _ in range(int(rng.integers(1, 5))):
                mutated[int(rng.integers(len(data) if rng.random() < 0.5 else 200))] = int(rng.integers(256))
            try:
                decoders.decode(bytes(mutated), LIMITS)
                outcomes.add("ok")
            except ItemError as error:
                outcomes.add(error.code)
    assert outcomes & {"corrupt", "truncated", "unsupported_pixels", "not_an_image"}
    assert not outcomes & {"timeout", "worker_crash"}


@pytest.mark.parametrize(("kind", "name", "extra"), [("HEIF", "HEIC", "heif"), ("JPEGXL", "JPEG XL", "jxl")])
def test_a_format_without_its_extra_names_it(
    kind: str, name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = KINDS[kind]()
    for module in ("pillow_heif", "imagecodecs"):
        monkeypatch.setitem(sys.modules, module, None)
    for registered in ("HEIF", "JPEGXL"):
        monkeypatch.delitem(Image.OPEN, registered, raising=False)
    error = error_of(data)
    assert error.code == "unsupported_format"
    assert (
        error.message
        == f"{name} needs the extra {extra}: pip install 'maskrcnn-ray[{extra}]', or convert it to JPEG"
    )


def test_a_codec_that_pillow_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PICTURE, "AVIF")
    monkeypatch.setattr(decode, "_has_codec", lambda name: name != "avif")
    assert error_of(data).message.startswith("AVIF is not read by this build of Pillow: install")


def siz(bits: int, count: int) -> bytes:
    """Return the beginning of a JPEG 2000 codestream: components of this `Ssiz`."""
    body = struct.pack(">HIIIIIIIIH", 0, 8, 8, 0, 0, 8, 8, 0, 0, count) + bytes([bits, 1, 1]) * count
    return b"\xff\x4f\xff\x51" + struct.pack(">H", 2 + len(body)) + body


def test_jpeg_2000_of_other_numbers_is_not_converted() -> None:
    for header, what in (
        (siz(0x80 | 7, 1), "JPEG 2000 of 8-bit signed numbers"),
        (siz(7, 13), "JPEG 2000 with 13 bands of 8-bit unsigned integers"),
        (siz(15, 3), "JPEG 2000 with 3 bands of 16-bit unsigned integers"),
        (siz(11, 2), "JPEG 2000 with 2 bands of 12-bit unsigned integers"),
    ):
        error = error_of(header)
        assert error.code == "unsupported_pixels"
        assert error.message.startswith(f"{what}; convert it to 8 bits")
    dark = encoded(Image.fromarray(np.full((8, 8), 900, np.uint16)), "JPEG2000", irreversible=False)
    assert error_of(dark).code == "unsupported_pixels"
    bright = encoded(Image.fromarray(np.full((8, 8), 257 * 90, np.uint16)), "JPEG2000", irreversible=False)
    assert set(decode_image(bright, LIMITS).pixels.ravel().tolist()) == {90}


def test_jpeg_2000_in_a_colour_space_that_would_be_taken_for_rgb_is_refused() -> None:
    data = lossless("JPEG2000")
    at = data.index(b"colr")
    lab = data[: at + 7] + struct.pack(">I", 14) + data[at + 11 :]
    assert "colour space CIELab" in error_of(lab).message


def test_windows_do_not_lose_the_coordinates_of_a_jpeg_2000() -> None:
    data = lossless("JPEG2000")
    uuid = bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03") + bytes(20)
    box = struct.pack(">I4s", 8 + len(uuid), b"uuid") + uuid
    at = data.index(b"jp2h") - 4
    georeferenced = data[:at] + box + data[at:]
    np.testing.assert_array_equal(decode_image(georeferenced, LIMITS).pixels, PIXELS)
    with pytest.raises(ItemError, match=r"JPEG 2000 with coordinates, .* convert it to GeoTIFF or COG"):
        image_size(io.BytesIO(georeferenced), LIMITS)
    assert image_size(io.BytesIO(georeferenced), LIMITS, ignore_coordinates=True) == (24, 32)


# Codecs of JPEG


def test_lossless_jpeg_of_8_bits_is_read() -> None:
    np.testing.assert_array_equal(decode_image(lossless_jpeg(PIXELS), LIMITS).pixels, PIXELS)


@pytest.mark.parametrize(
    ("marker", "bits", "channels", "name"),
    [
        (0xF7, 8, 3, "JPEG-LS (SOF55)"),
        (0xC3, 16, 1, "lossless JPEG (SOF3) of 16 bits"),
        (0xC3, 12, 1, "lossless JPEG (SOF3) of 12 bits"),
        (0xC5, 8, 3, "hierarchical JPEG (SOF5)"),
        (0xC7, 8, 3, "hierarchical lossless JPEG (SOF7)"),
        (0xCB, 8, 3, "arithmetic-coded lossless JPEG (SOF11)"),
        (0xC1, 12, 3, "of 12 bits per channel"),
        (0xC0, 8, 2, "of 2 channels"),
    ],
)
def test_other_codecs_of_jpeg_are_named(marker: int, bits: int, channels: int, name: str) -> None:
    frame = struct.pack(">BHHB", bits, 16, 16, channels) + b"".join(
        bytes([i, 0x11, 0]) for i in range(channels)
    )
    scan = bytes([channels]) + b"".join(bytes([i, 0]) for i in range(channels)) + b"\0\0\0"
    exif = jpeg_segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0" + encoded(SMOOTH, "JPEG"))
    for before in (b"", exif):
        data = (
            b"\xff\xd8"
            + before
            + jpeg_segment(marker, frame)
            + jpeg_segment(0xDA, scan)
            + bytes(99)
            + b"\xff\xd9"
        )
        error = error_of(data)
        assert error.code == "unsupported_format"
        assert name in error.message
        assert "which is not read: convert it to" in error.message


# Codecs and layouts of TIFF


@pytest.mark.parametrize("compression", [34712, 33003, 34887, 34933, 50002, 22610, 34925 + 10_000, 9])
def test_other_codecs_of_tiff_are_named(compression: int) -> None:
    error = error_of(tiff_of_directories([(PIXELS, {259: (3, [compression])})]))
    assert error.code == "unsupported_format"
    assert error.message.startswith(
        f"TIFF compressed with {tiff_compression(compression)}, which is not read: rewrite"
    )


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd"])
def test_codecs_that_libtiff_has_are_read(compression: str) -> None:
    np.testing.assert_array_equal(
        decode_image(encoded(PICTURE, "TIFF", compression=compression), LIMITS).pixels, PIXELS
    )


def planar(planes: list[NDArray[np.uint8]], photometric: int, extra: int | None) -> bytes:
    height, width = planes[0].shape
    stacked = np.concatenate(planes)
    tags: dict[int, tuple[int, list[int]]] = {
        257: (4, [height]),
        258: (3, [8] * len(planes)),
        262: (3, [photometric]),
        277: (3, [len(planes)]),
        278: (4, [height]),
        284: (3, [2]),
        273: (4, [8 + height * width * band for band in range(len(planes))]),
        279: (4, [height * width] * len(planes)),
    }
    if extra is not None:
        tags[338] = (3, [extra])
    return tiff_of_directories([(stacked, tags)])


@pytest.mark.parametrize("extra", [1, 2], ids=["multiplied by alpha", "alpha"])
def test_planes_give_the_same_pixels_as_interleaved_bands(extra: int) -> None:
    alpha = RNG.integers(1, 256, PIXELS.shape[:2], np.uint8)
    stored = PIXELS if extra == 2 else (PIXELS.astype(int) * alpha[..., None] // 255).astype(np.uint8)
    bands = np.concatenate([stored, alpha[..., None]], axis=2)
    interleaved = decode_image(tiff_of_directories([(bands, {338: (3, [extra])})]), LIMITS).pixels
    planes = decode_image(planar([*np.moveaxis(bands, 2, 0)], 2, extra), LIMITS).pixels
    np.testing.assert_array_equal(planes, interleaved)
    if extra == 2:
        np.testing.assert_array_equal(planes, PIXELS)


def test_planes_of_colours_and_of_inks() -> None:
    np.testing.assert_array_equal(
        decode_image(planar([*np.moveaxis(PIXELS, 2, 0)], 2, None), LIMITS).pixels, PIXELS
    )
    inks = [*np.moveaxis(255 - PIXELS, 2, 0), np.zeros(PIXELS.shape[:2], np.uint8)]
    np.testing.assert_array_equal(decode_image(planar(inks, 5, None), LIMITS).pixels, PIXELS)


@pytest.mark.parametrize(
    ("photometric", "bands", "extra"), [(6, 3, None), (1, 2, 1), (1, 2, 2), (8, 3, None), (2, 4, 0)]
)
def test_other_planes_give_the_same_pixels_too(photometric: int, bands: int, extra: int | None) -> None:
    stored = np.concatenate([PIXELS, PIXELS[..., :1]], axis=2)[..., :bands]
    tags: dict[int, tuple[int, list[int]]] = {262: (3, [photometric])}
    if extra is not None:
        tags[338] = (3, [extra])
    one = decode_image(tiff_of_directories([(stored, tags)]), LIMITS).pixels
    planes = decode_image(planar([*np.moveaxis(stored, 2, 0)], photometric, extra), LIMITS).pixels
    np.testing.assert_array_equal(planes, one)


# PNG and BMP


def test_apples_png_is_named() -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    deflate = zlib.compressobj(wbits=-15)  # without the header of zlib
    rows = deflate.compress(bytes(4 * 13)) + deflate.flush()
    apple = b"\x89PNG\r\n\x1a\n" + png_chunk(b"CgBI", b"\x50\0\x20\2") + header
    apple += png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    assert "in the variant CgBI of Apple's developer tools, which is not read" in error_of(apple).message


@pytest.mark.parametrize(
    ("codec", "bits", "name"), [(4, 24, "JPEG"), (5, 24, "PNG"), (0, 64, "64 bits per pixel")]
)
def test_other_codecs_of_bmp_are_named(codec: int, bits: int, name: str) -> None:
    data = bytearray(encoded(PICTURE, "BMP"))
    data[28:30], data[30:34] = struct.pack("<H", bits), struct.pack("<I", codec)
    error = error_of(bytes(data))
    assert (error.code, name in error.message) == ("unsupported_format", True)


# What libraries print


def test_nothing_of_libtiff_reaches_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    broken = tiff_of_directories([(PIXELS, {259: (3, [5]), 700: (1, b"x" * 9), 270: (4, [1, 2])})])
    with Decoders(1) as decoders:
        for data in (broken, tiff_of_directories([(PIXELS, {259: (3, [50001])})])):
            with pytest.raises(ItemError):
                decoders.decode(data, LIMITS)
    assert capfd.readouterr() == ("", "")

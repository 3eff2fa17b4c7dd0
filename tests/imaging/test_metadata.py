"""Metadata never cost the picture, whatever they are and however large: same pixels, turned the same."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imaging.files import encoded, jpeg_segment, png_chunk, tiff_of_directories
from PIL import Image

from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import DecodedImage, Limits, decode_image, image_size
from maskrcnn.imaging.formats.jpeg_metadata import without_metadata as jpeg_without_metadata
from maskrcnn.imaging.formats.png_chunks import without_metadata as png_without_metadata
from maskrcnn.imaging.formats.tiff_directory import without_metadata as tiff_without_metadata
from maskrcnn.imaging.orientation import exif_of

LIMITS = Limits(10**6, 10**8, 100)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
PNG = encoded(PICTURE, "PNG")
JPEG = encoded(PICTURE, "JPEG")
BOMB = zlib.compress(bytes(2**21))
LARGE_XMP = b'<x tiff:Orientation="6"/>' + b" " * 2**21
EXIF_TEXT = b"\nexif\n      26\n" + (b"Exif\0\0" + exif_of(6)).hex().encode()


def decoded(data: bytes) -> DecodedImage:
    result = decode_image(data, LIMITS)
    assert result.pixels.shape[:2] == image_size(io.BytesIO(data), LIMITS)
    return result


def png_with(*chunks: bytes, last: bool = False) -> bytes:
    at = len(PNG) - 12 if last else 33
    return PNG[:at] + b"".join(chunks) + PNG[at:]


def jpeg_with(*parts: bytes) -> bytes:
    return JPEG[:2] + b"".join(parts) + JPEG[2:]


LARGE_CHUNKS = {
    "iTXt": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
    "zTXt": png_chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "iCCP": png_chunk(b"iCCP", b"profile\0\0" + BOMB),
    "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x/>" + b" " * 2**21)),
    "many": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20))) * 70,
}


@pytest.mark.parametrize("last", [False, True], ids=["before the pixels", "after them"])
@pytest.mark.parametrize("name", LARGE_CHUNKS)
def test_large_text_and_profiles_of_a_png(name: str, last: bool) -> None:
    result = decode_image(png_with(LARGE_CHUNKS[name], last=last), LIMITS)
    np.testing.assert_array_equal(result.pixels, PIXELS)
    assert result.exif_orientation is None


@pytest.mark.parametrize("large", sorted(LARGE_CHUNKS))
@pytest.mark.parametrize(
    "orienting",
    [
        png_chunk(b"eXIf", exif_of(6)),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE_XMP)),
        png_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(EXIF_TEXT)),
        png_chunk(b"tEXt", b"Raw profile type exif\0" + EXIF_TEXT),
    ],
    ids=["eXIf", "large XMP", "XMP", "zTXt", "tEXt"],
)
def test_the_orientation_outlives_what_is_left_out(large: str, orienting: bytes) -> None:
    result = decoded(png_with(LARGE_CHUNKS[large], orienting))
    assert result.exif_orientation == 6
    np.testing.assert_array_equal(result.pixels, np.rot90(PIXELS, -1))


@settings(max_examples=150)
@given(
    st.sampled_from(
        [b"iTXt", b"tEXt", b"zTXt", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"sBIT", b"prVt"]
    ),
    st.sampled_from([b"", b"Comment\0\0", b"Comment\0\1\0\0\0", b"name\0\0", b"name\0\1"]),
    st.one_of(st.binary(max_size=40), st.just(BOMB)),
    st.booleans(),
    st.booleans(),
)
def test_any_other_chunk_of_a_png_leaves_its_pixels(
    kind: bytes, start: bytes, rest: bytes, sound: bool, last: bool
) -> None:
    data = png_with(png_chunk(kind, start + rest, sound=sound), last=last)
    np.testing.assert_array_equal(decode_image(data, LIMITS).pixels, PIXELS)


def test_a_png_that_ends_in_metadata_after_its_pixels_is_complete() -> None:
    whole = png_with(png_chunk(b"tEXt", b"Comment\0" + b"x" * 500), last=True)
    start = whole.index(b"tEXt") - 4
    for cut in (start, start + 3, start + 20, start + 400):
        np.testing.assert_array_equal(decode_image(whole[:cut], LIMITS).pixels, PIXELS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_that_ends_in_metadata_after_its_pixels_is_complete(lossless: bool, mode: str) -> None:
    exif = b"Exif\0\0" + exif_of(6)
    whole = encoded(PICTURE.convert(mode), "WEBP", lossless=lossless, exact=True, exif=exif, xmp=b"x" * 300)
    expected = decode_image(whole, LIMITS)
    stop = whole.index(b"EXIF")
    for cut in (stop, stop + 5, len(whole) - 200):
        result = decode_image(whole[:cut], LIMITS)
        turned = result.exif_orientation == 6
        assert turned == (cut > stop + 5)
        np.testing.assert_array_equal(
            result.pixels if turned else np.rot90(result.pixels, -1), expected.pixels
        )
    for cut in (stop - 3, stop - 9, stop // 2):
        with pytest.raises(ItemError, match="truncated"):
            decode_image(whole[:cut], LIMITS)


SEGMENT_STARTS = (
    *(
        b"Exif\0\0II*\0\x08\0\0\0",
        b"Exif\0\0MM\0*",
        b"http://ns.adobe.com/xap/1.0/\0",
        b"http://ns.adobe.com/xmp/extension/\0",
    ),
    *(
        b"ICC_PROFILE\0\1\1",
        b"ICC_PROFILE\0\1\5",
        b"Photoshop 3.0\x008BIM\x03\xed",
        b"MPF\0II*\0\x08\0\0\0",
        b"FPXR\0",
    ),
    *(b"JFXX\0", b"AVI1", b""),
)


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0xE0, 0xE1, 0xE2, 0xE3, 0xED, 0xFE]),
            st.sampled_from(SEGMENT_STARTS),
            st.binary(max_size=60),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_metadata_of_a_jpeg_leave_its_pixels(parts: list[tuple[int, bytes, bytes]]) -> None:
    segments = [jpeg_segment(marker, start + rest) for marker, start, rest in parts]
    result = decode_image(JPEG[:20] + b"".join(segments) + JPEG[20:], LIMITS)
    if result.exif_orientation in (None, 1):
        np.testing.assert_array_equal(result.pixels, decode_image(JPEG, LIMITS).pixels)


def test_large_metadata_of_a_jpeg() -> None:
    profile = [jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 60]) + bytes(65_000)) for i in range(1, 61)]
    more = [jpeg_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000))] * 60
    exif = jpeg_segment(0xE1, b"Exif\0\0" + exif_of(6) + bytes(60_000))
    result = decoded(jpeg_with(*profile, exif, *more))
    assert result.exif_orientation == 6
    np.testing.assert_array_equal(result.pixels, np.rot90(decode_image(JPEG, LIMITS).pixels, -1))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000"])
def test_metadata_of_other_formats(kind: str) -> None:
    """They are not looked at before the pixels."""
    options = {"WEBP": {"lossless": True}, "AVIF": {}, "JPEG2000": {"irreversible": False}}[kind]
    simple = decode_image(encoded(PICTURE, kind, **options), LIMITS).pixels
    rng = random.Random(0)
    for size in (1, 40, 3_000_000):
        noise = rng.randbytes(size)
        extra = {"comment": noise[:60_000]} if kind == "JPEG2000" else {"icc_profile": noise, "xmp": noise}
        if kind == "AVIF":
            extra.pop("icc_profile")
        np.testing.assert_array_equal(
            decode_image(encoded(PICTURE, kind, **options, **extra), LIMITS).pixels, simple
        )


@settings(max_examples=150)
@given(
    st.sampled_from(
        [269, 270, 282, 285, 296, 305, 306, 333, 700, 33723, 34377, 34665, 34675, 34853, 40965, 42112, 65000]
    ),
    st.sampled_from([1, 2, 3, 4, 7]),
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(max_size=60)),
    st.booleans(),
)
def test_any_metadata_of_a_tiff_leave_its_pixels(tag: int, kind: int, body: bytes, big: bool) -> None:
    body = body[: len(body) // 4 * 4]
    data = tiff_of_directories([(PIXELS, {tag: (kind, body)})], big=big)
    np.testing.assert_array_equal(decode_image(data, LIMITS).pixels, PIXELS)


def test_a_tag_that_points_beyond_the_end_of_the_file() -> None:
    data = bytearray(tiff_of_directories([(PIXELS, {34675: (7, b"p" * 50)})]))
    at = data.index(struct.pack("<HHI", 34675, 7, 50))
    data[at + 4 : at + 12] = struct.pack("<II", 2**31, 2**31)
    np.testing.assert_array_equal(decode_image(bytes(data), LIMITS).pixels, PIXELS)


@pytest.mark.parametrize(
    ("data", "without"),
    [
        (png_with(LARGE_CHUNKS["zTXt"]), png_without_metadata),
        (jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + exif_of(3))), jpeg_without_metadata),
        (tiff_of_directories([(PIXELS, {270: (2, b"words" * 9)})]), tiff_without_metadata),
    ],
    ids=["PNG", "JPEG", "TIFF"],
)
def test_what_is_left_is_the_same_picture_and_stays_so(
    data: bytes, without: Callable[[bytes], bytes]
) -> None:
    once = without(data)
    np.testing.assert_array_equal(decode_image(once, LIMITS).pixels, decode_image(data, LIMITS).pixels)
    np.testing.assert_array_equal(
        decode_image(without(once), LIMITS).pixels, decode_image(once, LIMITS).pixels
    )

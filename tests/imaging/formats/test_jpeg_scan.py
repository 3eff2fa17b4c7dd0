"""A JPEG cut anywhere in its scan is truncated; one that lacks its end marker only has all of its pixels."""

import functools
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imaging.files import encoded, jpeg_segment, lossless_jpeg
from PIL import Image

from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import Limits, decode_image, image_size
from maskrcnn.imaging.formats.jpeg_scan import complete_length, segments

LIMITS = Limits(10**6, 10**7, 100)
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "without subsampling": {"subsampling": 0, "quality": 95},
    "optimized tables": {"optimize": True, "quality": 60},
    "progressive": {"progressive": True},
    "progressive, coarse": {"progressive": True, "quality": 20},
    "restart markers": {"restart_marker_blocks": 2},
    "restart markers of rows": {"restart_marker_rows": 1},
    "progressive with restart markers": {"progressive": True, "restart_marker_blocks": 3},
}
SIZES = ((40, 56), (33, 17), (8, 8))
MODES = ("RGB", "L", "CMYK")


@functools.cache
def jpeg(kind: str, mode: str = "RGB", size: tuple[int, int] = SIZES[0], seed: int = 0) -> bytes:
    height, width = size
    noise = np.random.default_rng(seed).integers(0, 64, (height, width, 3))
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None] % 192
    image = Image.fromarray((noise + ramp).astype(np.uint8)).convert(mode)
    return encoded(image, "JPEG", **KINDS[kind])


def scan_start(data: bytes) -> int:
    return next(segment.stop for segment in segments(data) if segment.marker == 0xDA)


def code_of(data: bytes) -> str:
    with pytest.raises(ItemError) as caught:
        decode_image(data, LIMITS)
    return caught.value.code


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_without_the_end_marker_all_pixels_are_there(kind: str, size: tuple[int, int], mode: str) -> None:
    whole = jpeg(kind, mode, size)
    expected = decode_image(whole, LIMITS).pixels
    for data in (whole[:-1], whole[:-2]):
        assert complete_length(data) == len(whole) - 2
        np.testing.assert_array_equal(decode_image(data, LIMITS).pixels, expected)
    assert complete_length(whole) is None, "it has its end marker"


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(MODES),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 99),
    st.floats(0, 1, exclude_max=True),
)
def test_a_cut_in_the_scan_is_truncated(
    kind: str, mode: str, size: tuple[int, int], seed: int, where: float
) -> None:
    whole = jpeg(kind, mode, size, seed)
    start, stop = scan_start(whole), len(whole) - 2
    for cut in {start + int(where * (stop - start)), stop - 1}:
        assert code_of(whole[:cut]) == "truncated"


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restart markers"])
def test_a_cut_anywhere_near_the_end_is_truncated(kind: str) -> None:
    whole = jpeg(kind)
    for cut in range(len(whole) - 120, len(whole) - 2):
        assert complete_length(whole[:cut]) is None, cut


def test_a_progressive_file_without_its_last_scans_is_truncated() -> None:
    whole = jpeg("progressive")
    starts = [segment.start for segment in segments(whole) if segment.marker in (0xC4, 0xDA)]
    for cut in starts[2:]:
        assert code_of(whole[:cut]) == "truncated"


def test_zeros_in_place_of_the_missing_bytes_are_no_pixels() -> None:
    """As a download leaves them that reserved its space first."""
    for kind in ("baseline", "progressive"):
        whole = jpeg(kind)
        for cut in (scan_start(whole) + 50, len(whole) * 3 // 4, len(whole) - 40):
            assert code_of(whole[:cut] + bytes(len(whole) - cut)) == "truncated"
            # Zeros enough for all the pixels that are missing, which Pillow then reads.
            assert code_of(whole[:cut] + bytes(20 * len(whole))) == "truncated"


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restart markers"])
def test_zeros_after_the_last_pixel_do_not_matter(kind: str) -> None:
    """As in files of a fixed size."""
    whole = jpeg(kind)
    padded = whole[:-2] + bytes(1000)
    np.testing.assert_array_equal(decode_image(padded, LIMITS).pixels, decode_image(whole, LIMITS).pixels)


def test_a_height_that_is_stated_after_the_pixels() -> None:
    whole = jpeg("baseline")
    frame = next(segment for segment in segments(whole) if segment.marker == 0xC0)
    height = whole[frame.start + 5 : frame.start + 7]
    late = (
        whole[: frame.start + 5]
        + b"\0\0"
        + whole[frame.start + 7 : -2]
        + jpeg_segment(0xDC, height)
        + b"\xff\xd9"
    )
    np.testing.assert_array_equal(decode_image(late, LIMITS).pixels, decode_image(whole, LIMITS).pixels)
    assert image_size(io.BytesIO(late), LIMITS) == SIZES[0]
    never = whole[: frame.start + 5] + b"\0\0" + whole[frame.start + 7 :]
    assert code_of(never) == "corrupt"


def test_what_follows_the_end_marker_does_not_matter() -> None:
    whole = jpeg("baseline")
    expected = decode_image(whole, LIMITS).pixels
    for more in (b"\0" * 100, b"\xff", jpeg("progressive"), b"SEFT" * 9):
        np.testing.assert_array_equal(decode_image(whole + more, LIMITS).pixels, expected)


def test_a_file_that_contradicts_itself_is_not_complete() -> None:
    whole = jpeg("baseline")
    without_tables = whole.replace(b"\xff\xc4", b"\xff\xe9")
    assert complete_length(without_tables[:-2]) is None
    assert complete_length(b"\xff\xd8\xff\xda") is None
    assert complete_length(lossless_jpeg(np.zeros((4, 4, 3), np.uint8))[:-2]) is None

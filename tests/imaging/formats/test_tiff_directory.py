"""The full picture of a TIFF is read, or nothing: never a preview of it."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imaging.files import Tags, tiff_of_directories
from numpy.typing import NDArray

from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.imaging.formats.tiff_directory import full_picture, reader_of, without_metadata

LIMITS = Limits(10**6, 10**7, 100)
FULL = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
SMALL = FULL[::4, ::4]
CFA = np.random.default_rng(1).integers(0, 4096, (32, 48), np.uint16)
REDUCED: Tags = {254: (4, [1])}
OLD_REDUCED: Tags = {255: (3, [2])}
WHOLE: Tags = {254: (4, [0])}
RAW_COLORS: Tags = {262: (3, [32803]), 254: (4, [0])}
DNG: Tags = {50706: (1, [1, 4, 0, 0])}


def message(data: bytes) -> str:
    with pytest.raises(ItemError) as caught:
        decode_image(data, LIMITS)
    assert caught.value.code == "unsupported_format"
    return caught.value.message


def pixels(data: bytes) -> NDArray[np.uint8]:
    return decode_image(data, LIMITS).pixels


@pytest.mark.parametrize("children", [0, 1], ids=["next page", "SubIFD"])
@pytest.mark.parametrize("mark", [REDUCED, OLD_REDUCED], ids=["NewSubfileType", "SubfileType"])
@pytest.mark.parametrize(
    "layout", [{}, {"order": ">"}, {"big": True}], ids=["little", "big-endian", "BigTIFF"]
)
def test_behind_a_preview_the_full_picture_is_read(
    children: int, mark: Tags, layout: dict[str, object]
) -> None:
    data = tiff_of_directories([(SMALL, mark), (FULL, WHOLE)], children=children, **layout)  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels(data), FULL)


def test_of_several_only_the_full_one_is_a_picture() -> None:
    mask: Tags = {254: (4, [4]), 262: (3, [4])}
    pages = [(SMALL, REDUCED), (FULL[..., 0], mask), (SMALL, REDUCED), (FULL, WHOLE)]
    np.testing.assert_array_equal(pixels(tiff_of_directories(pages, children=3)), FULL)


def test_a_pyramid_begins_with_its_full_picture() -> None:
    pages = [(FULL, WHOLE), (FULL[::2, ::2], REDUCED), (SMALL, REDUCED)]
    for children in (0, 2):
        np.testing.assert_array_equal(pixels(tiff_of_directories(pages, children=children)), FULL)


def test_a_larger_picture_below_an_unmarked_one_is_the_full_one() -> None:
    np.testing.assert_array_equal(pixels(tiff_of_directories([(SMALL, {}), (FULL, {})], children=1)), FULL)


@pytest.mark.parametrize("mark", [{}, WHOLE], ids=["no mark", "marked as whole"])
@pytest.mark.parametrize("children", [0, 1], ids=["next page", "SubIFD"])
def test_a_picture_before_larger_sensor_values_is_a_preview(children: int, mark: Tags) -> None:
    make: Tags = {271: (2, b"Canon\0")}
    data = tiff_of_directories([(SMALL, {**mark, **make}), (CFA, RAW_COLORS)], children=children)
    assert "Canon CR2" in message(data)


@pytest.mark.parametrize("children", [0, 1], ids=["next page", "SubIFD"])
def test_the_codec_of_the_full_picture_is_named(children: int) -> None:
    """Not that of the preview before it, which is sound."""
    full: Tags = {**WHOLE, 259: (3, [34712])}
    assert "JPEG 2000" in message(tiff_of_directories([(SMALL, REDUCED), (FULL, full)], children=children))


def test_of_pages_that_are_no_previews_the_first_is_read() -> None:
    np.testing.assert_array_equal(
        pixels(tiff_of_directories([(SMALL, {254: (4, [2])}), (FULL, {254: (4, [2])})])), SMALL
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_full_picture_inherits_the_orientation(orientation: int) -> None:
    turned: Tags = {274: (3, [orientation])}
    plain = decode_image(tiff_of_directories([(FULL, turned)]), LIMITS)
    behind = decode_image(tiff_of_directories([(SMALL, REDUCED | turned), (FULL, WHOLE)], children=1), LIMITS)
    np.testing.assert_array_equal(behind.pixels, plain.pixels)
    assert behind.exif_orientation == plain.exif_orientation == orientation
    own = decode_image(tiff_of_directories([(SMALL, REDUCED), (FULL, WHOLE | turned)], children=1), LIMITS)
    np.testing.assert_array_equal(own.pixels, plain.pixels)


@pytest.mark.parametrize(
    ("pages", "children"),
    [
        ([(SMALL, REDUCED | DNG), (CFA, RAW_COLORS)], 1),
        ([(SMALL, DNG), (CFA, RAW_COLORS)], 1),
        ([(CFA, RAW_COLORS | DNG)], 0),
        ([(SMALL, REDUCED | DNG)], 0),
    ],
    ids=["marked preview", "unmarked preview", "no preview", "preview only"],
)
def test_a_dng_is_a_raw_file(pages: list[tuple[NDArray[np.uint8], Tags]], children: int) -> None:
    assert message(tiff_of_directories(pages, children=children)).startswith(
        "DNG, a camera's raw file: develop it"
    )


@pytest.mark.parametrize(("make", "name"), [(b"NIKON CORPORATION\0", "Nikon NEF"), (b"SONY\0", "Sony ARW")])
@pytest.mark.parametrize("compression", [1, 34713, 32767])
def test_raw_files_of_cameras_are_named(make: bytes, name: str, compression: int) -> None:
    raw: Tags = RAW_COLORS if compression == 1 else WHOLE
    pages = [(SMALL, REDUCED | {271: (2, make)}), (CFA, raw | {259: (3, [compression])})]
    assert message(tiff_of_directories(pages, children=1)).startswith(f"{name}, a camera's raw file")


def test_a_preview_without_its_picture_is_refused() -> None:
    assert "marked as a preview" in message(tiff_of_directories([(SMALL, REDUCED)]))
    assert "marked as a preview" in message(tiff_of_directories([(SMALL, REDUCED), (SMALL, REDUCED)]))


def test_big_endian_bigtiff_is_sound() -> None:
    assert "BigTIFF with big-endian numbers" in message(
        tiff_of_directories([(FULL, {})], big=True, order=">")
    )


def test_directories_that_refer_to_each_other_end() -> None:
    data = bytearray(tiff_of_directories([(SMALL, REDUCED), (SMALL, REDUCED)]))
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    second = int.from_bytes(data[first + 2 + 12 * count :][:4], "little")
    n = int.from_bytes(data[second : second + 2], "little")
    data[second + 2 + 12 * n : second + 6 + 12 * n] = data[4:8]
    assert "marked as a preview" in message(bytes(data))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 1)
)
def test_damaged_directories_give_an_answer(changes: list[tuple[int, int]], children: int) -> None:
    data = bytearray(tiff_of_directories([(SMALL, REDUCED), (SMALL, WHOLE)], children=children))
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(ItemError):  # a preview, or a raw file
        found = full_picture(reader_of(bytes(data)))
        assert found is None or found.start >= 0
        assert without_metadata(bytes(data))

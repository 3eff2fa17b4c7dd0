"""Windows of a raster equal slices of the whole image, and each block is read once per tile."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import DecodedImage
from maskrcnn.imaging.geometry import Entry, ImageHeader, RasterRegion, Rect
from maskrcnn.tiling.index import Cutting
from maskrcnn.tiling.reader import read_windows, rect_of


def entries_of(image: ImageHeader, cutting: Cutting, row: int = 0, tile: int | None = None) -> list[Entry]:
    assert image.height is not None
    assert image.width is not None
    tiling = cutting.tiling(image.height, image.width, image.block_size)
    wanted = slice(None) if tile is None else slice(tiling.cuts[tile], tiling.cuts[tile + 1])
    block = image.block_size or (None, None)
    return [
        {
            "image_row": row,
            "window_id": int(window),
            **dict(
                zip(("col_off", "row_off", "window_width", "window_height"), tiling.grid[window], strict=True)
            ),
            "image_height": image.height,
            "image_width": image.width,
            "block_height": block[0],
            "block_width": block[1],
            "header_error": None,
            "header_message": None,
        }
        for window in tiling.order[wanted].tolist()
    ]


class Raster:
    """Random pixels in blocks, some of them broken; counts how often each block is read."""

    def __init__(self, image: ImageHeader, seed: int, broken: Sequence[tuple[int, int]] = ()) -> None:
        assert image.height is not None
        assert image.width is not None
        assert image.block_size is not None
        rng = np.random.default_rng(seed)
        self.pixels = rng.integers(0, 256, (image.height, image.width, 3), np.uint8)
        self.valid = rng.random((image.height, image.width)) < 0.001
        self.block = image.block_size
        self.read: Counter[tuple[int, int]] = Counter()
        self.broken = set(broken)

    def __call__(self, entry: Entry, rect: Rect) -> RasterRegion:
        height, width = self.block
        assert rect.col_off % width == rect.row_off % height == 0
        broken = []
        for top in range(rect.row_off, rect.bottom, height):
            for left in range(rect.col_off, rect.right, width):
                block = (top // height, left // width)
                self.read[block] += 1
                if block in self.broken:
                    broken.append((Rect(left, top, width, height), ItemError("corrupt", "no block")))
        part = (slice(rect.row_off, rect.bottom), slice(rect.col_off, rect.right))
        return RasterRegion(self.pixels[part], self.valid[part], tuple(broken))


def no_whole(entry: Entry) -> DecodedImage:
    raise AssertionError


def no_region(entry: Entry, rect: Rect) -> RasterRegion:
    raise AssertionError


rasters = st.builds(
    ImageHeader, st.integers(1, 90), st.integers(1, 90), st.tuples(st.integers(1, 20), st.integers(1, 100))
)


@pytest.mark.slow
@given(rasters, st.integers(2, 20), st.integers(0, 10), st.integers(0, 99), st.data())
def test_windows_equal_slices_of_the_whole_image(
    image: ImageHeader, window: int, overlap: int, seed: int, data: st.DataObject
) -> None:
    cutting = Cutting(window, min(overlap, window // 2))
    raster = Raster(image, seed)
    entries = entries_of(image, cutting)
    some = data.draw(st.lists(st.sampled_from(range(len(entries))), unique=True).map(sorted))
    for wanted in (entries, [entries[index] for index in some]):
        found = list(read_windows(wanted, no_whole, raster))
        for entry, pixels in zip(wanted, found, strict=True):
            rect = rect_of(entry)
            part = (slice(rect.row_off, rect.bottom), slice(rect.col_off, rect.right))
            if raster.valid[part].any():
                assert isinstance(pixels, DecodedImage)
                assert np.array_equal(pixels.pixels, raster.pixels[part])
                assert pixels.pixels.flags.c_contiguous
            else:
                assert pixels is None


@given(rasters, st.integers(2, 20), st.integers(0, 10), st.integers(0, 99))
def test_each_block_is_read_once_per_tile(image: ImageHeader, window: int, overlap: int, seed: int) -> None:
    cutting = Cutting(window, min(overlap, window // 2))
    tiling = cutting.tiling(image.height or 0, image.width or 0, image.block_size)
    for tile in range(len(tiling.cuts) - 1):
        raster = Raster(image, seed)
        list(read_windows(entries_of(image, cutting, tile=tile), no_whole, raster))
        assert set(raster.read.values()) == {1}


@given(rasters, st.integers(2, 20), st.integers(0, 10), st.integers(0, 99), st.data())
def test_a_broken_block_fails_only_the_windows_that_contain_it(
    image: ImageHeader, window: int, overlap: int, seed: int, data: st.DataObject
) -> None:
    cutting = Cutting(window, min(overlap, window // 2))
    height, width = image.block_size or (1, 1)
    rows, columns = -(-(image.height or 0) // height), -(-(image.width or 0) // width)
    block = data.draw(st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1)))
    raster = Raster(image, seed, [block])
    entries = entries_of(image, cutting)
    for entry, found in zip(entries, read_windows(entries, no_whole, raster), strict=True):
        shared = rect_of(entry).shared(Rect(block[1] * width, block[0] * height, width, height))
        assert isinstance(found, ItemError) == bool(shared.width and shared.height)


def test_an_image_without_blocks_is_decoded_once_and_a_changed_one_fails() -> None:
    pixels = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    decoded: list[int] = []

    def read_whole(entry: Entry) -> DecodedImage:
        decoded.append(entry["image_row"])
        return DecodedImage(pixels, 3)

    cutting = Cutting(16, 4)
    entries = [
        *entries_of(ImageHeader(30, 40), cutting, row=5),
        *entries_of(ImageHeader(40, 30), cutting, row=6),
    ]
    found = list(read_windows(entries, read_whole, no_region))
    assert decoded == [5, 6]
    for entry, window in zip(entries, found, strict=True):
        if entry["image_row"] == 5:
            rect = rect_of(entry)
            assert isinstance(window, DecodedImage)
            assert np.array_equal(
                window.pixels, pixels[rect.row_off : rect.bottom, rect.col_off : rect.right]
            )
            assert window.exif_orientation == 3
        else:
            assert isinstance(window, ItemError)
            assert window.code == "changed"


def test_a_failed_read_fails_only_the_windows_of_that_row() -> None:
    image, cutting = ImageHeader(60, 20, (10, 20)), Cutting(20, 0)
    raster = Raster(image, 1)
    raster.valid[:] = True

    def read(entry: Entry, rect: Rect) -> RasterRegion:
        if rect.row_off == 20:
            raise ItemError("timeout", "not read")
        return raster(entry, rect)

    found = list(read_windows(entries_of(image, cutting), no_whole, read))
    assert [isinstance(window, ItemError) for window in found] == [False, True, False]


def test_an_image_with_a_header_error_fails() -> None:
    entry = entries_of(ImageHeader(9, 9), Cutting(32, 4))[0]
    entry |= {"image_height": 0, "image_width": 0, "header_error": "no_crs", "header_message": "none"}
    [found] = read_windows([entry], no_whole, no_region)
    assert isinstance(found, ItemError)
    assert str(found) == "no_crs: none"

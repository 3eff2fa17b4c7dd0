"""The windows of each image have consecutive numbers, and shards are tiles or several whole images."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import ItemError
from maskrcnn.imaging.geometry import ImageHeader
from maskrcnn.schema import ITEMS, MANIFEST
from maskrcnn.tiling.grid import TILE_WINDOWS, windows_with_data
from maskrcnn.tiling.index import Cutting, WindowIndex, number_windows

CUTTING = Cutting(16, 4)

whole_files = st.builds(ImageHeader, st.integers(1, 60), st.integers(1, 60))
rasters = st.builds(
    ImageHeader,
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([(8, 8), (1, 10**6)]),
    st.just("EPSG:4326"),
    st.just((1.0, 0.0, 2.0, 0.0, -1.0, 3.0)),
)


def with_data(image: ImageHeader, shares: set[float]) -> ImageHeader:
    """A sparse raster some of whose blocks hold data."""
    assert image.height is not None
    assert image.width is not None
    assert image.block_size is not None
    height, width = image.block_size
    count = -(-image.height // height) * -(-image.width // width)
    blocks = np.unique(np.array([int(share * count) for share in shares], np.int64))
    return dataclasses.replace(image, data_blocks=blocks)


sparse = st.builds(with_data, rasters, st.sets(st.floats(0, 1, exclude_max=True), max_size=5))
unknown = st.just(ImageHeader(error=ItemError("no_crs", "nowhere")))
collections = st.lists(st.one_of(whole_files, rasters, sparse, unknown), min_size=1, max_size=8)


def manifest_of(n: int) -> pa.Table:
    names = [f"{row}.tif" for row in range(n)]
    columns = [range(10, 10 + n), names, names, [None] * n, [None] * n]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, MANIFEST, strict=True)], schema=MANIFEST)


def n_windows(image: ImageHeader) -> int:
    if image.height is None or image.width is None:
        return 1
    grid = CUTTING.grid(image.height, image.width)
    if image.data_blocks is None or image.block_size is None:
        return len(grid)
    return max(int(windows_with_data(grid, image.block_size, image.data_blocks).sum()), 1)


@settings(max_examples=60)
@given(collections, st.integers(1, 5))
def test_every_window_has_a_number_and_shards_are_tiles_or_whole_images(
    images: list[ImageHeader], shard_images: int
) -> None:
    grid, cuts = number_windows(images, CUTTING, shard_images)
    index = WindowIndex(grid, CUTTING, cuts[-1])
    assert cuts[-1] == sum(map(n_windows, images))
    assert list(cuts) == sorted(set(cuts))
    for start, stop in itertools.pairwise(cuts):
        rows = np.unique(index.rows_of(np.arange(start, stop)))
        whole = index.begins_image(start) and index.begins_image(stop)
        assert whole or len(rows) == 1
        assert len(rows) <= shard_images
        if not whole:
            assert images[rows[0]].block_size is not None
        if stop - start > TILE_WINDOWS:
            assert len(rows) == 1
            assert images[rows[0]].block_size in (None, (1, 10**6))


@settings(max_examples=60)
@given(collections, st.data())
def test_numbers_round_trip_through_windows(images: list[ImageHeader], data: st.DataObject) -> None:
    grid, cuts = number_windows(images, CUTTING, 3)
    index = WindowIndex(grid, CUTTING, cuts[-1])
    assert index.largest == max((image.height or 0) * (image.width or 0) for image in images)
    numbers = np.array(data.draw(st.lists(st.integers(0, cuts[-1] - 1), unique=True, min_size=1).map(sorted)))
    rows = np.unique(index.rows_of(numbers))
    table = index.table(numbers, manifest_of(len(images)).take(pa.array(rows)), rows)
    assert table.schema.equals(ITEMS)
    for number, entry in zip(numbers.tolist(), table.to_pylist(), strict=True):
        image = images[entry["image_row"]]
        assert str(index.sized(entry["image_row"])) == str(dataclasses.replace(image, data_blocks=None))
        assert entry["name"] == f"{entry['image_row']}.tif"
        assert entry["image_id"] == number
        found = index.numbers_of(entry["image_row"], np.array([entry["window_id"]], np.int32))
        assert found.tolist() == [number]
        if image.error is not None:
            assert (entry["header_error"], entry["window_width"]) == ("no_crs", 0)
            continue
        tiling = index.tiling(entry["image_row"])
        assert tiling is not None
        rect = tiling.grid[entry["window_id"]]
        assert rect == tuple(entry[n] for n in ("col_off", "row_off", "window_width", "window_height"))
        assert (entry["block_height"], entry["block_width"]) == (image.block_size or (None, None))

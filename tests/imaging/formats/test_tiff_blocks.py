"""The blocks of a TIFF that hold data are those that GDAL knows a place of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import ItemError
from maskrcnn.imaging.formats.tiff_blocks import DataBlocks, check_density, data_blocks
from maskrcnn.imaging.formats.tiff_directory import full_picture, reader_of
from maskrcnn.imaging.geometry import Rect

rasterio = pytest.importorskip("rasterio")
Window = pytest.importorskip("rasterio.windows").Window

HEIGHT, WIDTH = 70, 50
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 32},
    "tiles by band": {"tiled": True, "blockxsize": 16, "blockysize": 32, "interleave": "band"},
    "strips": {"blockysize": 9},
    "one strip": {"blockysize": HEIGHT},
    "BigTIFF": {"tiled": True, "blockxsize": 16, "blockysize": 16, "BIGTIFF": "YES"},
    "big-endian": {"tiled": True, "blockxsize": 16, "blockysize": 16, "ENDIANNESS": "BIG"},
}


def write(path: Path, layout: str, spots: list[tuple[int, int, int]]) -> list[int]:
    """Write a raster that holds single pixels, and return the blocks that GDAL then knows a place of."""
    profile = {"count": 2, "dtype": "uint8", "sparse_ok": True, "compress": "deflate", "crs": "EPSG:32636"}
    profile |= {"height": HEIGHT, "width": WIDTH, "transform": rasterio.Affine(1, 0, 5e5, 0, -1, 4e6)}
    with rasterio.open(path, "w", driver="GTiff", **profile | LAYOUTS[layout]) as file:
        for row, column, band in spots:
            file.write(np.ones((1, 1), np.uint8), band, window=Window(column, row, 1, 1))
    with rasterio.open(path) as file:
        height, width = file.block_shapes[0]
        across = -(-WIDTH // width)
        return [
            row * across + column
            for row in range(-(-HEIGHT // height))
            for column in range(across)
            if any(file.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=band) for band in (1, 2))
        ]


spots = st.lists(
    st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), st.integers(1, 2)), max_size=5
)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=12, derandomize=True)
@given(spots)
def test_the_blocks_that_hold_data_are_those_that_gdal_knows_a_place_of(
    layout: str, tmp_path_factory: pytest.TempPathFactory, spots: list[tuple[int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("sparse") / "r.tif"
    expected = write(path, layout, spots)
    read_at = reader_of(path.read_bytes())
    picture = full_picture(read_at)
    assert picture is not None
    found = data_blocks(read_at, picture.start)
    if found is None:
        with rasterio.open(path) as file:
            height, width = file.block_shapes[0]
        assert len(expected) == -(-HEIGHT // height) * -(-WIDTH // width)
        return
    assert found.ids.tolist() == expected
    marked = found.mark(Rect(0, 0, WIDTH, HEIGHT))
    assert all(marked[row, column] for row, column, _ in spots)
    np.testing.assert_array_equal(found.mark(Rect(3, 5, 20, 40)), marked[5:45, 3:23])


def test_a_directory_that_is_cut_short_says_nothing_about_blocks(tmp_path: Path) -> None:
    write(tmp_path / "r.tif", "tiles", [(0, 0, 1)])
    data = (tmp_path / "r.tif").read_bytes()
    assert data_blocks(reader_of(data[:30]), 8) is None
    assert data_blocks(reader_of(b"no TIFF at all, but long enough"), 8) is None


def test_only_data_that_no_compression_stores_so_densely_are_refused() -> None:
    side = 100_000
    blocks = DataBlocks(512, 512, 196, np.arange(196 * 196))
    check_density(side, side, None, 1_000_000)  # blocks of one value, by zstd
    check_density(side, side, DataBlocks(512, 512, 196, np.arange(4)), 400)
    check_density(20_000, 20_000, None, 400)  # too small to matter
    for some in (None, blocks):
        with pytest.raises(ItemError, match="10,000,000,000 hold data, in a file of 100,000 bytes") as caught:
            check_density(side, side, some, 100_000)
        assert (caught.value.code, caught.value.width) == ("corrupt", side)

"""The windows of a run, numbered through all its images: what the plan of a windowed run divides into shards.

An image's windows have consecutive numbers, tile by tile, so that a tile is a range; see `grid.Tiling`. An image
whose header could not be read has one window, without pixels, which will fail. All of this follows from the images'
sizes, which are stored with the plan as the table `GRID`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ItemError
from ..imaging.geometry import ImageHeader
from ..schema import ITEMS, MANIFEST, METADATA
from .grid import TILE_WINDOWS, Grid, Tiling, tiling_of

GRID: Final = pa.schema(
    [
        pa.field("first", pa.int64(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("block_width", pa.int32()),
        pa.field("block_height", pa.int32()),
        pa.field("crs", pa.string()),
        pa.field("transform", pa.list_(pa.float64())),
        pa.field("error", pa.string()),
        pa.field("message", pa.string()),
    ],
    metadata=METADATA,
)
"""One row per input: the number of its first window, its size in the header when the run was planned (null where that
could not be read, with the error), the block size of an image that is read in parts, and its georeference."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How images are divided into windows."""

    window: int
    overlap: int
    offset: tuple[int, int] = (0, 0)

    def tiling(self, height: int, width: int, block_size: tuple[int, int] | None) -> Tiling:
        """Return the tiles of an image of this size, in pixels."""
        return _tiling(self, height, width, block_size)


@lru_cache(maxsize=64)
def _tiling(cutting: Cutting, height: int, width: int, block_size: tuple[int, int] | None) -> Tiling:
    offset = (
        cutting.offset[0] if width > cutting.window else 0,
        cutting.offset[1] if height > cutting.window else 0,
    )
    return tiling_of(Grid(height, width, cutting.window, cutting.overlap, offset), block_size)


def number_windows(
    images: Sequence[ImageHeader], cutting: Cutting, shard_images: int
) -> tuple[pa.Table, tuple[int, ...]]:
    """Assign numbers to the windows of all images.

    Args:
        images: in the order of the manifest.
        cutting: how they are divided.
        shard_images: maximum number of images in a shard.

    Returns:
        The table `GRID`, and the numbers at which the shards begin and the last ends. A shard is a tile, or several
        whole images of one tile each, which together have no more windows than a tile may have.
    """
    firsts, cuts, n, held = [], [0], 0, 0
    for image in images:
        firsts.append(n)
        tiles = np.array([0, 1])
        if image.height is not None and image.width is not None:
            tiles = cutting.tiling(image.height, image.width, image.block_size).cuts
        own = int(tiles[-1])
        if held and (len(tiles) > 2 or held == shard_images or n + own - cuts[-1] > TILE_WINDOWS):
            cuts.append(n)
            held = 0
        cuts += (n + tiles[1:-1]).tolist()
        n += own
        held += 1
        if len(tiles) > 2:
            cuts.append(n)
            held = 0
    if cuts[-1] != n:
        cuts.append(n)
    block_heights, block_widths = zip(*(image.block_size or (None, None) for image in images), strict=True)
    columns = {
        "first": firsts,
        "width": [image.width for image in images],
        "height": [image.height for image in images],
        "block_width": block_widths,
        "block_height": block_heights,
        "crs": [image.crs_wkt for image in images],
        "transform": [image.transform for image in images],
        "error": [image.error and image.error.code for image in images],
        "message": [image.error and image.error.message for image in images],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in GRID], schema=GRID), tuple(cuts)


class WindowIndex:
    """The numbered windows of a run.

    Args:
        table: of schema `GRID`.
        cutting: how its images are divided.
        n_windows: the number of windows.
    """

    def __init__(self, table: pa.Table, cutting: Cutting, n_windows: int) -> None:
        self._cutting = cutting
        self._first = np.append(table["first"].to_numpy(), n_windows)
        self._sizes = table.select(["height", "width", "block_height", "block_width"])
        self._others = table.select(["crs", "transform", "error", "message"])

    @property
    def largest(self) -> int:
        """Pixels of the largest image; 0 if no size is known."""
        height, width = (
            self._sizes[name].combine_chunks().fill_null(0).to_numpy() for name in ("height", "width")
        )
        return int((height.astype(np.int64) * width).max(initial=0))

    @property
    def n_images(self) -> int:
        """The number of images."""
        return len(self._first) - 1

    def range_of(self, image_row: int) -> tuple[int, int]:
        """Return an image's first window and the one after its last."""
        return int(self._first[image_row]), int(self._first[image_row + 1])

    def numbers_of(self, image_row: int, window_ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the numbers of an image's windows, (N,) int64."""
        first, stop = self.range_of(image_row)
        tiling = self.tiling(image_row)
        inverse = np.zeros(stop - first, np.int64)
        if tiling is not None:
            inverse[tiling.order] = np.arange(stop - first)
        return first + inverse[window_ids]

    def rows_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images of windows, as rows of the manifest: (N,) int64."""
        return np.asarray(np.searchsorted(self._first, numbers, side="right") - 1)

    def begins_image(self, number: int) -> bool:
        """Return whether a window is the first of its image; true also of the number after the last."""
        return bool(self._first[np.searchsorted(self._first, number)] == number)

    def sized(self, image_row: int) -> ImageHeader:
        """Return an image's header as planned."""
        size = self._sizes.slice(image_row, 1).to_pylist()[0]
        other = self._others.slice(image_row, 1).to_pylist()[0]
        block = (size["block_height"], size["block_width"])
        return ImageHeader(
            size["height"],
            size["width"],
            None if block[0] is None else block,
            other["crs"],
            None if other["transform"] is None else tuple(other["transform"]),
            None if other["error"] is None else ItemError(other["error"], other["message"]),
        )

    def tiling(self, image_row: int) -> Tiling | None:
        """Return an image's windows; None if its size is not known."""
        image = self.sized(image_row)
        if image.height is None or image.width is None:
            return None
        return self._cutting.tiling(image.height, image.width, image.block_size)

    def table(self, numbers: NDArray[np.int64], manifest_rows: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
        """Return windows as a table of schema `ITEMS`.

        Args:
            numbers: (N,) int64, ascending.
            manifest_rows: their images' rows of the manifest, each once, in order.
            rows: (R,) int64, the numbers of these rows.
        """
        image_rows = self.rows_of(numbers)
        columns: dict[str, Any] = {"image_id": numbers, "image_row": image_rows}
        inputs = manifest_rows.take(pa.array(np.searchsorted(rows, image_rows)))
        for name in MANIFEST.names[1:]:
            columns[name] = inputs[name].combine_chunks()
        columns |= {name: np.zeros(len(numbers), np.int32) for name in ITEMS.names if name not in columns}
        images: list[ImageHeader] = []
        for row in rows.tolist():
            of_image = np.flatnonzero(image_rows == row)
            tiling = self.tiling(row)
            images += [self.sized(row)] * len(of_image)
            if tiling is None:
                continue
            ids = tiling.order[numbers[of_image] - self._first[row]]
            rects = np.array([tiling.grid[int(window)] for window in ids], np.int32).reshape(-1, 4)
            columns["window_id"][of_image] = ids
            for at, name in enumerate(("col_off", "row_off", "window_width", "window_height")):
                columns[name][of_image] = rects[:, at]
            columns["image_width"][of_image] = tiling.grid.width
            columns["image_height"][of_image] = tiling.grid.height
        columns["block_height"] = [image.block_size and image.block_size[0] for image in images]
        columns["block_width"] = [image.block_size and image.block_size[1] for image in images]
        columns["header_error"] = [image.error and image.error.code for image in images]
        columns["header_message"] = [image.error and image.error.message for image in images]
        return pa.table([pa.array(columns[f.name], f.type) for f in ITEMS], schema=ITEMS)

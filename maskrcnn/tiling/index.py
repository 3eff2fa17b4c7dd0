"""The windows of a run, numbered through all its images: what the plan of a windowed run cuts into shards.

An image's windows have consecutive numbers, tile by tile, so that a tile is a range; see `windows.Tiling`. An image
whose header could not be read has one, of no pixels, which will fail. All follows from the images' sizes, which are
frozen with the plan as the table `GRID`.
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
"""One row an input: the number of its first window, its size as its header said when the run was planned (null where
that could not be read, with the error), the blocks of what is read in parts, and where it lies on Earth."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How images are cut into windows."""

    window: int
    overlap: int
    offset: tuple[int, int] = (0, 0)

    def tiling(self, height: int, width: int, block_size: tuple[int, int] | None) -> Tiling:
        """Return the tiles of an image of so many pixels."""
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
    """Give numbers to the windows of all images.

    Args:
        shard_images: at most so many images in a shard.

    Returns:
        The table `GRID`, and where the shards begin, and where the last ends. A shard is a tile, or some whole
        images of one tile each, of together no more windows than a tile may have.
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
        cutting: how its images are cut.
        n_items: how many windows there are.
    """

    def __init__(self, table: pa.Table, cutting: Cutting, n_windows: int) -> None:
        self._cutting = cutting
        self._first = np.append(table["first"].to_numpy(), n_windows)
        self._sizes = table.select(["height", "width", "block_height", "block_width"])
        self._others = table.select(["crs", "transform", "error", "message"])

    @property
    def largest(self) -> int:
        """The most pixels that an image has; 0 where no size is known."""
        height, width = (
            self._sizes[name].combine_chunks().fill_null(0).to_numpy() for name in ("height", "width")
        )
        return int((height.astype(np.int64) * width).max(initial=0))

    @property
    def n_images(self) -> int:
        """How many images there are."""
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
        """Return the images, as rows of the manifest, of some windows: (N,) int64."""
        return np.asarray(np.searchsorted(self._first, numbers, side="right") - 1)

    def begins_image(self, number: int) -> bool:
        """Return whether a window is the first of its image; so is the end of all."""
        return bool(self._first[np.searchsorted(self._first, number)] == number)

    def sized(self, image_row: int) -> ImageHeader:
        """Return what the plan knows of an image."""
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
        """Return an image's windows; None where its size is not known."""
        image = self.sized(image_row)
        if image.height is None or image.width is None:
            return None
        return self._cutting.tiling(image.height, image.width, image.block_size)

    def table(self, numbers: NDArray[np.int64], manifest_rows: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
        """Return windows as a table of schema `ITEMS`.

        Args:
            numbers: (N,) int64, ascending.
            manifest_rows: the rows of the manifest of their images, each once, in order.
            rows: (R,) int64, which rows these are.
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

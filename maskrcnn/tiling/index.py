"""Number the windows of all images of a run consecutively; the plan of a windowed run divides them into shards.

The windows of an image have consecutive numbers, tile by tile, so that a tile is a range; see `grid.Tiling`. An image
whose header could not be read has one window without pixels, which will fail. The numbers follow from the sizes of
the images, which are stored with the plan as the table `GRID`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ItemError
from ..imaging.geometry import ImageHeader
from ..schema import ITEMS, MANIFEST, METADATA
from .grid import TILE_WINDOWS, Grid, Tiling, tiling_of, windows_with_data

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
        pa.field("planned", pa.binary()),
    ],
    metadata=METADATA,
)
"""One row per input: the number of its first window, its size in the header when the run was planned (null, with the
error, if the header could not be read), the block size of a file that is read in parts, its georeference, and which
of its windows touch a block that holds data, as in `grid.Tiling` (null: all)."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How images are divided into windows."""

    window: int
    """The side of a window, pixels."""
    overlap: int
    """The overlap of neighbouring windows, pixels."""
    offset: tuple[int, int] = (0, 0)
    """Columns and rows, as in `grid.Grid`; ignored in a direction in which the image is a single window."""

    def grid(self, height: int, width: int) -> Grid:
        """Return the windows of an image of `height` x `width` pixels."""
        offset = (
            self.offset[0] if width > self.window else 0,
            self.offset[1] if height > self.window else 0,
        )
        return Grid(height, width, self.window, self.overlap, offset)

    def tiling(
        self, height: int, width: int, block_size: tuple[int, int] | None, planned: bytes | None = None
    ) -> Tiling:
        """Return the tiles of an image of `height` x `width` pixels; `planned` is as in `grid.Tiling`."""
        return _tiling(self, height, width, block_size, planned)

    def planned(self, image: ImageHeader) -> bytes | None:
        """Return which windows of an image to process, as in `grid.Tiling`: those that touch a block that holds data.

        Where there are none, it is the first one, which stands for the image.
        """
        if (
            image.height is None
            or image.width is None
            or image.block_size is None
            or image.data_blocks is None
        ):
            return None
        some = windows_with_data(self.grid(image.height, image.width), image.block_size, image.data_blocks)
        if some.all():
            return None
        some[0] |= not some.any()
        return np.packbits(some).tobytes()


@lru_cache(maxsize=64)
def _tiling(
    cutting: Cutting, height: int, width: int, block_size: tuple[int, int] | None, planned: bytes | None
) -> Tiling:
    return tiling_of(cutting.grid(height, width), block_size, planned)


def number_windows(
    images: Sequence[ImageHeader], cutting: Cutting, shard_images: int
) -> tuple[pa.Table, tuple[int, ...]]:
    """Assign numbers to the windows of all images.

    Args:
        images: the headers of all images.
        cutting: how the images are divided into windows.
        shard_images: the maximum number of images per shard.

    Returns:
        The table `GRID`, and the starts of the shards followed by the end of the last. A shard is a tile, or several
        whole images of one tile each, with at most as many windows in total as a tile.
    """
    first_numbers, cuts, n, n_images = [], [0], 0, 0
    planned = [cutting.planned(image) for image in images]
    for image, of_image in zip(images, planned, strict=True):
        first_numbers.append(n)
        tiles = np.array([0, 1])
        if image.height is not None and image.width is not None:
            tiles = cutting.tiling(image.height, image.width, image.block_size, of_image).cuts
        own = int(tiles[-1])
        if n_images and (len(tiles) > 2 or n_images == shard_images or n + own - cuts[-1] > TILE_WINDOWS):
            cuts.append(n)
            n_images = 0
        cuts += (n + tiles[1:-1]).tolist()
        n += own
        n_images += 1
        if len(tiles) > 2:
            cuts.append(n)
            n_images = 0
    if cuts[-1] != n:
        cuts.append(n)
    block_heights, block_widths = zip(*(image.block_size or (None, None) for image in images), strict=True)
    columns = {
        "first": first_numbers,
        "width": [image.width for image in images],
        "height": [image.height for image in images],
        "block_width": block_widths,
        "block_height": block_heights,
        "crs": [image.crs_wkt for image in images],
        "transform": [image.transform for image in images],
        "error": [image.error and image.error.code for image in images],
        "message": [image.error and image.error.message for image in images],
        "planned": planned,
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in GRID], schema=GRID), tuple(cuts)


class WindowIndex:
    """The numbered windows of a run.

    Args:
        table: a table with the schema `GRID`.
        cutting: how the images are divided into windows.
        n_windows: the number of windows.
    """

    def __init__(self, table: pa.Table, cutting: Cutting, n_windows: int) -> None:
        self._cutting = cutting
        self._first = table["first"].to_numpy()
        self._stop = np.append(self._first[1:], n_windows)
        self._sizes = table.select(["height", "width", "block_height", "block_width"])
        self._others = table.select(["crs", "transform", "error", "message"])
        # Plans of before version 0.3 have all windows.
        self._planned = table["planned"] if "planned" in table.column_names else pa.nulls(len(table))

    @property
    def largest(self) -> int:
        """The maximum number of pixels of an image; 0 if no size is known."""
        height, width = (
            self._sizes[name].combine_chunks().fill_null(0).to_numpy() for name in ("height", "width")
        )
        return int((height.astype(np.int64) * width).max(initial=0))

    @property
    def reference_systems(self) -> list[str]:
        """The coordinate reference systems of the images as WKT, each once, in order of first use."""
        systems: list[str] = pc.unique(self._others["crs"].drop_null()).to_pylist()
        return systems

    @property
    def n_images(self) -> int:
        """The number of images."""
        return len(self._first)

    def only(self, image_rows: NDArray[np.int64]) -> Self:
        """Return the windows of some images, (N,) rows of the manifest, ascending, which are then numbered from 0."""
        chosen = copy.copy(self)
        chosen._take(image_rows)  # noqa: SLF001 (of the same class)
        return chosen

    def _take(self, image_rows: NDArray[np.int64]) -> None:
        self._first, self._stop = self._first[image_rows], self._stop[image_rows]
        rows = pa.array(image_rows)
        self._sizes, self._others = self._sizes.take(rows), self._others.take(rows)
        self._planned = self._planned.take(rows)

    def range_of(self, image_row: int) -> tuple[int, int]:
        """Return the number of an image's first window, and the number after its last."""
        return int(self._first[image_row]), int(self._stop[image_row])

    def numbers_of(self, image_row: int, window_ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the numbers of windows of an image, (N,) int64, from their ids in the image."""
        first, stop = self.range_of(image_row)
        tiling = self.tiling(image_row)
        inverse = np.zeros(1 if tiling is None else len(tiling.grid), np.int64)
        if tiling is not None:
            inverse[tiling.order] = np.arange(stop - first)
        return first + inverse[window_ids]

    def rows_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the manifest rows of the images of windows, (N,) int64."""
        return np.asarray(np.searchsorted(self._first, numbers, side="right") - 1)

    def begins_image(self, number: int) -> bool:
        """Return whether a window is the first of its image; also true for the number after the last window."""
        return number == self._stop[-1] or number in self._first

    def sized(self, image_row: int) -> ImageHeader:
        """Return the header of an image as stored in the plan."""
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
        """Return the windows of an image; None if its size is unknown."""
        image = self.sized(image_row)
        if image.height is None or image.width is None:
            return None
        return self._cutting.tiling(
            image.height, image.width, image.block_size, self._planned[image_row].as_py()
        )

    def table(self, numbers: NDArray[np.int64], manifest_rows: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
        """Return windows as a table with the schema `ITEMS`.

        Args:
            numbers: (N,) int64, ascending window numbers.
            manifest_rows: the R rows of their images in the manifest, each once, in order.
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

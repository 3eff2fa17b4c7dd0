"""Divide a large image into overlapping windows of one size, and group these into tiles.

A *window* is the input of the segmenter; neighbouring windows overlap. The *core* of a window is the part that it
owns: overlaps are divided in halves, so that the cores partition the image. A *tile* is a rectangle of windows that
belong to one shard, so that each block of the file is decoded once for all of them. A few numbers determine all of
these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..imaging.geometry import Rect

TILE_WINDOWS: Final = 144
"""The maximum number of windows per tile of a file that can be read in parts.

With windows of 1024 pixels, an overlap of a quarter and blocks of 512 pixels, a tile of 5 columns by 28 rows decodes
1.16 times the pixels of the raster.
"""
MAX_IMAGE_WINDOWS: Final = 2**20
"""The maximum number of windows of an image, whose detections one process stitches."""
TILE_COLUMNS: Final = 5
"""The maximum number of columns per tile; a reader keeps a row of the tile's windows in memory."""


@dataclass(frozen=True)
class Grid:
    """The windows of one image, numbered row by row from 0.

    Windows at the right and bottom borders are shifted inwards, so that all have the same size; an image smaller than
    that is one window.

    Args:
        height: the height of the image, pixels.
        width: the width of the image, pixels.
        window: the side of the square windows, pixels.
        overlap: the overlap of neighbouring windows, pixels; at most half a window.
        offset: columns and rows by which all but the first windows are shifted towards the origin; less than a stride.

    Raises:
        ValueError: the arguments do not form a valid grid.
    """

    height: int
    width: int
    window: int
    overlap: int
    offset: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not (0 <= self.overlap <= self.window // 2 and min(self.height, self.width, self.window) >= 1):
            raise ValueError(f"not a valid grid: {self}")
        if not all(0 <= offset < self.window - self.overlap for offset in self.offset):
            raise ValueError(
                f"an offset must be from 0 to {self.window - self.overlap - 1}, not {self.offset}"
            )

    @cached_property
    def lefts(self) -> NDArray[np.int64]:
        """(C,) the first pixel column of each column of windows."""
        return _starts(self.width, self.window, self.overlap, self.offset[0])

    @cached_property
    def tops(self) -> NDArray[np.int64]:
        """(R,) the first pixel row of each row of windows."""
        return _starts(self.height, self.window, self.overlap, self.offset[1])

    def __len__(self) -> int:
        across = _count(self.width, self.window, self.overlap, self.offset[0])
        return across * _count(self.height, self.window, self.overlap, self.offset[1])

    def __getitem__(self, window_id: int) -> Rect:
        row, column = divmod(window_id, len(self.lefts))
        if not 0 <= row < len(self.tops):
            raise IndexError(window_id)
        left, top = int(self.lefts[column]), int(self.tops[row])
        return Rect(left, top, min(self.window, self.width), min(self.window, self.height))

    def __iter__(self) -> Iterator[Rect]:
        return (self[window_id] for window_id in range(len(self)))

    def core(self, window_id: int) -> Rect:
        """Return the core of a window."""
        row, column = divmod(window_id, len(self.lefts))
        columns, rows = self._column_cuts, self._row_cuts
        left, top = int(columns[column]), int(rows[row])
        return Rect(left, top, int(columns[column + 1]) - left, int(rows[row + 1]) - top)

    @cached_property
    def _column_cuts(self) -> NDArray[np.int64]:
        return _cuts(self.lefts, self.window, self.width)

    @cached_property
    def _row_cuts(self) -> NDArray[np.int64]:
        return _cuts(self.tops, self.window, self.height)

    def later_neighbours(self, window_id: int) -> Iterator[int]:
        """Yield the windows with greater numbers that overlap a window."""
        row, column = divmod(window_id, len(self.lefts))
        first = int(np.searchsorted(self.lefts, self.lefts[column] - self.window, side="right"))
        last = int(np.searchsorted(self.lefts, self.lefts[column] + self.window))
        end = int(np.searchsorted(self.tops, self.tops[row] + self.window))
        for below in range(row, end):
            for beside in range(first if below > row else column + 1, last):
                yield below * len(self.lefts) + beside


@dataclass(frozen=True)
class Tiling:
    """The windows of a grid in processing order: tile by tile, row by row within a tile."""

    grid: Grid
    columns: int
    """The number of columns of windows per tile; tiles at the right border may have fewer."""
    rows: int
    """The number of rows of windows per tile; tiles at the bottom border may have fewer."""
    planned: bytes | None = None
    """Which windows are processed, by id, as from `numpy.packbits`; None for all of them."""

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(N,) the ids of the windows to process, in processing order."""
        return np.concatenate(self._tiles)

    @cached_property
    def cuts(self) -> NDArray[np.int64]:
        """(T + 1,) the start of each tile in `order`, and the end of the last. No tile is empty."""
        return np.cumsum([0, *filter(None, map(len, self._tiles))])

    @cached_property
    def _tiles(self) -> list[NDArray[np.int64]]:
        across = len(self.grid.lefts)
        ids = np.arange(len(self.grid)).reshape(-1, across)
        tiles = [
            ids[top : top + self.rows, left : left + self.columns].ravel()
            for top in range(0, len(ids), self.rows)
            for left in range(0, across, self.columns)
        ]
        if self.planned is None:
            return tiles
        is_planned = np.unpackbits(np.frombuffer(self.planned, np.uint8)).astype(bool)
        return [tile[is_planned[tile]] for tile in tiles]


def windows_with_data(
    grid: Grid, block_size: tuple[int, int], data_blocks: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which windows of a grid, by id, touch a block that holds data.

    Args:
        grid: the windows of an image.
        block_size: (height, width) of the file's blocks, pixels.
        data_blocks: (B,) the numbers of the blocks that hold data, row by row.
    """
    row, column = np.divmod(data_blocks, -(-grid.width // block_size[1]))
    # Counts change by one where the windows of a block start and stop: the sums are the numbers of blocks per window.
    changes = np.zeros((len(grid.tops) + 1, len(grid.lefts) + 1), np.int64)
    first_row, last_row = _touching(
        grid.tops, min(grid.window, grid.height), row * block_size[0], block_size[0]
    )
    first, last = _touching(grid.lefts, min(grid.window, grid.width), column * block_size[1], block_size[1])
    for rows, columns, change in (
        (first_row, first, 1),
        (first_row, last, -1),
        (last_row, first, -1),
        (last_row, last, 1),
    ):
        np.add.at(changes, (rows, columns), change)
    return changes.cumsum(axis=0).cumsum(axis=1)[:-1, :-1].ravel() > 0


def _touching(
    starts: NDArray[np.int64], window: int, block: NDArray[np.int64], length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first window that overlaps each block in one direction, and the one after the last."""
    return np.searchsorted(starts, block - window, side="right"), np.searchsorted(starts, block + length)


def tiling_of(grid: Grid, block_size: tuple[int, int] | None, planned: bytes | None = None) -> Tiling:
    """Return the tiles of a grid.

    Args:
        grid: the windows of an image.
        block_size: (height, width) of the file's blocks, pixels; None if it can only be read as a whole.
        planned: as `Tiling.planned`.
    """
    down, across = len(grid.tops), len(grid.lefts)
    if block_size is None:
        return Tiling(grid, across, down, planned)
    # A TIFF strip is decoded as a whole, so tiles side by side would decode it repeatedly.
    columns = across if block_size[1] >= grid.width else min(TILE_COLUMNS, across)
    return Tiling(grid, columns, min(max(TILE_WINDOWS // columns, 1), down), planned)


def _starts(length: int, window: int, overlap: int, offset: int) -> NDArray[np.int64]:
    stride = window - overlap
    last = max(length - window, 0)
    inner = np.arange(stride - offset, last, stride, dtype=np.int64)
    return np.unique(np.concatenate([[0], inner, [last]])).astype(np.int64)


def _count(length: int, window: int, overlap: int, offset: int) -> int:
    """Return the length of `_starts`, which may be too long to be made."""
    stride = window - overlap
    last = max(length - window, 0)
    return 1 + max(-(-(last - (stride - offset)) // stride), 0) + (last > 0)


def _cuts(starts: NDArray[np.int64], window: int, length: int) -> NDArray[np.int64]:
    """Return the starts of the cores and the end of the last, in the middle of the overlaps of neighbours."""
    middles = (starts[1:] + starts[:-1] + window) // 2
    return np.concatenate([[0], middles, [length]]).astype(np.int64)

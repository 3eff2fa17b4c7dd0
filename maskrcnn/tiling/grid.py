"""Windows: overlapping rectangles of one size that cover a large image, grouped into tiles.

A *window* is what the segmenter sees; neighbours overlap. A window's *core* is the part of it that belongs to no other:
overlaps are divided in halves, and the cores partition the image. A *tile* is a rectangle of windows that belong to one
shard, so that each block of the file is decoded once for all of them. All of it follows from a few numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..imaging.geometry import Rect

TILE_WINDOWS: Final = 144
"""Maximum number of windows per tile, where a file can be read in parts. With windows of 1024 pixels, a quarter of them
shared, and blocks of 512, tiles of 5 columns by 28 rows decode 1.16 times the pixels of the raster."""
TILE_COLUMNS: Final = 5
"""Maximum columns of windows per tile: a reader holds a row of a tile's windows in memory."""


@dataclass(frozen=True)
class Grid:
    """The windows of one image, numbered row by row from 0.

    Those at the right and the bottom are moved inwards, so that all have the same size; an image smaller than a window
    is one window.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        window: side of the square windows, pixels.
        overlap: of neighbours, pixels; at most half a window.
        offset: columns and rows by which all but the first windows move towards the origin; less than a stride.

    Raises:
        ValueError: the numbers do not define a grid.
    """

    height: int
    width: int
    window: int
    overlap: int
    offset: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not (0 <= self.overlap <= self.window // 2 and min(self.height, self.width, self.window) >= 1):
            raise ValueError(f"not a grid: {self}")
        if not all(0 <= offset < self.window - self.overlap for offset in self.offset):
            raise ValueError(f"an offset must be less than {self.window - self.overlap}, not {self.offset}")

    @cached_property
    def lefts(self) -> NDArray[np.int64]:
        """(C,) first column of each column of windows."""
        return _starts(self.width, self.window, self.overlap, self.offset[0])

    @cached_property
    def tops(self) -> NDArray[np.int64]:
        """(R,) first row of each row of windows."""
        return _starts(self.height, self.window, self.overlap, self.offset[1])

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)

    def __getitem__(self, window_id: int) -> Rect:
        row, column = divmod(window_id, len(self.lefts))
        if not 0 <= row < len(self.tops):
            raise IndexError(window_id)
        left, top = int(self.lefts[column]), int(self.tops[row])
        return Rect(left, top, min(self.window, self.width), min(self.window, self.height))

    def __iter__(self) -> Iterator[Rect]:
        return (self[window_id] for window_id in range(len(self)))

    def core(self, window_id: int) -> Rect:
        """Return the part of the image that belongs to this window."""
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
        """Yield the windows with a greater number that share pixels with this one."""
        row, column = divmod(window_id, len(self.lefts))
        first = int(np.searchsorted(self.lefts, self.lefts[column] - self.window, side="right"))
        last = int(np.searchsorted(self.lefts, self.lefts[column] + self.window))
        end = int(np.searchsorted(self.tops, self.tops[row] + self.window))
        for below in range(row, end):
            for beside in range(first if below > row else column + 1, last):
                yield below * len(self.lefts) + beside


@dataclass(frozen=True)
class Tiling:
    """A grid's windows in the order in which they are processed: tile by tile, row by row within a tile."""

    grid: Grid
    columns: int
    """Of windows, in a tile; those at the right may have fewer."""
    rows: int

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(N,) the windows."""
        across = len(self.grid.lefts)
        ids = np.arange(len(self.grid)).reshape(-1, across)
        return np.concatenate(
            [
                ids[top : top + self.rows, left : left + self.columns].ravel()
                for top in range(0, len(ids), self.rows)
                for left in range(0, across, self.columns)
            ]
        )

    @cached_property
    def cuts(self) -> NDArray[np.int64]:
        """(T + 1,) where each tile begins in `order`, and where the last ends."""
        down, across = len(self.grid.tops), len(self.grid.lefts)
        heights = [min(self.rows, down - top) for top in range(0, down, self.rows)]
        widths = [min(self.columns, across - left) for left in range(0, across, self.columns)]
        return np.concatenate([[0], np.cumsum(np.outer(heights, widths))])


def tiling_of(grid: Grid, block_size: tuple[int, int] | None) -> Tiling:
    """Divide a grid into tiles.

    Args:
        grid: of the image.
        block_size: (height, width) of the file's blocks, pixels; None where it can only be read as a whole.
    """
    down, across = len(grid.tops), len(grid.lefts)
    if block_size is None:
        return Tiling(grid, across, down)
    # Blocks as wide as the image are decoded as a whole: tiles side by side would decode them again.
    columns = across if block_size[1] >= grid.width else min(TILE_COLUMNS, across)
    return Tiling(grid, columns, min(max(TILE_WINDOWS // columns, 1), down))


def _starts(length: int, window: int, overlap: int, offset: int) -> NDArray[np.int64]:
    stride = window - overlap
    last = max(length - window, 0)
    inner = np.arange(stride - offset, last, stride, dtype=np.int64)
    return np.unique(np.concatenate([[0], inner, [last]])).astype(np.int64)


def _cuts(starts: NDArray[np.int64], window: int, length: int) -> NDArray[np.int64]:
    """Return where the cores begin, and where the last ends: in the middle of what neighbours share."""
    middles = (starts[1:] + starts[:-1] + window) // 2
    return np.concatenate([[0], middles, [length]]).astype(np.int64)

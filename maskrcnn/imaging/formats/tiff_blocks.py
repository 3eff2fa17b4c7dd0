"""Find which blocks of a TIFF hold data: a sparse file omits the others, which are nodata by GDAL's convention.

Reference: TIFF 6.0, sections 3 (strips) and 15 (tiles); GDAL's GTiff driver, sparse files.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...io.refusals import Refusal
from ..geometry import Rect
from .tiff_directory import NUMBERS, Entry, ReadAt, entries, layout_of

_WIDTH, _HEIGHT, _BANDS, _PLANAR = 256, 257, 277, 284
_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_SEPARATE: Final = 2
_MOST_LISTED: Final = 2**24
_LARGE_PIXELS: Final = 2**30
_PIXELS_PER_BYTE: Final = 2**16
"""More than any codec reaches with blocks of usual sizes: zstd stores 2^18 equal values in 30 bytes."""


@dataclass(frozen=True, slots=True)
class DataBlocks:
    """The blocks of a sparse TIFF that hold data of at least one band."""

    height: int
    """Of a block, in pixels, as stored."""
    width: int
    across: int
    """The number of blocks in a row."""
    ids: NDArray[np.int64]
    """(N,) their numbers, row by row, ascending."""

    def mark(self, rect: Rect) -> NDArray[np.bool_]:
        """Return which pixels of a rectangle, as stored, lie in blocks that hold data: (height, width)."""
        rows, columns = np.divmod(self.ids, self.across)
        top, left = rect.row_off // self.height, rect.col_off // self.width
        down, across = -(-rect.bottom // self.height) - top, -(-rect.right // self.width) - left
        inside = (rows >= top) & (rows < top + down) & (columns >= left) & (columns < left + across)
        blocks = np.zeros((down, across), bool)
        blocks[rows[inside] - top, columns[inside] - left] = True
        row = np.arange(rect.row_off, rect.bottom) // self.height - top
        column = np.arange(rect.col_off, rect.right) // self.width - left
        return np.asarray(blocks[row[:, None], column])


def check_density(height: int, width: int, blocks: DataBlocks | None, stored_bytes: int) -> None:
    """Check that the data of a large raster could be in its file.

    Args:
        height: of the raster, in pixels.
        width: of the raster.
        blocks: those that hold data; None for all.
        stored_bytes: the size of the file.

    Raises:
        ItemError: `corrupt`.
    """
    pixels = height * width
    if blocks is not None:
        pixels = min(pixels, len(blocks.ids) * blocks.height * blocks.width)
    if pixels > max(_LARGE_PIXELS, _PIXELS_PER_BYTE * stored_bytes):
        raise Refusal.DENSE.error(
            size=(width, height), width=width, height=height, pixels=pixels, count=stored_bytes
        )


def data_blocks(read_at: ReadAt, start: int) -> DataBlocks | None:
    """Return the blocks of a TIFF's directory that hold data; None if all do, or if it does not say.

    Args:
        read_at: reads the file.
        start: the position of the directory in the file, in bytes.
    """
    layout = layout_of(read_at(0, 16))
    if layout is None:
        return None
    _, order, big = layout
    try:
        tags = {entry.tag: entry for entry in entries(read_at, start, order, big=big)[0]}
        return _data_blocks(read_at, order, tags)
    except (LookupError, struct.error):
        return None


def _data_blocks(read_at: ReadAt, order: str, tags: dict[int, Entry]) -> DataBlocks | None:
    def first(tag: int, default: int) -> int:
        values = _values(read_at, order, tags[tag], 1).tolist() if tag in tags else []
        return values[0] if values else default

    tiled = _TILE_BYTES in tags
    sizes, offsets = (_TILE_BYTES, _TILE_OFFSETS) if tiled else (_STRIP_BYTES, _STRIP_OFFSETS)
    if sizes not in tags or offsets not in tags:
        return None
    height, width = first(_HEIGHT, 0), first(_WIDTH, 0)
    block_height = first(_TILE_HEIGHT, 0) if tiled else min(first(_STRIP_ROWS, height), height)
    block_width = first(_TILE_WIDTH, 0) if tiled else width
    if not (height and width and block_height and block_width):
        return None
    across = -(-width // block_width)
    count = across * -(-height // block_height)
    stored = count * (first(_BANDS, 1) if first(_PLANAR, 1) == _SEPARATE else 1)
    if min(stored, tags[sizes].count, tags[offsets].count) > _MOST_LISTED:
        return None
    # Lists that are too short leave the last blocks without data, in libtiff too.
    listed = [_values(read_at, order, tags[tag], stored) for tag in (sizes, offsets)]
    shorter = min(map(len, listed))
    held = (listed[0][:shorter] > 0) & (listed[1][:shorter] > 0)
    if shorter == stored and held.all():
        return None
    return DataBlocks(block_height, block_width, across, np.unique(np.flatnonzero(held) % count))


def _values(read_at: ReadAt, order: str, entry: Entry, most: int) -> NDArray[np.int64]:
    """Return at most `most` values of an entry. Raises LookupError for a type that is not a whole number."""
    dtype = np.dtype(order + NUMBERS[entry.kind])
    raw = entry.value(read_at, order, min(entry.count, most) * dtype.itemsize)
    return np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype).astype(np.int64)

"""Read the windows of a shard in order, decoding each block of a raster once.

Of a raster, one row of windows is kept in memory, and the pixel rows that the next row of windows shares are reused;
memory depends on the width of a tile, not on the size of the raster. Files that can only be read as a whole (JPEG,
PNG) are decoded once for all their windows.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from ..errors import ItemError
from ..imaging.decode import DecodedImage
from ..imaging.geometry import Entry, RasterRegion, Rect
from ..io.refusals import Refusal

ReadWhole = Callable[[Entry], DecodedImage]
"""A function that reads and decodes a whole image. Raises ItemError."""
ReadRegion = Callable[[Entry, Rect], RasterRegion]
"""A function that reads a rectangle of a raster, aligned to its blocks. Raises ItemError."""


def read_windows(
    entries: Sequence[Entry], read_whole: ReadWhole, read_region: ReadRegion
) -> Iterator[DecodedImage | ItemError | None]:
    """Yield for each window its pixels, the error that prevented reading them, or None if no pixel is valid.

    Args:
        entries: the windows, image by image, and row by row within an image.
        read_whole: reads a file without blocks.
        read_region: reads a region of a raster.
    """
    for _, group in groupby(entries, itemgetter("image_row")):
        of_image = list(group)
        if of_image[0]["header_error"] is not None:
            error = ItemError(of_image[0]["header_error"], of_image[0]["header_message"])
            yield from (error for _ in of_image)
        elif of_image[0]["block_width"] is None:
            yield from _of_whole(of_image, read_whole)
        else:
            yield from _of_raster(of_image, read_region)


def rect_of(entry: Entry) -> Rect:
    """Return the rectangle of a window in its image."""
    return Rect(entry["col_off"], entry["row_off"], entry["window_width"], entry["window_height"])


def _of_whole(entries: Sequence[Entry], read_whole: ReadWhole) -> Iterator[DecodedImage | ItemError]:
    try:
        image = read_whole(entries[0])
        _check_size(image, entries[0])
    except ItemError as error:
        for _ in entries:
            yield error
        return
    for entry in entries:
        rect = rect_of(entry)
        window = image.pixels[rect.row_off : rect.bottom, rect.col_off : rect.right]
        yield DecodedImage(np.ascontiguousarray(window), image.exif_orientation)


def _check_size(image: DecodedImage, entry: Entry) -> None:
    height, width = image.pixels.shape[:2]
    if (height, width) != (entry["image_height"], entry["image_width"]):
        planned = f"{entry['image_width']} x {entry['image_height']}"
        raise Refusal.CHANGED_PIXELS.error(actual=f"{width} x {height}", planned=planned)


def _of_raster(
    entries: Sequence[Entry], read_region: ReadRegion
) -> Iterator[DecodedImage | ItemError | None]:
    first = entries[0]
    loaded = _LoadedRegion(first, read_region)
    for _, group in groupby(entries, itemgetter("row_off")):
        row = [rect_of(entry) for entry in group]
        left, right = min(rect.col_off for rect in row), max(rect.right for rect in row)
        try:
            loaded.load(Rect(left, row[0].row_off, right - left, row[0].height))
        except ItemError as error:
            for _ in row:
                yield error
            continue
        for rect in row:
            yield loaded.window(rect)


class _LoadedRegion:
    """The region of a raster in memory: the whole blocks of the rows that the current windows need."""

    def __init__(self, raster: Entry, read_region: ReadRegion) -> None:
        self._raster = raster
        self._read_region = read_region
        self._rect = Rect(0, 0, 0, 0)
        self._region: RasterRegion | None = None

    def load(self, wanted: Rect) -> None:
        """Load a rectangle into memory. Raises ItemError."""
        needed = self._aligned(wanted)
        held, region = self._rect, self._region
        self._region = None  # free it before the next read, which may need as much memory
        extends = (
            region is not None
            and held.col_off <= needed.col_off
            and needed.right <= held.right
            and held.row_off <= needed.row_off <= held.bottom
        )
        if not extends or region is None:
            self._region, self._rect = self._read_region(self._raster, needed), needed
            return
        kept = slice(needed.row_off - held.row_off, None)
        rect = Rect(
            held.col_off, needed.row_off, held.width, max(needed.bottom, held.bottom) - needed.row_off
        )
        # Copy the rows to keep, so that the rest is freed before the next read.
        pixels, valid, broken = region.pixels[kept].copy(), region.valid[kept].copy(), region.broken
        orientation = region.orientation
        del region
        if rect.bottom > held.bottom:
            below = self._read_region(
                self._raster, Rect(held.col_off, held.bottom, held.width, rect.bottom - held.bottom)
            )
            pixels, valid = np.concatenate([pixels, below.pixels]), np.concatenate([valid, below.valid])
            broken = (*(each for each in broken if each[0].bottom > rect.row_off), *below.broken)
        self._region, self._rect = RasterRegion(pixels, valid, broken, orientation), rect

    def window(self, rect: Rect) -> DecodedImage | ItemError | None:
        """Return a window of the loaded region, the error of a broken block in it, or None if no pixel is valid."""
        if self._region is None:
            raise RuntimeError("call load() before window()")
        for block, error in self._region.broken:
            shared = block.shared(rect)
            if shared.width and shared.height:
                return error
        top, left = rect.row_off - self._rect.row_off, rect.col_off - self._rect.col_off
        part = (slice(top, top + rect.height), slice(left, left + rect.width))
        if not self._region.valid[part].any():
            return None
        return DecodedImage(np.ascontiguousarray(self._region.pixels[part]), self._region.orientation)

    def _aligned(self, rect: Rect) -> Rect:
        """Return a rectangle extended to whole blocks."""
        width, height = self._raster["block_width"], self._raster["block_height"]
        left, top = rect.col_off // width * width, rect.row_off // height * height
        right = min(-(-rect.right // width) * width, self._raster["image_width"])
        bottom = min(-(-rect.bottom // height) * height, self._raster["image_height"])
        return Rect(left, top, right - left, bottom - top)

"""Rectangles of pixels, regions of rasters, and image headers."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError
from ..types import Pixels


class Rect(NamedTuple):
    """A rectangle of pixels, with the field names and order of `rasterio.windows.Window`."""

    col_off: int
    row_off: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The column after the last."""
        return self.col_off + self.width

    @property
    def bottom(self) -> int:
        """The row after the last."""
        return self.row_off + self.height

    def shared(self, other: "Rect") -> "Rect":
        """Return the intersection of two rectangles; its width or height is zero if they are disjoint."""
        left, top = max(self.col_off, other.col_off), max(self.row_off, other.row_off)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Rect(left, top, max(right - left, 0), max(bottom - top, 0))


Entry = dict[str, Any]
"""A row of a table with the schema `schema.ITEMS`."""


@dataclass(frozen=True, slots=True)
class RasterRegion:
    """A rectangle of a raster."""

    pixels: Pixels
    """(height, width, 3), RGB, uint8; 0 where a pixel is not valid."""
    valid: NDArray[np.bool_]
    """(height, width): whether a pixel is neither nodata, nor masked, nor transparent."""
    broken: tuple[tuple[Rect, ItemError], ...] = ()
    """Rectangles of blocks that could not be read, in pixels of the raster, each with its error."""
    orientation: int | None = None
    """The EXIF orientation that was applied; None for a georeferenced raster."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The contents of an image header; the sizes are None if it could not be read."""

    height: int | None = None
    width: int | None = None
    block_size: tuple[int, int] | None = None
    """(height, width) of the file's blocks in pixels; None if the image can only be read as a whole."""
    crs_wkt: str | None = None
    """The coordinate reference system as WKT; None for an image that is not georeferenced."""
    transform: tuple[float, ...] | None = None
    """a … f of x = a * column + b * row + c, y = d * column + e * row + f."""
    error: ItemError | None = None
    """The error that prevented reading the header."""
    dtype: str | None = None
    """The numpy name of the data type of a raster's values; None for other images, and in a plan."""
    doubtful_alpha: int | None = None
    """The band that a raster calls alpha, if it is a band to use or its values are not those of a mask."""
    data_blocks: NDArray[np.int64] | None = None
    """The numbers of the blocks that hold data, row by row from 0, ascending; None if all do, and in a plan."""

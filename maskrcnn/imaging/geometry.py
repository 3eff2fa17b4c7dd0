"""Rectangles of pixels, regions of rasters, and the headers of images."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError
from ..types import Pixels


class Rect(NamedTuple):
    """A rectangle of pixels, in rasterio's words and order."""

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
        """Return the intersection of two rectangles; width or height is zero if it is empty."""
        left, top = max(self.col_off, other.col_off), max(self.row_off, other.row_off)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Rect(left, top, max(right - left, 0), max(bottom - top, 0))


Entry = dict[str, Any]
"""A row of the table `schema.ITEMS`."""


@dataclass(frozen=True, slots=True)
class RasterRegion:
    """A rectangle of a raster."""

    pixels: Pixels
    """(height, width, 3), RGB, uint8; zeros where not valid."""
    valid: NDArray[np.bool_]
    """(height, width) whether a pixel is neither nodata, nor masked, nor transparent."""
    broken: tuple[tuple[Rect, ItemError], ...] = ()
    """Where blocks could not be read, in the raster's pixels, and why."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """An image's header, read when the run is planned; sizes are None if it could not be read."""

    height: int | None = None
    width: int | None = None
    block_size: tuple[int, int] | None = None
    """(height, width) of the file's blocks, pixels; None if it can only be read as a whole."""
    crs_wkt: str | None = None
    """WKT; None: the image is not georeferenced."""
    transform: tuple[float, ...] | None = None
    """a … f of x = a * column + b * row + c, y = d * column + e * row + f."""
    error: ItemError | None = None
    """The reason why its size is not known."""

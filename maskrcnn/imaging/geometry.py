"""Rectangles of pixels, and what is known of an image before it is read."""

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
        """Return what two rectangles share; width or height is zero where that is nothing."""
        left, top = max(self.col_off, other.col_off), max(self.row_off, other.row_off)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Rect(left, top, max(right - left, 0), max(bottom - top, 0))


Entry = dict[str, Any]
"""A row of the table `schema.ITEMS`."""


@dataclass(frozen=True, slots=True)
class RasterRegion:
    """A rectangle of a raster."""

    pixels: Pixels
    """(height, width, 3), RGB, uint8; zeros where nothing is valid."""
    valid: NDArray[np.bool_]
    """(height, width) whether a pixel is neither nodata, nor masked, nor transparent."""
    broken: tuple[tuple[Rect, ItemError], ...] = ()
    """Where blocks could not be read, in the raster's pixels, and why."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What is known of an image before it is read; sizes are None where its header could not be read."""

    height: int | None = None
    width: int | None = None
    block_size: tuple[int, int] | None = None
    """(height, width) of the file's blocks, pixels; None where it can only be read as a whole."""
    crs_wkt: str | None = None
    """WKT; None: its pixels lie nowhere."""
    transform: tuple[float, ...] | None = None
    """a … f of x = a * column + b * row + c, y = d * column + e * row + f."""
    error: ItemError | None = None
    """Why its size is not known."""

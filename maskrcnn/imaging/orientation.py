"""EXIF orientations."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", bound=np.generic)


def upright(pixels: NDArray[Value], orientation: int | None) -> NDArray[Value]:
    """Apply an EXIF orientation, 1 to 8, to pixels as stored: (height, width) or (height, width, bands).

    Returns:
        A C-contiguous array; height and width are exchanged by 5 to 8. Unchanged for None.

    Reference: CIPA DC-008, tag 274 (the positions of row 0 and column 0).
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)

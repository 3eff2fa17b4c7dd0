"""Find the orientation in metadata, and turn pixels by it.

Reference: CIPA DC-008 (Exif), tag 274 (the positions of row 0 and column 0); XMP part 2 (tiff:Orientation).
"""

import re
import struct
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", bound=np.generic)

ORIENTATION: Final = 274
_XMP: Final = re.compile(rb"tiff:Orientation(?:=\"|>)([0-9])")
_SHORT: Final = 3
TRANSPOSED: Final = (5, 6, 7, 8)
"""The orientations that exchange height and width."""


def valid_orientation(value: object) -> int | None:
    """Return an orientation if it is one of 1 to 8, else None."""
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def orientation_of_exif(exif: bytes) -> int | None:
    """Return the orientation in EXIF data, which begin with a TIFF header; None if it states none."""
    order = "<" if exif[:2] == b"II" else ">"
    try:
        [start] = struct.unpack_from(f"{order}I", exif, 4)
        [count] = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
            if tag == ORIENTATION and kind == _SHORT:
                return int(value)
    except struct.error:
        pass
    return None


def orientation_of_xmp(xmp: bytes) -> int | None:
    """Return the orientation in XMP data; None if they state none."""
    found = _XMP.search(xmp)
    return int(found[1]) if found else None


def exif_of(orientation: int) -> bytes:
    """Return EXIF data with an orientation only."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, _SHORT, 1, orientation, 0, 0)


def upright(pixels: NDArray[Value], orientation: int | None) -> NDArray[Value]:
    """Return pixels turned by an orientation: (height, width) or (height, width, bands), C-contiguous.

    Height and width are exchanged by 5 to 8. None and 1 change nothing.
    """
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)

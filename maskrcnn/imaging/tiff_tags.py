"""Read single tags of a TIFF's first picture, which GDAL does not report.

Reference: TIFF 6.0, section 2; BigTIFF.
"""

import struct
from collections.abc import Callable, Collection
from typing import Final

NEW_SUBFILE_TYPE: Final = 254
COMPRESSION: Final = 259
PHOTOMETRIC: Final = 262
ORIENTATION: Final = 274
DNG_VERSION: Final = 50706

_TYPES: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_MOST_ENTRIES: Final = 4096


def tiff_tags(read: Callable[[int, int], bytes], wanted: Collection[int]) -> dict[int, int]:
    """Return the first value of those wanted tags that hold unsigned integers; none of a damaged directory.

    Args:
        read: takes an offset and a number of bytes; returns fewer at the end of the file.
        wanted: numbers of tags.
    """
    try:
        return dict(_entries(read, wanted))
    except struct.error:  # the file ends within the directory
        return {}


def _entries(read: Callable[[int, int], bytes], wanted: Collection[int]) -> list[tuple[int, int]]:
    head = read(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", head[2:4])[0] == 43
    offset_format, count_format, entry_size = ("Q", "Q", 20) if big else ("I", "H", 12)
    [start] = struct.unpack_from(f"{order}{offset_format}", head, 8 if big else 4)
    count_size = struct.calcsize(f"{order}{count_format}")
    [count] = struct.unpack(f"{order}{count_format}", read(start, count_size))
    directory = read(start + count_size, min(count, _MOST_ENTRIES) * entry_size)
    found = []
    for at in range(0, len(directory) - entry_size + 1, entry_size):
        tag, kind, length = struct.unpack_from(f"{order}HH{offset_format}", directory, at)
        if tag not in wanted or kind not in _TYPES or length < 1:
            continue
        size = struct.calcsize(f"{order}{_TYPES[kind]}")
        value = directory[at + entry_size - (8 if big else 4) : at + entry_size]
        if size * length > len(value):
            [place] = struct.unpack(f"{order}{offset_format}", value)
            value = read(place, size)
        found.append((tag, struct.unpack_from(f"{order}{_TYPES[kind]}", value)[0]))
    return found

"""Interleave the bands of a TIFF that stores each in a plane of its own, for Pillow knows few of these layouts.

Reference: TIFF 6.0, PlanarConfiguration.
"""

import struct
from typing import Any, Final

import numpy as np
from PIL import TiffImagePlugin

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _BANDS = 256, 257, 258, 259, 273, 277
_ROWS, _COUNTS, _PLANAR, _TILE_WIDTH = 278, 279, 284, 322
_COPIED: Final = (262, 274, 338)  # the colour space, the orientation, the meaning of extra bands


def interleaved(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2) -> bytes:
    """Return a TIFF of the same pixels, interleaved; unchanged unless it is uncompressed, of 8 bits, and in planes.

    Args:
        data: the file.
        tags: its first directory.

    Raises:
        TypeError, ValueError: the directory contradicts itself.
    """
    offsets, counts = tags.get(_OFFSETS, ()), tags.get(_COUNTS, ())
    bands, width, height = tags.get(_BANDS, 1), tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    is_raw = tags.get(_COMPRESSION, 1) == 1 and set(tags.get(_BITS, ())) == {8}
    if tags.get(_PLANAR) != 2 or not is_raw or _TILE_WIDTH in tags or len(offsets) != len(counts):
        return data
    strips = [data[offset : offset + count] for offset, count in zip(offsets, counts, strict=True)]
    stored = b"".join(strips)
    if len(strips) % bands or len(stored) != bands * width * height:
        return data
    pixels = np.frombuffer(stored, np.uint8).reshape(bands, -1).T.tobytes()
    copied = {tag: _values(tags[tag]) for tag in _COPIED if tag in tags}
    entries = copied | {
        _WIDTH: [width],
        _HEIGHT: [height],
        _BITS: [8] * bands,
        _COMPRESSION: [1],
        _OFFSETS: [8],
        _BANDS: [bands],
        _ROWS: [height],
        _COUNTS: [len(pixels)],
    }
    start = 8 + len(pixels) + len(pixels) % 2
    more = start + 2 + 12 * len(entries) + 4
    table, outside = b"", b""
    for tag, values in sorted(entries.items()):
        raw = struct.pack(f"<{len(values)}I", *values)
        if len(raw) > 4:
            raw, outside = struct.pack("<I", more + len(outside)), outside + raw
        table += struct.pack("<HHI", tag, 4, len(values)) + raw
    body = pixels + bytes(len(pixels) % 2)
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + body
        + struct.pack("<H", len(entries))
        + table
        + bytes(4)
        + outside
    )


def _values(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value]

"""Read what Pillow does not say of a JPEG 2000: its components, whether it is cut short, whether it has coordinates.

Reference: ITU-T T.800, annexes A (codestream) and I (JP2); OGC 08-085 (GMLJP2); GeoJP2's UUID box.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

END: Final = b"\xff\xd9"
_SIZES, _TILE_PART = b"\xff\x51", b"\xff\x90"
_GEOJP2: Final = bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03")
_CIELAB, _YCC = 14, 18
_COLOR_SPACES: Final = frozenset([12, 16, 17, 18])  # CMYK, sRGB, grey, sYCC


@dataclass(frozen=True, slots=True)
class Box:
    """A box of an ISO media file."""

    kind: bytes
    start: int
    """Where its content starts in the file, in bytes."""
    stop: int
    """Where it ends: beyond the end of the file if the file is cut short."""


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[Box]:
    """Yield the boxes between two positions in the file, one level deep."""
    stop = len(data) if stop is None else min(stop, len(data))
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1 and start + 16 <= stop:
            [size] = struct.unpack_from(">Q", data, start + 8)
            header = 16
        end = start + size if size else stop
        if size and size < header:
            return
        yield Box(kind, start + header, end)
        start = end


def ends_early(data: bytes) -> bool:
    """Return whether a box at the top level extends beyond the end of the file; also for AVIF and HEIF."""
    return any(box.stop > len(data) for box in boxes(data))


def unsupported_components(data: bytes) -> str | None:
    """Describe pixels that Pillow would reject or convert wrongly; None for any other, and without a valid header.

    Of several bands of more than 8 bits, Pillow rounds the largest values up and keeps their lowest byte: white is
    black.
    """
    start = _codestream(data)
    if start is None or data[start + 2 : start + 4] != _SIZES or len(data) < start + 42:
        return None
    [count] = struct.unpack_from(">H", data, start + 40)
    depths = data[start + 42 : start + 42 + 3 * count : 3]
    bits = max(((depth & 0x7F) + 1 for depth in depths), default=8)
    if any(depth & 0x80 for depth in depths):
        return f"JPEG 2000 of {bits}-bit signed numbers"
    if count > 4 or (count > 1 and bits > 8):
        return f"JPEG 2000 with {count} bands of {bits}-bit unsigned integers"
    return None


def unknown_color_space(data: bytes) -> int | None:
    """Return the number of a colour space that Pillow would take for another one; None if there is no such."""
    for box in boxes(data):
        if box.kind != b"jp2h":
            continue
        spaces = [
            int.from_bytes(data[inner.start + 3 : inner.start + 7])
            for inner in boxes(data, box.start, box.stop)
            if inner.kind == b"colr" and data[inner.start : inner.start + 1] == b"\1"
        ]
        return next((space for space in spaces if space not in _COLOR_SPACES), None) if spaces else None
    return None


def is_cut_short(data: bytes) -> bool:
    """Return whether the codestream, or one of its tile-parts, extends beyond the end of the file."""
    return (end := _end(data)) is None or not data.startswith(END, end)


def complete_length(data: bytes) -> int | None:
    """Return where the tile-parts of a codestream without its end marker end; None if they are not all there."""
    end = _end(data)
    return end if end is not None and data[end:] in (b"", END[:1]) else None


def _end(data: bytes) -> int | None:
    """Return where the end marker is, or should be; None if a tile-part extends beyond the end of the file."""
    start = _codestream(data)
    if start is None:
        return None
    at = start + 2
    is_tiled = False
    while at + 2 <= len(data):
        marker = data[at : at + 2]
        if marker == END or at + 4 > len(data):
            break
        [length] = struct.unpack_from(">H", data, at + 2)
        if marker != _TILE_PART:
            at += 2 + length
            continue
        if at + 12 > len(data):
            return None
        [size] = struct.unpack_from(">I", data, at + 6)
        if size == 0:  # up to the end marker
            return data.rindex(END) if data.rstrip(b"\0").endswith(END) else None
        at += max(size, 12)
        is_tiled = True
    return at if at <= len(data) and is_tiled else None


def has_coordinates(data: bytes) -> bool:
    """Return whether it has a box of coordinates on the Earth, of GeoJP2 or GMLJP2."""
    return any(
        (box.kind == b"uuid" and data.startswith(_GEOJP2, box.start))
        or (box.kind == b"asoc" and b"gml." in data[box.start : min(box.stop, box.start + 64)])
        for box in boxes(data)
    )


def _codestream(data: bytes) -> int | None:
    """Return where the codestream starts."""
    if data.startswith(b"\xff\x4f"):
        return 0
    return next((box.start for box in boxes(data) if box.kind == b"jp2c"), None)

"""Find zeros in place of coded pixels, as a download leaves them that reserved its space first; decoders do not notice.

They are looked for only where a file says that coded pixels are, and only where no encoder writes as many of them.
What may be flat pixels is not reported: BMP and uncompressed TIFF, JPEG 2000, zeros in the middle of a
WebP, and a JPEG whose Huffman tables have zeros for an end of block. (PNG, GIF and compressed TIFF have checksums or
codes that zeros break.)

Reference: ITU-T T.81, annex F; RFC 9649, section 2.5; ISO/IEC 14496-12, 8.11.3 (iloc) and 8.11.6 (iinf).
"""

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Final

from . import jpeg_scan
from .jpeg2000 import boxes
from .webp_chunks import pixels_of

_STEP: Final = 64
_ZEROS: Final = bytes(8 * _STEP)
"""A sector of a disk. AV1 and HEVC need no more than a few zeros for a flat area of any size."""
_CODED_ITEMS: Final = frozenset([b"av01", b"hvc1"])
_FILE: Final = 0  # construction method 0: offsets from the beginning of the file


def has_zeros(kind: str, data: bytes) -> bool:
    """Return whether zeros surely stand in place of coded pixels of a JPEG, AVIF or HEIC."""
    # Of each run, every 64th byte is looked at first: eight zeros in a row are rare among them, and found fast.
    if kind not in _PARTS or bytes(len(_ZEROS) // _STEP) not in data[::_STEP] or _ZEROS not in data:
        return False
    with contextlib.suppress(LookupError, struct.error, ValueError):
        return any(data.find(_ZEROS, start, stop) >= 0 for start, stop in _PARTS[kind](data))
    return False


def shortened_webps(webp: bytes) -> tuple[bytes, bytes] | None:
    """Return a WebP whose pixels end in many zeros with most of these, and without them; None for any other.

    A flat picture needs all of them, because an encoder writes no more than it needs; padding is not needed at all. If
    most of them are enough to decode the picture, but not none, they stand in place of what was not written.
    """
    start, stop = pixels_of(webp)
    zeros = (stop - start) - len(webp[start:stop].rstrip(b"\0"))
    if zeros < len(_ZEROS):
        return None
    return _with_length(webp, start, stop - zeros // 16), _with_length(webp, start, stop - zeros)


def _with_length(webp: bytes, start: int, stop: int) -> bytes:
    """Return a WebP of the pixels alone that lie between two positions."""
    size = stop - start
    chunk = webp[start - 8 : start - 4] + struct.pack("<I", size) + webp[start:stop] + bytes(size % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _of_jpeg(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the scans are in which no encoder writes so many zeros."""
    frame, scans = jpeg_scan.parse(data)
    lacks_bits = frame.marker == jpeg_scan.PROGRESSIVE and jpeg_scan.lacks_bits(frame, scans)
    for scan in scans:
        # The code of zeros is that of a table's first symbol: a coefficient other than zero, or the end of a block.
        has_coefficient = any(table[16] & 15 for table in scan.ac if table and scan.last)
        if lacks_bits or has_coefficient:
            yield scan.start, scan.stop


def _of_items(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the coded pictures of an AVIF or HEIC are."""
    for meta in boxes(data):
        if meta.kind != b"meta":
            continue
        inside = {box.kind: box for box in boxes(data, meta.start + 4, meta.stop)}
        kinds = dict(_item_kinds(data, inside[b"iinf"].start, inside[b"iinf"].stop))
        for item, start, stop in _extents(data, inside[b"iloc"].start):
            if kinds.get(item) in _CODED_ITEMS:
                yield start, stop or len(data)


def _item_kinds(data: bytes, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the type of each item. Raises LookupError."""
    first = start + (6 if data[start] == 0 else 8)
    for entry in boxes(data, first, stop):
        version = data[entry.start]
        width = 4 if version > 2 else 2
        at = entry.start + 4
        yield int.from_bytes(data[at : at + width]), data[at + width + 2 : at + width + 6]


def _extents(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield the item, the start and the stop (0: the end of the file) of each extent. Raises LookupError."""
    version = data[start]
    at = start + 4

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(data):
            raise LookupError(at)
        at += size
        return int.from_bytes(data[at - size : at])

    sizes = number(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    for _ in range(number(4 if version > 1 else 2)):
        item = number(4 if version > 1 else 2)
        method = number(2) & 15 if version else _FILE
        number(2)  # the number of another file
        base = number(base_size)
        for _ in range(number(2)):
            number(index_size)
            first, length = base + number(offset_size), number(length_size)
            if method == _FILE:
                yield item, first, first + length if length else 0


_PARTS: Final[dict[str, Callable[[bytes], Iterator[tuple[int, int]]]]] = {
    "JPEG": _of_jpeg,
    "AVIF": _of_items,
    "HEIF": _of_items,
}

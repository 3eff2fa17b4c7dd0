"""Read the header of a WebP, and a WebP without its metadata.

Reference: RFC 9649, section 2.
"""

import struct
from collections.abc import Iterator

from ..orientation import exif_of, orientation_of_exif, orientation_of_xmp

_PIXELS = (b"VP8 ", b"VP8L")
_HAS_EXIF = 0x08


def webp_size(data: bytes) -> tuple[int, int] | None:
    r"""Return the width and height in the header of a WebP, before orientation; None if there is no valid header.

    >>> webp_size(b"RIFF....WEBPVP8X...." + bytes(4) + b"\x0f\0\0" + b"\x17\0\0")
    (16, 24)
    """
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and body[:1] == b"\x2f" and len(body) >= 5:
        packed = int.from_bytes(body[1:5], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a" and len(body) == 10:
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def without_metadata(webp: bytes) -> bytes:
    """Return a WebP with its colours and its orientation only; unchanged if it is an animation, or lacks pixels."""
    pixels, orientation = b"", None
    for kind, start, stop in _chunks(webp):
        body = webp[start:stop]
        if kind == b"ANMF":
            return webp
        if kind in _PIXELS and stop <= len(webp) and not pixels:
            pixels = _chunk(kind, body)
        elif kind == b"EXIF":
            orientation = orientation_of_exif(body.removeprefix(b"Exif\0\0")) or orientation
        elif kind == b"XMP ":
            orientation = orientation or orientation_of_xmp(body)
    size = webp_size(webp[:12] + pixels)
    if not pixels or size is None:
        return webp
    if orientation is None:
        return _chunk(b"RIFF", b"WEBP" + pixels)
    width, height = size
    canvas = (
        bytes([_HAS_EXIF, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    return _chunk(b"RIFF", b"WEBP" + _chunk(b"VP8X", canvas) + pixels + _chunk(b"EXIF", exif_of(orientation)))


def pixels_of(webp: bytes) -> tuple[int, int]:
    """Return where the coded pixels of a WebP start and stop in the file; nowhere, (0, 0), in an animation."""
    for kind, start, stop in _chunks(webp):
        if kind in _PIXELS:
            return start, min(stop, len(webp))
        if kind == b"ANMF":
            break
    return 0, 0


def _chunks(webp: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk, and where its body starts and ends in the file."""
    at = 12
    while at + 8 <= len(webp):
        kind, size = struct.unpack_from("<4sI", webp, at)
        yield kind, at + 8, at + 8 + size
        at += 8 + size + size % 2


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

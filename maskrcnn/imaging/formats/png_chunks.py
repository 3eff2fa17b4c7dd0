"""Read a PNG without what its metadata say: text, profiles and dates must not cost the picture.

Reference: PNG, third edition, sections 5 and 11; Pillow's reading of XMP and of ImageMagick's `Raw profile type exif`.
"""

import struct
import zlib
from typing import Final

from ..orientation import exif_of, orientation_of_exif, orientation_of_xmp

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_TEXT: Final = frozenset([b"tEXt", b"zTXt", b"iTXt"])
_XMP: Final = b"XML:com.adobe.xmp"
_RAW_EXIF: Final = b"Raw profile type exif"
_MOST_TEXT: Final = 2**26


def chunks(png: bytes) -> list[tuple[bytes, int, int]]:
    """Return the kind of each chunk, and where its body starts and ends in the file, up to the end of the file."""
    found, at = [], len(SIGNATURE)
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        found.append((kind, at + 8, at + 8 + length))
        at += 12 + length
        if kind == b"IEND":
            break
    return found


def without_metadata(png: bytes) -> bytes:
    """Return a PNG with its pixels, its palette and its orientation only.

    Of an animation the first picture remains. Critical chunks are kept as they are, also if the end of the file cuts
    them.
    """
    parts = [SIGNATURE]
    of_exif: int | None = None
    of_text: int | None = None
    for kind, start, stop in chunks(png):
        body = png[start:stop]
        if kind[:1].isupper():
            parts.append(png[start - 8 : stop + 4])
        elif kind == b"eXIf" and png[stop : stop + 4] == struct.pack(">I", zlib.crc32(kind + body)):
            of_exif = orientation_of_exif(body)
        elif kind in _TEXT and stop <= len(png):
            of_text = of_text or _orientation(kind, body)
    if (orientation := of_exif or of_text) is not None:
        parts.insert(2, _chunk(b"eXIf", exif_of(orientation)))
    return b"".join(parts)


def is_apple(png: bytes) -> bool:
    """Return whether it is the variant of Apple's developer tools, which other programs cannot read."""
    return png[12:16] == b"CgBI"


def has_16_bit_colors(png: bytes) -> bool:
    """Return whether the header states 16 bits per channel, and colours or alpha."""
    return png[24] == 16 and png[25] != 0


def _orientation(kind: bytes, body: bytes) -> int | None:
    """Return the orientation that text states, where Pillow looks for it: in XMP and in ImageMagick's EXIF."""
    key, _, rest = body.partition(b"\0")
    if key not in (_XMP, _RAW_EXIF):
        return None
    if kind == b"iTXt":
        text = rest[2:].split(b"\0", 2)[-1]
        text = _inflated(text) if rest[:1] == b"\1" else text
    else:
        text = _inflated(rest[1:]) if kind == b"zTXt" else rest
    if key == _XMP:
        return orientation_of_xmp(text)
    try:
        exif = bytes.fromhex(text.split(b"\n", 3)[-1].decode("ascii"))
    except ValueError:
        return None
    return orientation_of_exif(exif.removeprefix(b"Exif\0\0"))


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_TEXT)
    except zlib.error:
        return b""


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

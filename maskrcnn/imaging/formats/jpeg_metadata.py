"""Read a JPEG without what its metadata say: EXIF, XMP, profiles and comments must not cost the picture.

Reference: ITU-T T.81, B.2.4.6; CIPA DC-008 (Exif), 4.7.2; XMP part 3, 1.1.3.
"""

import struct

from ..orientation import exif_of, orientation_of_exif, orientation_of_xmp
from .jpeg_scan import segments

_JFIF, _EXIF, _ADOBE, _COMMENT = 0xE0, 0xE1, 0xEE, 0xFE


def without_metadata(jpeg: bytes) -> bytes:
    """Return a JPEG with its pixels, its colour transform (JFIF, Adobe) and its orientation only."""
    parts, at, found = [], 2, None
    for segment in segments(jpeg):
        body = jpeg[segment.start + 4 : segment.stop]
        if segment.marker == _EXIF:
            found = found or _orientation(body)
        is_metadata = _JFIF <= segment.marker <= 0xEF or segment.marker == _COMMENT
        if is_metadata and not (
            (segment.marker == _JFIF and body.startswith(b"JFIF\0") and len(body) >= 14)
            or (segment.marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12)
        ):
            parts.append(jpeg[at : segment.start])
            at = segment.stop
    parts.append(jpeg[at:])
    if found is None:
        return jpeg[:2] + b"".join(parts)
    exif = b"Exif\0\0" + exif_of(found)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + b"".join(parts)


def _orientation(body: bytes) -> int | None:
    if body.startswith(b"Exif\0\0"):
        return orientation_of_exif(body[6:])
    if body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
        return orientation_of_xmp(body)
    return None

"""Recognize file formats by their first bytes; names and suffixes are ignored."""

import codecs
import contextlib
from typing import Final

from ..errors import ItemError

_ALLOWED: Final = (
    (b"\xff\xd8\xff", 0, "JPEG"),
    (b"\x89PNG\r\n\x1a\n", 0, "PNG"),
    (b"WEBP", 8, "WEBP"),
    (b"BM", 0, "BMP"),
    (b"GIF87a", 0, "GIF"),
    (b"GIF89a", 0, "GIF"),
    *((magic, 0, "TIFF") for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")),
)
_OTHER_IMAGES: Final = (
    *((b"ftyp" + brand, 4, "AVIF") for brand in (b"avif", b"avis")),
    *((b"ftyp" + brand, 4, "HEIC") for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")),
    (b"\0\0\0\x0cjP  ", 0, "JPEG 2000"),
    (b"\xff\x4f\xff\x51", 0, "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", 0, "JPEG XL"),
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"II\xbc\x01", 0, "JPEG XR"),
    (b"8BPS", 0, "PSD"),
    (b"\0\0\x01\0", 0, "ICO"),
    (b"\0\0\x02\0", 0, "CUR"),
    (b"icns", 0, "ICNS"),
    (b"DDS ", 0, "DDS"),
    (b"BLP", 0, "BLP"),
    (b"qoif", 0, "QOI"),
    (b"%!PS", 0, "PostScript"),
    (b"\xc5\xd0\xd3\xc6", 0, "PostScript"),
    (b"\x01\xda", 0, "SGI"),
    (b"SIMPLE  =", 0, "FITS"),
    (b"v/1\x01", 0, "OpenEXR"),
    (b"#?RADIANCE", 0, "Radiance HDR"),
    (b"\x11\xaf", 4, "FLI"),
    (b"\x12\xaf", 4, "FLC"),
    (b"DICM", 128, "DICOM"),
    (b"\xd7\xcd\xc6\x9a", 0, "WMF"),
    (b"AT&TFORM", 0, "DjVu"),
    *(
        (b"P" + digit + end, 0, "Netpbm")
        for digit in (b"1", b"2", b"3", b"4", b"5", b"6", b"7")
        for end in (b"\n", b" ")
    ),
)
_OTHER_FILES: Final = (
    (b"PK\x03\x04", 0, "a ZIP archive"),
    (b"PK\x05\x06", 0, "a ZIP archive"),
    (b"\x1f\x8b", 0, "gzip"),
    (b"\x28\xb5\x2f\xfd", 0, "zstd"),
    (b"7z\xbc\xaf", 0, "a 7z archive"),
    (b"Rar!", 0, "a RAR archive"),
    (b"ustar", 257, "a tar archive"),
    (b"%PDF", 0, "PDF"),
    (b"PAR1", 0, "Parquet"),
    (b"\x89HDF", 0, "HDF5"),
    (b"ftyp", 4, "a video"),
    (b"AVI ", 8, "a video"),
    (b"\x1a\x45\xdf\xa3", 0, "a video"),
    (b"\x7fELF", 0, "a program"),
    (b"version https://git-lfs", 0, "a Git LFS pointer, whose content was not fetched"),
)


def _starts(data: bytes, table: tuple[tuple[bytes, int, str], ...]) -> str | None:
    for magic, offset, name in table:
        if data.startswith(magic, offset):
            return name
    return None


def format_of(data: bytes) -> str:
    """Return which of the six supported formats the first bytes indicate, by its Pillow name.

    >>> format_of(b"GIF89a...")
    'GIF'

    Raises:
        ItemError: `unsupported_format` or `not_an_image`; the message names the format found.
    """
    if (kind := _starts(data, _ALLOWED)) is not None:
        return kind
    if (kind := _starts(data, _OTHER_IMAGES)) is not None:
        raise ItemError("unsupported_format", f"{kind}; convert it to JPEG, PNG, WebP, BMP, GIF or TIFF")
    kind = (
        _starts(data, _OTHER_FILES)
        or kind_of_text(data)
        or f"of an unknown format that begins with {data[:8].hex(' ')}"
    )
    raise ItemError("not_an_image", f"the content is {kind}")


def webp_size(data: bytes) -> tuple[int, int] | None:
    r"""Return the width and height in the header of a WebP, before orientation; None if there is no valid header.

    Reference: RFC 9649, section 2.

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


def kind_of_text(data: bytes) -> str | None:
    """Return the kind of text (HTML, SVG, XML, JSON, …), or None if the data is not text."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf")
    if any(byte < 9 or 13 < byte < 32 for byte in head):
        return None
    start = head.lstrip().lower()
    for kind, found in (
        ("HTML", start.startswith((b"<!doctype html", b"<html"))),
        ("SVG", b"<svg" in start),
        ("an S3 error", start.startswith(b"<") and b"<error>" in start),
        ("XML", start.startswith(b"<")),
        ("JSON", start.startswith((b"{", b"["))),
    ):
        if found:
            return kind
    # The last character may be incomplete, which the incremental decoder accepts.
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return "text"
    return None

"""Recognize file formats by their first bytes; names and suffixes are ignored."""

import codecs
import contextlib
import re
from typing import Final

from ...errors import ItemError, plural
from ...io.refusals import Refusal

_ALLOWED: Final = (
    (b"\xff\xd8\xff", 0, "JPEG"),
    (b"\x89PNG\r\n\x1a\n", 0, "PNG"),
    (b"WEBP", 8, "WEBP"),
    (b"BM", 0, "BMP"),
    (b"GIF87a", 0, "GIF"),
    (b"GIF89a", 0, "GIF"),
    *((magic, 0, "TIFF") for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")),
    (b"\0\0\0\x0cjP  ", 0, "JPEG2000"),
    (b"\xff\x4f\xff\x51", 0, "JPEG2000"),
    (b"\0\0\0\x0cJXL ", 0, "JPEGXL"),
    (b"\xff\x0a", 0, "JPEGXL"),
)
_RAW_PHOTOS: Final = (
    (b"CR\x02", 8, "Canon CR2"),
    (b"IIII", 8, "Phase One IIQ"),
    (b"MMMM", 8, "Phase One IIQ"),
    (b"IIRO", 0, "Olympus ORF"),
    (b"IIRS", 0, "Olympus ORF"),
    (b"MMOR", 0, "Olympus ORF"),
    (b"IIU\0", 0, "Panasonic RW2"),
    (b"FUJIFILMCCD-RAW", 0, "Fujifilm RAF"),
    (b"FOVb", 0, "Sigma X3F"),
    (b"\0MRM", 0, "Minolta MRW"),
    (b"HEAPCCDR", 6, "Canon CRW"),
)
_OTHER_IMAGES: Final = (
    (b"\0\0\0\x0cJXS ", 0, "JPEG XS"),
    (b"\xff\x10\xff\x50", 0, "JPEG XS"),
    (b"II\xbc\x01", 0, "JPEG XR"),
    (b"\x8aMNG", 0, "MNG"),
    (b"\x8bJNG", 0, "JNG"),
    (b"8BPS", 0, "PSD"),
    (b"gimp xcf", 0, "GIMP XCF"),
    (b"icns", 0, "ICNS"),
    (b"DDS ", 0, "DDS"),
    (b"BLP", 0, "BLP"),
    (b"BPG\xfb", 0, "BPG"),
    (b"FLIF", 0, "FLIF"),
    (b"qoif", 0, "QOI"),
    (b"%!PS", 0, "PostScript"),
    (b"\xc5\xd0\xd3\xc6", 0, "PostScript"),
    (b"\x01\xda", 0, "SGI"),
    (b"SIMPLE  =", 0, "FITS"),
    (b"v/1\x01", 0, "OpenEXR"),
    (b"#?RADIANCE", 0, "Radiance HDR"),
    (b"#?RGBE", 0, "Radiance HDR"),
    (b"\x11\xaf", 4, "FLI"),
    (b"\x12\xaf", 4, "FLC"),
    (b"DICM", 128, "DICOM"),
    (b"\xd7\xcd\xc6\x9a", 0, "WMF"),
    (b"\x01\0\x09\0\0\x03", 0, "WMF"),
    (b" EMF", 40, "EMF"),
    (b"AT&TFORM", 0, "DjVu"),
    (b"\x59\xa6\x6a\x95", 0, "Sun raster"),
    (b"farbfeld", 0, "farbfeld"),
    (b"DanM", 0, "MSP"),
    (b"LinS", 0, "MSP"),
    (b"Image type: ", 0, "IM (IFUNC)"),
    (b"\xabKTX ", 0, "KTX"),
    (b"\x13\xab\xa1\x5c", 0, "ASTC"),
    (b"VTF\0", 0, "VTF"),
    (b"/* XPM */", 0, "XPM"),
    (b"#define ", 0, "XBM"),
    (b"ZISRAWFILE", 0, "Zeiss CZI"),
    (b"\xda\xce\xbe\x0a", 0, "Nikon ND2"),
    (b"NRRD000", 0, "NRRD"),
    (b"n+1\0", 344, "NIfTI"),
    *((b"\x0a" + version + b"\x01", 0, "PCX") for version in (b"\0", b"\2", b"\3", b"\4", b"\5")),
    *(
        (b"P" + digit + end, 0, "Netpbm")
        for digit in (b"1", b"2", b"3", b"4", b"5", b"6", b"7")
        for end in (b"\n", b" ", b"\r", b"\t", b"#")
    ),
    *(
        (b"P" + kind + end, 0, "PFM (a portable float map)")
        for kind in (b"F", b"f", b"F4")
        for end in (b"\n", b" ", b"\r")
    ),
)
_RASTERS: Final = (
    (b"EHFA_HEADER_TAG", 0, "ERDAS Imagine (.img)"),
    (b"NITF0", 0, "NITF"),
    (b"NSIF0", 0, "NITF (NSIF)"),
    (b"msid", 0, "MrSID"),
    (b"CDF\x01", 0, "netCDF"),
    (b"CDF\x02", 0, "netCDF"),
    (b"CDF\x05", 0, "netCDF"),
    (b"\x0e\x03\x13\x01", 0, "HDF4"),
    (b"\x89HDF\r\n\x1a\n", 0, "HDF5 (or netCDF)"),
    (b"GRIB", 0, "GRIB"),
    (b"PCIDSK", 0, "PCIDSK"),
    (b"SQLite format 3\0", 0, "SQLite (GeoPackage or MBTiles)"),
    (b"ENVI", 0, "the header of an ENVI raster"),
)
_OTHER_FILES: Final = (
    (b"PK\x03\x04", 0, "a ZIP archive"),
    (b"PK\x05\x06", 0, "a ZIP archive"),
    (b"\x1f\x8b", 0, "gzip"),
    (b"\x28\xb5\x2f\xfd", 0, "zstd"),
    (b"BZh", 0, "bzip2"),
    (b"\xfd7zXZ\0", 0, "xz"),
    (b"7z\xbc\xaf", 0, "a 7z archive"),
    (b"Rar!", 0, "a RAR archive"),
    (b"ustar", 257, "a tar archive"),
    (b"%PDF", 0, "PDF"),
    (b"PAR1", 0, "Parquet"),
    (b"AVI ", 8, "a video"),
    (b"WAVE", 8, "a sound"),
    (b"\x1a\x45\xdf\xa3", 0, "a video"),
    (b"\0\0\x01\xba", 0, "a video"),
    (b"\0\0\x01\xb3", 0, "a video"),
    (b"FLV\x01", 0, "a video"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0, "a video"),
    (b"OggS", 0, "a video or a sound"),
    (b"ID3", 0, "a sound"),
    (b"fLaC", 0, "a sound"),
    (b"\x7fELF", 0, "a program"),
    (b"MZ", 0, "a program"),
    (b"\x93NUMPY", 0, "a NumPy array (.npy)"),
    (b"MATLAB 5.0", 0, "a MATLAB file"),
    (b"ARROW1", 0, "Arrow"),
    (b"LASF", 0, "a point cloud (LAS)"),
    (b"\0\0\x27\x0a", 0, "a shapefile"),
    (b"{\\rtf", 0, "RTF"),
    (b"L\0\0\0\x01\x14\x02\0", 0, "a shortcut of Windows (.lnk)"),
    (b"bplist", 0, "a property list of macOS"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0, "a document of Microsoft Office, or Thumbs.db"),
    (b"\0\0\0\x01Bud1", 0, "a .DS_Store of macOS"),
)
_MEDIA_BRANDS: Final = {
    "AVIF": frozenset([b"avif", b"avis", b"avio"]),
    "HEIF": frozenset(
        [
            *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
            *(b"mif1", b"mif2", b"mif3", b"msf1", b"miaf", b"MiHB", b"MiHE", b"MiHA"),
        ]
    ),
    "HEIF of H.264": frozenset([b"avci", b"avcs", b"MiAB"]),
    "HEIF of H.266": frozenset([b"vvic", b"vvis"]),
    "HEIF of JPEGs": frozenset([b"jpeg", b"jpgs", b"MiJP"]),
    "JPEG XL without its first box": frozenset([b"jxl "]),
    "JPEG XS": frozenset([b"jxsc", b"jxs "]),
    "Canon CR3": frozenset([b"crx "]),
}
_GENERIC_BRANDS: Final = frozenset([b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"])
_MOVIE_BOXES: Final = frozenset(
    [b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"moof", b"styp", b"sidx", b"uuid"]
)
"""The first boxes of QuickTime and of MP4 without `ftyp`, or before it."""
_BASE64: Final = (b"/9j/", b"iVBORw0KGgo", b"R0lGODdh", b"R0lGODlh", b"UklGR", b"SUkqA", b"TU0AK")
"""The signatures of JPEG, PNG, GIF, WebP and TIFF in base64."""
_AS_TEXT: Final = (
    b"\x89PNG\n\x1a\n",
    b"\x89PNG\r\r\n",
    b"\xc2\x89PNG",
    b"\xef\xbf\xbd",
    b"\xc3\xbf\xc3\x98\xc3\xbf",
)
"""What a transfer that changes line ends, or takes bytes for characters, makes of the signatures of PNG and JPEG."""
_PRINTABLE: Final = bytes([9, 10, 12, 13, *range(32, 127)])
_MOST_LEADING: Final = 512
_BEHIND: Final = (
    (re.compile(rb"\xff\xd8\xff[\xc0-\xfe]"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"RIFF....WEBPVP8", re.DOTALL), "WebP"),
)
"""Signatures that are also looked for behind other bytes."""
_HTML: Final = re.compile(rb"<(?:!doctype html|html|head|body|title|meta|script|style|div)[\s>]")
_MARKUP_BEFORE: Final = re.compile(rb"\s+|<!--.*?-->|<\?.*?\?>", re.DOTALL)
_WORLD_FILE: Final = re.compile(rb"(?:[-+.0-9e]+\s+){5}[-+.0-9e]+\s*")
_READ_MEDIA: Final = frozenset(["AVIF", "HEIF"])
_TEXT_RASTERS: Final = frozenset(["a mosaic of GDAL (VRT)", "an ESRI ASCII grid"])


def _starts(data: bytes, table: tuple[tuple[bytes, int, str], ...]) -> str | None:
    for magic, offset, name in table:
        if data.startswith(magic, offset):
            return name
    return None


def format_of(data: bytes) -> str:
    """Return which of the supported formats the first bytes indicate, by its Pillow name.

    >>> format_of(b"GIF89a...")
    'GIF'

    Raises:
        ItemError: `unsupported_format` or `not_an_image`; the message names the format found.
    """
    if (kind := _starts(data, _ALLOWED)) is not None:
        if kind == "TIFF" and (raw := _starts(data, _RAW_PHOTOS)):
            raise Refusal.RAW_PHOTO.error(format=raw)
        return kind
    raw = _starts(data, _RAW_PHOTOS)
    if data[4:8] == b"ftyp":
        media = _media_format(data)
        if media in _READ_MEDIA:
            return media
        raw = media if media == "Canon CR3" else raw
        if media is None:
            raise Refusal.NOT_AN_IMAGE.error(what="a video")
        if raw is None:
            raise Refusal.FORMAT.error(format=media)
    if raw is not None:
        raise Refusal.RAW_PHOTO.error(format=raw)
    if (kind := _starts(data, _OTHER_IMAGES) or _without_signature(data)) is not None:
        raise Refusal.FORMAT.error(format=kind)
    text = kind_of_text(data)
    if (kind := _starts(data, _RASTERS) or (text if text in _TEXT_RASTERS else None)) is not None:
        raise Refusal.RASTER_FORMAT.error(format=kind)
    raise _no_image(data, text)


def _no_image(data: bytes, text: str | None) -> ItemError:
    """Return the error for what is no image, or not as it was written."""
    if data.startswith((b"\0\x05\x16\x07", b"\0\x05\x16\0")):
        return Refusal.RESOURCE_FORK.error()
    if data.startswith(b"version https://git-lfs"):
        return Refusal.LFS_POINTER.error()
    if data.startswith(_AS_TEXT):
        return Refusal.CHANGED_AS_TEXT.error()
    known = _starts(data, _OTHER_FILES) or text
    if known is None and (behind := _behind(data)) is not None:
        return Refusal.LEADING_BYTES.error(format=behind[0], count=plural(behind[1], "byte"))
    if known is None and data[4:8] in _MOVIE_BOXES and not 1 < int.from_bytes(data[:4]) < 8:
        known = "a video (QuickTime or MP4)"
    if known is None and not data.strip(b"\0"):
        known = "zeros, as an unfinished download leaves them"
    unknown = f"of an unknown format that begins with {data[:8].hex(' ')}"
    return Refusal.NOT_AN_IMAGE.error(what=known or unknown)


def _behind(data: bytes) -> tuple[str, int] | None:
    """Return the format of an image behind text or zeros, and the number of these bytes; None for anything else."""
    for signature, name in _BEHIND:
        if (found := signature.search(data, 0, _MOST_LEADING)) is not None:
            before = data[: found.start()]
            if before.removeprefix(codecs.BOM_UTF8).translate(None, _PRINTABLE) in (b"", bytes(len(before))):
                return name, len(before)
    return None


def _media_format(data: bytes) -> str | None:
    """Return the format of an ISO media file by its brands; None for a video.

    Reference: ISO/IEC 14496-12, 4.3; ISO/IEC 23008-12, 10.
    """
    size = int.from_bytes(data[:4])
    brands = [data[at : at + 4] for at in (8, *range(16, min(size, len(data), 256), 4))]
    # A generic first brand, such as mif1, is made precise by the others.
    specific = [brand for brand in brands if brand not in _GENERIC_BRANDS]
    for some in (brands[:1] if brands[0] in specific else [], specific, brands):
        for name, own in _MEDIA_BRANDS.items():
            if not own.isdisjoint(some):
                return name
    return None


def _without_signature(data: bytes) -> str | None:
    """Return the name of a format whose header has no signature, only fields of few possible values."""
    if (
        data[:2] == b"\0\0"
        and data[2:4] in (b"\1\0", b"\2\0")
        and 0 < int.from_bytes(data[4:6], "little") < 256
    ):
        return "ICO" if data[2] == 1 else "CUR"
    if len(data) < 18:
        return None
    has_map, kind, map_bits, bits, flags = data[1], data[2], data[7], data[16], data[17]
    is_tga = (
        kind in (1, 2, 3, 9, 10, 11)
        and bits in ((8, 16) if kind in (3, 11) else (8, 15, 16, 24, 32))
        and has_map == (1 if kind in (1, 9) else has_map & 1)
        and map_bits in ((15, 16, 24, 32) if has_map else (0,))
        and data[12:14] != b"\0\0" != data[14:16]
        and flags < 64
    )
    return "TGA" if is_tga else None


def kind_of_text(data: bytes) -> str | None:
    """Return the kind of text (HTML, SVG, XML, JSON, …), or None if the data is not text."""
    head = data[:1024].removeprefix(codecs.BOM_UTF8)
    if (text := _from_utf16(head)) is not None:
        kind = kind_of_text(text)
        return "text in UTF-16" if kind in (None, "text") else f"{kind} in UTF-16"
    if any(byte < 9 or 13 < byte < 32 for byte in head):
        return None
    start = head.lstrip().lower()
    markup = _without_comments(start)
    for kind, found in (
        ("an image in base64, as text", head.lstrip().startswith(_BASE64)),
        ("an image in a data: URI, as text", start.startswith(b"data:image/")),
        ("HTML", _HTML.match(markup) is not None),
        ("SVG", b"<svg" in start),
        ("an S3 error", start.startswith(b"<") and b"<error>" in start),
        ("a mosaic of GDAL (VRT)", markup.startswith(b"<vrtdataset")),
        ("a sidecar of GDAL (.aux.xml)", markup.startswith(b"<pamdataset")),
        ("XML", start.startswith(b"<")),
        ("an ESRI ASCII grid", start.startswith(b"ncols") and b"nrows" in start),
        ("a world file", _WORLD_FILE.fullmatch(start) is not None),
        ("JSON", start.startswith((b"{", b"["))),
    ):
        if found:
            return kind
    # The last character may be incomplete, which the incremental decoder accepts.
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return "text"
    return None


def _from_utf16(head: bytes) -> bytes | None:
    """Return the beginning of a text in UTF-16 as UTF-8; None for anything else."""
    for order, bom, zeros in (
        ("le", codecs.BOM_UTF16_LE, head[1::2]),
        ("be", codecs.BOM_UTF16_BE, head[::2]),
    ):
        # Without a byte order mark, only text in ASCII is recognized.
        if head.startswith(bom) or (len(head) > 16 and not zeros.strip(b"\0") and head.isascii()):
            with contextlib.suppress(UnicodeDecodeError):
                text = head.removeprefix(bom)
                decoded = codecs.getincrementaldecoder(f"utf-16-{order}")().decode(text)
                if all(letter.isprintable() or letter.isspace() for letter in decoded) and decoded:
                    return decoded.encode()
    return None


def _without_comments(start: bytes) -> bytes:
    """Return markup without the comments, declarations and spaces that it begins with."""
    while (before := _MARKUP_BEFORE.match(start)) is not None:
        start = start[before.end() :]
    return start

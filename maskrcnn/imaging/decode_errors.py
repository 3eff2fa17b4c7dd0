"""Say why a file could not be decoded: it is cut short, damaged, or sound and of a kind that is not read.

The exceptions of Pillow and its libraries are only their causes. The file itself is looked at again, which costs time
only where decoding has failed.
"""

import contextlib
import functools
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import ItemError
from ..io.refusals import Refusal
from .formats import jpeg2000, jpeg_scan, jpeg_xl, png_chunks
from .formats.sniff import kind_of_text
from .formats.tiff_compressions import tiff_compression
from .formats.tiff_directory import full_picture, pointing_to, reader_of

PLUGINS: Final[dict[str, Any]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "JPEGXL": jpeg_xl.JpegXlFile,
}
"""By format, the class that reads it for Pillow; HEIF's is in an extra."""
NAMES: Final = {"WEBP": "WebP", "JPEG2000": "JPEG 2000", "HEIF": "HEIC", "JPEGXL": "JPEG XL"}
"""The names of formats in messages, where they differ from Pillow's."""

DECODER_ERRORS: Final = (
    OSError,  # raised by the decoders; UnidentifiedImageError is a subclass
    SyntaxError,  # raised by Pillow for an invalid header
    ValueError,  # sizes and offsets that contradict each other; undecodable text
    TypeError,  # a tag that holds a tuple where a number belongs
    LookupError,  # invalid indices and tags
    ArithmeticError,  # a resolution divided by zero; sizes that overflow C integers
    EOFError,  # a missing frame
    AttributeError,  # a missing chunk that must precede the current one
    NotImplementedError,  # an unsupported TIFF feature
    RuntimeError,  # a decoder in an unexpected state
    AssertionError,  # Pillow's checks
    struct.error,  # a header cut short
    zlib.error,  # compressed text of a PNG or a TIFF
)
"""All exception types that Pillow raised on mutated files."""

_JPEG_CODECS: Final = {
    0xC3: "lossless JPEG (SOF3)",
    0xC5: "hierarchical JPEG (SOF5)",
    0xC6: "hierarchical progressive JPEG (SOF6)",
    0xC7: "hierarchical lossless JPEG (SOF7)",
    0xC9: "arithmetic-coded JPEG (SOF9)",
    0xCA: "arithmetic-coded progressive JPEG (SOF10)",
    0xCB: "arithmetic-coded lossless JPEG (SOF11)",
    0xCD: "arithmetic-coded hierarchical JPEG (SOF13)",
    0xCE: "arithmetic-coded hierarchical progressive JPEG (SOF14)",
    0xCF: "arithmetic-coded hierarchical lossless JPEG (SOF15)",
    0xF7: "JPEG-LS (SOF55)",
}
_JPEG_DECODED: Final = frozenset([0xC3, 0xC9, 0xCA])  # by libjpeg-turbo, with 8 bits
_BMP_CODECS: Final = {4: "JPEG", 5: "PNG", 11: "CMYK", 12: "CMYK run lengths", 13: "CMYK run lengths"}
_BMP_BITS: Final = frozenset([1, 2, 4, 8, 16, 24, 32])
_LIBTIFF_CODECS: Final = {34925: "lzma", 34926: "zstd", 50000: "zstd", 50001: "webp"}
_TIFF_LAYOUTS: Final = (
    "pixel mode",
    "raw mode",
    "data organization",
    "samples per pixel",
    "index out of range",
)
"""Words of the exceptions that Pillow raises for a sound TIFF whose bands it does not combine."""
JPEG2000_COLORS: Final = {
    1: "YCbCr (1)",
    3: "YCbCr (2)",
    4: "YCbCr (3)",
    9: "PhotoYCC",
    11: "CMY",
    13: "YCCK",
    14: "CIELab",
    19: "CIEJab",
    20: "e-sRGB",
    21: "ROMM-RGB",
    24: "e-sYCC",
}


def name_of(kind: str) -> str:
    """Return the name of a format in messages, from Pillow's."""
    return NAMES.get(kind, kind)


def decoding_error(kind: str, data: bytes, error: Exception) -> ItemError:
    """Return the error for a file of a format of `PLUGINS`, or HEIF, that Pillow could not decode."""
    name = name_of(kind)
    # The two letters `BM` alone do not identify a bitmap.
    if kind == "BMP" and (text := kind_of_text(data)) is not None:
        return Refusal.NOT_AN_IMAGE.error(what=text)
    reason: Exception = error
    in_header = kind not in PLUGINS
    if not in_header:
        try:  # `Image.open` drops the plugin's error message
            PLUGINS[kind](BytesIO(data))
        except (*DECODER_ERRORS, Image.DecompressionBombError) as inner:
            reason, in_header = inner, True
    with contextlib.suppress(*DECODER_ERRORS):
        if (unsupported := _unsupported(kind, data, str(reason))) is not None:
            return unsupported
    if "runcated" in str(reason) or _TRUNCATED[kind](data):
        return Refusal.TRUNCATED.error(format=name)
    return (Refusal.HEADER_DAMAGED if in_header else Refusal.DATA_DAMAGED).error(format=name)


def unsupported_pixels(kind: str, what: str) -> ItemError:
    """Return the error for pixels that cannot be converted without a stated scaling."""
    return (Refusal.TIFF_PIXELS if kind == "TIFF" else Refusal.PIXELS).error(what=what)


def unsupported_bands(tags: Any) -> str | None:
    """Describe the pixels of a TIFF that Pillow would reject or open with wrong colours; None for any other."""
    bits = max(numbers(tags, TiffImagePlugin.BITSPERSAMPLE, 1))
    bands = numbers(tags, TiffImagePlugin.SAMPLESPERPIXEL, 1)[0]
    signed = any(kind != 1 for kind in numbers(tags, TiffImagePlugin.SAMPLEFORMAT, 1))
    if signed or bits > 16 or bands > 6 or (bands > 1 and bits > 8):
        what = "1 band" if bands == 1 else f"{bands} bands"
        return (
            f"TIFF with {what} of {bits}-bit {'signed or float numbers' if signed else 'unsigned integers'}"
        )
    grey = numbers(tags, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1)[0] in (0, 1)
    if grey and bands > 2 and numbers(tags, TiffImagePlugin.PLANAR_CONFIGURATION, 1)[0] == 2:
        # Pillow would read the first band only, and refuses the same bands pixel by pixel.
        return f"TIFF with {bands} bands that are not marked as colours"
    return None


def numbers(tags: Any, tag: int, default: int) -> tuple[Any, ...]:
    """Return the values of a tag of a TIFF; never none."""
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) and value else (value,)


# Sound, but not read


def _unsupported(kind: str, data: bytes, reason: str) -> ItemError | None:
    if kind == "JPEG":
        return _unsupported_jpeg(data)
    if kind == "PNG" and png_chunks.is_apple(data):
        return Refusal.LAYOUT.error(format="PNG", layout="in the variant CgBI of Apple's developer tools")
    if kind == "BMP":
        return _unsupported_bmp(data)
    return _unsupported_tiff(data, reason) if kind == "TIFF" else None


def _unsupported_jpeg(data: bytes) -> ItemError | None:
    frame = next((s for s in jpeg_scan.segments(data) if s.marker in jpeg_scan.FRAMES), None)
    if frame is None:
        return None
    bits, channels = data[frame.start + 4], data[frame.start + 9]
    codec = _JPEG_CODECS.get(frame.marker)
    if codec is not None and (bits != 8 or frame.marker not in _JPEG_DECODED):
        return Refusal.CODEC.error(format="JPEG", codec=codec + (f" of {bits} bits" if bits != 8 else ""))
    if bits == 12:
        return Refusal.LAYOUT.error(format="JPEG", layout="of 12 bits per channel")
    if channels not in (1, 3, 4):
        return Refusal.LAYOUT.error(format="JPEG", layout=f"of {channels} channels")
    return None


def _unsupported_bmp(data: bytes) -> ItemError | None:
    if int.from_bytes(data[14:18], "little") < 40:
        return None
    bits, codec = int.from_bytes(data[28:30], "little"), int.from_bytes(data[30:34], "little")
    if codec in _BMP_CODECS:
        return Refusal.CODEC.error(format="BMP", codec=_BMP_CODECS[codec])
    if codec in (0, 3) and bits == 64:
        return Refusal.LAYOUT.error(format="BMP", layout="of 64 bits per pixel")
    if codec == 3 and bits in (16, 24, 32):
        return Refusal.LAYOUT.error(format="BMP", layout="with rare masks of its channels")
    return None


def _unsupported_tiff(data: bytes, reason: str) -> ItemError | None:
    try:
        picture = full_picture(reader_of(data))
    except ItemError as error:
        return error
    if data.startswith(b"MM\0+"):
        return Refusal.LAYOUT.error(format="BigTIFF", layout="with big-endian numbers")
    if picture is not None and not picture.is_first:
        data = pointing_to(data, picture.start)
    tags = tiff_tags(data)
    compression = numbers(tags, TiffImagePlugin.COMPRESSION, 1)[0]
    codec = _LIBTIFF_CODECS.get(compression)
    if compression not in TiffImagePlugin.COMPRESSION_INFO or (codec and not _libtiff_has(codec)):
        return (
            None
            if _tiff_is_truncated(data)
            else Refusal.TIFF_COMPRESSION.error(codec=tiff_compression(compression))
        )
    if (what := unsupported_bands(tags)) is not None:
        return unsupported_pixels("TIFF", what)
    if any(words in reason for words in _TIFF_LAYOUTS):
        return unsupported_pixels("TIFF", "TIFF whose bands do not form a picture in a known way")
    return None


@functools.cache
def _libtiff_has(codec: str) -> bool:
    """Return whether this build of libtiff has a codec, by writing a picture of one pixel."""
    try:
        Image.new("RGB", (1, 1)).save(BytesIO(), "TIFF", compression=codec)
    except DECODER_ERRORS:
        return False
    return True


# Cut short


def tiff_tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return the first image file directory. Raises EOFError if it lies beyond the end of the file."""
    big = data[2:4] in (b"+\0", b"\0+")
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
    if tags.next >= len(data):
        raise EOFError
    file = BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _tiff_is_truncated(data: bytes) -> bool:
    """Return whether the directory, or a strip or tile that it lists, extends beyond the end of the file."""
    try:
        tags = tiff_tags(data)
        ends = [
            offset + count
            for offsets, counts in ((273, 279), (324, 325))
            for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        ]
    except EOFError:
        return True
    except DECODER_ERRORS:
        return False
    return any(end > len(data) for end in ends)


_TRUNCATED: Final[dict[str, Callable[[bytes], bool]]] = {
    "JPEG": lambda data: jpeg_scan.END not in data,
    "PNG": lambda data: b"IEND" not in data,
    "WEBP": lambda data: len(data) < 8 + int.from_bytes(data[4:8], "little"),
    "AVIF": jpeg2000.ends_early,
    "HEIF": jpeg2000.ends_early,
    "JPEG2000": jpeg2000.is_cut_short,
    "BMP": lambda data: len(data) < int.from_bytes(data[2:6], "little"),
    "GIF": lambda data: not data.rstrip(b"\0").endswith(b";"),
    "TIFF": _tiff_is_truncated,
    "JPEGXL": jpeg_xl.is_cut_short,
}

"""Decode image bytes to RGB pixels, or raise an error code that states the cause.

The header is read first, and no pixel is decoded before the limits are checked. The rules, which are part of the
contract of the table `images`:

- JPEG, PNG, WebP, BMP, GIF and TIFF are recognized by their content; file names are ignored. Of an animation, a
  multi-page TIFF or a multi-picture JPEG, the first picture is decoded.
- The EXIF orientation is applied before any width or height is reported (without EXIF, the orientation in XMP is
  used, as in Pillow). Values outside 1..8 and EXIF that cannot be parsed are ignored.
- 1-bit pixels become 0 and 255; grey is repeated in the three channels; palette indices become the colours of the
  palette; CMYK, YCbCr, HSV and LAB are converted by Pillow. Alpha is dropped: colours are kept as stored and are not
  blended. Colour profiles are not applied.
- 16-bit grey is scaled by round(v / 257), 12-bit grey of a TIFF in the same way from 4095. If all values lie in the
  lowest sixteenth of the range, as 12-bit values in a 16-bit file do, the image would be black: `unsupported_pixels`.
  (PNG's sBIT is ignored: it states the original number of bits of values that are already scaled up.) 16-bit colours
  of a PNG keep their high byte, under the same condition.
- Float, 32-bit and signed pixels, and TIFFs with several bands of more than 8 bits, cannot be converted without a
  stated scaling: `unsupported_pixels`. GeoTIFFs with such pixels are read by the raster mode.
- Damage that the decoder does not detect (bytes changed inside a JPEG's scan) is not reported.
"""

import contextlib
import logging
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from ..errors import ItemError
from ..types import Pixels
from .orientation import upright
from .sniff import format_of, kind_of_text, webp_size

# Pillow logs some unreadable files as errors, which Python prints if logging is not configured.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_PLUGINS: Final[dict[str, Any]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

_DECODER_ERRORS: Final = (
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


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits above which an image is not decoded."""

    max_pixels: int
    """Width times height, in pixels."""
    max_bytes: int
    """The file size, in bytes."""
    max_aspect: float
    """The ratio of the long side to the short side."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image with its EXIF orientation applied."""

    pixels: Pixels
    """(height, width, 3), RGB, uint8, C-contiguous."""
    exif_orientation: int | None
    """The value in the file, 1 to 8, which has been applied; None without a valid one."""


class _SuppressedWarnings:
    """Suppress Pillow's warnings while at least one thread decodes.

    `warnings.catch_warnings` alone modifies state that all threads share: the last thread to leave would restore
    the filters that the first thread had installed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._threads == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
                warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            self._threads += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._saved.__exit__(kind, error, trace)


_suppressed_warnings: Final = _SuppressedWarnings()


def decode_image(data: bytes, limits: Limits) -> DecodedImage:
    """Decode an image by the rules of this module. It is safe to call from several threads at once.

    Raises:
        ItemError: `empty_file`, `too_many_bytes`, `not_an_image`, `unsupported_format`, `unsupported_pixels`,
            `truncated`, `corrupt`, `too_many_pixels`, `aspect`, `out_of_memory`.
    """
    if not data:
        raise ItemError("empty_file", "zero bytes")
    if len(data) > limits.max_bytes:
        raise ItemError("too_many_bytes", f"{len(data)} bytes, more than the limit of {limits.max_bytes}")
    kind = format_of(data)
    _raise_pillow_limit(limits.max_pixels)
    with _suppressed_warnings:
        try:
            image, orientation, oriented = _load(data, kind, limits)
        except Image.DecompressionBombError as error:
            raise _bomb_error(kind, data, limits) from error
        except MemoryError as error:
            raise ItemError("out_of_memory", f"{kind}: not enough memory to decode it") from error
        except _DECODER_ERRORS as error:
            raise _decoding_error(kind, data, error) from error
        pixels = _rgb(image)
    if kind == "PNG" and _has_16_bit_colors(data) and 0 < int(pixels.max()) < 16:
        raise _unsupported(kind, "16-bit colours that use only the lowest part of their range")
    return DecodedImage(pixels if oriented else upright(pixels, orientation), orientation)


def image_size(file: BinaryIO, limits: Limits) -> tuple[int, int]:
    """Return the height and width that `decode_image` will return, from the header alone.

    An orientation that is stored after the pixels, which PNG and WebP allow, is not taken into account.

    Raises:
        ItemError: as `decode_image`, for the errors that the header shows.
    """
    head = file.read(1024)
    kind = format_of(head)
    _raise_pillow_limit(limits.max_pixels)
    if kind == "WEBP":
        _check_canvas(head, limits)
    file.seek(0)
    with _suppressed_warnings:
        try:
            image = Image.open(file, formats=(kind,))
            _check_size(image, limits)
            width, height = _upright_size(image)
        except Image.DecompressionBombError as error:
            raise ItemError(
                "too_many_pixels", f"{kind}: more than the limit of {limits.max_pixels}"
            ) from error
        except _DECODER_ERRORS as error:
            file.seek(0)
            raise _decoding_error(kind, file.read(), error) from error
    return height, width


def _raise_pillow_limit(max_pixels: int) -> None:
    # Pillow rejects images of more than twice this number of pixels, in the whole process. It must not be below
    # `max_pixels`; a smaller `max_pixels` leaves it unchanged. It only increases, so threads need no lock.
    half = (max_pixels + 1) // 2
    if Image.MAX_IMAGE_PIXELS is not None and half > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = half


def _load(data: bytes, kind: str, limits: Limits) -> tuple[Image.Image, int | None, bool]:
    """Return the first picture, loaded, its EXIF orientation, and whether Pillow has already applied that."""
    if kind == "WEBP":
        _check_canvas(data, limits)
    image = Image.open(BytesIO(data), formats=(kind,))
    _check_size(image, limits)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, limits)
        # Pillow applies the orientation of a TIFF when it loads the pixels, and removes the tag.
        orientation = _valid(_numbers(image.tag_v2, _ORIENTATION, 0)[0])
        image.load()
        return image, orientation, True
    image.load()
    return image, _exif_orientation(image), False


def _check_canvas(webp: bytes, limits: Limits) -> None:
    """Check the size of a WebP before opening it, which allocates 8 bytes per pixel. Raises ItemError."""
    if (size := webp_size(webp)) is not None and size[0] * size[1] > limits.max_pixels:
        # The EXIF data is at the end of the file, so this is the size before orientation.
        why = f"{size[0]} x {size[1]} pixels, more than the limit of {limits.max_pixels}"
        raise ItemError("too_many_pixels", why, width=size[0], height=size[1])


def _check_size(image: Image.Image, limits: Limits) -> None:
    """Check the size in the header of an image that is not loaded yet. Raises ItemError."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ItemError("corrupt", f"the header states a size of {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise _size_error("too_many_pixels", image, f", more than the limit of {limits.max_pixels}")
    if max(image.size) > limits.max_aspect * min(image.size):
        raise _size_error("aspect", image, f", more elongated than 1 : {limits.max_aspect:g}")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height after orientation, from the header."""
    width, height = image.size
    # Pillow has already applied the orientation to the size of a TIFF.
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    return (height, width) if not is_tiff and _header_orientation(image) in (5, 6, 7, 8) else (width, height)


def _size_error(code: str, image: Image.Image, why: str) -> ItemError:
    """Return the error for a size above a limit, with the size after orientation; only the header is read."""
    width, height = _upright_size(image)
    what = f"{width} x {height} pixels{why}"
    if max(width, height) >= 2**31:  # overflows the columns; no real image is that large
        return ItemError(code, what)
    return ItemError(code, what, width=width, height=height)


def _bomb_error(kind: str, data: bytes, limits: Limits) -> ItemError:
    """Return the error for an image that is too large for Pillow, with its size if the header states it."""
    try:
        _check_size(_PLUGINS[kind](BytesIO(data)), limits)
    except ItemError as error:
        return error
    except (Image.DecompressionBombError, *_DECODER_ERRORS):
        pass
    return ItemError("too_many_pixels", f"{kind}: more than the limit of {limits.max_pixels}")


# TIFF

_ORIENTATION: Final = 274
_UNSIGNED: Final = 1


def _numbers(tags: Any, tag: int, default: int) -> tuple[Any, ...]:
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) and value else (value,)


def _unsupported_pixels_of(tags: Any) -> str | None:
    """Describe the pixels of a TIFF that Pillow would reject or open with wrong colours; None for any other."""
    bits = max(_numbers(tags, TiffImagePlugin.BITSPERSAMPLE, 1))
    bands = _numbers(tags, TiffImagePlugin.SAMPLESPERPIXEL, 1)[0]
    signed = any(kind != _UNSIGNED for kind in _numbers(tags, TiffImagePlugin.SAMPLEFORMAT, _UNSIGNED))
    if signed or bits > 16 or bands > 6 or (bands > 1 and bits > 8):
        what = "1 band" if bands == 1 else f"{bands} bands"
        return (
            f"TIFF with {what} of {bits}-bit {'signed or float numbers' if signed else 'unsigned integers'}"
        )
    return None


def _check_tiff(image: TiffImagePlugin.TiffImageFile, limits: Limits) -> None:
    if (what := _unsupported_pixels_of(image.tag_v2)) is not None:
        raise _unsupported("TIFF", what)
    # A small image may still be part of a huge block.
    block = [
        _numbers(image.tag_v2, tag, 1)[0] for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
    ]
    if block[0] * block[1] > limits.max_pixels:
        raise _size_error("too_many_pixels", image, f" in a TIFF of blocks of {block[0]} x {block[1]}")


def _unsupported(kind: str, what: str) -> ItemError:
    advice = "convert it to 8 bits with a scaling of your choice"
    if kind == "TIFF":
        advice += "; GeoTIFFs are read by the raster mode, with a stated scaling"
    return ItemError("unsupported_pixels", f"{what}; {advice}")


# Colours


def _rgb(image: Image.Image) -> Pixels:
    """Return the pixels of a loaded image as RGB, (height, width, 3) uint8. Raises ItemError."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        return np.repeat(_grey(image)[..., None], 3, axis=2)
    if mode in ("I", "F"):
        numbers = "integers" if mode == "I" else "floats"
        raise _unsupported(str(image.format), f"{image.format} of 32-bit {numbers}")
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, lab, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return np.array(converted)
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _has_16_bit_colors(png: bytes) -> bool:
    """Return whether a PNG's header states 16 bits per channel, and colours or alpha."""
    return png[24] == 16 and png[25] != 0


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Return 16-bit grey, or 12-bit grey of a TIFF, scaled to 8 bits: (height, width) uint8. Raises ItemError."""
    white, inverted = 65_535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** int(_numbers(image.tag_v2, TiffImagePlugin.BITSPERSAMPLE, 16)[0]) - 1
        # Pillow inverts white-is-zero images of up to 8 bits only.
        inverted = _numbers(image.tag_v2, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1)[0] == 0
    values = np.asarray(image).astype(np.uint32)
    largest = int(values.max())
    if 0 < largest <= white // 16:
        bits = white.bit_length()
        raise _unsupported(
            str(image.format),
            f"{bits}-bit grey that uses only the lowest part of its range (maximum {largest} of {white})",
        )
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    return 255 - grey if inverted else grey


# Orientation


def _valid(orientation: object) -> int | None:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else None


def _exif_orientation(image: Image.Image) -> int | None:
    try:
        return _valid(image.getexif().get(_ORIENTATION))
    except _DECODER_ERRORS:
        return None


def _header_orientation(image: Image.Image) -> int | None:
    """Return the orientation stored before the pixels; `getexif` of a PNG would decode the pixels to look further."""
    try:
        return _valid(Image.Image.getexif(image).get(_ORIENTATION))
    except _DECODER_ERRORS:
        return None


# Errors


def _decoding_error(kind: str, data: bytes, error: Exception) -> ItemError:
    """Return the error for a file that Pillow could not decode."""
    reason: BaseException = error
    # The two letters `BM` alone do not identify a bitmap.
    if kind == "BMP" and (text := kind_of_text(data)) is not None:
        return ItemError("not_an_image", f"the content is {text}")
    if isinstance(error, UnidentifiedImageError):
        # `Image.open` drops the plugin's error message.
        try:
            _PLUGINS[kind](BytesIO(data))
        except _DECODER_ERRORS as inner:
            reason = inner
        if kind == "TIFF":
            with contextlib.suppress(*_DECODER_ERRORS):
                what = _unsupported_pixels_of(_tiff_tags(data))
                if what is not None or str(reason) == "unknown pixel mode":
                    return _unsupported(kind, what or "TIFF with an unknown pixel mode")
    detail = str(reason).replace("decoder error -2", "libtiff cannot decode it") or type(reason).__name__
    truncated = "runcated" in detail or _is_truncated(kind, data)
    return ItemError("truncated" if truncated else "corrupt", f"{kind}: {detail}")


def _is_truncated(kind: str, data: bytes) -> bool:
    """Return whether a file that could not be decoded is truncated."""
    if kind == "PNG":
        return b"IEND" not in data
    if kind == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "JPEG":
        return b"\xff\xd9" not in data
    if kind == "WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if kind == "BMP":
        return len(data) < int.from_bytes(data[2:6], "little")
    return _tiff_is_truncated(data)


def _tiff_tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
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
        tags = _tiff_tags(data)
        ends = [
            offset + count
            for offsets, counts in ((273, 279), (324, 325))
            for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        ]
    except EOFError:
        return True
    except _DECODER_ERRORS:
        return False
    return any(end > len(data) for end in ends)

"""Decode image files to RGB pixels, or to an error code with the reason.

The header is read first, and no pixel before the limits are checked. These rules are the contract of `images`:

- JPEG, PNG, WebP, BMP, GIF and TIFF, recognized by their content; names mean nothing. Of an animation, a
  multi-page TIFF or a multi-picture JPEG, the first picture is decoded.
- EXIF orientation is applied before any width or height is reported (without EXIF, XMP's orientation, as Pillow
  does it). Values outside of 1..8 and EXIF that cannot be parsed are ignored.
- One bit becomes 0 and 255; grey is repeated; palette indices become their colours; CMYK, YCbCr, HSV and LAB are
  converted by Pillow. Alpha is dropped: colours stay as stored, whatever others blend them with. Colour profiles
  are not applied.
- 16-bit grey is scaled by round(v / 257), TIFF's 12-bit grey likewise from 4095. Where all of it lies in the lowest
  sixteenth of its range, as 12-bit values in a 16-bit file do, it would be black: `unsupported_pixels`. (PNG's
  sBIT changes nothing: it records the bits of values that have been scaled up since.) PNG's 16-bit colours
  keep their high byte, under the same condition.
- Float, 32-bit and signed pixels, and TIFFs of several bands beyond 8 bits, mean nothing without a stated
  scaling: `unsupported_pixels`. GeoTIFFs with such pixels are for the raster mode.
- Damage that the decoder does not notice (bytes changed inside a JPEG's scan) is not detected.
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
from .sniff import format_of, kind_of_text, webp_size

# Pillow logs some refusals as errors, which Python prints where no logging is set up.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_PLUGINS: Final[dict[str, Any]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

_BROKEN: Final = (
    OSError,  # the decoders' own error, and UnidentifiedImageError
    SyntaxError,  # Pillow's error for an invalid header
    ValueError,  # sizes and offsets that contradict each other; undecodable text
    TypeError,  # a tag that holds a tuple where a number belongs
    LookupError,  # indices and tags that point nowhere
    ArithmeticError,  # a resolution divided by zero; sizes beyond C's
    EOFError,  # a missing frame
    AttributeError,  # a chunk that should have come earlier
    NotImplementedError,  # a TIFF feature
    RuntimeError,  # a decoder in an unexpected state
    AssertionError,  # Pillow's checks
    struct.error,  # a header cut short
    zlib.error,  # a PNG's or a TIFF's compressed text
)
"""All that Pillow was observed to raise on mutated files."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest image that is decoded."""

    max_pixels: int
    """Width times height."""
    max_bytes: int
    """Size of the file."""
    max_aspect: float
    """Ratio of the long side to the short side."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image, upright."""

    pixels: Pixels
    """(height, width, 3), RGB, uint8, C-contiguous."""
    exif_orientation: int | None
    """The value in the file, 1 to 8; it has been applied."""


class _Quiet:
    """Suppress Pillow's warnings while any thread decodes.

    `warnings.catch_warnings` alone changes a state that all threads share: the last to leave would restore
    what the first had set.
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


_quiet: Final = _Quiet()


def decode_image(data: bytes, limits: Limits) -> DecodedImage:
    """Decode an image by the rules above. Any number of threads may decode at once.

    Raises:
        ItemError: `empty_file`, `too_many_bytes`, `not_an_image`, `unsupported_format`, `unsupported_pixels`,
            `truncated`, `corrupt`, `too_many_pixels`, `aspect`, `out_of_memory`.
    """
    if not data:
        raise ItemError("empty_file", "zero bytes")
    if len(data) > limits.max_bytes:
        raise ItemError("too_many_bytes", f"{len(data)} bytes, more than the limit of {limits.max_bytes}")
    kind = format_of(data)
    _raise_pillows_guard(limits.max_pixels)
    with _quiet:
        try:
            image, orientation, turned = _load(data, kind, limits)
        except Image.DecompressionBombError as error:
            raise _bomb(kind, data, limits) from error
        except MemoryError as error:
            raise ItemError("out_of_memory", f"{kind}: not enough memory to decode it") from error
        except _BROKEN as error:
            raise _broken(kind, data, error) from error
        pixels = _rgb(image)
    if kind == "PNG" and _has_16_bit_colors(data) and 0 < int(pixels.max()) < 16:
        raise _unsupported(kind, "16-bit colours that use only the lowest part of their range")
    return DecodedImage(pixels if turned else _upright(pixels, orientation), orientation)


def image_size(file: BinaryIO, limits: Limits) -> tuple[int, int]:
    """Return the height and width that `decode_image` will return, from the header alone.

    An orientation stored after the pixels, as a PNG or a WebP may have it, is not seen.

    Raises:
        ItemError: as `decode_image`, as far as the header shows it.
    """
    head = file.read(1024)
    kind = format_of(head)
    _raise_pillows_guard(limits.max_pixels)
    if kind == "WEBP":
        _check_canvas(head, limits)
    file.seek(0)
    with _quiet:
        try:
            image = Image.open(file, formats=(kind,))
            _check_size(image, limits)
            turned = not isinstance(image, TiffImagePlugin.TiffImageFile) and _headers_orientation(image) in (
                5,
                6,
                7,
                8,
            )
        except Image.DecompressionBombError as error:
            raise ItemError(
                "too_many_pixels", f"{kind}: more than the limit of {limits.max_pixels}"
            ) from error
        except _BROKEN as error:
            file.seek(0)
            raise _broken(kind, file.read(), error) from error
    width, height = image.size
    return (width, height) if turned else (height, width)


def _raise_pillows_guard(max_pixels: int) -> None:
    # Pillow refuses more than twice this, in the whole process. It must not prevent a larger limit of
    # this project, and is kept for a smaller one. It only ever rises, so threads need no lock.
    half = (max_pixels + 1) // 2
    if Image.MAX_IMAGE_PIXELS is not None and half > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = half


def _load(data: bytes, kind: str, limits: Limits) -> tuple[Image.Image, int | None, bool]:
    """Return the first picture with its pixels, its EXIF orientation, and whether Pillow has applied that."""
    if kind == "WEBP":
        _check_canvas(data, limits)
    image = Image.open(BytesIO(data), formats=(kind,))
    _check_size(image, limits)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, limits)
        # Pillow rotates a TIFF upright as it loads it, and drops the tag.
        orientation = _valid(_numbers(image.tag_v2, _ORIENTATION, 0)[0])
        image.load()
        return image, orientation, True
    image.load()
    return image, _exif_orientation(image), False


def _check_canvas(webp: bytes, limits: Limits) -> None:
    """Refuse a WebP before it is opened, for which Pillow allocates eight bytes for each pixel of the canvas."""
    if (size := webp_size(webp)) is not None and size[0] * size[1] > limits.max_pixels:
        # Its EXIF is at the end of the file: this size is as stored.
        why = f"{size[0]} x {size[1]} pixels, more than the limit of {limits.max_pixels}"
        raise ItemError("too_many_pixels", why, width=size[0], height=size[1])


def _check_size(image: Image.Image, limits: Limits) -> None:
    """Refuse an opened image by its header."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ItemError("corrupt", f"its header states {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise _refused("too_many_pixels", image, f", more than the limit of {limits.max_pixels}")
    if max(image.size) > limits.max_aspect * min(image.size):
        raise _refused("aspect", image, f", longer than 1 : {limits.max_aspect:g}")


def _refused(code: str, image: Image.Image, why: str) -> ItemError:
    """Return the error of an image of which only the header was read, with its size, upright."""
    width, height = image.size
    if not isinstance(image, TiffImagePlugin.TiffImageFile) and _headers_orientation(image) in (5, 6, 7, 8):
        # Pillow has swapped the size of a TIFF already.
        width, height = height, width
    what = f"{width} x {height} pixels{why}"
    if max(width, height) >= 2**31:  # more than the tables' columns can hold; no such image exists
        return ItemError(code, what)
    return ItemError(code, what, width=width, height=height)


def _bomb(kind: str, data: bytes, limits: Limits) -> ItemError:
    """Return the error of an image that Pillow finds too large, with its size if the header states it."""
    try:
        _check_size(_PLUGINS[kind](BytesIO(data)), limits)
    except ItemError as error:
        return error
    except (Image.DecompressionBombError, *_BROKEN):
        pass
    return ItemError("too_many_pixels", f"{kind}: more than the limit of {limits.max_pixels}")


# TIFF

_ORIENTATION: Final = 274
_UNSIGNED: Final = 1


def _numbers(tags: Any, tag: int, default: int) -> tuple[Any, ...]:
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) and value else (value,)


def _unscaled(tags: Any) -> str | None:
    """Return a description of a TIFF that Pillow would refuse, or open with wrong colours; None for others."""
    bits = max(_numbers(tags, TiffImagePlugin.BITSPERSAMPLE, 1))
    bands = _numbers(tags, TiffImagePlugin.SAMPLESPERPIXEL, 1)[0]
    signed = any(kind != _UNSIGNED for kind in _numbers(tags, TiffImagePlugin.SAMPLEFORMAT, _UNSIGNED))
    if signed or bits > 16 or bands > 6 or (bands > 1 and bits > 8):
        return f"TIFF of {bands} bands of {bits} bits{', not unsigned integers' if signed else ''}"
    return None


def _check_tiff(image: TiffImagePlugin.TiffImageFile, limits: Limits) -> None:
    if (what := _unscaled(image.tag_v2)) is not None:
        raise _unsupported("TIFF", what)
    # A small image may be one corner of a huge block.
    block = [
        _numbers(image.tag_v2, tag, 1)[0] for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
    ]
    if block[0] * block[1] > limits.max_pixels:
        raise _refused("too_many_pixels", image, f" in a TIFF of blocks of {block[0]} x {block[1]}")


def _unsupported(kind: str, what: str) -> ItemError:
    advice = "convert it to 8 bits with a scaling of your choice"
    if kind == "TIFF":
        advice += "; GeoTIFFs are read by the raster mode, with a stated scaling"
    return ItemError("unsupported_pixels", f"{what}; {advice}")


# Colours


def _rgb(image: Image.Image) -> Pixels:
    """Return a loaded image's colours, (height, width, 3) uint8."""
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
    """Return whether a PNG's header states 16 bits per channel, and more than grey: colours or alpha."""
    return png[24] == 16 and png[25] != 0


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Return 16-bit grey, or TIFF's 12-bit, scaled to 8 bits: (height, width)."""
    white, inverted = 65_535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** int(_numbers(image.tag_v2, TiffImagePlugin.BITSPERSAMPLE, 16)[0]) - 1
        # Where zero is white, Pillow inverts up to 8 bits, but not more.
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
    except _BROKEN:
        return None


def _headers_orientation(image: Image.Image) -> int | None:
    """Return the orientation stored before the pixels; `getexif` of a PNG would decode them."""
    try:
        return _valid(Image.Image.getexif(image).get(_ORIENTATION))
    except _BROKEN:
        return None


def _upright(pixels: Pixels, orientation: int | None) -> Pixels:
    """Undo an EXIF orientation. Reference: CIPA DC-008, tag 274: the positions of row 0 and column 0."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# Refusals


def _broken(kind: str, data: bytes, error: Exception) -> ItemError:
    """Return the error of a file that Pillow could not decode."""
    reason: BaseException = error
    # Two letters are weak evidence of a bitmap.
    if kind == "BMP" and (text := kind_of_text(data)) is not None:
        return ItemError("not_an_image", f"the content is {text}")
    if isinstance(error, UnidentifiedImageError):
        # `open` does not pass the plugin's reason on.
        try:
            _PLUGINS[kind](BytesIO(data))
        except _BROKEN as inner:
            reason = inner
        if kind == "TIFF":
            with contextlib.suppress(*_BROKEN):
                what = _unscaled(_tiff_tags(data))
                if what is not None or str(reason) == "unknown pixel mode":
                    return _unsupported(kind, what or "TIFF of a kind of pixels that Pillow does not know")
    words = str(reason).replace("decoder error -2", "libtiff refused it") or type(reason).__name__
    early = "runcated" in words or _ends_early(kind, data)
    return ItemError("truncated" if early else "corrupt", f"{kind}: {words}")


def _ends_early(kind: str, data: bytes) -> bool:
    """Return whether the end of a file that could not be decoded is missing."""
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
    return _tiff_ends_early(data)


def _tiff_tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return the first directory. Raises EOFError where it lies beyond the end."""
    big = data[2:4] in (b"+\0", b"\0+")
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
    if tags.next >= len(data):
        raise EOFError
    file = BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _tiff_ends_early(data: bytes) -> bool:
    """Return whether the directory, or a strip or tile that it lists, lies beyond the end."""
    try:
        tags = _tiff_tags(data)
        ends = [
            offset + count
            for offsets, counts in ((273, 279), (324, 325))
            for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        ]
    except EOFError:
        return True
    except _BROKEN:
        return False
    return any(end > len(data) for end in ends)

"""Decode image bytes to RGB pixels, or raise an error code that states the cause.

The header is read first, and no pixel is decoded before the limits are checked. The rules, which are part of the
contract of the table `images`:

- JPEG, PNG, WebP, AVIF, JPEG 2000, BMP, GIF and TIFF, HEIC with the extra heif, and JPEG XL with the extra jxl, are
  recognized by their content; file names are ignored. Of an animation, a multi-page TIFF or a multi-picture JPEG, the
  first picture is decoded, of AVIF and HEIC the primary one. A preview is never the picture: where the first directory
  of a TIFF is marked as a version with fewer pixels, the full picture is decoded, and a camera's raw file is
  `unsupported_format`.
- The EXIF orientation is applied before any width or height is reported (without EXIF, the orientation in XMP is used,
  as in Pillow). Values outside 1..8 and EXIF that cannot be parsed are ignored. AVIF and HEIC are turned as their
  container says, and the orientation in their EXIF is ignored, as their standard asks: `exif_orientation` is then the
  value that turns an AVIF in the same way, and None of a HEIC, whose decoder has turned the pixels. JPEG XL is turned
  by the orientation in its header.
- 1-bit pixels become 0 and 255; grey is repeated in the three channels; palette indices become the colours of the
  palette; CMYK, YCbCr, HSV and LAB are converted by Pillow. Alpha is dropped: colours are kept as stored and are not
  blended. (Of a TIFF and a JPEG XL, colours that are stored multiplied by alpha are divided by it.) Colour profiles are
  not applied.
- 16-bit grey is scaled by round(v / 257), 12-bit grey of a TIFF in the same way from 4095. If all values lie in the
  lowest sixteenth of the range, as 12-bit values in a 16-bit file do, the image would be black: `unsupported_pixels`.
  (PNG's sBIT is ignored: it states the original number of bits of values that are already scaled up. The values of a
  grey JPEG 2000 are scaled up from the number of bits that it states.) 16-bit colours of a PNG keep their high byte,
  under the same condition. AVIF and HEIC of 10 or 12 bits are scaled by their decoders. Grey and colours of a JPEG XL
  are scaled from the number of bits that it states, up to 16, and rounded; of 16 bits, under the same condition.
- Float, 32-bit and signed pixels, and TIFFs and JPEG 2000s with several bands of more than 8 bits, cannot be converted
  without a stated scaling: `unsupported_pixels`. GeoTIFFs with such pixels are read by the raster mode.
- Metadata never cost the picture: where text, profiles or EXIF of a JPEG, a PNG, a WebP or a TIFF keep it from being
  opened, it is read without them, turned by their orientation if that can be found.
- A JPEG or a JPEG 2000 that lacks only its end marker is read; one whose last pixel is missing is `truncated`.
- Zeros in place of the end of a JPEG, WebP, AVIF, HEIC or JPEG XL, as a download leaves them that reserved its space
  first, are `truncated`, where they cannot be flat pixels; in the middle of a file also, but for WebP and JPEG XL.
- The pixels of a sound JPEG come from simplejpeg, and are those of Pillow; Pillow decodes what simplejpeg objects to.
- Damage that the decoder does not detect (bytes changed inside a JPEG's scan) is not reported.
"""

import contextlib
import functools
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType
from typing import Any, BinaryIO, Final

from PIL import Image, TiffImagePlugin, features

from ..errors import ItemError
from ..io.refusals import Refusal
from ..types import Pixels
from .decode_errors import (
    DECODER_ERRORS,
    JPEG2000_COLORS,
    PLUGINS,
    decoding_error,
    name_of,
    numbers,
    tiff_tags,
    unsupported_bands,
    unsupported_pixels,
)
from .formats import jpeg2000, jpeg_metadata, jpeg_scan, jpeg_xl, png_chunks, webp_chunks
from .formats.jpeg_pixels import sound_pixels
from .formats.pillow_colors import rgb_of
from .formats.sniff import format_of
from .formats.tiff_directory import SUSPICIOUS, full_picture, pointing_to, reader_of, without_metadata
from .formats.tiff_planes import interleaved
from .formats.zero_runs import has_zeros, shortened_webps
from .orientation import ORIENTATION, upright, valid_orientation

# Pillow logs some unreadable files as errors, which Python prints if logging is not configured.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_CODECS: Final = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""The formats whose codec may be missing in a build of Pillow, and Pillow's name of it."""
_EXTRAS: Final = {"HEIF": "heif", "JPEGXL": "jxl"}
"""The formats that are read with an extra alone, and its name."""
_HEADER_BYTES: Final = 2**16


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
        raise Refusal.EMPTY.error()
    if len(data) > limits.max_bytes:
        raise Refusal.TOO_MANY_BYTES.error(count=len(data), limit=limits.max_bytes)
    kind = format_of(data)
    _check_available(kind, data)
    _raise_pillow_limit(limits.max_pixels)
    with _suppressed_warnings:
        try:
            picture = _load_or_repair(data, kind, limits)
        except Image.DecompressionBombError as error:
            raise _bomb_error(kind, data, limits) from error
        except MemoryError as error:
            raise Refusal.NO_MEMORY.error(format=name_of(kind)) from error
        pixels = rgb_of(picture.image) if picture.pixels is None else picture.pixels
    if kind == "PNG" and png_chunks.has_16_bit_colors(data) and 0 < int(pixels.max()) < 16:
        raise unsupported_pixels(kind, "16-bit colours that use only the lowest part of their range")
    return DecodedImage(upright(pixels, picture.to_apply), picture.orientation)


def image_size(file: BinaryIO, limits: Limits, *, ignore_coordinates: bool = False) -> tuple[int, int]:
    """Return the height and width that `decode_image` will return, from the header alone.

    An orientation that is stored after the pixels, which PNG and WebP allow, is not taken into account.

    Args:
        file: an open file with random access.
        limits: as for `decode_image`.
        ignore_coordinates: whether to accept a JPEG 2000 that has coordinates, which are not read.

    Raises:
        ItemError: as `decode_image`, for the errors that the header shows; `unsupported_format` also for a JPEG 2000
            with coordinates.
    """
    head = file.read(_HEADER_BYTES)
    kind = format_of(head[:1024])
    _check_available(kind, head)
    _raise_pillow_limit(limits.max_pixels)
    if kind == "WEBP":
        _check_canvas(head, limits)
    if kind == "JPEG2000" and not ignore_coordinates and jpeg2000.has_coordinates(head):
        raise Refusal.GEOREFERENCED_JPEG_2000.error()
    file.seek(0)
    with _suppressed_warnings:
        try:
            image = Image.open(file, formats=(kind,))
            _check_size(image, limits)
            width, height = _upright_size(image)
        except Image.DecompressionBombError as error:
            raise Refusal.TOO_MANY_PIXELS_UNKNOWN.error(
                format=name_of(kind), limit=limits.max_pixels
            ) from error
        except DECODER_ERRORS as error:
            file.seek(0)
            data = file.read()
            for readable in _repaired(kind, data):
                with contextlib.suppress(*DECODER_ERRORS):
                    return image_size(BytesIO(readable), limits, ignore_coordinates=True)
            raise decoding_error(kind, data, error) from error
    return height, width


def _raise_pillow_limit(max_pixels: int) -> None:
    # Pillow rejects images of more than twice this number of pixels, in the whole process. It must not be below
    # `max_pixels`; a smaller `max_pixels` leaves it unchanged. It only increases, so threads need no lock.
    half = (max_pixels + 1) // 2
    if Image.MAX_IMAGE_PIXELS is not None and half > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = half


def _check_available(kind: str, data: bytes) -> None:
    """Check that a format can be read with what is installed. Raises ItemError."""
    if kind in _EXTRAS and not _is_readable(kind):
        raise Refusal.NEEDS_EXTRA.error(format=name_of(kind), extra=_EXTRAS[kind])
    if kind in _CODECS and not _has_codec(_CODECS[kind]):
        raise Refusal.NEEDS_PILLOW.error(format=name_of(kind))
    if kind == "JPEG2000":
        if (what := jpeg2000.unsupported_components(data)) is not None:
            raise unsupported_pixels(kind, what)
        if (space := jpeg2000.unknown_color_space(data)) is not None:
            space_name = JPEG2000_COLORS.get(space, "that is not registered")
            raise Refusal.LAYOUT.error(format=name_of(kind), layout=f"in a colour space {space_name}")


@functools.cache
def _has_codec(name: str) -> bool:
    return bool(features.check(name))


def _is_readable(kind: str) -> bool:
    """Register the reader of a format of `_EXTRAS` with Pillow; return whether it is installed."""
    if kind == "JPEGXL":
        return jpeg_xl.register()
    if "HEIF" in Image.OPEN:
        return True
    try:
        import pillow_heif  # noqa: PLC0415 (optional dependency)
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    return True


@dataclass(frozen=True, slots=True)
class _Loaded:
    image: Image.Image
    orientation: int | None
    """As `DecodedImage.exif_orientation`."""
    to_apply: int | None
    """The orientation that is still to be applied; None if Pillow has applied it."""
    pixels: Pixels | None = None
    """(height, width, 3) RGB, where they were decoded without `image`, which is then not loaded."""


def _load_or_repair(data: bytes, kind: str, limits: Limits) -> _Loaded:
    """Load a picture; where that fails, without its metadata, or with an end. Raises ItemError."""
    try:
        return _load(data, kind, limits)
    except DECODER_ERRORS as error:
        for readable in _repaired(kind, data):
            with contextlib.suppress(*DECODER_ERRORS):
                return _load(readable, kind, limits)
        raise decoding_error(kind, data, error) from error


def _repaired(kind: str, data: bytes) -> Iterator[bytes]:
    """Yield a file that could not be decoded with what is missing, or without what is not needed."""
    given = essential = data
    if kind == "PNG":
        essential = png_chunks.without_metadata(data)
    if kind == "WEBP":
        essential = webp_chunks.without_metadata(data)
    if kind == "JPEG2000" and (stop := jpeg2000.complete_length(data)) is not None:
        essential = data[:stop] + jpeg2000.END
    if kind == "JPEG":
        data = jpeg_scan.with_height(data)
        if (stop := jpeg_scan.complete_length(data)) is not None:
            data = data[:stop] + jpeg_scan.END
        essential = jpeg_metadata.without_metadata(data)
    if kind == "TIFF":
        with contextlib.suppress(*DECODER_ERRORS):
            data = interleaved(data, tiff_tags(data))
        essential = without_metadata(data)
    if data is not given:
        yield data
    if essential != data:
        yield essential


def _load(data: bytes, kind: str, limits: Limits) -> _Loaded:
    """Return the first picture, loaded. Raises ItemError, and the exceptions of Pillow."""
    if kind == "TIFF":
        return _load_tiff(data, limits)
    if kind == "WEBP":
        _check_canvas(data, limits)
    image = Image.open(BytesIO(data), formats=(kind,))
    _check_size(image, limits)
    pixels = sound_pixels(data, image) if kind == "JPEG" else None
    if pixels is None:
        image.load()
    # Zeros in place of the rest of a download decode without an error.
    if kind == "JPEG" and jpeg_scan.lacks_end(data):
        if jpeg_scan.complete_length(data) is None:
            raise Refusal.TRUNCATED.error(format="JPEG")
    elif has_zeros(kind, data) or (kind == "WEBP" and _has_unneeded_zeros(data)):
        raise Refusal.ZEROS.error(format=name_of(kind))
    if kind == "HEIF":  # turned by the decoder
        return _Loaded(image, None, None)
    orientation = _exif_orientation(image)
    return _Loaded(image, orientation, orientation, pixels)


def _has_unneeded_zeros(webp: bytes) -> bool:
    """Return whether zeros stand in place of the end of a WebP, see `shortened_webps`."""
    shortened = shortened_webps(webp)
    if shortened is None:
        return False
    most, none = map(_is_decoded, shortened)
    return most and not none


def _is_decoded(webp: bytes) -> bool:
    try:
        Image.open(BytesIO(webp), formats=("WEBP",)).load()
    except DECODER_ERRORS:
        return False
    return True


def _check_canvas(webp: bytes, limits: Limits) -> None:
    """Check the size of a WebP before opening it, which allocates 8 bytes per pixel. Raises ItemError."""
    if (size := webp_chunks.webp_size(webp)) is not None and size[0] * size[1] > limits.max_pixels:
        # The EXIF data is at the end of the file, so this is the size before orientation.
        raise _size_error(Refusal.TOO_MANY_PIXELS, size, limit=limits.max_pixels)


def _check_size(image: Image.Image, limits: Limits) -> None:
    """Check the size in the header of an image that is not loaded yet. Raises ItemError."""
    width, height = image.size
    if width < 1 or height < 1:
        raise Refusal.NO_SIZE.error(format=name_of(str(image.format)), width=width, height=height)
    if width * height > limits.max_pixels:
        raise _size_error(Refusal.TOO_MANY_PIXELS, _upright_size(image), limit=limits.max_pixels)
    if max(image.size) > limits.max_aspect * min(image.size):
        raise _size_error(Refusal.ELONGATED, _upright_size(image), limit=limits.max_aspect)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height after orientation, from the header."""
    width, height = image.size
    # Pillow has already applied the orientation to the size of a TIFF.
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    return (height, width) if not is_tiff and _header_orientation(image) in (5, 6, 7, 8) else (width, height)


def _size_error(refusal: Refusal, size: tuple[int, int], **values: Any) -> ItemError:
    """Return the error for a size above a limit, with the size after orientation."""
    fits = max(size) < 2**31  # larger ones overflow the columns; no real image is that large
    return refusal.error(size=size if fits else None, width=size[0], height=size[1], **values)


def _bomb_error(kind: str, data: bytes, limits: Limits) -> ItemError:
    """Return the error for an image that is too large for Pillow, with its size if the header states it."""
    try:
        _check_size(PLUGINS[kind](BytesIO(data)), limits)
    except ItemError as error:
        return error
    except (Image.DecompressionBombError, *DECODER_ERRORS):
        pass
    return Refusal.TOO_MANY_PIXELS_UNKNOWN.error(format=name_of(kind), limit=limits.max_pixels)


# TIFF


def _load_tiff(data: bytes, limits: Limits) -> _Loaded:
    """Return the full picture of a TIFF, loaded. Raises ItemError, and the exceptions of Pillow."""
    inherited = None
    try:
        image: Any = Image.open(BytesIO(data), formats=("TIFF",))
        several = image.tag_v2.next or SUSPICIOUS & image.tag_v2.keys()
        found = full_picture(reader_of(data)) if several else None
    except DECODER_ERRORS:
        # The first directory may be a preview that Pillow cannot read.
        found = full_picture(reader_of(data))
        if found is None or found.is_first:
            raise
    if found is not None and not found.is_first:
        inherited = valid_orientation(found.orientation)
        image = Image.open(BytesIO(pointing_to(data, found.start)), formats=("TIFF",))
    if image.mode in ("LAB", "La") and numbers(image.tag_v2, TiffImagePlugin.PLANAR_CONFIGURATION, 1)[0] == 2:
        # Pillow treats planes differently from interleaved bands: signed colours, and grey multiplied by alpha.
        one = interleaved(data, image.tag_v2)
        if one is data:
            raise unsupported_pixels(
                "TIFF", "TIFF of CIELab colours, or of grey multiplied by alpha, in compressed planes"
            )
        image = Image.open(BytesIO(one), formats=("TIFF",))
    _check_size(image, limits)
    _check_tiff(image, limits)
    # Pillow applies the orientation of a TIFF when it loads the pixels, and removes the tag.
    orientation = valid_orientation(numbers(image.tag_v2, ORIENTATION, 0)[0])
    image.load()
    return _Loaded(image, inherited or orientation, inherited)


def _check_tiff(image: Any, limits: Limits) -> None:
    if (what := unsupported_bands(image.tag_v2)) is not None:
        raise unsupported_pixels("TIFF", what)
    # A small image may still be part of a huge block.
    width, height = (
        numbers(image.tag_v2, tag, 1)[0] for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
    )
    if width * height > limits.max_pixels:
        raise _size_error(
            Refusal.BLOCK_TOO_LARGE, _upright_size(image), block_width=width, block_height=height
        )


# Orientation


def _exif_orientation(image: Image.Image) -> int | None:
    try:
        return valid_orientation(image.getexif().get(ORIENTATION))
    except DECODER_ERRORS:
        return None


def _header_orientation(image: Image.Image) -> int | None:
    """Return the orientation stored before the pixels; `getexif` of a PNG would decode the pixels to look further."""
    try:
        return valid_orientation(Image.Image.getexif(image).get(ORIENTATION))
    except DECODER_ERRORS:
        return None

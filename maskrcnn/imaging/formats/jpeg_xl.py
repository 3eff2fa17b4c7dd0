"""Read JPEG XL: the header here, the pixels by libjxl, which the package imagecodecs brings.

Everything that decides whether a file is decoded (its size, the numbers of its pixels, its channels) is read from the
header before libjxl sees the file.

Reference: ISO/IEC 18181-1:2024, annexes D (image header) and E.2 (colour encoding); 18181-2, 9 (boxes).
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ...io.refusals import Refusal
from ..orientation import exif_of
from .jpeg2000 import ends_early

KIND: Final = "JPEGXL"
"""The format's name here and among Pillow's; `JXL` is another package's reader, with other pixels."""
_CONTAINER: Final = b"\0\0\0\x0cJXL \r\n\x87\n"
_CODESTREAM: Final = b"\xff\x0a"
_HEADER_BYTES: Final = 2**14
"""Enough for the names of as many channels as are read, which have up to 1,071 bytes."""
_ZEROS: Final = bytes(512)
_MOST_EXTRA: Final = 4
"""Extra channels, which libjxl decodes too: the most that level 5 of the standard allows."""
_MOST_BITS: Final = 16
_GREY, _XYB = 1, 2
_ALPHA, _SPOT, _BLACK, _COLOR_FILTER = 0, 2, 4, 5
_RATIOS: Final = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by the number in the header less one."""

_Choice = tuple[int, int]
"""A number, and the count of the bits whose number is added to it."""
_SIDE: Final[tuple[_Choice, ...]] = ((1, 9), (1, 13), (1, 18), (1, 30))
_ENUM: Final[tuple[_Choice, ...]] = ((0, 0), (1, 0), (2, 4), (18, 6))


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a JPEG XL says of its pixels."""

    width: int
    """Pixels, before orientation."""
    height: int
    orientation: int = 1
    """As in EXIF: 1 to 8."""
    bits: int = 8
    """Of one colour."""
    is_float: bool = False
    extra: tuple[int, ...] = ()
    """The kinds of the channels besides the colours."""
    is_multiplied: bool = False
    """Whether the colours are stored multiplied by alpha."""
    color_space: int = 0
    """0 RGB, 1 grey, 2 XYB, 3 unknown."""


class _Bits:
    """The bits of a codestream, the lowest of a byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Return a number of `count` bits. Raises EOFError."""
        if count > self._left:
            raise EOFError("truncated")
        number = self._value & (1 << count) - 1
        self._value >>= count
        self._left -= count
        return number

    def flag(self) -> bool:
        return self.take(1) == 1

    def one_of(self, *choices: _Choice) -> int:
        """Return a number by two bits that select how it is coded, U32 in the standard."""
        first, count = choices[self.take(2)]
        return first + self.take(count)


def read_header(file: IO[bytes]) -> Header:
    """Return the header of an open file, of which little more is read.

    Raises:
        EOFError: the file ends before its header does.
        SyntaxError: the header is damaged.
    """
    bits = _Bits(_codestream(file))
    if bits.take(16) != int.from_bytes(_CODESTREAM, "little"):
        raise SyntaxError("no codestream of JPEG XL")
    width, height = _size(bits)
    if bits.flag():  # the standard's defaults
        return Header(width, height)
    orientation = 1
    if bits.flag():
        orientation = 1 + bits.take(3)
        if bits.flag():
            _size(bits)  # to be shown at
        if bits.flag():
            _skip_preview(bits)
        if bits.flag():
            _skip_animation(bits)
    depth, is_float = _depth(bits)
    bits.flag()  # whether 16 bits are enough for its decoder
    count = bits.one_of((0, 0), (1, 0), (2, 4), (1, 12))
    if count > _MOST_EXTRA:
        raise Refusal.LAYOUT.error(format="JPEG XL", layout=f"with {count} channels besides its colours")
    channels = [_channel(bits) for _ in range(count)]
    bits.flag()  # whether the colours are coded as XYB
    color_space = 0
    if not bits.flag():
        bits.flag()  # whether there is an ICC profile
        color_space = bits.one_of(*_ENUM)
    return Header(
        *(width, height, orientation, depth, is_float),
        extra=tuple(kind for kind, _ in channels),
        is_multiplied=next((multiplied for kind, multiplied in channels if kind == _ALPHA), False),
        color_space=color_space,
    )


def _codestream(file: IO[bytes]) -> bytes:
    """Return the beginning of the codestream, which a container may hold in parts. Raises EOFError, SyntaxError."""
    head = file.read(len(_CONTAINER))
    if _CONTAINER.startswith(head) and head != _CONTAINER:
        raise EOFError("truncated")
    if not head.startswith(_CONTAINER):
        return head + file.read(_HEADER_BYTES)
    found, at = b"", len(_CONTAINER)
    while len(found) < _HEADER_BYTES:
        file.seek(at)
        box = file.read(16)
        if len(box) < 8:
            break
        size, kind = struct.unpack_from(">I4s", box)
        start = at + 8
        if size == 1 and len(box) == 16:
            [size] = struct.unpack_from(">Q", box, 8)
            start = at + 16
        if size and at + size < start:
            raise SyntaxError("a box that is smaller than its header")
        if kind in (b"jxlc", b"jxlp"):
            file.seek(start + (4 if kind == b"jxlp" else 0))  # after the number of a part
            rest = at + size - file.tell() if size else _HEADER_BYTES
            found += file.read(max(min(rest, _HEADER_BYTES), 0))
        if kind == b"jxlc" or size == 0:
            break
        at += size
    return found


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.flag()
    height = 8 * (1 + bits.take(5)) if is_small else bits.one_of(*_SIDE)
    if ratio := bits.take(3):
        across, along = _RATIOS[ratio - 1]
        return height * across // along, height
    return (8 * (1 + bits.take(5)) if is_small else bits.one_of(*_SIDE)), height


def _skip_preview(bits: _Bits) -> None:
    side: tuple[_Choice, ...] = ((1, 6), (65, 8), (321, 10), (1345, 12))
    if bits.flag():
        side = ((16, 0), (32, 0), (1, 5), (33, 9))
    bits.one_of(*side)
    if not bits.take(3):
        bits.one_of(*side)


def _skip_animation(bits: _Bits) -> None:
    bits.one_of((100, 0), (1000, 0), (1, 10), (1, 30))
    bits.one_of((1, 0), (1001, 0), (1, 8), (1, 10))
    bits.one_of((0, 0), (0, 3), (0, 16), (0, 32))
    bits.flag()


def _depth(bits: _Bits) -> tuple[int, bool]:
    """Return the bits of a number, and whether it is a float."""
    if not bits.flag():
        return bits.one_of((8, 0), (10, 0), (12, 0), (1, 6)), False
    depth = bits.one_of((32, 0), (16, 0), (24, 0), (1, 6))
    bits.take(4)
    return depth, True


def _channel(bits: _Bits) -> tuple[int, bool]:
    """Return the kind of an extra channel, and whether the colours are multiplied by it."""
    if bits.flag():
        return _ALPHA, False
    kind = bits.one_of(*_ENUM)
    _depth(bits)
    bits.one_of((0, 0), (3, 0), (4, 0), (1, 3))
    bits.take(8 * bits.one_of((0, 0), (0, 4), (16, 5), (48, 10)))
    if kind == _SPOT:
        bits.take(4 * 16)
    if kind == _COLOR_FILTER:
        bits.one_of((1, 0), (0, 2), (3, 4), (19, 8))
    return kind, bits.flag() if kind == _ALPHA else False


def is_cut_short(data: bytes) -> bool:
    """Return whether a container's box extends beyond the end of a file, or zeros stand in place of its end."""
    return data.endswith(_ZEROS) or (data.startswith(_CONTAINER) and ends_early(data))


class JpegXlFile(ImageFile.ImageFile):
    """Pillow's picture of a JPEG XL: grey or colours of 8 bits, with alpha only where they are multiplied by it.

    Opening it raises `ItemError` where its pixels are not of a kind that is read; loading it does where they are dark.
    """

    format = KIND
    format_description = "JPEG XL"

    def _open(self) -> None:
        self._header = read_header(cast(IO[bytes], self.fp))
        _check(self._header)
        self._size = self._header.width, self._header.height
        self._mode = "L" if self._header.color_space == _GREY else "RGB"
        if self._header.is_multiplied:
            self._mode = {"L": "La", "RGB": "RGBa"}[self._mode]
        if self._header.orientation != 1:
            self.info["exif"] = exif_of(self._header.orientation)
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self._mode)]  # noqa: SLF001 (as Pillow's readers do)

    def load(self) -> Any:
        """Decode the pixels, once. Raises ItemError, OSError, RuntimeError, ValueError, MemoryError."""
        if self.tile:
            file = cast(IO[bytes], self.fp)
            file.seek(0)
            values = _decoded(file.read(), self._header)
            self.fp = BytesIO(_of_8_bits(values, self._header).tobytes())
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Do nothing: the pixels begin where the file of decoded pixels does."""


def register() -> bool:
    """Register the reader of JPEG XL with Pillow; return whether what decodes its pixels is installed."""
    if KIND in Image.OPEN:
        return True
    try:
        import imagecodecs  # noqa: PLC0415 (optional dependency)
    except ImportError:
        return False
    if not imagecodecs.JPEGXL.available:
        return False
    Image.register_open(KIND, JpegXlFile, lambda head: head.startswith((_CODESTREAM, _CONTAINER)))
    return True


def _check(header: Header) -> None:
    """Check that the pixels are of a kind that is read. Raises ItemError."""
    if header.is_float or header.bits > _MOST_BITS:
        numbers = "floats" if header.is_float else "integers"
        raise Refusal.PIXELS.error(what=f"JPEG XL of {header.bits}-bit {numbers}")
    for kind, layout in ((_BLACK, "of inks (CMYK)"), (_COLOR_FILTER, "of a camera's raw pixels")):
        if kind in header.extra:
            raise Refusal.LAYOUT.error(format="JPEG XL", layout=layout)
    if header.color_space == _XYB:
        raise Refusal.LAYOUT.error(format="JPEG XL", layout="in the colour space XYB")


def _decoded(data: bytes, header: Header) -> NDArray[Any]:
    """Return the first frame as it is stored: (height, width, 1 to 4), alpha only where it is needed."""
    import imagecodecs  # noqa: PLC0415 (optional dependency)

    try:
        values: NDArray[Any] = imagecodecs.jpegxl_decode(data, index=0, keeporientation=True, numthreads=1)
    except RuntimeError as error:
        if "NEED_MORE_INPUT" in str(error):
            raise OSError("truncated") from error
        # libjxl reports memory that it lacks as damage: what it needs for these pixels is tried here.
        np.empty((header.height, header.width, 3 + len(header.extra), 5 + header.bits // 8), np.uint8)
        raise
    has_colors = header.color_space != _GREY
    if values.ndim == 2:
        values = values[..., None]
    elif not has_colors and header.extra and _ALPHA not in header.extra:
        values = values[0, ..., None]  # in planes
    if values.shape[:2] != (header.height, header.width) or values.dtype.kind != "u":
        raise ValueError("other pixels than the header states")
    return values[..., : (3 if has_colors else 1) + header.is_multiplied]


def _of_8_bits(values: NDArray[Any], header: Header) -> NDArray[np.uint8]:
    """Return decoded values scaled to 8 bits, rounded. Raises ItemError."""
    white = 2**header.bits - 1
    if header.bits == 16 and 0 < (largest := int(values.max())) <= white // 16:
        raise Refusal.PIXELS.error(
            what="JPEG XL of 16-bit integers that use only the lowest part of their range "
            f"(maximum {largest} of {white})"
        )
    if header.bits == 8:
        return values.astype(np.uint8, copy=False)
    scale = ((np.arange(white + 1, dtype=np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    scaled: NDArray[np.uint8] = scale[values]
    return scaled

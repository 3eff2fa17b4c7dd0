"""Find the full picture of a TIFF: the first directory of a camera's raw file, or of a pyramid, may be a preview.

Reference: TIFF 6.0, section 2, and tags 254 and 255; TIFF supplement 1 (tag 330, SubIFDs); BigTIFF; DNG 1.7.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...errors import ItemError
from ...io.refusals import Refusal

ReadAt = Callable[[int, int], bytes]
"""Return up to `count` bytes from `start`: fewer at the end of the file."""

NEW_SUBFILE_TYPE: Final = 254
OLD_SUBFILE_TYPE: Final = 255
COMPRESSION: Final = 259
SUB_DIRECTORIES: Final = 330
DNG_VERSION: Final = 50706
SUSPICIOUS: Final = frozenset([NEW_SUBFILE_TYPE, OLD_SUBFILE_TYPE, SUB_DIRECTORIES, DNG_VERSION])
"""Tags without any of which the only directory is the picture."""

PHOTOMETRIC: Final = 262
ORIENTATION: Final = 274
EXTRA_SAMPLES: Final = 338

_WIDTH, _HEIGHT, _MAKE = 256, 257, 271
_REDUCED: Final = 0b1
_NO_PICTURE: Final = 0b1101  # reduced, a transparency mask, or a depth map
_RAW_COLORS: Final = frozenset([32803, 34892])  # a colour filter array, linear raw
_RAW_CODECS: Final = frozenset([32767, 32769, 32770, 32867, 34713, 65535])
_RAW_NAMES: Final = {
    "nikon": "Nikon NEF",
    "sony": "Sony ARW",
    "canon": "Canon CR2",
    "pentax": "Pentax PEF",
    "ricoh": "Pentax PEF",
    "samsung": "Samsung SRW",
    "hasselblad": "Hasselblad 3FR",
    "kodak": "Kodak DCR",
    "eastman": "Kodak DCR",
    "epson": "Epson ERF",
    "phase": "Phase One IIQ",
    "leaf": "Leaf MOS",
    "mamiya": "Mamiya MEF",
}
_OF_PIXELS: Final = frozenset(
    [
        *range(256, 260),  # size, bits, compression
        *(262, 266, 273, ORIENTATION, 277, 278, 279, 284, 292, 293, 317, 320),
        *range(322, 326),  # tiles
        *(332, EXTRA_SAMPLES, 339, 347, 529, 530, 532),
        *range(512, 522),  # old-style JPEG
    ]
)
NUMBERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""The struct format of the types of whole numbers."""
_TEXT: Final = frozenset([2, 7])
_WANTED: Final = SUSPICIOUS | {_WIDTH, _HEIGHT, COMPRESSION, PHOTOMETRIC, _MAKE, ORIENTATION, EXTRA_SAMPLES}
_MOST_DIRECTORIES: Final = 64
_MOST_UNMARKED: Final = 4
"""A camera puts its sensor's values behind few previews; a document may have thousands of pages."""
_MOST_VALUES: Final = 64
_MOST_ENTRIES: Final = 4096


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory of a TIFF, which describes one picture; values that are not whole numbers are left out."""

    start: int
    """Its position in the file, in bytes."""
    after: int
    """The position of the next directory; 0 after the last one."""
    tags: dict[int, tuple[int, ...]]
    make: str
    """The maker of the camera, in lower case."""

    def first(self, tag: int, default: int = 0) -> int:
        """Return the first value of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def is_reduced(self) -> bool:
        """Whether it is marked as a version of another picture with fewer pixels."""
        return bool(self.first(NEW_SUBFILE_TYPE) & _REDUCED) or self.first(OLD_SUBFILE_TYPE) == 2

    @property
    def is_picture(self) -> bool:
        """Whether it is marked neither as reduced nor as a mask."""
        return not (self.is_reduced or self.first(NEW_SUBFILE_TYPE) & _NO_PICTURE)

    @property
    def is_raw(self) -> bool:
        """Whether its pixels are a sensor's values, which are no colours yet."""
        return self.first(PHOTOMETRIC) in _RAW_COLORS or self.first(COMPRESSION) in _RAW_CODECS

    @property
    def size(self) -> int:
        """The number of pixels."""
        return self.first(_WIDTH) * self.first(_HEIGHT)


@dataclass(frozen=True, slots=True)
class FullPicture:
    """Where the full picture of a TIFF is."""

    start: int
    """The position of its directory in the file, in bytes."""
    is_first: bool
    """Whether it is the first directory, which all libraries read."""
    orientation: int | None
    """The orientation that the directory inherits from the first one; None if it has its own, or neither has one."""
    directory: Directory
    """The directory itself."""


def full_picture(read_at: ReadAt) -> FullPicture | None:
    """Return where the full picture of a TIFF is; None if its directories cannot be read.

    It is the first directory, unless that is marked as reduced, or one of its sub-directories is a larger picture.
    Where a larger directory has a sensor's values, the first one is the preview of a camera's raw file, marked or not.

    Raises:
        ItemError: `unsupported_format`: all that can be read is a preview, or it is a camera's raw file.
    """
    first = _first(read_at)
    if first is None:
        return None
    found = first
    marked = bool(first.tags.keys() & SUSPICIOUS)
    others = (
        _others(read_at, first, _MOST_DIRECTORIES if marked else _MOST_UNMARKED)
        if first.after or marked
        else []
    )
    if any(directory.is_raw and directory.size > first.size for directory in others):
        raise _raw(first)
    if marked:
        pictures = [directory for directory in others if directory.is_picture]
        children = [d for d in pictures if d.start in first.tags.get(SUB_DIRECTORIES, ())]
        if not first.is_picture:
            if not pictures:
                raise Refusal.PREVIEW.error() if first.first(DNG_VERSION) == 0 else _raw(first)
            found = max(children, key=lambda directory: directory.size, default=pictures[0])
        else:
            found = max([first, *children], key=lambda directory: directory.size)
    if found.is_raw:
        raise _raw(first)
    own = found is first or ORIENTATION in found.tags
    return FullPicture(found.start, found is first, None if own else first.first(ORIENTATION) or None, found)


def pointing_to(data: bytes, start: int) -> bytes:
    """Return a TIFF whose header names the directory at `start` as the first one."""
    order = "<" if data[:2] == b"II" else ">"
    if 43 in data[2:4]:
        return data[:8] + struct.pack(f"{order}Q", start) + data[16:]
    return data[:4] + struct.pack(f"{order}I", start) + data[8:]


def without_metadata(data: bytes) -> bytes:
    """Return a TIFF whose only directory has the tags of the full picture that describe its pixels.

    Raises:
        ItemError: as `full_picture`.
    """
    layout, picture = layout_of(data[:16]), full_picture(reader_of(data))
    if layout is None or picture is None:
        return data
    start, (_, order, big) = picture.start, layout
    head, each, link = (8, 20, 8) if big else (2, 12, 4)
    count = int.from_bytes(data[start : start + head], "little" if order == "<" else "big")
    table = data[start + head : start + head + min(count, _MOST_ENTRIES) * each]
    entries = [table[at : at + each] for at in range(0, len(table) - each + 1, each)]
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _OF_PIXELS]
    directory = struct.pack(order + ("Q" if big else "H"), len(kept)) + b"".join(kept) + bytes(link)
    padding = bytes(len(data) % 2)
    return pointing_to(data, len(data) + len(padding)) + padding + directory


def reader_of(data: bytes) -> ReadAt:
    """Return a function that reads bytes in memory."""
    return lambda start, count: data[start : start + count]


def compression_of(read_at: ReadAt) -> int | None:
    """Return the value of tag 259 of the first directory; None if it cannot be read."""
    first = _first(read_at)
    return None if first is None else first.first(COMPRESSION, 1)


def _first(read_at: ReadAt) -> Directory | None:
    """Return the first directory; None if it cannot be read."""
    layout = layout_of(read_at(0, 16))
    if layout is None:
        return None
    start, order, big = layout
    try:
        return _directory(read_at, start, order, big=big)
    except (LookupError, struct.error):
        return None


def layout_of(header: bytes) -> tuple[int, str, bool] | None:
    """Return where the first directory is, the byte order, and whether it is a BigTIFF; None if it is no TIFF."""
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    big = 43 in header[2:4]
    if order is None or len(header) < (16 if big else 8):
        return None
    start = struct.unpack_from(f"{order}Q", header, 8) if big else struct.unpack_from(f"{order}I", header, 4)
    return start[0], order, big


def _raw(first: Directory) -> ItemError:
    if DNG_VERSION in first.tags:
        name = "DNG"
    else:
        name = next(
            (name for make, name in _RAW_NAMES.items() if first.make.startswith(make)),
            "TIFF of a sensor's values",
        )
    return Refusal.RAW_PHOTO.error(format=name)


def _others(read_at: ReadAt, first: Directory, most: int) -> list[Directory]:
    """Return the sub-directories of the first directory, then those that follow it, each with its own."""
    _, order, big = layout_of(read_at(0, 16)) or (0, "<", False)
    found: list[Directory] = []
    visited = {first.start}
    queue = [*first.tags.get(SUB_DIRECTORIES, ()), first.after]
    while queue and len(found) < most:
        start = queue.pop(0)
        if not start or start in visited:
            continue
        visited.add(start)
        try:
            directory = _directory(read_at, start, order, big=big)
        except (LookupError, struct.error):
            continue
        found.append(directory)
        queue = [*directory.tags.get(SUB_DIRECTORIES, ()), directory.after, *queue]
    return found


def _directory(read_at: ReadAt, start: int, order: str, *, big: bool) -> Directory:
    """Read a directory. Raises LookupError or struct.error if it is damaged or beyond the end of the file."""
    found, after = entries(read_at, start, order, big=big)
    tags: dict[int, tuple[int, ...]] = {}
    make = ""
    for entry in found:
        if entry.tag not in _WANTED:
            continue
        unit = NUMBERS.get(entry.kind)
        count = min(entry.count, _MOST_VALUES)
        if entry.kind in _TEXT and entry.tag == _MAKE:
            make = entry.value(read_at, order, count).decode("latin-1").strip(" \0").lower()
        elif unit is not None and count:
            raw = entry.value(read_at, order, struct.calcsize(f"{order}{unit}") * count)
            tags[entry.tag] = struct.unpack_from(f"{order}{count}{unit}", raw)
    return Directory(start, after, tags, make)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory: a tag and its values."""

    tag: int
    kind: int
    """The type of the values, see `NUMBERS`."""
    count: int
    """The number of values."""
    field: bytes
    """The values, padded, or their position in the file, in 4 bytes (BigTIFF: 8)."""

    def value(self, read_at: ReadAt, order: str, size: int) -> bytes:
        """Return the first `size` bytes of the values: fewer at the end of the file."""
        if size <= len(self.field):
            return self.field[:size]
        [start] = struct.unpack(order + ("Q" if len(self.field) == 8 else "I"), self.field)
        return read_at(start, size)


def entries(read_at: ReadAt, start: int, order: str, *, big: bool) -> tuple[list[Entry], int]:
    """Return the entries of a directory, and the position of the next one, 0 after the last.

    Raises:
        LookupError, struct.error: it is damaged, or beyond the end of the file.
    """
    count_format, entry_format, link = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    head = struct.calcsize(f"{order}{count_format}")
    [count] = struct.unpack(f"{order}{count_format}", read_at(start, head))
    if count > _MOST_ENTRIES:
        raise LookupError(count)
    each = struct.calcsize(f"{order}{entry_format}")
    last = struct.calcsize(f"{order}{link}")
    table = read_at(start + head, count * each + last)
    found = [
        Entry(*struct.unpack_from(order + entry_format, table, at)) for at in range(0, count * each, each)
    ]
    is_whole = len(table) == count * each + last
    return found, struct.unpack_from(order + link, table, count * each)[0] if is_whole else 0

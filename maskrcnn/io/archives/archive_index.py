"""The members of an archive in a store: read once when a run is planned, by ranges of bytes where the format allows."""

import gzip
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Final, cast

from ...errors import ItemError
from ..refusals import Refusal
from ..stores.seekable import SeekableReader
from .member import SOLID_SUFFIXES, Member
from .sidecars import MAX_BYTES, sample_of
from .tar_index import DAMAGED, DamagedArchiveError, tar_members
from .zip_index import compression, unpacked, zip_members

_BLOCK_BYTES: Final = 2**20
_HOP_BYTES: Final = 4096
_LARGE_BYTES: Final = 2**18
"""Headers of a tar whose files are larger than this are read one by one; else all of it is read, in large blocks."""
_SIGNATURES: Final = {
    ".zip": b"PK",
    ".tar.gz": b"\x1f\x8b",
    ".tar.bz2": b"BZh",
    ".tar.xz": b"\xfd7zXZ",
    ".tar.zst": b"\x28\xb5\x2f\xfd",
    ".7z": b"7z\xbc\xaf",
    ".rar": b"Rar!",
    ".parquet": b"PAR1",
    ".arrow": b"ARROW1",
}
"""First bytes of files that may have another's suffix; a tar has its own further behind."""
_USTAR: Final = slice(257, 262)
_LARGEST: Final = 2**63 - 1
_TAIL_BYTES: Final = 2**16 + 22
"""Where a zip's directory ends: a comment of at most 65,535 bytes follows its last record."""


@dataclass(frozen=True, slots=True)
class ArchiveIndex:
    """What is in an archive."""

    members: tuple[Member, ...]
    """In its order; their names are unique."""
    damage: Refusal | None = None
    """Why members may be missing, after those that are listed."""
    contents: Mapping[int, bytes | None] = field(default_factory=dict)
    """What is in the sidecars, by their positions in `members`; None for one that cannot be read."""


def read_index(
    read_range: Callable[[int, int], bytes], size: int, name: str, sidecars: Collection[str] = ()
) -> ArchiveIndex:
    """Read the index of an archive, and its sidecars on the way.

    Args:
        read_range: returns its bytes from a start to a stop.
        size: of the archive in bytes.
        name: whose suffix says what it is.
        sidecars: suffixes of the files whose content is read too, see `sidecars.sample_of`.
    """
    name = name.lower()
    if name.endswith(".zip"):
        file = cast(BinaryIO, BlockReader(read_range, size, begin_at_end=True))
        found = zip_members(file, size)
    elif name.endswith(".tar"):
        file = cast(BinaryIO, BlockReader(read_range, size))
        found = tar_members(file, size)
    else:
        file = cast(BinaryIO, GzipStream(read_range, size))
        found = tar_members(file, None)
    members: list[Member] = []
    contents: dict[int, bytes | None] = {}
    damage = None
    try:
        for member in found:
            if sidecars and sample_of(member.name)[1] in sidecars:
                contents[len(members)] = None if name.endswith(".zip") else _content(file, member)
            members.append(_bounded(member))
    except DamagedArchiveError as error:
        damage = error.refusal
        if not members and size and _is_other(name, read_range(0, min(_USTAR.stop, size))):
            damage = Refusal.ARCHIVE_OTHER
    if name.endswith(".zip"):
        in_order = sorted(contents, key=lambda position: members[position].offset)
        contents |= {position: _content(file, members[position]) for position in in_order}
    return ArchiveIndex(tuple(_unique(members)), damage, contents)


def _is_other(name: str, head: bytes) -> bool:
    """Return whether a file is of another known kind than its suffix says, by its first bytes."""
    if head[_USTAR] == b"ustar":
        return not name.endswith(".tar")
    own = ".tar.gz" if name.endswith(SOLID_SUFFIXES) else name[-4:]
    return head.startswith(tuple(start for kind, start in _SIGNATURES.items() if kind != own))


def _bounded(member: Member) -> Member:
    """Return a member; one whose header has numbers that no file reaches as damaged."""
    numbers = (member.offset, member.stored, member.bytes, member.packed or 0, member.crc32 or 0)
    if all(0 <= number <= _LARGEST for number in numbers):
        return member
    return Member(member.name, 0, 0, 0, refusal=Refusal.MEMBER_DAMAGED)


def _content(file: BinaryIO, member: Member) -> bytes | None:
    """Return what is in a small file; None if it cannot be read."""
    try:
        check_readable(member, MAX_BYTES)
        file.seek(member.offset)
        return content_of(member, file.read(member.stored))
    except (ItemError, *DAMAGED):
        return None


def check_readable(member: Member, max_bytes: int) -> None:
    """Raise ItemError for a member that cannot be read, as the archive's index says."""
    if member.refusal is Refusal.MEMBER_COMPRESSION:
        raise member.refusal.error(codec=compression(member.method))
    if member.refusal is not None:
        raise member.refusal.error()
    if member.bytes > max_bytes:
        raise Refusal.TOO_MANY_BYTES.error(count=member.bytes, limit=max_bytes)


def content_of(member: Member, stored: bytes) -> bytes:
    """Return a member's file, from its bytes in a `.tar` or a `.zip`. Raises ItemError."""
    if member.method is not None:
        return unpacked(member, stored)
    if len(stored) != member.bytes:
        raise Refusal.MEMBER_TRUNCATED.error()
    return stored


def _unique(members: list[Member]) -> Iterator[Member]:
    """Yield members under unique names: of those of one name, the second gets `#2`, the third `#3`."""
    members = [replace(member, name=_displayed(member.name)) for member in members]
    taken = {member.name for member in members}
    counts: Counter[str] = Counter()
    for member in members:
        counts[member.name] += 1
        if (number := counts[member.name]) == 1:
            yield member
            continue
        new = f"{member.name}#{number}"
        while new in taken:
            number += 1
            new = f"{member.name}#{number}"
        taken.add(new)
        yield replace(member, name=new)


def _displayed(name: str) -> str:
    r"""Return a name as text: bytes that are not UTF-8 escaped, as of local files.

    >>> print(_displayed("caf\udce9.jpg"))
    caf\xe9.jpg
    """
    return name if name.isascii() else name.encode(errors="surrogateescape").decode(errors="backslashreplace")


class BlockReader(SeekableReader):
    """A file of known size that is read by blocks, of which the last is kept.

    After a jump over much, little is read at once: the next jump is probably as long. Else a large block is read.

    Args:
        read_range: returns the bytes from a start to a stop.
        size: in bytes.
        begin_at_end: whether the end is read first.
    """

    def __init__(
        self, read_range: Callable[[int, int], bytes], size: int, *, begin_at_end: bool = False
    ) -> None:
        super().__init__(size)
        self._read_range = read_range
        self._last_stop = 0
        self._block = (0, b"")
        if begin_at_end:
            begin = max(size - _TAIL_BYTES, 0)
            self._block = (begin, read_range(begin, size))

    def read_at(self, start: int, stop: int) -> bytes:
        """Return a range of bytes, from the kept block or by one request."""
        begin, block = self._block
        if not begin <= start <= stop <= begin + len(block):
            ahead = _HOP_BYTES if start - self._last_stop > _LARGE_BYTES else _BLOCK_BYTES
            begin, block = start, self._read_range(start, min(max(stop, start + ahead), self._size))
            self._block = (begin, block)
        self._last_stop = stop
        return block[start - begin : stop - begin]


class GzipStream(io.RawIOBase):
    """The uncompressed stream of a gzip file of known size, which is read from its beginning, each byte once.

    It seeks forwards by uncompressing what lies between, and backwards by beginning anew.

    Raises:
        EOFError, gzip.BadGzipFile, zlib.error: while it is read: it ends early, or is damaged.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        packed = BlockReader(read_range, size)
        self._stream: Final = gzip.GzipFile(fileobj=io.BufferedReader(packed, _BLOCK_BYTES), mode="rb")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the uncompressed stream."""
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position in the uncompressed stream, and return it."""
        return self._stream.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes of the uncompressed stream."""
        return self._stream.read(-1 if size is None else size)

    def read1(self, size: int) -> bytes:
        """Return up to `size` bytes, at least one before the end; those before damage, too."""
        return self._stream.read1(size)

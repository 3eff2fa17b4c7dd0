"""The members of an archive in a store: read once when a run is planned, by ranges of bytes where the format allows."""

import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Final, cast

from ..refusals import Refusal
from ..stores.seekable import SeekableReader
from .member import Member
from .tar_index import DamagedArchiveError, tar_members
from .zip_index import zip_members

_BLOCK_BYTES: Final = 2**20
_HOP_BYTES: Final = 4096
_LARGE_BYTES: Final = 2**18
"""Headers of a tar whose files are larger than this are read one by one; else all of it is read, in large blocks."""
_TAIL_BYTES: Final = 2**16 + 22
"""Where a zip's directory ends: a comment of at most 65,535 bytes follows its last record."""


@dataclass(frozen=True, slots=True)
class ArchiveIndex:
    """What is in an archive."""

    members: tuple[Member, ...]
    """In its order; their names are unique."""
    damage: Refusal | None = None
    """Why members may be missing, after those that are listed."""


def read_index(read_range: Callable[[int, int], bytes], size: int, name: str) -> ArchiveIndex:
    """Read the index of an archive.

    Args:
        read_range: returns its bytes from a start to a stop.
        size: of the archive in bytes.
        name: whose suffix says what it is.
    """
    name = name.lower()
    if name.endswith(".zip"):
        found = zip_members(cast(BinaryIO, BlockReader(read_range, size, begin_at_end=True)), size)
    elif name.endswith(".tar"):
        found = tar_members(cast(BinaryIO, BlockReader(read_range, size)), size)
    else:
        found = tar_members(cast(BinaryIO, GzipStream(read_range, size)), None)
    members: list[Member] = []
    damage = None
    try:
        for member in found:
            members.append(member)  # noqa: PERF402 those before the damage are kept
    except DamagedArchiveError as error:
        damage = error.refusal
    return ArchiveIndex(tuple(_unique(members)), damage)


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

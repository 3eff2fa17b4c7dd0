"""Members of archives as inputs: read like files, each by one range of its archive."""

import functools
import gzip
import io
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import BinaryIO, Final, cast

from ..refusals import Refusal
from ..stores.contained_store import ContainedStore
from ..stores.remote_store import READ_AHEAD_BYTES, RangeReader
from ..stores.store import ObjectStat, Store
from ..url import Url
from .archive_index import ArchiveIndex, GzipStream, check_readable, content_of, read_index
from .member import SOLID_SUFFIXES, Member, split_member

_INDEXES: Final = 4
_STREAMS: Final = 2
"""Of so many archives the index, or the uncompressed stream, is kept."""


class ArchiveStore(ContainedStore):
    """The members of archives in any store, with the etag of their archive.

    Args:
        store_of: returns the store of an archive.
    """

    def __init__(self, store_of: Callable[[Url], Store]) -> None:
        super().__init__(store_of)
        self._places = functools.lru_cache(_INDEXES)(self._read_places)
        self._indexing = threading.Lock()
        self._streams = _Streams()

    @staticmethod
    def file_of(url: Url) -> Url:
        """Return the URL of a member's archive. Raises ItemError for one on the web."""
        return _split(url)[0]

    def stat(self, url: Url) -> ObjectStat:
        """Return a member's size, and its archive's etag. Raises FileNotFoundError where there is none."""
        archive, name = _split(url)
        stat = self._store_of(archive).stat(archive)
        return ObjectStat(self._find(archive, stat, name).bytes, stat.etag)

    def index(self, archive: Url, sidecars: Collection[str] = ()) -> tuple[ArchiveIndex, ObjectStat]:
        """Return what is in an archive, and the archive's size and etag. Raises what its store raises.

        Args:
            archive: its URL.
            sidecars: see `read_index`.
        """
        stat = self._store_of(archive).stat(archive)
        return self._read_index(archive, stat, sidecars), stat

    def read_input(self, url: Url, max_bytes: int, etag: str | None) -> bytes:
        """Read a member, whose place is looked up in the archive. Raises ItemError: as `read_member`."""
        archive, name = _split(url)
        member = self._find(archive, self._store_of(archive).stat(archive), name)
        return self.read_member(archive, member, max_bytes, etag)

    def open_input(self, url: Url, etag: str | None) -> BinaryIO:
        """Open a member; one that is compressed is read whole."""
        archive, name = _split(url)
        store = self._store_of(archive)
        member = self._find(archive, store.stat(archive), name)
        if not archive.key.lower().endswith(".tar") or member.refusal or not member.bytes:
            return io.BytesIO(self.read_member(archive, member, member.bytes, etag))

        def read_range(start: int, stop: int) -> bytes:
            with self.input_faults(url):
                return store.read_range(archive, member.offset + start, member.offset + stop, etag)

        reader = RangeReader(read_range, member.bytes)
        return cast(BinaryIO, io.BufferedReader(reader, READ_AHEAD_BYTES))

    def read_member(self, archive: Url, member: Member, max_bytes: int, etag: str | None) -> bytes:
        """Read a member whose place is known, by one request.

        Raises:
            ItemError: it cannot be read; `too_many_bytes` before it is read.
        """
        check_readable(member, max_bytes)
        return content_of(
            member, self.read_stored(archive, member.offset, member.offset + member.stored, etag)
        )

    def read_stored(self, archive: Url, start: int, stop: int, etag: str | None) -> bytes:
        """Return a range of an archive's bytes; of one that is compressed as a whole, of its uncompressed stream.

        Raises:
            ItemError: `changed`, or the stream is damaged; what the archive's store raises.
        """
        store = self._store_of(archive)
        if start >= stop:  # no request has a range of no bytes
            return b""
        if archive.key.lower().endswith(SOLID_SUFFIXES):
            return self._streams.read(store, archive, start, stop, etag)
        return store.read_range(archive, start, stop, etag)

    def _find(self, archive: Url, stat: ObjectStat, name: str) -> Member:
        with self._indexing:  # threads that ask for members of one archive read its index once
            found = self._places(archive, stat).get(name)
        if found is None:
            raise Refusal.MEMBER_MISSING.error()
        return found

    def _read_places(self, archive: Url, stat: ObjectStat) -> dict[str, Member]:
        return {member.name: member for member in self._read_index(archive, stat).members}

    def _read_index(self, archive: Url, stat: ObjectStat, sidecars: Collection[str] = ()) -> ArchiveIndex:
        store = self._store_of(archive)

        def read_range(start: int, stop: int) -> bytes:
            return store.read_range(archive, start, stop, stat.etag)

        return read_index(read_range, stat.bytes, archive.key, sidecars)


class _Streams:
    """The uncompressed streams of a few `.tar.gz`, each at the place where it was read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[Url, str | None], tuple[threading.Lock, GzipStream]] = OrderedDict()

    def read(self, store: Store, archive: Url, start: int, stop: int, etag: str | None) -> bytes:
        """Read a range; from the beginning of the archive if it lies before what was read last."""
        lock, stream = self._stream(store, archive, etag)
        data = bytearray()
        with lock:
            try:
                stream.seek(start)
                while piece := stream.read1(stop - start - len(data)):
                    data += piece
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                if not data:  # else the members before the damage are read
                    cut = isinstance(error, EOFError)
                    raise (Refusal.MEMBER_TRUNCATED if cut else Refusal.MEMBER_DAMAGED).error() from error
        return bytes(data)

    def _stream(self, store: Store, archive: Url, etag: str | None) -> tuple[threading.Lock, GzipStream]:
        def read_range(start: int, stop: int) -> bytes:
            return store.read_range(archive, start, stop, etag)

        with self._lock:
            if (archive, etag) not in self._open:
                stream = GzipStream(read_range, store.stat(archive).bytes)
                self._open[archive, etag] = threading.Lock(), stream
            self._open.move_to_end((archive, etag))
            while len(self._open) > _STREAMS:
                self._open.popitem(last=False)
            return self._open[archive, etag]


def _split(url: Url) -> tuple[Url, str]:
    parts = split_member(url.text)
    if parts is None:
        raise ValueError(f"{url} is no member of an archive")
    archive = Url.parse(parts[0])
    if archive.is_web:
        raise Refusal.ARCHIVE_ON_THE_WEB.error()
    return archive, parts[1]

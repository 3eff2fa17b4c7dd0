"""Read the inputs of a shard: files one by one, members of archives and pictures in tables several at once.

A request costs as much as a hundred kilobytes. Members that lie beside each other in an archive, and are asked for one
soon after the other, are read by one request, and the next such range is requested meanwhile. The pictures of an Arrow
file whose places are known are read like members. Of other tables, the rows of a row group are read together. None is
read twice.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from ..io.archives.archive_index import check_readable, content_of
from ..io.archives.list_members import member_of
from ..io.archives.member import SOLID_SUFFIXES, Member, is_archive, split_member
from ..io.inputs import open_input, read_input
from ..io.picture_tables.picture_uri import is_table, split_picture
from ..io.picture_tables.row_groups import PicturesOfRows
from ..io.picture_tables.table_store import picture_of
from ..io.refusals import Refusal
from ..io.schemes import ARCHIVES, TABLES, store_of
from ..io.url import Url
from ..schema import PLACE

RANGE_BYTES: Final = 8 * 2**20
"""Maximum length of a range of several members."""
TOGETHER: Final = 32
"""Members of so many consecutive inputs may be read together."""
_HEADER_BYTES: Final = 1024
"""Of a tar: about what a member's header and padding take; they count as its bytes."""
_WASTE: Final = 0.05
"""Maximum share of bytes of a range that belong to no member that is read."""


@dataclass(slots=True)
class _Range:
    """Bytes of an archive that one request reads."""

    archive: Url
    etag: str | None
    start: int
    stop: int
    positions: set[int]
    """Of the inputs whose members it contains and that were not asked for yet."""
    data: Future[bytes] | None = None


class ShardInputs:
    """The content of a shard's inputs; may be read by any number of threads, each input once.

    Args:
        entries: rows of the manifest, with `uri`, `bytes`, `etag`, and `schema.PLACE` where they have that column.
        max_bytes: larger inputs are refused.
    """

    def __init__(self, entries: Sequence[dict[str, Any]], max_bytes: int) -> None:
        self._entries = entries
        self._max_bytes = max_bytes
        self._members: dict[int, tuple[Url, Member]] = {}
        for position, entry in enumerate(entries):
            if entry.get(PLACE.name) is not None:
                archive, name = _file_of(entry["uri"])
                self._members[position] = (
                    Url.parse(archive),
                    member_of(name, entry["bytes"], entry[PLACE.name]),
                )
        self._ranges = list(self._planned())
        self._range_of = {
            position: number for number, one in enumerate(self._ranges) for position in one.positions
        }
        self._lock = threading.Lock()
        solid = any(one.archive.key.lower().endswith(SOLID_SUFFIXES) for one in self._ranges)
        # Of a stream the ranges are read one after the other, in their order.
        self._pool = (
            ThreadPoolExecutor(1 if solid else 2, thread_name_prefix="range") if self._ranges else None
        )
        self._requested = 0
        self._in_tables = PicturesOfRows(
            {
                position: (entry["uri"], entry["etag"])
                for position, entry in enumerate(entries)
                if position not in self._members
            },
            open_table=TABLES.table,
        )

    def read(self, position: int) -> bytes:
        """Return the content of the input at a position of the shard.

        Raises:
            ItemError, RunError: as `inputs.read_input`.
        """
        entry = self._entries[position]
        if position in self._in_tables:
            return picture_of(self._in_tables.read(position), self._max_bytes)
        if position not in self._members:
            if PLACE.name in entry and (is_archive(entry["uri"]) or is_table(entry["uri"])):
                _check_readable(entry["uri"])
                raise Refusal.CONTENT_UNKNOWN.error()
            return read_input(entry["uri"], self._max_bytes, entry["etag"])
        archive, member = self._members[position]
        check_readable(member, self._max_bytes)
        with store_of(archive).input_faults(archive):
            number = self._range_of.get(position)
            if number is None:
                data = ARCHIVES.read_member(archive, member, self._max_bytes, entry["etag"])
            else:
                data = content_of(member, self._stored(number, position, member))
        if not data:
            raise Refusal.EMPTY.error()
        return data

    def _stored(self, number: int, position: int, member: Member) -> bytes:
        """Return a member's bytes in its archive, from the range that contains it; request the next range."""
        one = self._ranges[number]
        with self._lock:
            while self._requested < min(number + 2, len(self._ranges)) and self._pool:
                following = self._ranges[self._requested]
                following.data = self._pool.submit(self._request, following)
                self._requested += 1
            if one.data is None:
                raise ValueError(f"the input at position {position} was read before")
            data = one.data
        try:
            begin = member.offset - one.start
            return data.result()[begin : begin + member.stored]
        finally:
            with self._lock:
                one.positions.discard(position)
                if not one.positions:
                    one.data = None

    @staticmethod
    def _request(one: _Range) -> bytes:
        return ARCHIVES.read_stored(one.archive, one.start, one.stop, one.etag)

    def _planned(self) -> Iterator[_Range]:
        """Yield the ranges, in the order in which they are needed first."""
        for begin in range(0, len(self._entries), TOGETHER):
            by_archive: dict[tuple[Url, str | None], list[int]] = {}
            for position in range(begin, min(begin + TOGETHER, len(self._entries))):
                if self._is_in_ranges(position):
                    key = self._members[position][0], self._entries[position]["etag"]
                    by_archive.setdefault(key, []).append(position)
            for (archive, etag), positions in by_archive.items():
                yield from self._divided(archive, etag, positions)

    def _is_in_ranges(self, position: int) -> bool:
        if position not in self._members:
            return False
        archive, member = self._members[position]
        return (
            member.refusal is None
            and member.stored > 0
            and member.bytes <= self._max_bytes
            and not archive.is_web
        )

    def _divided(self, archive: Url, etag: str | None, positions: list[int]) -> Iterator[_Range]:
        """Yield ranges of one archive that contain the members at these positions, each in one of them."""
        members = {position: self._members[position][1] for position in positions}
        waste = math.inf if archive.key.lower().endswith(SOLID_SUFFIXES) else _WASTE
        current: _Range | None = None
        used = 0
        for position in sorted(positions, key=lambda position: members[position].offset):
            start, stop = members[position].offset, members[position].offset + members[position].stored
            counted = stop - start + (_HEADER_BYTES if members[position].method is None else 0)
            if current is not None:
                length = max(stop, current.stop) - current.start
                if length <= RANGE_BYTES and length <= (1 + waste) * (used + counted):
                    current.stop = max(stop, current.stop)
                    current.positions.add(position)
                    used += counted
                    continue
                yield current
            current, used = _Range(archive, etag, start, stop, {position}), counted
        if current is not None:
            yield current


def _file_of(uri: str) -> tuple[str, str]:
    """Return the URL of the archive or the table that an input is in, and its name there; "" for the file itself."""
    picture = split_picture(uri)
    return split_member(uri) or ((picture[0], uri) if picture else (uri, ""))


def _check_readable(uri: str) -> None:
    """Raise ItemError for a file that cannot be read or is empty, without reading all of it."""
    with open_input(uri) as file:
        file.read(1)

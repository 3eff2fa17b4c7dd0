"""The members of archives as rows of a listing: many archives side by side, each index read once."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from ...errors import ItemError, plural
from ...schema import PLACE
from ..inputs import INPUTS
from ..refusals import Refusal
from ..schemes import ARCHIVES, store_of
from ..stores.store import ObjectStat
from ..url import Url
from .archive_index import ArchiveIndex
from .member import SOLID_SUFFIXES, Member, member_uri, split_member

log = logging.getLogger("maskrcnn")

_THREADS: Final = 32
_REPORT_EVERY_S: Final = 5.0


def list_members(archives: pa.Table, *, alone: bool) -> pa.Table:
    """Return the members of archives.

    An archive that cannot be read is a row itself, and so is one that is damaged, after its members.

    Args:
        archives: of `inputs.INPUTS`.
        alone: whether the archive is the whole input, so that its members are named without it.

    Returns:
        Of the columns `name, uri, bytes, etag` and `schema.PLACE`.

    Raises:
        RunError: as `read_input`.
    """
    rows = archives.select(["name", "uri"]).to_pylist()
    solid = [row["uri"] for row in rows if row["uri"].lower().endswith(SOLID_SUFFIXES)]
    if solid:
        log.warning(
            "%s, such as %s, compressed as a whole: each worker reads it from its beginning, slowly; an uncompressed "
            ".tar, or a .zip, is read member by member",
            plural(len(solid), "archive"),
            solid[0],
        )
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        read = pool.map(lambda row: _table(row["name"], row["uri"], alone=alone), rows)
        return pa.concat_tables([_SCHEMA.empty_table(), *_reported(read, len(rows))])


def find_members(uris: Sequence[str]) -> pa.Table:
    """Look members up in their archives, of which each is read once.

    Args:
        uris: of members, of any archives.

    Returns:
        A row for each, in their order, of the columns `bytes, etag` and `schema.PLACE`; nulls for a member of an
        archive that cannot be read, and for one that is not in it: they will fail when they are read.

    Raises:
        RunError: as `read_input`.
    """
    named = dict.fromkeys(parts[0] for parts in map(split_member, uris) if parts)
    archives = [archive for archive in named if not Url.parse(archive).is_web]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        read = pool.map(lambda uri: _table(uri, uri, alone=True), archives)
        tables = [_SCHEMA.empty_table(), *_reported(read, len(archives))]
    members = pa.concat_tables(tables)
    rows = {uri: row for row, uri in enumerate(members["uri"].to_pylist())}
    found = members.take(pa.array([rows.get(uri) for uri in uris], pa.int64()))
    return found.select(["bytes", "etag", PLACE.name])


_SCHEMA: Final = INPUTS.append(PLACE)


def _table(name: str, uri: str, *, alone: bool) -> pa.Table:
    """Return the members of one archive as a table of `_SCHEMA`."""
    url = Url.parse(uri)
    try:
        with store_of(url).input_faults(url):
            index, stat = ARCHIVES.index(url)
    except ItemError:  # the archive, read as an input, will fail with it
        return pa.table([[name], [uri], [None], [None], [None]], schema=_SCHEMA)
    prefix = "" if alone else f"{name}!/"
    members = index.members
    places = pa.array([place_of(member) for member in members], PLACE.type)
    table = pa.table(
        [
            [prefix + member.name for member in members],
            [member_uri(uri, member.name) for member in members],
            [member.bytes for member in members],
            [stat.etag] * len(members),
            places,
        ],
        schema=_SCHEMA,
    )
    return pa.concat_tables([table, _damage(name, uri, index, stat)])


def _damage(name: str, uri: str, index: ArchiveIndex, stat: ObjectStat) -> pa.Table:
    if index.damage is None:
        return _SCHEMA.empty_table()
    place = {"refusal": index.damage.name}
    return pa.table([[name], [uri], [stat.bytes], [stat.etag], [place]], schema=_SCHEMA)


def place_of(member: Member) -> dict[str, Any]:
    """Return a member's place, a value of the type of `schema.PLACE`."""
    return {
        "offset": member.offset,
        "stored": member.stored,
        "packed": member.packed,
        "method": member.method,
        "crc32": member.crc32,
        "refusal": member.refusal and member.refusal.name,
    }


def member_of(name: str, n_bytes: int | None, place: dict[str, Any]) -> Member:
    """Return the member of a row, from its place; without a size, as in a retry, that of its bytes in the file."""
    refusal = place["refusal"]
    fields = place | {"refusal": refusal and Refusal[refusal]}
    size = (place["stored"] or 0) if n_bytes is None else n_bytes
    return Member(
        name=name, bytes=size, **fields | {"offset": place["offset"] or 0, "stored": place["stored"] or 0}
    )


def _reported(tables: Iterator[pa.Table], count: int) -> Iterator[pa.Table]:
    """Yield tables, and log now and then the number of archives that were read."""
    reported, members = time.monotonic(), 0
    for number, table in enumerate(tables, 1):
        yield table
        members += table.num_rows
        if (now := time.monotonic()) - reported >= _REPORT_EVERY_S:
            reported = now
            log.info(
                "read the index of %d of %s: %s so far",
                number,
                plural(count, "archive"),
                plural(members, "file"),
            )

"""The members of archives as rows of a listing: many archives side by side, each index read once."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from ...errors import ItemError, plural
from ...schema import PLACE
from ..refusals import Refusal
from ..schemes import ARCHIVES, store_of
from ..stores.store import ObjectStat
from ..url import Url
from .archive_index import ArchiveIndex
from .member import Member, member_uri

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
    for row in rows:
        if row["uri"].lower().endswith((".gz", ".tgz")):
            log.warning(
                "%s is compressed as a whole: it is read from its beginning by each worker, slowly",
                row["uri"],
            )
    tables = [_SCHEMA.empty_table()]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        for table in _reported(
            pool.map(lambda row: _table(row["name"], row["uri"], alone=alone), rows), len(rows)
        ):
            tables.append(table)  # noqa: PERF402 a generator that reports
    return pa.concat_tables(tables)


_SCHEMA: Final = pa.schema(
    [
        ("name", pa.string()),
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),
        PLACE,
    ]
)


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


def member_of(name: str, n_bytes: int, place: dict[str, Any]) -> Member:
    """Return the member of a row, from its place."""
    refusal = place["refusal"]
    fields = place | {"refusal": refusal and Refusal[refusal]}
    return Member(
        name=name, bytes=n_bytes, **fields | {"offset": place["offset"] or 0, "stored": place["stored"] or 0}
    )


def _reported(tables: Iterator[pa.Table], count: int) -> Iterator[pa.Table]:
    """Yield tables, and log now and then how many archives have been read."""
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

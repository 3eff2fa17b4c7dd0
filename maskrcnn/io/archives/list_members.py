"""The members of archives as rows of a listing: many archives side by side, each index read once."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from ...errors import ItemError, plural
from ...schema import PLACE
from ..inputs import INPUTS
from ..refusals import Refusal
from ..reporting import reported
from ..schemes import ARCHIVES, store_of
from ..url import Url
from .member import SOLID_SUFFIXES, Member, member_uri, split_member
from .sidecars import texts_beside

log = logging.getLogger("maskrcnn")

_THREADS: Final = 16


def list_members(archives: pa.Table, *, alone: bool, sidecars: Sequence[str] = ()) -> pa.Table:
    """Return the members of archives.

    An archive that cannot be read is a row itself, and so is one that is damaged, after its members.

    Args:
        archives: of `inputs.INPUTS`.
        alone: whether the archive is the whole input, so that its members are named without it.
        sidecars: suffixes of files that become columns of the files beside them, and are no members themselves.

    Returns:
        Of the columns `name, uri, bytes, etag`, `schema.PLACE` and the sidecars' suffixes, which are text.

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
        read = pool.map(lambda row: _table(row["name"], row["uri"], alone=alone, sidecars=sidecars), rows)
        return _joined(read, len(rows), sidecars)


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
        members = _joined(read, len(archives))
    rows = {uri: row for row, uri in enumerate(members["uri"].to_pylist())}
    found = members.take(pa.array([rows.get(uri) for uri in uris], pa.int64()))
    return found.select(["bytes", "etag", PLACE.name])


def _joined(tables: Iterator[pa.Table], count: int, sidecars: Sequence[str] = ()) -> pa.Table:
    """Return the members of archives as one table, and log the number of archives that were read."""

    def line(number: int, members: int) -> str:
        archives, files = plural(count, "archive"), plural(members, "file")
        return f"read the index of {number:,} of {archives}: {files} so far"

    return pa.concat_tables([_schema(sidecars).empty_table(), *reported(tables, line, len)])


def _schema(sidecars: Sequence[str]) -> pa.Schema:
    return pa.schema([*INPUTS, PLACE, *(pa.field(suffix, pa.string()) for suffix in sidecars)])


def _table(name: str, uri: str, *, alone: bool, sidecars: Sequence[str] = ()) -> pa.Table:
    """Return the members of one archive as a table of `_schema`."""
    url = Url.parse(uri)
    schema = _schema(sidecars)
    try:
        with store_of(url).input_faults(url):
            index, stat = ARCHIVES.index(url, sidecars)
    except ItemError:  # the archive, read as an input, will fail with it
        return _row(schema, name=name, uri=uri)
    prefix = "" if alone else f"{name}!/"
    members = index.members
    columns = {
        "name": [prefix + member.name for member in members],
        "uri": [member_uri(uri, member.name) for member in members],
        "bytes": [member.bytes for member in members],
        "etag": [stat.etag] * len(members),
        PLACE.name: pa.array([place_of(member) for member in members], PLACE.type),
    }
    if not sidecars:
        table = pa.table(columns, schema)
    else:
        texts, unused = texts_beside([member.name for member in members], index.contents, sidecars)
        used = index.contents.keys() - unused
        kept = [position for position in range(len(members)) if position not in used]
        table = pa.table(columns | texts, schema).take(kept)
    if index.damage is None:
        return table
    place = {"refusal": index.damage.name}
    damage = _row(schema, name=name, uri=uri, bytes=stat.bytes, etag=stat.etag, **{PLACE.name: place})
    return pa.concat_tables([table, damage])


def _row(schema: pa.Schema, **values: Any) -> pa.Table:
    return pa.Table.from_pylist([values], schema)


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

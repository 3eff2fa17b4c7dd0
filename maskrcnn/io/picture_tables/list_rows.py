"""The pictures in tables as rows of a listing: many files side by side, of each the footer and the other columns."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import ItemError, UsageError, plural
from ...schema import PLACE
from ..inputs import INPUTS
from ..manifests.manifest_columns import check_names, warn_left_out
from ..manifests.parquet_manifest import check_size
from ..manifests.several_files import united, with_partitions
from ..refusals import Refusal
from ..reporting import reported
from ..schemes import TABLES
from ..storage import Storage
from ..url import Url
from .parquet_table import WHOLE_CHUNK_BYTES
from .picture_table import PictureTable, picture_columns
from .picture_uri import IS_DATASET, IS_TABLE, PARQUET, picture_uri, split_version
from .saved_datasets import data_files, lance_datasets

log = logging.getLogger("maskrcnn")

HasPictures = Callable[[pa.ChunkedArray], bool]
"""Whether one of some values of a column is a picture."""
_SMALL_BYTES: Final = 2**24
"""Of a JSON file that says which files belong to a data set."""
_THREADS: Final = 16
_AT_ONCE: Final = 64
"""Of so many tables the footers are held in memory: of tables with many row groups they are large."""
_LOOKED_AT: Final = 20
_GROUPS_READ: Final = 2
_OWN: Final = ("name", "uri", "bytes", "etag", PLACE.name)


def any_bytes(values: pa.ChunkedArray) -> bool:  # noqa: ARG001 (a `HasPictures`)
    """Return True: whatever has the type of pictures is taken for one."""
    return True


@dataclass(frozen=True, slots=True)
class _File:
    """A table of a listing."""

    name: str
    uri: str
    bytes: int | None
    etag: str | None
    table: PictureTable | ItemError
    """Open, or why it cannot be read."""


def without_tables(
    found: pa.Table, source: str, has_pictures: HasPictures, image_column: str | None
) -> tuple[pa.Table, pa.Table]:
    """Divide a listing: the files but those with pictures in a column, and these pictures.

    Args:
        found: of `inputs.INPUTS`.
        source: the input that was listed.
        has_pictures: whether some values of a column contain a picture.
        image_column: the column with the pictures; None: each table has one.

    Raises:
        UsageError: as `list_rows` and `saved_datasets`; a column is named, and there are no tables.
        RunError: as `read_input`.
    """
    found = lance_datasets(data_files(found, _read_small), source, lambda url: TABLES.table(url, None))
    unread = pc.and_(pc.match_substring_regex(found["uri"], IS_DATASET), pc.is_null(found["bytes"]))
    of_tables = pc.or_(pc.match_substring_regex(found["uri"], IS_TABLE), unread)
    tables = found.filter(of_tables)
    if not tables.num_rows:
        if image_column is not None:
            raise UsageError(
                f"{source}: --image-column is for tables (Parquet, Arrow, Lance); there are none"
            )
        return found, INPUTS.empty_table()
    rows, others = list_rows(tables, source, image_column, has_pictures)
    return pa.concat_tables([found.filter(pc.invert(of_tables)), others]), rows


def _read_small(uri: str) -> bytes:
    url = Url.parse(uri)
    with Storage(url.folder.text).open(url.name) as file:
        return file.read(_SMALL_BYTES)


def list_rows(
    files: pa.Table, source: str, column: str | None, has_pictures: HasPictures
) -> tuple[pa.Table, pa.Table]:
    """Return the pictures in Parquet and Arrow files.

    A file that cannot be read is a row itself. Files without a column of pictures are returned separately, and so are
    Parquet files with a column `uri`, unless `column` is given: they are manifests. Folders named `key=value` below the
    input are columns, as for manifests.

    Args:
        files: of `inputs.INPUTS`.
        source: the input that the user named. If it is the only file, its rows are named without it.
        column: of the pictures; None: each file has one.
        has_pictures: whether some values of a column contain a picture.

    Returns:
        The columns `name, uri, bytes, etag` and `schema.PLACE`, and then those of the files, null where a file has
        none; and the rows of `files` that hold no pictures.

    Raises:
        UsageError: a file has several columns of pictures and none was named, or no file has the named one; `source` is
            a file that cannot be read, or has no pictures; columns of the same name are of types that cannot be joined,
            or are larger than a manifest may be.
        RunError: as `read_input`.
    """
    files = files.sort_by("name")
    alone = [split_version(uri)[0] for uri in files["uri"].to_pylist()] == [
        split_version(source.rstrip("/"))[0]
    ]
    choice = _Choice(column, has_pictures, alone=alone)
    found = _read(files, source, choice, alone=alone)
    if column is not None and not found.uris:
        raise UsageError(
            f"{source}: --image-column {column}: there is no such column of bytes; found "
            f"{_listed(sorted(choice.found))}"
        )
    if alone and not sum(table.num_rows for table in found.tables):
        raise UsageError(f"{source} has no rows: list at least one input")
    if found.large:
        log.warning(
            "%s, such as %s, with row groups of more than %d MiB of pictures: a worker that has a shard of one reads "
            "it from its beginning; row groups of 100 to 1,000 rows are read one by one",
            plural(len(found.large), "table"),
            found.large[0],
            WHOLE_CHUNK_BYTES // 2**20,
        )
    if found.left_out:
        warn_left_out(source, list(found.left_out))
    if not found.uris:
        return _SCHEMA.empty_table(), files
    rows = united(source, dict(zip(found.uris, found.tables, strict=True)))
    return _partitioned(rows, found), files.filter(pa.array(found.without, pa.bool_()))


@dataclass(slots=True)
class _Found:
    """What was read of tables."""

    tables: list[pa.Table] = field(default_factory=list)
    """The rows of each table of pictures."""
    uris: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Of these tables."""
    large: list[str] = field(default_factory=list)
    """Of those with large row groups."""
    left_out: dict[str, None] = field(default_factory=dict)
    """Names of columns that are not carried."""
    without: list[bool] = field(default_factory=list)
    """Whether a table has no pictures."""


def _read(files: pa.Table, source: str, choice: "_Choice", *, alone: bool) -> _Found:
    all_found, size = _Found(), 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="table") as pool:
        count = plural(len(files), "table")
        for batch in reported(
            files.to_batches(_AT_ONCE), lambda _, done: f"read the columns of {done:,} of {count}", len
        ):
            footers = list(pool.map(_opened, batch.to_pylist()))
            columns = [choice.column_of(file) for file in footers]
            all_found.without += [name is None for name in columns]
            named = [(file, name) for file, name in zip(footers, columns, strict=True) if name is not None]
            all_found.uris += [file.uri for file, _ in named]
            all_found.names += [file.name for file, _ in named]
            all_found.large += [file.uri for file, name in named if _reads_from_start(file, name)]
            for table, left_out in pool.map(lambda each: _rows(*each, alone=alone), named):
                all_found.tables.append(table)
                all_found.left_out |= dict.fromkeys(left_out)
                size += table.nbytes
            check_size(source, "", 0, size)
    return all_found


_SCHEMA: Final = INPUTS.append(PLACE)


def _partitioned(rows: pa.Table, found: _Found) -> pa.Table:
    """Return rows with the columns that the names of folders add."""
    own, others = rows.select(_SCHEMA.names), rows.drop_columns(_SCHEMA.names)
    at = others.num_columns
    others = others.append_column("", pa.nulls(len(rows)))  # a table without columns has no rows
    counts = [len(table) for table in found.tables]
    others = with_partitions(others, found.names, counts).remove_column(at)
    names = _renamed(others.column_names, "")
    return pa.table([*own.columns, *others.columns], names=[*own.column_names, *names])


def _opened(row: dict[str, Any]) -> _File:
    try:
        table: PictureTable | ItemError = TABLES.table(Url.parse(row["uri"]), None)
    except ItemError as error:
        table = error
    return _File(**row, table=table)


class _Choice:
    """Chooses the column of pictures of each file. Raises UsageError: see `list_rows`."""

    def __init__(self, column: str | None, has_pictures: HasPictures, *, alone: bool) -> None:
        self._column = column
        self._has_pictures = has_pictures
        self._alone = alone
        self._with_pictures: dict[tuple[str, ...], list[str]] = {}
        self.found: set[str] = set()
        """Names of columns that may hold pictures by their type."""

    def column_of(self, file: _File) -> str | None:
        """Return the column with a file's pictures, "" for one that cannot be read; None: it has none."""
        if isinstance(file.table, ItemError):
            if self._alone:
                raise UsageError(f"{file.uri}: {file.table}") from file.table
            return ""
        schema: pa.Schema = file.table.schema
        by_type = picture_columns(schema)
        self.found.update(by_type)
        if self._column is not None:
            return self._column if self._column in by_type else None
        if "uri" in schema.names and file.uri.lower().endswith(PARQUET):
            return None
        key = tuple(by_type)
        if key not in self._with_pictures:
            self._with_pictures[key] = [name for name in by_type if self._is_of_pictures(file.table, name)]
        names = self._with_pictures[key]
        if len(names) > 1:
            raise UsageError(
                f"{file.uri} has pictures in {plural(len(names), 'column')}, {_listed(names)}: name one with "
                "--image-column"
            )
        if not names and self._alone:
            raise UsageError(
                f"{file.uri}: no pictures to read: a table has them in a column of bytes or of struct<bytes, path>, or "
                f"is a manifest with a column `uri`; found {_listed(schema.names)}"
            )
        return names[0] if names else None

    def _is_of_pictures(self, table: PictureTable, column: str) -> bool:
        """Return whether one of a column's first values is a picture.

        Raises:
            UsageError: it has no values, but names of files.
        """
        seen = read = 0
        for group in range(table.n_groups):
            if table.is_null(column, group):
                continue
            read += 1
            try:
                for picture in table.pictures(column, group):
                    if seen == _LOOKED_AT:
                        return False
                    if picture and self._has_pictures(pa.chunked_array([[picture]], pa.large_binary())):
                        return True
                    seen += bool(picture)
            except ItemError:  # its rows will fail with it
                return True
            if read == _GROUPS_READ:
                break
        if table.n_rows and not read and pa.types.is_struct(table.schema.field(column).type):
            raise UsageError(
                f"{table.url}: its column {column!r} contains no pictures, only names of files at most: list the files "
                f"in a column `uri`, or write the table with the pictures in `{column}.bytes`"
            )
        return not seen and not table.n_rows


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", …" if len(names) > 12 else "") or "none"


def _reads_from_start(file: _File, column: str) -> bool:
    return isinstance(file.table, PictureTable) and file.table.reads_from_start(column)


def _rows(file: _File, column: str, *, alone: bool) -> tuple[pa.Table, list[str]]:
    """Return the rows of a file, and the names of the columns that are left out."""
    table = file.table
    if isinstance(table, ItemError):
        return _failed(file, table), []
    check_names(file.uri, table.schema)
    try:
        others, left_out = table.other_columns(column)
        places = table.places(column)
    except ItemError as error:
        return _failed(file, error), []
    count = table.n_rows
    sizes, found = places or (pa.nulls(count, pa.int64()), pa.nulls(count, PLACE.type))
    numbers = pa.array(range(count), pa.int64()).cast(pa.string())
    padded = pc.utf8_lpad(numbers, len(str(count)), "0")
    own = [
        padded if alone else pc.binary_join_element_wise(f"{file.name}!/", padded, ""),
        pc.binary_join_element_wise(picture_uri(file.uri, column, 0)[:-1], numbers, ""),
        sizes,
        pa.repeat(pa.scalar(table.etag, pa.string()), count),
        found,
    ]
    names = _renamed(others.column_names, column)
    return pa.table([*own, *others.columns], names=[*_SCHEMA.names, *names]), left_out


def _failed(file: _File, error: ItemError) -> pa.Table:
    """Return the row of a file that cannot be read; without a place if that may pass."""
    refusals = {refusal.code: refusal for refusal in (Refusal.TABLE_DAMAGED, Refusal.TABLE_EMPTY)}
    place = {"refusal": refusals[error.code].name} if error.code in refusals else None
    return pa.table([[file.name], [file.uri], [file.bytes], [file.etag], [place]], schema=_SCHEMA)


def _renamed(names: list[str], column: str) -> list[str]:
    """Return the names of other columns, none of which is one of ours; the paths of the pictures are `path`.

    >>> _renamed(["image", "name", "input_name", "label"], "image")
    ['path', 'input_input_name', 'input_name', 'label']
    """
    new: list[str] = []
    for name in names:
        renamed = "path" if name == column else name
        while renamed in _OWN or (renamed != name and renamed in names):
            renamed = f"{column}_path" if renamed == "path" else f"input_{renamed}"
        new.append(renamed)
    return new

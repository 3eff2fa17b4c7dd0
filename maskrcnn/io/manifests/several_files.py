"""One manifest in several files: their columns united, and Hive's partitions as further columns."""

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from ...errors import UsageError, plural
from .csv_manifest import typed
from .parquet_manifest import check_size

_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"


def united(source: str, tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return the rows of several files, in their order, with the columns of all of them, null where a file has none.

    Numbers of different widths get the wider type, if it holds each of them exactly. A column without values takes the
    type that it has in other files.

    Args:
        source: the manifest, for messages.
        tables: by the name of their file; no column of a name twice.

    Raises:
        UsageError: a column has values of contradictory types, or all come to more than a manifest may have.
    """
    if len(tables) == 1:
        return next(iter(tables.values()))
    kinds: dict[str, tuple[pa.DataType, str]] = {}
    valued: dict[str, bool] = {}
    for file, table in tables.items():
        if nameless := sum(not name.strip() for name in table.column_names):
            raise UsageError(
                f"{file}: {plural(nameless, 'column')} without a name; where a manifest is several files, name them"
            )
        for name, column in zip(table.column_names, table.itercolumns(), strict=True):
            has_values = column.null_count < len(column)
            if name not in kinds or (has_values and not valued[name]):
                kinds[name] = (column.type, file)
            elif has_values and column.type != kinds[name][0]:
                kinds[name] = _wider(name, (column.type, file), kinds[name])
            valued[name] = valued.get(name, False) or has_values
    size, columns = 0, {}
    for name, (kind, _) in kinds.items():
        columns[name] = [_cast(name, file, tables, kind) for file in tables]
        size += (of_column := sum(column.nbytes for column in columns[name]))
        check_size(source, name, of_column, size)
    return pa.table(
        {
            name: pa.chunked_array([chunk for part in parts for chunk in part.chunks], kinds[name][0])
            for name, parts in columns.items()
        }
    )


_Kind = tuple[pa.DataType, str]
"""A type, and the file where a column has it."""


def _wider(name: str, new: _Kind, known: _Kind) -> _Kind:
    try:
        [field] = pa.unify_schemas(
            [pa.schema([(name, kind)]) for kind, _ in (known, new)], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise _contradiction(name, new, known) from error
    decimals = {types.is_decimal(kind) for kind, _ in (known, new)}
    texts = {types.is_string(kind) or types.is_large_string(kind) for kind, _ in (known, new)}
    # Arrow would round decimals to doubles, and take texts for bytes.
    if len(texts) == 2 or (len(decimals) == 2 and types.is_floating(field.type)):
        raise _contradiction(name, new, known)
    kind = field.type
    if types.is_decimal(kind) and len(decimals) == 2:  # Arrow 26 gives one digit too few for the integers
        kind = pa.decimal128(38, kind.scale)
    return known if kind == known[0] else (kind, new[1])


def _cast(name: str, file: str, tables: Mapping[str, pa.Table], kind: pa.DataType) -> pa.ChunkedArray:
    table = tables[file]
    if name not in table.column_names or table[name].null_count == len(table):
        return pa.chunked_array([pa.nulls(len(table), kind)])
    column = table[name]
    try:
        return column.cast(kind)
    except pa.ArrowException as error:  # an integer that no double is
        others = ((other[name].type, at) for at, other in tables.items() if name in other.column_names)
        other = next(each for each in others if each[0] != column.type)
        raise _contradiction(name, (column.type, file), other) from error


def _contradiction(name: str, new: _Kind, known: _Kind) -> UsageError:
    return UsageError(
        f"{new[1]}: the column {name!r} has values of type {str(new[0])[:100]}, and in {known[1]} of type "
        f"{str(known[0])[:100]}: write both with one type"
    )


def with_partitions(table: pa.Table, names: Sequence[str], counts: Sequence[int]) -> pa.Table:
    """Return a table of several files with the columns that the names of their folders add, as Hive writes them.

    Values are of the type that a CSV's would be. A column that the files have too is theirs.

    Args:
        table: the rows of all files.
        names: paths of the files below the manifest's folder, such as `year=2024/month=01/part-0.parquet`.
        counts: the number of rows of each file.

    Raises:
        UsageError: a file's column and its folder's name contradict each other.

    >>> table = with_partitions(pa.table({"uri": ["a", "b"]}), ["year=2024/site=A%20B/0.parquet"], [2])
    >>> table.to_pylist()[1]
    {'uri': 'b', 'year': 2024, 'site': 'A B'}
    """
    partitions = [_partitions_of(name) for name in names]
    rows = pa.array(np.repeat(np.arange(len(names)), counts))
    for key in dict.fromkeys(key for of_file in partitions for key in of_file):
        texts = pa.chunked_array([[of_file.get(key) for of_file in partitions]], pa.string())
        if key not in table.column_names:
            table = table.append_column(key, typed(texts).take(rows))
            continue
        expected = texts.take(rows)
        try:
            same = pc.fill_null(pc.equal(table[key].cast(pa.string()), expected), fill_value=True)
        except pa.ArrowException:  # lists and the like
            same = pa.chunked_array([pa.array([False] * len(table))])
        if not pc.all(same).as_py():
            at = pc.index(same, value=False).as_py()
            raise UsageError(
                f"{names[rows[at].as_py()]}: the column {key!r} has values other than its folder's name says: remove "
                "the column, or rename the folder"
            )
    return table


def _partitions_of(name: str) -> dict[str, str | None]:
    """Return keys and values in the names of a file's folders."""
    found: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if equals and key:
            found[unquote(key)] = None if value == _NO_VALUE else unquote(value)
    return found

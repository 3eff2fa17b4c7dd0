"""Read JSON Lines: one object a line, whose keys become columns. Values keep every digit, as those of COCO JSON do."""

import json
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import pyarrow as pa

from ...errors import UsageError
from .json_columns import column_of, exact_number
from .manifest_columns import MAX_COLUMNS, check_columns
from .parquet_manifest import check_size

_TEXT: Final = ("uri", "name")
"""Keys whose values must be text."""


def read_json_lines(source: str, files: Iterable[tuple[str, bytes]]) -> tuple[pa.Table, list[int]]:
    """Return the objects of several files as one table, null where a key is missing, and the number of each file's.

    Args:
        source: the manifest, for messages that concern all of its files.
        files: name and content of each, in order.

    Raises:
        UsageError: a line is not one object, has a key twice, or has a uri or a name that is no text; there is no key
            `uri`, or there is more than a manifest may have.
        UnicodeEncodeError: a key, a uri or a name has half of a surrogate pair.
    """
    columns: dict[str, list[Any]] = {}
    counts: list[int] = []
    n_rows = 0
    for name, data in files:
        before, keys = n_rows, dict[str, None]()
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            for key, value in _object(name, number, line).items():
                keys[key] = None
                column = columns.setdefault(key, [])
                column += [None] * (n_rows - len(column))
                column.append(value)
            n_rows += 1
            if len(columns) > MAX_COLUMNS:
                raise UsageError(
                    f"{source}: its objects have more than {MAX_COLUMNS:,} different keys, the most that can be "
                    "carried: leave out those that are not needed"
                )
        counts.append(n_rows - before)
        if counts[-1]:
            check_columns(name, pa.schema([(key, pa.null()) for key in keys]))
    return _table(source, columns, n_rows), counts


def _table(source: str, columns: dict[str, list[Any]], n_rows: int) -> pa.Table:
    arrays = {}
    size = 0
    for key in list(columns):
        values = columns.pop(key)
        values += [None] * (n_rows - len(values))
        array = pa.chunked_array([pa.array(values, pa.string())]) if key in _TEXT else column_of(values)
        size += array.nbytes
        check_size(source, key, array.nbytes, size)
        arrays[key] = array
    return pa.table(arrays)


def _object(source: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_float=exact_number, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        _refuse(source, number, f"is not one JSON value ({error.msg}): write one object per line")
    except _DoubledKeyError as error:
        _refuse(source, number, f"has the key {error} twice: rename or remove one")
    except RecursionError:
        _refuse(source, number, "is nested too deeply to be read: leave it out")
    except ValueError:  # of `int`
        _refuse(source, number, "holds a number of too many digits: write it as text")
    if not isinstance(value, dict):
        shown = json.dumps(value, default=str)[:80]
        _refuse(source, number, f"holds {shown} instead of an object: write one object per line")
    for key in _TEXT:
        if value.get(key) is not None and not isinstance(value[key], str):
            shown = json.dumps(value[key], default=str)[:80]
            _refuse(source, number, f"has {shown} as `{key}`, which must be text")
    return value


def _refuse(source: str, number: int, why: str) -> NoReturn:
    raise UsageError(f"{source}: line {number:,} {why}")


class _DoubledKeyError(Exception):
    """An object has a key twice."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DoubledKeyError(repr(next(key for key in keys if keys.count(key) > 1)))
    return found

"""The user's own columns of a manifest: which are carried into the tables, and under which names."""

import logging
from collections.abc import Collection, Sequence
from typing import Any, Final

import pyarrow as pa

from ..errors import ItemError, plural
from ..formats.geoparquet import GEO
from ..imaging.sniff import format_of
from ..io.manifest_columns import holds_bytes, warn_left_out
from ..schema import IMAGES, INSTANCES, MANIFEST, PIECES, WINDOWS

log = logging.getLogger("maskrcnn")

_RESERVED: Final = frozenset(
    name.lower() for schema in (MANIFEST, IMAGES, INSTANCES, WINDOWS, PIECES, GEO) for name in schema.names
) | {"image_row"}
"""Names of our tables' columns: in a query that joins them, a column of the user's would be ambiguous."""
_LOOKED_AT: Final = 100
_LONGEST_DIGEST: Final = 64
"""Bytes; the smallest pictures have more, and random ones may begin as a picture does."""


def carried_columns(rows: pa.Table, taken: Collection[str], source: str) -> dict[str, str]:
    """Return the names under which the tables have the user's columns, by the names that the manifest gives them.

    Columns of pictures are left out, with a warning.

    Args:
        rows: the manifest's rows with all their columns.
        taken: the names of those that become columns of `schema.MANIFEST`.
        source: the manifest, for the log.
    """
    own = [name for name in rows.column_names if name not in taken]
    of_pictures = [name for name in own if _has_pictures(rows[name])]
    warn_left_out(source, of_pictures)
    carried = carried_names([name for name in own if name not in set(of_pictures)], taken)
    # Of `image_id` it is said why.
    if renamed := [new for name, new in carried.items() if name not in (new, "image_id")]:
        names = ", ".join(renamed[:12]) + (", …" if len(renamed) > 12 else "")
        log.info("%s: names that the tables have already: carried as %s", source, names)
    return carried


def carried_names(names: Sequence[str], others: Collection[str] = ()) -> dict[str, str]:
    """Return names of the user's columns that differ from each other and from our tables' in SQL, which ignores case.

    A name that one of our tables has, or an earlier column, gets the prefix `input_`.

    Args:
        names: of the user's columns, each once.
        others: further names of columns of the same table.

    >>> carried_names(["plot", "Status", "PLOT"])
    {'plot': 'plot', 'Status': 'input_Status', 'PLOT': 'input_PLOT'}
    """
    given = {name.lower() for name in (*names, *others)}
    used = set(_RESERVED)
    carried: dict[str, str] = {}
    for name in names:
        new = name
        while new.lower() in used or (new != name and new.lower() in given):
            new = f"input_{new}"
        used.add(new.lower())
        carried[name] = new
    return carried


def named(rows: pa.Table, source: str) -> pa.Table:
    """Return rows whose columns all have names: one without gets that of its position, as `column_1`."""
    names: list[str] = rows.column_names
    nameless = [at for at, name in enumerate(names) if not name.strip()]
    if not nameless:
        return rows
    given = {name.lower() for name in names}
    for at in nameless:
        new = f"column_{at + 1}"
        while new in given:
            new = f"input_{new}"
        names[at] = new
    what = ", ".join(names[at] for at in nameless)
    log.info("%s: %s without a name, carried as %s", source, plural(len(nameless), "column"), what)
    return rows.rename_columns(names)


def _has_pictures(column: pa.ChunkedArray) -> bool:
    """Return whether one of a column's first values is, or contains, a picture."""
    if not holds_bytes(column.type):
        return False
    some = column.drop_null().slice(0, _LOOKED_AT).to_pylist()
    return any(_is_picture(value) for one in some for value in _bytes_in(one))


def _bytes_in(value: Any) -> list[bytes]:
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [each for inner in value for each in _bytes_in(inner)] if isinstance(value, list | tuple) else []


def _is_picture(data: bytes) -> bool:
    if len(data) <= _LONGEST_DIGEST:
        return False
    try:
        format_of(data)
    except ItemError as error:
        return error.code != "not_an_image"
    return True

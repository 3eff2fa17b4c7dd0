"""The user's own columns of a manifest: which are carried into the tables, and under which names."""

import base64
import logging
import re
from collections.abc import Collection, Sequence
from typing import Final

import pyarrow as pa
from pyarrow import types

from ..errors import ItemError, plural
from ..formats.geoparquet import GEO
from ..imaging.formats.sniff import format_of
from ..io.manifests.manifest_columns import holds_bytes, warn_left_out
from ..io.manifests.portable import children_of
from ..schema import IMAGES, INSTANCES, MANIFEST, PIECES, WINDOWS

log = logging.getLogger("maskrcnn")

_RESERVED: Final = frozenset(
    name.lower() for schema in (MANIFEST, IMAGES, INSTANCES, WINDOWS, PIECES, GEO) for name in schema.names
) | {"image_row"}
"""Names of our tables' columns: in a query that joins them, a column of the user's would be ambiguous."""
_LOOKED_AT: Final = 100
_HEAD_BYTES: Final = 1024
_DATA_URI: Final = re.compile(rb"^data:[-+./\w]*(?:;[^,]*)?,")
_LONGEST_DIGEST: Final = 64
"""Bytes; the smallest pictures have more, and random ones may begin as a picture does."""


def carried_columns(rows: pa.Table, taken: Collection[str], source: str) -> dict[str, str]:
    """Return the names under which the tables have the user's columns, by the names that the manifest gives them.

    Columns of pictures are left out, with a warning, whether they are bytes, lists of numbers or text in base64.

    Args:
        rows: the manifest's rows with all their columns.
        taken: the names of those that become columns of `schema.MANIFEST`.
        source: the manifest, for the log.
    """
    own = [name for name in rows.column_names if name not in taken]
    of_pictures = [name for name in own if has_pictures(rows[name])]
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


def has_pictures(column: pa.ChunkedArray) -> bool:
    """Return whether one of a column's first values is, or contains, a picture: bytes, numbers, or base64."""
    return _may_hold_pictures(column.type) and any(
        map(_holds_picture, column.drop_null().slice(0, _LOOKED_AT))
    )


def _may_hold_pictures(kind: pa.DataType) -> bool:
    if holds_bytes(kind) or types.is_string(kind) or types.is_large_string(kind):
        return True
    return any(types.is_integer(child) or _may_hold_pictures(child) for child in children_of(kind))


def _holds_picture(value: pa.Scalar) -> bool:
    if not value.is_valid or not _may_hold_pictures(value.type):
        return False
    if isinstance(value, pa.StructScalar):
        return any(map(_holds_picture, value.values()))
    if isinstance(value, pa.ListScalar):
        head = value.values.slice(0, _HEAD_BYTES)
        if not types.is_integer(head.type):
            return any(map(_holds_picture, head))
        numbers: list[int] = head.drop_null().to_pylist()  # signed, as Java's bytes are, or not
        return all(-128 <= number < 256 for number in numbers) and _is_readable_picture(
            bytes(number & 255 for number in numbers)
        )
    data = value.as_buffer()[:_HEAD_BYTES].to_pybytes()
    if types.is_string(value.type) or types.is_large_string(value.type):
        return _is_readable_picture(_from_base64(data))
    return _is_picture(data)


def _from_base64(text: bytes) -> bytes:
    """Return the first bytes that a text in base64 stands for, with or without what begins a data URI; or none."""
    head = _DATA_URI.sub(b"", text).replace(b"\n", b"")
    try:
        return base64.b64decode(head[: len(head) // 4 * 4], validate=True)
    except ValueError:
        return b""


def _is_picture(data: bytes) -> bool:
    if len(data) <= _LONGEST_DIGEST:
        return False
    try:
        format_of(data)
    except ItemError as error:
        return error.code != "not_an_image"
    return True


def _is_readable_picture(data: bytes) -> bool:
    """Return whether data is a picture of a format that is read; others' signatures are short, as flags may be."""
    if len(data) <= _LONGEST_DIGEST:
        return False
    try:
        return format_of(data) != "BMP" or not any(data[6:10])  # reserved
    except ItemError:
        return False

"""The columns that a manifest may have, judged by their names and types, before its rows are read."""

import difflib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
from pyarrow import types

from ...errors import UsageError, plural
from .portable import children_of, depth_of

log = logging.getLogger("maskrcnn")

MAX_COLUMNS: Final = 10_000
MAX_URI_BYTES: Final = 8192
"""Of a uri or a name: no path, no key, and no address that web servers accept is longer."""
MAX_DEPTH: Final = 32
"""Levels of lists and structs in a column: Parquet's readers need time, and their stack, for each."""
LARGE_VALUE_BYTES: Final = 1024
"""Bytes that are more than this, on average, are contents of files, and no property of an image."""
_URI_SYNONYMS: Final = (
    "url",
    "path",
    "image",
    "image_path",
    "file",
    "file_name",
    "filename",
    "key",
    "s3_uri",
)


def check_columns(source: str, schema: pa.Schema, instead: str = "") -> None:
    """Check a manifest's columns.

    Args:
        source: the manifest, for messages.
        schema: its columns.
        instead: what else the file could have than a column `uri`, and has not.

    Raises:
        UsageError: there is no column `uri`, or as `check_names`.
    """
    names: list[str] = schema.names
    _check_unique(source, names)
    if "uri" not in names:
        raise UsageError(f"{source}: no column `uri`{instead}; {_near(schema)}")
    check_names(source, schema)


def check_names(source: str, schema: pa.Schema) -> None:
    """Check the columns that a table of inputs has, whatever it lists.

    Raises:
        UsageError: a name is used twice, or there are too many columns or levels.
    """
    names: list[str] = schema.names
    _check_unique(source, names)
    if len(names) > MAX_COLUMNS:
        raise UsageError(
            f"{source}: {len(names):,} columns, and at most {MAX_COLUMNS:,} can be carried: leave out those "
            "that are not needed"
        )
    for field in schema:
        if (depth := depth_of(field.type)) > MAX_DEPTH:
            raise UsageError(
                f"{source}: the column {field.name!r} is nested {depth:,} levels deep, and at most {MAX_DEPTH} can be "
                "carried: remove it, or write it as JSON text"
            )


def _check_unique(source: str, names: Sequence[str]) -> None:
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1 and name.strip()):
        raise UsageError(
            f"{source}: several columns have the name {', '.join(map(repr, repeated))}; rename all but one"
        )


def _near(schema: pa.Schema) -> str:
    names: list[str] = schema.names
    found = f"found {', '.join(map(repr, names[:12]))}{', …' if len(names) > 12 else ''}"
    of_bytes = [field.name for field in schema if holds_bytes(field.type)]
    nested = [field.name for field in schema if children_of(field.type)]
    lowered = {name.strip().lower(): name for name in names if name not in (*of_bytes, *nested)}
    near = [lowered[name] for name in ("uri", *_URI_SYNONYMS) if name in lowered]
    near += [lowered[name] for name in difflib.get_close_matches("uri", lowered)]
    return f"{found}; rename {near[0]!r} if that is meant" if near else found


def holds_bytes(kind: pa.DataType) -> bool:
    """Return whether values of a type are or contain bytes of any length, as pictures within a table are stored.

    >>> [holds_bytes(kind) for kind in (pa.string(), pa.binary(16), pa.binary(), pa.struct([("bytes", pa.binary())]))]
    [False, False, True, True]
    """
    if isinstance(kind, pa.BaseExtensionType):
        return holds_bytes(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return holds_bytes(kind.value_type)
    if types.is_fixed_size_binary(kind):
        return bool(kind.byte_width > LARGE_VALUE_BYTES)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return True
    return any(types.is_uint8(child) or holds_bytes(child) for child in children_of(kind))


def warn_left_out(source: str, names: Sequence[str]) -> None:
    """Say which columns are left out, because they hold contents of files and no properties."""
    if names:
        log.warning(
            "%s: left out of the tables: %s of pictures or other large bytes, %s",
            source,
            plural(len(names), "column"),
            ", ".join(map(repr, names)),
        )

"""Read a Parquet file as a manifest: types that all readers know, no contents of pictures, and within bounds.

A dictionary lets a file of some kilobytes come to terabytes of text, so a column's size is known before it is expanded.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, repeat
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from ...errors import UsageError
from .manifest_columns import LARGE_VALUE_BYTES, check_columns, holds_bytes, warn_left_out
from .portable import children_of, is_portable, portable

log = logging.getLogger("maskrcnn")

LARGEST_COLUMN_BYTES: Final = 2**31 - 1
"""More text does not fit into one array."""
LARGEST_TABLE_BYTES: Final = 2**32
_NUMBER_BYTES: Final = 8
_PREFIXES: Final = "DELTA_BYTE_ARRAY"
"""Each value is stored as a change of the one before."""
_EXPANDING: Final = frozenset({"PLAIN_DICTIONARY", "RLE_DICTIONARY", _PREFIXES})
"""Encodings that store a long value once for many rows."""
_AT_ONCE: Final = 64


def read_parquet_manifest(source: str, file: BinaryIO) -> pa.Table:
    """Return a Parquet file's columns, except those of large values of bytes, which are named in a warning.

    Args:
        source: its name, for messages.
        file: open for random access.

    Raises:
        UsageError: it has no column `uri`, is larger than a manifest may be, or a column cannot be carried.
        pyarrow.ArrowException: it is not a sound Parquet file.
    """
    metadata = pq.read_metadata(file)
    schema = pq.ParquetFile(file, metadata=metadata).schema_arrow
    check_columns(source, schema, " and none of pictures (bytes, or struct<bytes, path>)")
    table, left_out = read_columns(source, file, metadata)
    warn_left_out(source, left_out)
    return table


def read_columns(
    source: str, file: BinaryIO, metadata: pq.FileMetaData, pictures: str | None = None
) -> tuple[pa.Table, list[str]]:
    """Return a Parquet file's columns, except those of large values of bytes, whose names are returned too.

    Args:
        source: its name, for messages.
        file: open for random access.
        metadata: its footer.
        pictures: a column that is left out, without being named; if it is of structs with a field `path`, the column
            has these instead.

    Raises:
        UsageError: it is larger than a manifest may be, or a column cannot be carried.
        pyarrow.ArrowException: it is not a sound Parquet file.
    """
    schema = pq.ParquetFile(file, metadata=metadata).schema_arrow
    given: list[str] = schema.names
    leaves = _leaves(schema)
    sizes = [sum(chunk.total_uncompressed_size for chunk in _chunks(metadata, of)) for of in leaves]
    large = [
        field.name not in ("uri", "name")
        and holds_bytes(field.type)
        and size > LARGE_VALUE_BYTES * metadata.num_rows
        for field, size in zip(schema, sizes, strict=True)
    ]
    left_out = [name for name, is_large in zip(given, large, strict=True) if is_large and name != pictures]
    kept = {at: given[at] for at, is_large in enumerate(large) if not is_large and given[at] != pictures}
    of_kept = {name: leaves[at] for at, name in kept.items()}
    names = list(kept.values())
    if pictures is not None:
        for leaf in leaves[given.index(pictures)]:
            if metadata.schema.column(leaf).path == f"{pictures}.path":
                names.append(f"{pictures}.path")
                of_kept[names[-1]] = range(leaf, leaf + 1)
    _check_sizes(source, file, metadata, of_kept)
    everything = not any(large) and pictures is None
    table = _select(pq.ParquetFile(file, metadata=metadata), None if everything else names)
    if pictures in table.column_names:
        at = table.column_names.index(pictures)
        table = table.set_column(at, pictures, pc.struct_field(table[pictures], "path"))
    return carried_table(source, table), left_out


def carried_table(source: str, table: pa.Table) -> pa.Table:
    """Return a table with columns of types that all readers know.

    Args:
        source: its name, for messages.
        table: its columns, as they are in a file.

    Raises:
        UsageError: a column cannot be carried.
    """
    columns = list(map(_carried, repeat(source), table.column_names, table.itercolumns()))
    changed = [
        repr(field.name)
        for field, column in zip(table.schema, columns, strict=True)
        if field.type != column.type and is_portable(field.type)
    ]
    if changed:
        log.info(
            "%s: columns carried as text or as lists, because not all readers take their values: %s",
            source,
            ", ".join(changed[:12]) + (", …" if len(changed) > 12 else ""),
        )
    return pa.table(columns, names=table.column_names)


@contextlib.contextmanager
def parquet_errors(source: str, file: BinaryIO) -> Iterator[None]:
    """Convert failures to read a Parquet file to UsageErrors of one line."""
    try:
        yield
    except pa.ArrowNotImplementedError as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{source}: a column is of a type that cannot be read ({why}): remove it, or write it as text"
        ) from error
    except (pa.ArrowException, OSError) as error:  # OSError: a compressed page is damaged
        file.seek(0)
        what = "damaged or cut off" if file.read(4) == b"PAR1" else "no Parquet file"
        raise UsageError(f"{source}: it is {what}: write or copy it again") from error


def _select(parquet: pq.ParquetFile, names: Sequence[str] | None) -> pa.Table:
    """Return columns by their names, or by that of a field, `column.field`; None: all of them."""
    if names is None:
        return parquet.read(use_threads=False)
    groups = range(parquet.metadata.num_row_groups)  # one by one: their columns lie beside each other
    read = [parquet.read_row_group(group, list(names), use_threads=False) for group in groups]
    table = pa.concat_tables(read) if read else parquet.read(columns=list(names), use_threads=False)
    # A name also selects columns whose names begin with it and a dot.
    selected = set(names) | {name.removesuffix(".path") for name in names}
    return table.select([at for at, name in enumerate(table.column_names) if name in selected])


def _leaves(schema: pa.Schema) -> list[range]:
    """Return the numbers of the columns in which Parquet stores each field."""
    counts = [_count_leaves(field.type) for field in schema]
    stops = np.cumsum([0, *counts]).tolist()
    return [range(start, stop) for start, stop in pairwise(stops)]


def _count_leaves(kind: pa.DataType) -> int:
    return sum(map(_count_leaves, children_of(kind))) or 1


def _chunks(metadata: pq.FileMetaData, leaves: range) -> Iterator[pq.ColumnChunkMetaData]:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        yield from (row_group.column(leaf) for leaf in leaves)


def _check_sizes(source: str, file: BinaryIO, metadata: pq.FileMetaData, leaves: Mapping[str, range]) -> None:
    """Check that columns do not come to more than a manifest may have, without expanding more than that."""
    of_columns = {name: list(_chunks(metadata, of)) for name, of in leaves.items()}
    stored, most = 0, {}
    for name, chunks in of_columns.items():
        size = sum(max(chunk.total_uncompressed_size, chunk.num_values * _NUMBER_BYTES) for chunk in chunks)
        stored += size
        check_size(source, name, size, stored)
        # Each value may be as long as all of a dictionary.
        most[name] = size + sum(
            chunk.num_values * chunk.total_uncompressed_size for chunk in chunks if _expands(chunk)
        )
    if max(most.values(), default=0) <= LARGEST_COLUMN_BYTES and sum(most.values()) <= LARGEST_TABLE_BYTES:
        return
    prefixed = {name for name, chunks in of_columns.items() if any(_PREFIXES in c.encodings for c in chunks)}
    for name in prefixed:
        size = 0
        for batch in pq.ParquetFile(file, metadata=metadata).iter_batches(_AT_ONCE, columns=[name]):
            size += batch.nbytes
            check_size(source, name, size, size)
    expanding = {name: chunks for name, chunks in of_columns.items() if any(map(_expands, chunks))}
    measured = [name for name in expanding if name not in prefixed]
    paths = {chunk.path_in_schema for name in measured for chunk in expanding[name] if _expands(chunk)}
    parquet = pq.ParquetFile(file, metadata=metadata, read_dictionary=sorted(paths))
    table = _select(parquet, measured)
    expanded = 0
    for name, column in zip(table.column_names, table.itercolumns(), strict=True):
        size = sum(map(_expanded_bytes, column.chunks))
        expanded += size
        check_size(source, name, size, expanded)


def check_expanded(source: str, table: pa.Table) -> None:
    """Check the bytes of columns once their dictionaries, views and runs are expanded. Raises UsageError."""
    size = 0
    for name, column in zip(table.column_names, table.itercolumns(), strict=True):
        size += (of_column := sum(map(_expanded_bytes, column.chunks)))
        check_size(source, name, of_column, size)


def _expands(chunk: pq.ColumnChunkMetaData) -> bool:
    return chunk.physical_type == "BYTE_ARRAY" and not _EXPANDING.isdisjoint(chunk.encodings)


def _expanded_bytes(array: pa.Array) -> int:
    """Return the bytes of an array's values once its dictionaries are expanded."""
    kind = array.type
    if types.is_dictionary(kind):
        if not any(is_kind(kind.value_type) for is_kind in _TEXTS):
            return len(array) * _NUMBER_BYTES
        lengths = pc.fill_null(pc.binary_length(array.dictionary), 0).to_numpy(zero_copy_only=False)
        used = array.indices.drop_null().to_numpy()
        return int(lengths.astype(np.int64)[used].sum())
    if types.is_binary_view(kind) or types.is_string_view(kind):  # several may be of the same bytes
        _, views, *_ = array.buffers()
        lengths = np.frombuffer(views, np.int32)[4 * array.offset : 4 * (array.offset + len(array)) : 4]
        return int(array.nbytes) + int(lengths.astype(np.int64).sum())
    if types.is_run_end_encoded(kind):
        return len(array) * int(array.values.nbytes)  # each run may be of the longest value
    if isinstance(kind, pa.BaseExtensionType):
        inner = [array.storage]
    elif types.is_struct(kind):
        inner = array.flatten()
    elif types.is_map(kind):
        inner = [array.keys, array.items]
    else:
        inner = [array.flatten()] if kind.num_fields else []
    return sum(map(_expanded_bytes, inner)) if inner else int(array.nbytes)


_TEXTS: Final = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)


def check_size(source: str, name: str, of_column: int, of_table: int) -> None:
    """Check the bytes of a column, expanded, and of all columns up to it. Raises UsageError."""
    if of_column > LARGEST_COLUMN_BYTES or of_table > LARGEST_TABLE_BYTES:
        what, size, most = f"the column {name!r} comes", of_column, "2 GiB"
        if of_column <= LARGEST_COLUMN_BYTES:
            what, size, most = "its columns come", of_table, "4 GiB"
        raise UsageError(
            f"{source}: {what} to {size / 2**30:,.1f} GiB, and at most {most} can be carried: leave out what is not "
            "needed, or divide the manifest"
        )


def _carried(source: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return portable(column)
    except pa.ArrowException as error:
        why = " ".join(re.sub(r"\b(?:In chunk \d+|Invalid): ", "", str(error)).split())[:200]
        raise UsageError(
            f"{source}: the column {name!r} of type {str(column.type)[:100]} cannot be carried ({why}): remove it, or "
            "write it as text"
        ) from error

"""Parquet files of results: built locally, read back, stored in one PUT.

A writer that streams to its final name leaves a truncated but *readable* Parquet file when its caller raises
(apache/arrow#40502). So a file is built under a name that no reader looks for, opened again and counted, and only
then stored.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RunError
from ..schema import INSTANCES as INSTANCES_SCHEMA
from .storage import Storage

IMAGES: Final = "images"
INSTANCES: Final = "instances"
WINDOWS: Final = "windows"
PIECES: Final = "pieces"
GEO: Final = "geo"
TABLES: Final = (IMAGES, INSTANCES, WINDOWS, PIECES, GEO)
"""The tables that users read, in Parquet; the last three belong to windowed runs."""
ROW_GROUP_ROWS: Final = 61_440
"""Half of DuckDB's default: one image's masks are read in half the time, and a whole column takes no longer."""
BATCH_ROWS: Final = 16_384
"""Rows decoded at once where a file is read from front to back."""
# Values that repeat within a file. A dictionary of anything else (run-length strings, ids, names) is only overhead.
_REPEATING: Final = ("status", "error", "category_id", "category", "segmentation.size.list.element")
_ENCODINGS: Final = {
    "id": "DELTA_BINARY_PACKED",
    "image_id": "DELTA_BINARY_PACKED",
    "instance": "DELTA_BINARY_PACKED",
    "area": "DELTA_BINARY_PACKED",
    "score": "BYTE_STREAM_SPLIT",
    "box.xmin": "BYTE_STREAM_SPLIT",
    "box.ymin": "BYTE_STREAM_SPLIT",
    "box.xmax": "BYTE_STREAM_SPLIT",
    "box.ymax": "BYTE_STREAM_SPLIT",
    "mask_box.xmin": "DELTA_BINARY_PACKED",
    "mask_box.ymin": "DELTA_BINARY_PACKED",
    "mask_box.xmax": "DELTA_BINARY_PACKED",
    "mask_box.ymax": "DELTA_BINARY_PACKED",
    "segmentation.counts": "DELTA_LENGTH_BYTE_ARRAY",
}


@dataclass(frozen=True, slots=True)
class File:
    """A stored file, with what is needed to verify that it is unchanged."""

    path: str
    """Below the run's directory."""
    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class Part:
    """The final files of consecutive images: their rows, and their instances in the same order."""

    images: str
    """Path below the run's directory."""
    instances: str
    n_images: int
    n_instances: int


def write_table(storage: Storage, path: str, table: pa.Table) -> File:
    """Store a table as one Parquet file, in one PUT, after it has been read back."""
    return write_tables(storage, path, table.schema, [table])


def write_tables(storage: Storage, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> File:
    """Store tables of one schema as one Parquet file, in one PUT, after it has been read back.

    Row groups have `ROW_GROUP_ROWS` rows, whatever the sizes of the tables; at most one group is held in memory. Equal
    rows give equal bytes with the same version of pyarrow.

    Raises:
        RunError: the built file does not read back, or cannot be stored.
    """
    with storage.building(path) as local:
        rows = 0
        with pq.ParquetWriter(local, schema, **parquet_options(schema)) as writer:
            for group in _row_groups(tables):
                writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
                rows += len(group)
        with pq.ParquetFile(local, pre_buffer=False) as readback:  # otherwise all of it is held in memory
            intact = readback.metadata.num_rows == rows and readback.schema_arrow.equals(schema)
            if intact:
                for _ in readback.iter_batches():  # decodes every page
                    pass
        if not intact:
            raise RunError(f"{path} does not read back as it was written: check the local disk")
        with local.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = local.stat().st_size
    return File(path, sha256, size, rows)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the encoding of a table of a run, as arguments of `ParquetWriter`.

    Chosen among those that `tests/benchmarks/writers.py --parquet` compares.
    """
    # A column that a manifest adds may have the name of one of these, but another type.
    ours = {field.name for field in schema if field in list(INSTANCES_SCHEMA)}
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": list(_REPEATING),
        "column_encoding": {
            path: encoding for path, encoding in _ENCODINGS.items() if path.partition(".")[0] in ours
        },
        "write_page_index": True,
    }


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    n_waiting = 0
    for table in tables:
        waiting.append(table)
        n_waiting += len(table)
        if n_waiting >= ROW_GROUP_ROWS:
            joined = pa.concat_tables(waiting)
            whole = n_waiting - n_waiting % ROW_GROUP_ROWS
            yield joined.slice(0, whole)
            waiting, n_waiting = [joined.slice(whole)], n_waiting - whole
    if n_waiting:
        yield pa.concat_tables(waiting)


def read_table(storage: Storage, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a whole Parquet file of the run, or some of its columns; only their bytes are fetched."""
    if columns is None:
        return decode_table(storage.read(path))
    with storage.open(path) as file:
        return _read_here(file, columns)


def read_schema(storage: Storage, path: str) -> pa.Schema:
    """Return the schema of a Parquet file of the run, from its footer."""
    with storage.open(path) as file, pq.ParquetFile(file) as parquet:
        return parquet.schema_arrow


def decode_table(data: bytes) -> pa.Table:
    """Return the content of a Parquet file that is in memory."""
    return _read_here(pa.BufferReader(data))


def _read_here(source: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file on the calling thread alone.

    `pyarrow.parquet.read_table` leaves threads behind that release the file's bytes a little later. Those bytes belong
    to Python, so a process that ends meanwhile may be aborted by such a thread (apache/arrow#34314).
    """
    return pq.ParquetFile(source, pre_buffer=False).read(columns, use_threads=False)


class RowsInOrder:
    """The rows of an open Parquet file, taken from the front, a few batches in memory at a time.

    Args:
        file: the open file.
        columns: their names; None: all.
        batch_rows: maximum number of rows decoded at once.
    """

    def __init__(
        self, file: pq.ParquetFile, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
    ) -> None:
        self._batches = file.iter_batches(batch_rows, columns=columns, use_threads=False)
        self._waiting = file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)

    def take(self, count: int) -> pa.Table:
        """Return the next `count` rows; fewer at the end of the file."""
        tables, held = [self._waiting], len(self._waiting)
        while held < count and (batch := next(self._batches, None)) is not None:
            tables.append(pa.Table.from_batches([batch]))
            held += len(batch)
        table = pa.concat_tables(tables, promote_options="permissive")
        self._waiting = table.slice(count)
        return table.slice(0, count)


def read_checked(storage: Storage, file: File) -> pa.Table:
    """Return a whole Parquet file of the run, after comparing its digest.

    Raises:
        RunError: it is missing, or differs from what was written.
    """
    try:
        data = storage.read(file.path)
    except FileNotFoundError as error:
        raise RunError(f"{storage.url}/{file.path} is missing") from error
    intact = hashlib.sha256(data).hexdigest() == file.sha256
    table = decode_table(data) if intact else None
    if table is None or len(table) != file.rows:
        raise RunError(
            f"{storage.url}/{file.path} differs from its receipt, it was changed or damaged: "
            "remove its folder, and run `maskrcnn segment` again"
        )
    return table

"""Tables of pictures made for tests: the same files in each layout that is read."""

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How Hugging Face's data sets hold a picture."""


def table_of(files: Mapping[str, bytes | None], kind: pa.DataType = STRUCT, **columns: Any) -> pa.Table:
    """Return a table with a picture in each row, its name in `file`, and further columns."""
    values: list[Any] = list(files.values())
    if pa.types.is_struct(kind):
        values = [{"bytes": data, "path": f"folder/{name}"} for name, data in files.items()]
    return pa.table({"image": pa.array(values, kind), "file": list(files), **columns})


def parquet(table: pa.Table, row_group_size: int = 4, **options: Any) -> bytes:
    """Return a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size, **options)
    return sink.getvalue()


def damaged_in(data: bytes, group: int, column: str = "image.bytes") -> bytes:
    """Return a Parquet file whose pages of one column in one row group are overwritten."""
    row_group = pq.read_metadata(io.BytesIO(data)).row_group(group)
    [chunk] = [
        row_group.column(at)
        for at in range(row_group.num_columns)
        if row_group.column(at).path_in_schema == column
    ]
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    size = chunk.total_compressed_size
    return data[:start] + b"\xff" * size + data[start + size :]

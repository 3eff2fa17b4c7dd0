"""Tables of pictures made for tests: the same files in each layout that is read."""

import base64
import io
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn.errors import ItemError, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.list_inputs import Inputs, read_inputs
from maskrcnn.pipeline.shard_inputs import ShardInputs

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How Hugging Face's data sets hold a picture."""


NO_LIMIT = 2**40
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
"""A picture of one pixel; what follows its end is ignored."""


def picture(seed: int, size: int = 100) -> bytes:
    return PNG + random.Random(seed).randbytes(size)


FILES = {f"{seed}.png": picture(seed) for seed in range(11)}


def write(folder: Path, data: bytes, name: str = "t.parquet") -> str:
    Storage(folder).write(name, data)
    return str(folder / name)


def listed(source: Path | str, image_column: str | None = None) -> Inputs:
    return read_inputs(str(source), images_root=None, limit=None, image_column=image_column)


def content_or_code(read: Callable[[], bytes]) -> bytes | str:
    try:
        return read()
    except ItemError as error:
        return error.code


def contents(table: pa.Table) -> list[bytes | str]:
    """Return the content of each row as a worker reads it, or the code of its failure."""
    inputs = ShardInputs(table.to_pylist(), NO_LIMIT)
    return [content_or_code(lambda at=at: inputs.read(at)) for at in range(len(table))]


def refusal(source: Path | str, image_column: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        listed(source, image_column)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def arrow_stream(table: pa.Table, batch_rows: int = 4, compression: str | None = None) -> bytes:
    """Return a table as an Arrow stream, as Hugging Face's `save_to_disk` writes it."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return sink.getvalue()


def arrow_file(table: pa.Table, batch_rows: int = 4, compression: str | None = None) -> bytes:
    """Return a table as an Arrow file, which is Feather 2 too."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return sink.getvalue()

"""A Parquet file with pictures in a column: its footer, and its row groups, each read by one pass over that column."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from ..refusals import Refusal
from ..stores.remote_store import RangeReader
from ..stores.seekable import SeekableReader
from ..stores.store import Store
from ..url import Url

WHOLE_CHUNK_BYTES: Final = 128 * 2**20
"""A row group's column of at most this size is read by one request; a larger one by several, one after the other."""
_BLOCK_BYTES: Final = 8 * 2**20
_SMALL_BYTES: Final = 2**16
_TOGETHER_BYTES: Final = 2**20
"""Columns of a row group that are small are read together, up to so many bytes."""
_IN_STRUCT: Final = "bytes"
"""Name of the field with the picture, where a column is of structs, as Hugging Face writes them."""


def picture_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that may hold pictures, by their types: bytes, or structs with a field `bytes`.

    >>> image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    >>> picture_columns(pa.schema([("image", image), ("jpg", pa.large_binary()), ("id", pa.int64())]))
    ['image', 'jpg']
    """
    return [field.name for field in schema if _leaf(field.name, field.type) is not None]


def _leaf(name: str, kind: pa.DataType) -> str | None:
    """Return the path of the leaf that holds a column's pictures; None if it cannot hold any."""
    if _is_bytes(kind):
        return name
    if (
        types.is_struct(kind)
        and (at := kind.get_field_index(_IN_STRUCT)) >= 0
        and _is_bytes(kind.field(at).type)
    ):
        return f"{name}.{_IN_STRUCT}"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view))


@dataclass(frozen=True, slots=True)
class PictureTable:
    """A Parquet file whose footer was read."""

    url: Url
    etag: str | None
    """Each read of the file compares it."""
    size: int
    """In bytes."""
    store: Store
    metadata: pq.FileMetaData
    schema: pa.Schema
    starts: tuple[int, ...]
    """The first row of each row group, and the number of all rows."""

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return self.starts[-1]

    def open(self) -> BinaryIO:
        """Open the file for random access, without a buffer. Its methods raise ItemError and RunError."""
        return _opened(self.store, self.url, self.size, self.etag)

    def open_columns(self) -> BinaryIO:
        """Open the file to read columns of small values, of which those that lie beside each other are read together.

        Row groups are to be read one after the other.
        """
        groups = map(self.metadata.row_group, range(self.metadata.num_row_groups))
        chunks = [group.column(at) for group in groups for at in range(group.num_columns)]
        places = sorted((_start_of(chunk), chunk.total_compressed_size) for chunk in chunks)
        small = [(start, size) for start, size in places if size <= _SMALL_BYTES]
        spans: list[tuple[int, int]] = []
        for start, size in small:
            if spans and spans[-1][1] == start and start + size - spans[-1][0] <= _TOGETHER_BYTES:
                spans[-1] = spans[-1][0], start + size
            else:
                spans.append((start, start + size))
        return cast(BinaryIO, _SpanReader(self.open(), self.size, spans))

    def pictures(self, column: str, group: int) -> Iterator[bytes | None]:
        """Yield the pictures of a row group in the order of its rows, by one pass over its column; None for a null.

        The column is read when the first one is asked for, and decoded one row at a time: the row group of a file that
        was written as one may be all of it.

        Raises:
            ItemError: `corrupt`, `changed`, `unsupported_format`, and as `read_input`.
            RunError: as `read_input`.
        """
        leaf = self._leaf_of(column)
        count = 0
        try:
            file = pq.ParquetFile(
                self.open(),
                metadata=self.metadata,
                pre_buffer=False,
                buffer_size=0 if self.group_bytes(column, group) <= WHOLE_CHUNK_BYTES else _BLOCK_BYTES,
                page_checksum_verification=True,
            )
            for batch in file.iter_batches(1, row_groups=[group], columns=[leaf], use_threads=False):
                value = batch.column(column)[0].as_py()
                yield value[_IN_STRUCT] if isinstance(value, dict) else value
                count += 1
        except MemoryError as error:
            raise Refusal.NO_MEMORY.error(format="Parquet") from error
        except pa.ArrowNotImplementedError as error:
            raise Refusal.ROW_GROUP_ENCODING.error() from error
        except (pa.ArrowException, OSError) as error:
            raise Refusal.ROW_GROUP_DAMAGED.error() from error
        if count != self.starts[group + 1] - self.starts[group]:
            raise Refusal.ROW_GROUP_DAMAGED.error()

    def group_bytes(self, column: str, group: int) -> int:
        """Return the number of bytes that the pictures of a row group have in the file."""
        return int(self._chunk(self._leaf_of(column), group).total_compressed_size)

    def is_null(self, column: str, group: int) -> bool:
        """Return whether a row group has no picture in a column, as far as the footer says."""
        chunk = self._chunk(self._leaf_of(column), group)
        statistics = chunk.statistics
        return (
            statistics is not None and statistics.has_null_count and statistics.null_count == chunk.num_values
        )

    def _chunk(self, leaf: str, group: int) -> pq.ColumnChunkMetaData:
        row_group = self.metadata.row_group(group)
        paths = [self.metadata.schema.column(at).path for at in range(row_group.num_columns)]
        return row_group.column(paths.index(leaf))

    def _leaf_of(self, column: str) -> str:
        at = self.schema.get_field_index(column)
        leaf = _leaf(column, self.schema.field(at).type) if at >= 0 else None
        if leaf is None:
            raise Refusal.ROW_MISSING.error()
        return leaf


def read_footer(store: Store, url: Url, etag: str | None) -> PictureTable:
    """Read the footer of a Parquet file.

    Args:
        store: that it is in.
        url: of the file.
        etag: as planned; None: that which the file has now.

    Raises:
        ItemError: as `read_input`; `corrupt` if it is no sound Parquet file.
        RunError: as `read_input`.
    """
    with store.input_faults(url):
        stat = store.stat(url)
    if not stat.bytes:
        raise Refusal.TABLE_EMPTY.error()
    etag = etag or stat.etag
    try:
        file = pq.ParquetFile(_opened(store, url, stat.bytes, etag), pre_buffer=False)
        metadata, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise Refusal.TABLE_DAMAGED.error() from error
    counts = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return PictureTable(url, etag, stat.bytes, store, metadata, schema, (0, *accumulate(counts)))


def _start_of(chunk: pq.ColumnChunkMetaData) -> int:
    return int(chunk.dictionary_page_offset or chunk.data_page_offset)


class _SpanReader(SeekableReader):
    """A file of which spans are read whole, and the last one is kept; what lies in none is read as it is asked for.

    Args:
        file: open for random access.
        size: of the file in bytes.
        spans: where they begin and end, in order.
    """

    def __init__(self, file: BinaryIO, size: int, spans: Sequence[tuple[int, int]]) -> None:
        super().__init__(size)
        self._file = file
        self._spans = spans
        self._kept = (0, b"")

    def read_at(self, start: int, stop: int) -> bytes:
        """Return a range of bytes, from the kept span or by one request."""
        begin, data = self._kept
        if not begin <= start <= stop <= begin + len(data):
            at = bisect_right(self._spans, (start, self._size)) - 1
            first, last = self._spans[at] if at >= 0 else (start, stop)
            if not first <= start <= stop <= last:
                first, last = start, stop
            self._file.seek(first)
            begin, data = self._kept = first, self._file.read(last - first)
        return data[start - begin : stop - begin]


def _opened(store: Store, url: Url, size: int, etag: str | None) -> BinaryIO:
    def read_range(start: int, stop: int) -> bytes:
        with store.input_faults(url):
            return store.read_range(url, start, stop, etag)

    return cast(BinaryIO, RangeReader(read_range, size))

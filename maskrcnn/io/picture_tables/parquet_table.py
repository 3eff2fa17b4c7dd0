"""A Parquet file with pictures in a column: its footer, and its row groups, each read by one pass over that column."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..manifests.parquet_manifest import read_columns
from ..refusals import Refusal
from ..stores.seekable import SeekableReader
from ..stores.store import Store
from ..url import Url
from .picture_table import IN_STRUCT, PictureTable, decode_names, decoding, opened

WHOLE_CHUNK_BYTES: Final = 128 * 2**20
"""A row group's column of at most this size is read by one request; a larger one by several, one after the other."""
_BLOCK_BYTES: Final = 8 * 2**20
_SMALL_BYTES: Final = 2**16
_TOGETHER_BYTES: Final = 2**20
"""Columns of a row group that are small are read together, up to so many bytes."""


class ParquetTable(PictureTable):
    """A Parquet file whose footer was read.

    Args:
        url: of the file.
        etag: each read of the file compares it.
        size: in bytes.
        store: that the file is in.
        metadata: its footer.
        schema: its columns.
    """

    def __init__(
        self,
        url: Url,
        etag: str | None,
        size: int,
        store: Store,
        metadata: pq.FileMetaData,
        schema: pa.Schema,
    ) -> None:
        counts = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        super().__init__(url, etag, size, store, schema, (0, *accumulate(counts)))
        self.metadata = metadata

    def open(self) -> BinaryIO:
        """Open the file for random access, without a buffer. Its methods raise ItemError and RunError."""
        return opened(self.store, self.url, self.size, self.etag)

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

    def pictures(self, column: str, group: int, rows: Sequence[int] | None = None) -> Iterator[bytes | None]:
        """Yield pictures of a row group; see `PictureTable.pictures`.

        They are decoded one at a time, from the first: the row group of a file that was written as one may be all of
        it.
        """
        found = self._pictures(column, group)
        if rows is None:
            return found
        wanted, last = frozenset(rows), max(rows, default=-1)
        return (picture for row, picture in enumerate(islice(found, last + 1)) if row in wanted)

    def _pictures(self, column: str, group: int) -> Iterator[bytes | None]:
        leaf = self._leaf_of(column)
        count = 0
        with decoding("Parquet"):
            file = pq.ParquetFile(
                self.open(),
                metadata=self.metadata,
                pre_buffer=False,
                buffer_size=0 if self.group_bytes(column, group) <= WHOLE_CHUNK_BYTES else _BLOCK_BYTES,
                page_checksum_verification=True,
            )
            for batch in file.iter_batches(1, row_groups=[group], columns=[leaf], use_threads=False):
                value = batch.column(column)[0].as_py()
                yield value[IN_STRUCT] if isinstance(value, dict) else value
                count += 1
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

    def other_columns(self, column: str) -> tuple[pa.Table, list[str]]:
        """Return all columns but those of large values; see `PictureTable.other_columns`."""
        try:
            with self.open_columns() as source:
                return read_columns(self.url.text, source, self.metadata, column)
        except (pa.ArrowException, OSError) as error:  # OSError: a compressed page is damaged
            raise Refusal.TABLE_DAMAGED.error() from error

    def reads_from_start(self, column: str) -> bool:
        """Return whether a row group is larger than what is read by one request."""
        return any(self.group_bytes(column, group) > WHOLE_CHUNK_BYTES for group in range(self.n_groups))

    def _chunk(self, leaf: str, group: int) -> pq.ColumnChunkMetaData:
        row_group = self.metadata.row_group(group)
        paths = [self.metadata.schema.column(at).path for at in range(row_group.num_columns)]
        return row_group.column(paths.index(leaf))

    def _leaf_of(self, column: str) -> str:
        """Return the path of the leaf that holds a column's pictures. Raises ItemError: `not_found`."""
        of_structs = pa.types.is_struct(self.schema.field(self.check_column(column)).type)
        return f"{column}.{IN_STRUCT}" if of_structs else column


def read_footer(store: Store, url: Url, etag: str, size: int) -> ParquetTable:
    """Read the footer of a Parquet file.

    Args:
        store: that it is in.
        url: of the file.
        etag: as planned.
        size: in bytes, not 0.

    Raises:
        ItemError: as `read_input`; `corrupt` if it is no sound Parquet file.
        RunError: as `read_input`.
    """
    try:
        file = pq.ParquetFile(opened(store, url, size, etag), pre_buffer=False)
        metadata, schema = file.metadata, file.schema_arrow
        decode_names(schema)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise Refusal.TABLE_DAMAGED.error() from error
    return ParquetTable(url, etag, size, store, metadata, schema)


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

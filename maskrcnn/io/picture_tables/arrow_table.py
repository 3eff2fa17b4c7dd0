"""An Arrow file with pictures in a column: a stream, as Hugging Face's `save_to_disk` writes, or a file (Feather 2).

Its record batches are found by hops from one to the next. In one that is not compressed each picture stands as it is:
its place is computed from the offsets, so that none is read before it is needed, however large the batch is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from ...schema import PLACE
from ..manifests.manifest_columns import LARGE_VALUE_BYTES, holds_bytes
from ..manifests.parquet_manifest import LARGEST_TABLE_BYTES, carried_table, check_expanded, check_size
from ..refusals import Refusal
from ..stores.store import Store
from ..url import Url
from .ipc_messages import (
    DICTIONARY,
    RECORD_BATCH,
    SCHEMA,
    IpcError,
    Layout,
    Message,
    layouts_of,
    messages_of,
)
from .picture_table import BESIDE, IN_STRUCT, PictureTable, decode_names, decoding, range_reader

LARGEST_COMPRESSED_BYTES: Final = 2**29
"""A column of a compressed record batch that comes to more is not read."""
_INLINE_BYTES: Final = 12
"""A view of at most this length contains its value."""
_VIEW: Final = np.dtype([("length", "<i4"), ("prefix", "<i4"), ("buffer", "<i4"), ("offset", "<i4")])
_TOGETHER_BYTES: Final = 2**16
"""Buffers with at most this much between them are read by one request."""
_AT_ONCE_BYTES: Final = 2**23
_RAW: Final = -1
"""In place of the length of a compressed buffer: it is not compressed."""


@dataclass(frozen=True, slots=True)
class _Values:
    """Where the values of a record batch's pictures stand in the file."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    is_valid: NDArray[np.bool_]
    is_sound: NDArray[np.bool_]
    """Whether a value lies within its buffer."""


class ArrowTable(PictureTable):
    """An Arrow file whose record batches were found.

    Args:
        url: of the file.
        etag: each read of the file compares it.
        size: in bytes.
        store: that the file is in.
        schema: its columns.
        messages: of the file, the first of which is the schema.
    """

    def __init__(
        self, url: Url, etag: str | None, size: int, store: Store, schema: pa.Schema, messages: list[Message]
    ) -> None:
        self._messages = messages
        self._batches = [message for message in messages if message.kind == RECORD_BATCH]
        starts = (0, *accumulate(batch.rows for batch in self._batches))
        super().__init__(url, etag, size, store, schema, starts)
        self._layouts = [layouts_of(schema, batch) for batch in self._batches]
        self._read = range_reader(store, url, etag)

    def pictures(self, column: str, group: int, rows: Sequence[int] | None = None) -> Iterator[bytes | None]:
        """Yield pictures of a record batch, by a request each; see `PictureTable.pictures`.

        Raises ItemError: `corrupt`; `unsupported_format` for one whose compressed pictures are too large.
        """
        rows = range(self._batches[group].rows) if rows is None else rows
        if self._batches[group].is_compressed:
            yield from self._decompressed(column, group, rows)
            return
        values = self._values(column, group)
        for row in rows:
            if not values.is_sound[row]:
                raise Refusal.ROW_GROUP_DAMAGED.error()
            start, size = int(values.starts[row]), int(values.sizes[row])
            data = self._read(start, start + size) if values.is_valid[row] else None
            if data is not None and len(data) != size:
                raise Refusal.ROW_GROUP_DAMAGED.error()
            yield data

    def group_bytes(self, column: str, group: int) -> int:
        """Return the number of bytes that the pictures of a record batch have in the file."""
        layout, _ = self._leaf(column, group)
        return sum(self._batches[group].buffers[number][1] for number in layout.buffers)

    def is_null(self, column: str, group: int) -> bool:
        """Return whether a record batch has no picture in a column."""
        layout, _ = self._leaf(column, group)
        batch = self._batches[group]
        return batch.rows == batch.nulls[layout.node]

    def places(self, column: str) -> tuple[pa.Array, pa.Array] | None:
        """Return size and place of each picture; None if a record batch is compressed. See `PictureTable.places`."""
        if any(batch.is_compressed for batch in self._batches):
            return None
        parts = [self._values(column, group) for group in range(self.n_groups)]
        empty = [np.empty(0, np.int64)]
        starts = np.concatenate([*empty, *(part.starts for part in parts)])
        sizes = np.concatenate([*empty, *(part.sizes for part in parts)])
        valid = np.concatenate([np.empty(0, np.bool_), *(part.is_valid for part in parts)])
        sound = np.concatenate([np.empty(0, np.bool_), *(part.is_sound for part in parts)])
        usable = valid & sound
        damaged = pc.if_else(pa.array(sound), Refusal.ROW_NULL.name, Refusal.ROW_GROUP_DAMAGED.name)
        sizes = np.where(usable, sizes, 0)
        known: dict[str, Any] = {
            "offset": pa.array(np.where(usable, starts, 0)),
            "stored": pa.array(sizes),
            "refusal": pc.if_else(pa.array(usable), pa.scalar(None, pa.string()), damaged),
        }
        columns = [known.get(field.name, pa.nulls(len(sizes), field.type)) for field in PLACE.type]
        return pa.array(sizes), pa.StructArray.from_arrays(columns, fields=list(PLACE.type))

    def reads_rows_alone(self, group: int) -> bool:
        """Return whether a record batch is not compressed."""
        return not self._batches[group].is_compressed

    def other_columns(self, column: str) -> tuple[pa.Table, list[str]]:
        """Return all columns but those of large values; see `PictureTable.other_columns`."""
        names: list[str] = self.schema.names
        pictures = self.check_column(column)
        large = [at for at in range(len(names)) if at != pictures and self._is_large(at)]
        kept = [at for at in range(len(names)) if at != pictures and at not in large]
        beside = _child(self.schema.field(pictures).type, BESIDE)
        wanted = sorted([*kept, pictures] if beside >= 0 else kept)
        try:
            table = self._read_columns(wanted, pictures, beside)
            for values in table.itercolumns():
                values.validate(full=True)
            check_expanded(self.url.text, table)
            return carried_table(self.url.text, table), [names[at] for at in large]
        except (pa.ArrowException, IpcError, OSError) as error:  # OSError: a compressed buffer is damaged
            raise Refusal.TABLE_DAMAGED.error() from error

    # Columns

    def _read_columns(self, wanted: list[int], pictures: int, beside: int) -> pa.Table:
        """Return columns by their positions; of the pictures' only the field beside them."""
        if not wanted:
            return pa.table({})
        size, pieces = 0, []
        batches = iter(range(self.n_groups))
        for message in self._messages:
            if message.kind == RECORD_BATCH:
                group = next(batches)
                numbers = self._wanted_buffers(group, wanted, pictures, beside)
                pieces.append(self._narrowed(message, numbers))
                size += self._expanded(pieces[-1], message, numbers)
            elif message.kind in (SCHEMA, DICTIONARY):
                pieces.append(self._whole(message))
                size += message.body_bytes
            check_size(self.url.text, "", 0, size)
        table = _stream(pieces, wanted).read_all()
        names = [self.schema.field(at).name for at in wanted]
        columns = dict(zip(names, table.itercolumns(), strict=True))
        if pictures in wanted:
            name = self.schema.field(pictures).name
            columns[name] = pc.struct_field(columns[name], BESIDE)
        return pa.table(columns)

    def _wanted_buffers(self, group: int, wanted: list[int], pictures: int, beside: int) -> list[int]:
        layouts = self._layouts[group]
        numbers: list[int] = []
        for at in wanted:
            layout = layouts[at]
            if at == pictures:
                numbers += [layout.buffers.start, *layout.children[beside].buffers]
            else:
                numbers += layout.buffers
        return numbers

    def _is_large(self, at: int) -> bool:
        """Return whether a column is one of large values of bytes."""
        field = self.schema.field(at)
        if field.name in ("uri", "name") or not holds_bytes(field.type):
            return False
        size = sum(
            batch.buffers[number][1]
            for batch, layouts in zip(self._batches, self._layouts, strict=True)
            for number in layouts[at].buffers
        )
        return bool(size > LARGE_VALUE_BYTES * self.n_rows)

    def _narrowed(self, batch: Message, numbers: list[int]) -> bytes:
        """Return a record batch with only some of its buffers."""
        spans: list[list[int]] = []
        for number in sorted(numbers, key=lambda number: batch.buffers[number]):
            offset, length = batch.buffers[number]
            if not length:
                continue
            last = spans[-1] if spans else None
            if last and offset - last[1] <= _TOGETHER_BYTES and offset + length - last[0] <= _AT_ONCE_BYTES:
                last[1] = max(last[1], offset + length)
            else:
                spans.append([offset, offset + length])
        read = [(start, self._read(batch.body + start, batch.body + stop)) for start, stop in spans]

        def contents(number: int) -> bytes:
            offset, length = batch.buffers[number]
            for start, data in read:
                if start <= offset and offset + length <= start + len(data):
                    return data[offset - start : offset - start + length]
            if length:
                raise IpcError("a buffer of which bytes are missing")
            return b""

        return batch.narrowed(frozenset(numbers), contents)

    def _whole(self, message: Message) -> bytes:
        """Return a message with its body."""
        return message.prefix + message.metadata + self._read(message.body, message.body + message.body_bytes)

    def _expanded(self, narrowed: bytes, batch: Message, numbers: list[int]) -> int:
        """Return the bytes of a narrowed record batch once it is decompressed."""
        if not batch.is_compressed:
            return len(narrowed)
        position, size = len(batch.prefix) + len(batch.metadata), 0
        for number in sorted(numbers):
            length = batch.buffers[number][1]
            if length:
                expanded = int.from_bytes(narrowed[position : position + 8], "little", signed=True)
                if expanded > LARGEST_TABLE_BYTES:
                    raise IpcError("a compressed buffer that states an impossible length")
                size += length if expanded == _RAW else max(expanded, 0)
            position += -(-length // 64) * 64
        return size

    # Pictures

    def _decompressed(self, column: str, group: int, rows: Sequence[int]) -> Iterator[bytes | None]:
        batch, at = self._batches[group], self.check_column(column)
        numbers = list(self._layouts[group][at].buffers)
        if sum(batch.buffers[number][1] for number in numbers) > LARGEST_COMPRESSED_BYTES:
            raise Refusal.RECORD_BATCH_LARGE.error(limit=LARGEST_COMPRESSED_BYTES // 2**20)
        with decoding("Arrow", IpcError):
            narrowed = self._narrowed(batch, numbers)
            if self._expanded(narrowed, batch, numbers) > LARGEST_COMPRESSED_BYTES:
                raise Refusal.RECORD_BATCH_LARGE.error(limit=LARGEST_COMPRESSED_BYTES // 2**20)
            before = self._messages[: self._messages.index(batch)]
            pieces = [self._whole(message) for message in before if message.kind in (SCHEMA, DICTIONARY)]
            values = _stream([*pieces, narrowed], [at]).read_next_batch().column(0)
            values.validate(full=True)
        if types.is_struct(values.type):
            values = pc.struct_field(values, IN_STRUCT)
        for row in rows:
            yield values[row].as_py()

    def _values(self, column: str, group: int) -> _Values:
        """Return where the pictures of a record batch stand that is not compressed."""
        batch = self._batches[group]
        layout, parent = self._leaf(column, group)
        valid = np.ones(batch.rows, np.bool_)
        try:
            for each in (layout, parent):
                if each is not None and batch.buffers[each.buffers.start][1]:
                    bits = self._buffer(batch, each.buffers.start, np.dtype(np.uint8), -(-batch.rows // 8))
                    valid &= np.unpackbits(bits, bitorder="little")[: batch.rows].astype(np.bool_)
            if types.is_binary_view(layout.kind):
                starts, sizes, sound = self._of_views(batch, layout)
            else:
                starts, sizes, sound = self._of_offsets(batch, layout)
        except IpcError as error:
            raise Refusal.ROW_GROUP_DAMAGED.error() from error
        return _Values(starts, sizes, valid, sound | ~valid)

    def _of_offsets(
        self, batch: Message, layout: Layout
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return start, size and soundness of values that lie one behind the other."""
        wide = types.is_large_binary(layout.kind)
        kind = np.dtype("<i8" if wide else "<i4")
        count = batch.rows + 1 if batch.rows else 0
        offsets = self._buffer(batch, layout.buffers.start + 1, kind, count).astype(np.int64)
        data, length = batch.buffers[layout.buffers.start + 2]
        starts, stops = offsets[:-1], offsets[1:]
        sound = (starts >= 0) & (starts <= stops) & (stops <= length)
        return batch.body + data + starts, stops - starts, sound

    def _of_views(
        self, batch: Message, layout: Layout
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return start, size and soundness of values that are in their view, or in any of the buffers of data."""
        number = layout.buffers.start + 1
        views = self._buffer(batch, number, _VIEW, batch.rows)
        data = np.array([batch.buffers[at] for at in layout.buffers[2:]] or [(0, 0)], np.int64)
        sizes, chosen = views["length"].astype(np.int64), views["buffer"].astype(np.int64)
        inline = sizes <= _INLINE_BYTES
        known = (chosen >= 0) & (chosen < len(layout.buffers[2:]))
        of_data = data[np.where(known, chosen, 0)]
        own = batch.buffers[number][0] + _VIEW.itemsize * np.arange(batch.rows) + _VIEW.fields["prefix"][1]  # type: ignore[index]
        offsets = views["offset"].astype(np.int64)
        starts = batch.body + np.where(inline, own, of_data[:, 0] + offsets)
        within = known & (offsets >= 0) & (offsets + sizes <= of_data[:, 1])
        return starts, sizes, (sizes >= 0) & (inline | within)

    def _buffer(self, batch: Message, number: int, kind: np.dtype[Any], count: int) -> NDArray[Any]:
        """Return the first values of a buffer. Raises IpcError: it has fewer."""
        offset, length = batch.buffers[number]
        size = kind.itemsize * count
        data = self._read(batch.body + offset, batch.body + offset + min(size, length))
        if len(data) != size:
            raise IpcError("a buffer that is too short")
        return np.frombuffer(data, kind)

    def _leaf(self, column: str, group: int) -> tuple[Layout, Layout | None]:
        """Return the layout of a column's pictures; and that of the struct which they are in."""
        at = self.check_column(column)
        layout = self._layouts[group][at]
        if types.is_struct(layout.kind):
            return layout.children[_child(layout.kind, IN_STRUCT)], layout
        return layout, None


def read_batches(store: Store, url: Url, etag: str, size: int) -> ArrowTable:
    """Find the record batches of an Arrow file; of their bodies nothing is read.

    Args:
        store: that it is in.
        url: of the file.
        etag: as planned.
        size: in bytes, not 0.

    Raises:
        ItemError: as `read_input`; `corrupt` if it is no sound Arrow file, or ends early.
        RunError: as `read_input`.
    """
    try:
        messages = list(messages_of(range_reader(store, url, etag), size))
        if not messages or messages[0].kind != SCHEMA:
            raise IpcError("no schema")  # noqa: TRY301
        first = messages[0]
        schema = pa.ipc.read_schema(pa.py_buffer(first.prefix + first.metadata))
        decode_names(schema)
        return ArrowTable(url, etag, size, store, schema, messages)
    except (IpcError, pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise Refusal.TABLE_DAMAGED.error() from error


def _stream(pieces: list[bytes], columns: list[int]) -> pa.ipc.RecordBatchStreamReader:
    options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
    return pa.ipc.open_stream(pa.BufferReader(b"".join(pieces)), options=options)


def _child(kind: pa.DataType, name: str) -> int:
    """Return the position of a field in a struct; -1 where there is none."""
    return int(kind.get_field_index(name)) if types.is_struct(kind) else -1

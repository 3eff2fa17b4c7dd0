"""The messages of Arrow's IPC formats: where the buffers of a record batch lie, without reading them.

Reference: "Arrow Columnar Format", Serialization and Interprocess Communication; `Message.fbs` and `Schema.fbs` of
apache/arrow, whose tables are FlatBuffers. A stream is a sequence of messages; a file (Feather 2) has the same messages
behind a mark, and a footer.
"""

import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
from pyarrow import types

FILE_MARK: Final = b"ARROW1"
"""A file begins and ends with it; a stream does not."""
SCHEMA: Final = 1
DICTIONARY: Final = 2
RECORD_BATCH: Final = 3
"""Kinds of messages."""
_FIRST_MESSAGE: Final = 8
"""Of a file: behind its mark."""
_CONTINUED: Final = 0xFFFFFFFF
"""Precedes the length of a message, since Arrow 0.15."""
_HEAD_BYTES: Final = 2**14
"""So much is read of a message at first: more than the metadata of most."""
_MAX_METADATA_BYTES: Final = 2**26
_ALIGNED: Final = 64
_LITTLE_ENDIAN: Final = 0
_PAIR_BYTES: Final = 16
_BITS: Final = 8
"""A byte has so many: each row has at least one."""
_MAX_COMPRESSED_ROWS: Final = 2**31

ReadRange = Callable[[int, int], bytes]
"""Returns the bytes of a file from a start to a stop."""


class IpcError(ValueError):
    """The bytes are no sound messages of Arrow."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message without its body."""

    kind: int
    prefix: bytes
    """What precedes the metadata: its length."""
    metadata: bytes = field(repr=False)
    body: int
    """Where the body begins in the file."""
    body_bytes: int
    rows: int = 0
    nulls: tuple[int, ...] = ()
    """Of each node: the number of its nulls."""
    buffers: tuple[tuple[int, int], ...] = ()
    """Offset within the body, and length, of each."""
    is_compressed: bool = False
    further: tuple[int, ...] = ()
    """Of each node of views: the number of its buffers of data."""

    def narrowed(self, wanted: Collection[int], contents: Callable[[int], bytes]) -> bytes:
        """Return the message with its body, in which only some buffers are; the others have no bytes.

        Args:
            wanted: the numbers of the buffers.
            contents: returns the bytes of a buffer.
        """
        flat = _Flat(self.metadata)
        metadata, body = bytearray(self.metadata), bytearray()
        header = flat.header()
        at = flat.vector(header, 2)
        for number in range(len(self.buffers)):
            data = contents(number) if number in wanted else b""
            struct.pack_into("<qq", metadata, at + number * _PAIR_BYTES, len(body) if data else 0, len(data))
            body += data
            body += bytes(-len(body) % _ALIGNED)
        length_at = flat.field(flat.root(), 3)
        if body and length_at is None:
            raise IpcError("buffers without a body")
        if length_at is not None:
            struct.pack_into("<q", metadata, length_at, len(body))
        return self.prefix + bytes(metadata) + bytes(body)


class _Flat:
    """A FlatBuffer, whose positions are checked."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def root(self) -> int:
        """Return the position of the root table."""
        return self.number("<I", 0)

    def header(self) -> int:
        """Return the position of a message's header, a table."""
        at = self.field(self.root(), 2)
        if at is None:
            raise IpcError("a message without a header")
        return at + self.number("<I", at)

    def number(self, code: str, at: int | None, default: int = 0) -> int:
        """Return the number at a position; the default where there is none."""
        if at is None:
            return default
        if not 0 <= at <= len(self._data) - struct.calcsize(code):
            raise IpcError("a position outside of the metadata")
        return int(struct.unpack_from(code, self._data, at)[0])

    def field(self, table: int, number: int) -> int | None:
        """Return the position of a table's field; None if it has its default."""
        fields = table - self.number("<i", table)
        at = 4 + 2 * number
        if at + 2 > self.number("<H", fields):
            return None
        offset = self.number("<H", fields + at)
        return table + offset if offset else None

    def vector(self, table: int, number: int) -> int:
        """Return the position of the first value of a table's vector."""
        at = self.field(table, number)
        if at is None:
            return 0
        return at + self.number("<I", at) + 4

    def values(self, table: int, number: int, code: str) -> list[tuple[int, ...]]:
        """Return the values of a table's vector of numbers or structs."""
        if self.field(table, number) is None:
            return []
        start, size = self.vector(table, number), struct.calcsize(code)
        stop = start + self.number("<I", start - 4) * size
        if stop > len(self._data):
            raise IpcError("a vector outside of the metadata")
        return list(struct.iter_unpack(code, self._data[start:stop]))


def messages_of(read: ReadRange, size: int) -> Iterator[Message]:
    """Yield the messages of a stream or a file, of whose bodies nothing is read.

    Args:
        read: returns a range of the file's bytes.
        size: of the file.

    Raises:
        IpcError: it is neither, or damaged, or ends early.
    """
    head = read(0, min(_HEAD_BYTES, size))
    position, begin = 0, 0
    if head.startswith(FILE_MARK):
        position, size = _FIRST_MESSAGE, _footer_start(read, size)

    def ranged(start: int, stop: int) -> bytes:
        nonlocal head, begin
        if stop > size:
            raise IpcError("it ends within a message")
        if not begin <= start <= stop <= begin + len(head):
            begin, head = start, read(start, min(max(stop, start + _HEAD_BYTES), size))
        return head[start - begin : stop - begin]

    while position < size:
        length_at = position + (4 if ranged(position, position + 4) == b"\xff" * 4 else 0)
        start = length_at + 4
        length = int.from_bytes(ranged(length_at, start), "little")
        if not length:
            return
        if length > _MAX_METADATA_BYTES:
            raise IpcError("a message of too much metadata")
        prefix = ranged(position, start)
        message = _parsed(prefix, ranged(start, start + length), start + length)
        if message.body_bytes < 0 or message.body + message.body_bytes > size:
            raise IpcError("it ends within a record batch")
        yield message
        position = message.body + message.body_bytes


def _footer_start(read: ReadRange, size: int) -> int:
    """Return where the footer of a file begins. Raises IpcError: the file ends early."""
    tail_bytes = 4 + len(FILE_MARK)
    tail = read(max(size - tail_bytes, 0), size)
    start = size - tail_bytes - int.from_bytes(tail[:4], "little")
    if not tail.endswith(FILE_MARK) or len(tail) != tail_bytes or start < _FIRST_MESSAGE:
        raise IpcError("it ends before its footer")
    return start


def _parsed(prefix: bytes, metadata: bytes, body: int) -> Message:
    flat = _Flat(metadata)
    root = flat.root()
    kind = flat.number("<B", flat.field(root, 1))
    size = flat.number("<q", flat.field(root, 3))
    header = flat.header()
    if kind == SCHEMA and flat.number("<h", flat.field(header, 0)) != _LITTLE_ENDIAN:
        raise IpcError("numbers with their highest byte first")
    if kind == DICTIONARY:
        at = flat.field(header, 1)
        _check_nodes(flat.values(header if at is None else at + flat.number("<I", at), 1, "<qq"))
    if kind != RECORD_BATCH:
        return Message(kind, prefix, metadata, body, size)
    nodes = _check_nodes(flat.values(header, 1, "<qq"))
    buffers = [(offset, length) for offset, length in flat.values(header, 2, "<qq")]
    if any(min(pair) < 0 or sum(pair) > size for pair in buffers):
        raise IpcError("a buffer outside of its record batch")
    rows = flat.number("<q", flat.field(header, 0))
    is_compressed = flat.field(header, 3) is not None
    if not 0 <= rows <= (_MAX_COMPRESSED_ROWS if is_compressed else _BITS * size):
        raise IpcError("a number of rows for which there are too few bytes")
    return Message(
        kind,
        prefix,
        metadata,
        body,
        size,
        rows,
        tuple(nulls for _, nulls in nodes),
        tuple(buffers),
        is_compressed,
        tuple(count for (count,) in flat.values(header, 4, "<q")),
    )


def _check_nodes(nodes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the length and the number of nulls of arrays. Raises IpcError: Arrow would abort the process on them."""
    if any(not 0 <= nulls <= length for length, nulls in nodes):
        raise IpcError("an array of a negative length, or with more nulls than values")
    return nodes


@dataclass(frozen=True, slots=True)
class Layout:
    """Which nodes and buffers of a record batch belong to an array and to those in it."""

    kind: pa.DataType
    node: int
    """Its own node, the first."""
    buffers: range
    """Of all of it."""
    children: tuple["Layout", ...]


def layouts_of(schema: pa.Schema, message: Message) -> list[Layout]:
    """Return the layout of each column. Raises IpcError: the record batch is not one of this schema."""
    counts = _Counts(iter(message.further))
    try:
        found = [counts.layout(field.type) for field in schema]
    except StopIteration:
        found = []
    if counts.nodes != len(message.nulls) or counts.buffers != len(message.buffers):
        raise IpcError("a record batch that does not fit the schema")
    return found


class _Counts:
    """Counts nodes and buffers in the order of a record batch."""

    def __init__(self, further: Iterator[int]) -> None:
        self._further = further
        self.nodes = 0
        self.buffers = 0

    def layout(self, kind: pa.DataType) -> Layout:
        """Return the layout of an array of a type, which is the next one."""
        node, first = self.nodes, self.buffers
        while isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        self.nodes += 1
        self.buffers += self._own_buffers(kind)
        within = () if types.is_dictionary(kind) else tuple(map(self.layout, _children(kind)))
        return Layout(kind, node, range(first, self.buffers), within)

    def _own_buffers(self, kind: pa.DataType) -> int:
        if any(is_kind(kind) for is_kind in _WITHOUT_BUFFERS):
            return 0
        if any(is_kind(kind) for is_kind in _OF_VIEWS):
            return 2 + max(next(self._further), 0)
        if types.is_union(kind):
            return 2 if kind.mode == "dense" else 1
        if types.is_struct(kind) or types.is_fixed_size_list(kind):
            return 1
        return 3 if any(is_kind(kind) for is_kind in _OF_THREE) else 2


def _children(kind: pa.DataType) -> list[pa.DataType]:
    """Return the types of the arrays in an array, in their order."""
    if types.is_run_end_encoded(kind):
        return [kind.run_end_type, kind.value_type]
    if types.is_map(kind):
        return [pa.struct([kind.key_field, kind.item_field])]
    return [kind.field(at).type for at in range(kind.num_fields)]


_WITHOUT_BUFFERS: Final = (types.is_null, types.is_run_end_encoded)
_OF_VIEWS: Final = (types.is_binary_view, types.is_string_view)
_OF_THREE: Final = (
    *(types.is_binary, types.is_large_binary, types.is_string, types.is_large_string),
    *(types.is_list_view, types.is_large_list_view),
)

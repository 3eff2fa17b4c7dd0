"""A table with pictures in a column, whatever the format of its file: its rows, in groups that are read by one pass."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final, cast

import pyarrow as pa
from pyarrow import types

from ..refusals import Refusal
from ..stores.remote_store import RangeReader
from ..stores.store import Store
from ..url import Url

IN_STRUCT: Final = "bytes"
"""Name of the field with the picture, where a column is of structs, as Hugging Face writes them."""
BESIDE: Final = "path"
"""Name of the field with the name of the picture's file, there."""


def picture_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that may hold pictures, by their types: bytes, or structs with a field `bytes`.

    >>> image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    >>> picture_columns(pa.schema([("image", image), ("jpg", pa.large_binary()), ("id", pa.int64())]))
    ['image', 'jpg']
    """
    return [field.name for field in schema if holds_pictures(field.type)]


def holds_pictures(kind: pa.DataType) -> bool:
    """Return whether values of a type may be pictures."""
    if types.is_struct(kind):
        at = kind.get_field_index(IN_STRUCT)
        return at >= 0 and _is_bytes(kind.field(at).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view))


class PictureTable(ABC):
    """A file whose rows contain pictures, as far as it was read when it was opened.

    Args:
        url: of the file.
        etag: each read of the file compares it.
        size: in bytes.
        store: that the file is in.
        schema: its columns.
        starts: the first row of each group of rows that lie together, and the number of all rows.
    """

    def __init__(
        self, url: Url, etag: str | None, size: int, store: Store, schema: pa.Schema, starts: tuple[int, ...]
    ) -> None:
        self.url = url
        self.etag = etag
        self.size = size
        self.store = store
        self.schema = schema
        self.starts = starts

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return self.starts[-1]

    @property
    def n_groups(self) -> int:
        """The number of groups of rows."""
        return len(self.starts) - 1

    @abstractmethod
    def pictures(self, column: str, group: int, rows: Sequence[int] | None = None) -> Iterator[bytes | None]:
        """Yield pictures of a group in the order of its rows, by one pass over its column; None for a null.

        What is read is read when the first one is asked for, or later.

        Args:
            column: with the pictures.
            group: its number.
            rows: their numbers within the group, ascending; None: all.

        Raises:
            ItemError: `corrupt`, `changed`, `unsupported_format`, and as `read_input`; `not_found`: no such column.
            RunError: as `read_input`.
        """

    @abstractmethod
    def group_bytes(self, column: str, group: int) -> int:
        """Return the number of bytes that the pictures of a group have in the file."""

    @abstractmethod
    def is_null(self, column: str, group: int) -> bool:
        """Return whether a group has no picture in a column, as far as that is known without reading it."""

    @abstractmethod
    def other_columns(self, column: str) -> tuple[pa.Table, list[str]]:
        """Return all columns but those of large values of bytes, and the names of these.

        Args:
            column: with the pictures, which is left out without being named; if it is of structs with a field `path`,
                it has these instead.

        Raises:
            UsageError: it is larger than a manifest may be, or a column cannot be carried.
            ItemError, RunError: as `read_input`; `corrupt` if they are damaged.
        """

    def places(self, column: str) -> tuple[pa.Array, pa.Array] | None:  # noqa: ARG002 (not every format has them)
        """Return the size of each picture in bytes, and its place, of the type of `schema.PLACE`.

        None: the pictures do not stand in the file as they are, so that they must be read by `pictures`.

        Raises:
            ItemError, RunError: as `read_input`.
        """
        return None

    def reads_rows_alone(self, group: int) -> bool:  # noqa: ARG002 (not every format does)
        """Return whether one picture of a group is read without the others."""
        return False

    def reads_from_start(self, column: str) -> bool:  # noqa: ARG002 (not every format does)
        """Return whether groups are so large that each reader reads them in blocks from their beginning."""
        return False

    def check_column(self, column: str) -> int:
        """Return the position of a column that may hold pictures. Raises ItemError: `not_found`."""
        at: int = self.schema.get_field_index(column)
        if at < 0 or not holds_pictures(self.schema.field(at).type):
            raise Refusal.ROW_MISSING.error()
        return at


def decode_names(schema: pa.Schema) -> None:
    """Raise UnicodeDecodeError if a name of a column, or of a field in one, is damaged."""
    for name, kind in zip(schema.names, schema.types, strict=True):
        f"{name}{kind}"


def range_reader(store: Store, url: Url, etag: str | None) -> Callable[[int, int], bytes]:
    """Return a function that returns a range of a file's bytes. It raises ItemError, RunError: as `read_input`."""

    def read_range(start: int, stop: int) -> bytes:
        if start >= stop:  # no request has a range of no bytes
            return b""
        with store.input_faults(url):
            return store.read_range(url, start, stop, etag)

    return read_range


def opened(store: Store, url: Url, size: int, etag: str | None) -> BinaryIO:
    """Open a file for random access, without a buffer. Its methods raise ItemError and RunError."""
    return cast(BinaryIO, RangeReader(range_reader(store, url, etag), size))


@contextlib.contextmanager
def decoding(kind: str, *damaged: type[Exception]) -> Iterator[None]:
    """Convert what Arrow raises while it decodes pictures to ItemError.

    Args:
        kind: the name of the format.
        damaged: what else is raised for damaged data.
    """
    try:
        yield
    except MemoryError as error:
        raise Refusal.NO_MEMORY.error(format=kind) from error
    except pa.ArrowNotImplementedError as error:
        raise Refusal.ROW_GROUP_ENCODING.error() from error
    except (pa.ArrowException, OSError, *damaged) as error:  # OSError: a compressed page or buffer
        raise Refusal.ROW_GROUP_DAMAGED.error() from error

"""Pictures inside tables as inputs: read like files, one at a time."""

import functools
import io
import math
from collections.abc import Callable
from typing import BinaryIO, Final

from ...errors import ItemError
from ..refusals import Refusal
from ..stores.contained_store import ContainedStore
from ..stores.store import ObjectStat, Store
from ..url import Url
from .arrow_table import read_batches
from .lance_table import open_version
from .parquet_table import read_footer
from .picture_table import PictureTable
from .picture_uri import PARQUET, is_lance, split_picture, split_version
from .row_groups import group_of

_TABLES: Final = 8
_GROUPS: Final = 2
"""Of so many tables what says where the rows are, and so many groups of rows, are kept."""
_KEPT_BYTES: Final = 64 * 2**20
"""Row groups of at most this size are kept: other pictures of them are probably asked for next."""
_KEPT_CODES: Final = frozenset({"corrupt", "unsupported_format"})
"""Failures that stay, so that the rows before them may be kept."""


class TableStore(ContainedStore):
    """The pictures in the tables of any store, with the etag of their file.

    Args:
        store_of: returns the store of a file.
    """

    def __init__(self, store_of: Callable[[Url], Store]) -> None:
        super().__init__(store_of)
        self._tables = functools.lru_cache(_TABLES)(self._open_table)
        self._group = functools.lru_cache(_GROUPS)(self._read_group)

    @staticmethod
    def file_of(url: Url) -> Url:
        """Return the URL of a picture's table. Raises ItemError for one on the web."""
        return _split(url)[0]

    def table(self, url: Url, etag: str | None) -> PictureTable:
        """Return a file with what says where its rows are, which is read once.

        Args:
            url: of the file.
            etag: as planned; None: that which it has now.

        Raises:
            ItemError, RunError: as `read_input`; `corrupt` if it is no sound table.
        """
        if is_lance(url.key):  # its url says which version it is
            pinned = split_version(url.text)[1] is not None
            return self._tables(url, "") if pinned else self._open_table(url, "")
        if etag is None:
            store = self._store_of(url)
            with store.input_faults(url):
                etag = store.stat(url).etag
        return self._tables(url, etag)

    def stat_table(self, url: Url) -> ObjectStat:
        """Return the etag of a Lance data set's version, whose size is not known. Raises as `table`."""
        table = self.table(url, None)
        return ObjectStat(0, table.etag or "")

    def read_input(self, url: Url, max_bytes: int, etag: str | None) -> bytes:
        """Read a picture, and with it its row group. Raises ItemError: as `picture_of` and `PictureTable.pictures`."""
        return picture_of(self._read(url, etag), max_bytes)

    def open_input(self, url: Url, etag: str | None) -> BinaryIO:
        """Open a picture, which is read whole."""
        return io.BytesIO(picture_of(self._read(url, etag)))

    def _read(self, url: Url, etag: str | None) -> bytes | None:
        file, column, row = _split(url)
        table = self.table(file, etag)
        group = group_of(table, row)
        at = row - table.starts[group]
        if table.reads_rows_alone(group) or table.group_bytes(column, group) > _KEPT_BYTES:
            return next(table.pictures(column, group, [at]), None)
        pictures, failure = self._group(table.url, table.etag or "", column, group)
        if at >= len(pictures) and failure is not None:
            raise failure
        return pictures[at]

    def _open_table(self, url: Url, etag: str) -> PictureTable:
        store = self._store_of(url)
        if is_lance(url.key):
            return open_version(store, url)
        with store.input_faults(url):
            size = store.stat(url).bytes
        if not size:
            raise Refusal.TABLE_EMPTY.error()
        read = read_footer if url.key.lower().endswith(PARQUET) else read_batches
        return read(store, url, etag, size)

    def _read_group(
        self, url: Url, etag: str, column: str, group: int
    ) -> tuple[list[bytes | None], ItemError | None]:
        """Return the pictures of a row group; those before its damage, and the damage."""
        pictures: list[bytes | None] = []
        try:
            for picture in self.table(url, etag).pictures(column, group):
                pictures.append(picture)  # noqa: PERF402 those before the damage are kept
        except ItemError as error:
            if error.code not in _KEPT_CODES:
                raise
            return pictures, error
        return pictures, None


def picture_of(picture: bytes | None, max_bytes: float = math.inf) -> bytes:
    """Return the picture of a row.

    Args:
        picture: as it is in the table; None for a null.
        max_bytes: larger pictures are refused.

    Raises:
        ItemError: `not_found`, `empty_file`, `too_many_bytes`.
    """
    if picture is None:
        raise Refusal.ROW_NULL.error()
    if not picture:
        raise Refusal.EMPTY.error()
    if len(picture) > max_bytes:
        raise Refusal.TOO_MANY_BYTES.error(count=len(picture), limit=max_bytes)
    return picture


def _split(url: Url) -> tuple[Url, str, int]:
    parts = split_picture(url.text)
    if parts is None:
        raise ValueError(f"{url} names no picture in a table")
    table = Url.parse(parts[0])
    if table.is_web:
        raise Refusal.TABLE_ON_THE_WEB.error()
    return table, parts[1], parts[2]

"""Pictures inside tables as inputs: read like files, one at a time."""

import functools
import io
import math
from collections.abc import Callable
from itertools import islice
from typing import BinaryIO, Final

from ...errors import ItemError
from ..refusals import Refusal
from ..stores.contained_store import ContainedStore
from ..stores.store import Store
from ..url import Url
from .picture_table import PictureTable, read_footer
from .picture_uri import split_picture
from .row_groups import group_of

_FOOTERS: Final = 8
_GROUPS: Final = 2
"""Of so many tables the footer, and so many row groups, are kept."""
_KEPT_BYTES: Final = 64 * 2**20
"""Row groups of at most this size are kept: other pictures of them are probably asked for next."""
_KEPT_CODES: Final = frozenset({"corrupt", "unsupported_format"})
"""Failures that stay, so that the rows before them may be kept."""


class TableStore(ContainedStore):
    """The pictures in the Parquet files of any store, with the etag of their file.

    Args:
        store_of: returns the store of a file.
    """

    def __init__(self, store_of: Callable[[Url], Store]) -> None:
        super().__init__(store_of)
        self._footer = functools.lru_cache(_FOOTERS)(self._read_footer)
        self._group = functools.lru_cache(_GROUPS)(self._read_group)

    @staticmethod
    def file_of(url: Url) -> Url:
        """Return the URL of a picture's table. Raises ItemError for one on the web."""
        return _split(url)[0]

    def table(self, url: Url, etag: str | None) -> PictureTable:
        """Return a file's footer, which is read once.

        Args:
            url: of the file.
            etag: as planned; None: that which it has now.

        Raises:
            ItemError, RunError: as `read_footer`.
        """
        if etag is None:
            store = self._store_of(url)
            with store.input_faults(url):
                etag = store.stat(url).etag
        return self._footer(url, etag)

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
        if table.metadata.row_group(group).total_byte_size > _KEPT_BYTES:
            [picture] = islice(table.pictures(column, group), at, at + 1)
            return picture
        pictures, failure = self._group(file, table.etag, column, group)
        if at >= len(pictures) and failure is not None:
            raise failure
        return pictures[at]

    def _read_footer(self, url: Url, etag: str) -> PictureTable:
        return read_footer(self._store_of(url), url, etag)

    def _read_group(
        self, url: Url, etag: str, column: str, group: int
    ) -> tuple[list[bytes | None], ItemError | None]:
        """Return the pictures of a row group; those before its damage, and the damage."""
        pictures: list[bytes | None] = []
        try:
            for picture in self._footer(url, etag).pictures(column, group):
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

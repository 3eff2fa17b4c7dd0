"""Read pictures of some rows of a table: each row group that has any by one pass, and none twice."""

import functools
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import pairwise

from ...errors import MaskrcnnError
from ..archives.member import split_member
from ..refusals import Refusal
from ..url import Url
from .picture_table import PictureTable
from .picture_uri import split_picture


class PicturesOfRows:
    """The pictures among some inputs that lie in tables; may be read by any number of threads, each input once.

    A row group is read when the first of its rows is asked for, or one of the row group before. Its bytes are kept
    until the last of its rows that are needed was asked for. Of inputs that are the same picture, only the first is one
    of these.

    Args:
        inputs: the uri and the planned etag of each, by its position.
        open_table: returns the footer of a table with an etag.
    """

    def __init__(
        self,
        inputs: Mapping[int, tuple[str, str | None]],
        open_table: Callable[[Url, str | None], PictureTable],
    ) -> None:
        positions: dict[tuple[str, str, str | None], dict[int, int]] = {}
        for position, (uri, etag) in inputs.items():
            parts = split_picture(uri)
            if parts and not split_member(uri) and not Url.parse(parts[0]).is_web:
                table, column, row = parts
                positions.setdefault((table, column, etag), {}).setdefault(row, position)
        pool = ThreadPoolExecutor(1, thread_name_prefix="rows") if positions else None
        self._rows: dict[int, tuple[_RowsOfTable, int]] = {}
        for (table, column, etag), rows in positions.items():
            opened = functools.partial(open_table, Url.parse(table), etag)
            of_table = _RowsOfTable(opened, column, rows.keys(), pool)
            self._rows |= {position: (of_table, row) for row, position in rows.items()}

    def __contains__(self, position: int) -> bool:
        return position in self._rows

    def read(self, position: int) -> bytes | None:
        """Return the picture at a position of the inputs; None for a null.

        Raises:
            ItemError, RunError: as `PictureTable.pictures`; `not_found` for a row or a column that is not there.
            ValueError: it was read before.
        """
        of_table, row = self._rows[position]
        return of_table.read(row)


class _RowsOfTable:
    """The pictures of some rows of a table.

    Args:
        open_table: returns the footer; called when the first row is asked for.
        column: of the pictures.
        rows: that will be asked for, in any order.
        pool: reads the next row group meanwhile; None: it is read when it is needed.
    """

    def __init__(
        self,
        open_table: Callable[[], PictureTable],
        column: str,
        rows: Collection[int],
        pool: Executor | None,
    ) -> None:
        self._open_table = open_table
        self._column = column
        self._rows = rows
        self._pool = pool
        self._lock = threading.Lock()
        self._table: PictureTable | None = None
        self._groups: dict[int, _RowGroup] = {}
        self._following: dict[int, int] = {}

    def read(self, row: int) -> bytes | None:
        """Return the picture of a row; see `PicturesOfRows.read`."""
        with self._lock:
            if self._table is None:
                self._groups, self._table = self._planned(table := self._open_table()), table
                self._following = dict(pairwise(sorted(self._groups)))
            number = group_of(self._table, row)
            group, following = self._groups[number], self._groups.get(self._following.pop(number, -1))
        if following is not None and self._pool is not None:
            self._pool.submit(following.begin)
        return group.read(row)

    def _planned(self, table: PictureTable) -> dict[int, "_RowGroup"]:
        wanted: dict[int, set[int]] = {}
        for row in self._rows:
            if row < table.n_rows:
                wanted.setdefault(group_of(table, row), set()).add(row)
        return {
            number: _RowGroup(
                table.pictures(self._column, number, [row - table.starts[number] for row in sorted(rows)]),
                rows,
            )
            for number, rows in wanted.items()
        }


def group_of(table: PictureTable, row: int) -> int:
    """Return the number of the row group that contains a row. Raises ItemError: `not_found`."""
    if not 0 <= row < table.n_rows:
        raise Refusal.ROW_MISSING.error()
    return bisect_right(table.starts, row) - 1


class _RowGroup:
    """The pictures of some rows of one row group.

    Args:
        pictures: of these rows, in their order.
        wanted: the rows that will be asked for.
    """

    def __init__(self, pictures: Iterator[bytes | None], wanted: set[int]) -> None:
        self._pictures: Iterator[bytes | None] | None = pictures
        self._rest = deque(sorted(wanted))
        self._wanted = wanted
        self._kept: dict[int, bytes | None] = {}
        self._failure: MaskrcnnError | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Read the row group, unless that was begun."""
        with self._lock:
            if not self._kept and self._wanted:
                self._advance_to(min(self._wanted))

    def read(self, row: int) -> bytes | None:
        """Return the picture of a row; see `PicturesOfRows.read`."""
        with self._lock:
            if row not in self._wanted:
                raise ValueError(f"row {row} was read before, or was not announced")
            self._advance_to(row)
            self._wanted.discard(row)
            if not self._wanted:
                self._pictures = None  # and with it the bytes of the row group
            if row in self._kept:
                return self._kept.pop(row)
            if self._failure is None:
                raise RuntimeError(f"row {row} was not kept")
            raise self._failure

    def _advance_to(self, row: int) -> None:
        """Decode pictures up to that of a row, and keep them."""
        while self._rest and self._rest[0] <= row and self._failure is None and self._pictures is not None:
            try:
                picture = next(self._pictures)
            except MaskrcnnError as error:
                self._failure = error
                return
            self._kept[self._rest.popleft()] = picture

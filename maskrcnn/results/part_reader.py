"""The files of one part of a finished run, read by row groups, of which the last few are cached."""

from collections import OrderedDict
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..io.parquet import Part
from ..io.storage import Storage
from ..schema import InstanceColumns
from .part_checks import checked_counts, reading

_IMAGE: Final = [
    *("image_id", "name", "uri", "status", "error", "message"),
    *("width", "height", "n_instances", "capped", "bytes", "etag"),
]
_FOUND: Final = ["category_id", "score", "box", "area", "segmentation", "mask_box", "frame"]
_HELD_GROUPS: Final = 3
"""Row groups cached per table; images requested slightly out of order need more than one."""
_BLOCK_ROWS: Final = 2048
_HELD_BLOCKS: Final = 8
"""Blocks of rows cached as dictionaries, which take ten times the memory of a table's rows."""


class RowGroups:
    """Row groups of one Parquet file, the last few cached."""

    def __init__(self, parquet: pq.ParquetFile, columns: list[str]) -> None:
        self._parquet = parquet
        self._columns = columns
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._rows: OrderedDict[tuple[int, int], list[dict[str, Any]]] = OrderedDict()
        self._arrays: OrderedDict[int, InstanceColumns | None] = OrderedDict()
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        self.firsts: NDArray[np.int64] = np.cumsum([0, *sizes])

    def table(self, group: int) -> pa.Table:
        """Return a row group."""
        if group not in self._tables:
            self._tables[group] = self._parquet.read_row_group(group, columns=self._columns)
        self._tables.move_to_end(group)
        while len(self._tables) > _HELD_GROUPS:
            self._tables.popitem(last=False)
        return self._tables[group]

    def row(self, row: int) -> dict[str, Any]:
        """Return one row of the file."""
        group = int(np.searchsorted(self.firsts, row, side="right")) - 1
        block, within = divmod(row - int(self.firsts[group]), _BLOCK_ROWS)
        if (group, block) not in self._rows:
            rows = self.table(group).slice(block * _BLOCK_ROWS, _BLOCK_ROWS)
            self._rows[group, block] = rows.to_pylist()
        self._rows.move_to_end((group, block))
        while len(self._rows) > _HELD_BLOCKS:
            self._rows.popitem(last=False)
        return self._rows[group, block][within]

    def slice(self, start: int, stop: int) -> pa.Table:
        """Return consecutive rows of the file."""
        low = int(np.searchsorted(self.firsts, start, side="right")) - 1
        high = int(np.searchsorted(self.firsts, max(stop, start + 1), side="left"))
        pieces = []
        for group in range(low, min(high, self._parquet.num_row_groups)):
            first = int(self.firsts[group])
            table = self.table(group)
            begin = max(start - first, 0)
            pieces.append(table.slice(begin, max(min(stop - first, len(table)) - begin, 0)))
        if not pieces:
            schema = self._parquet.schema_arrow
            return pa.schema([schema.field(name) for name in self._columns]).empty_table()
        return pieces[0] if len(pieces) == 1 else pa.concat_tables(pieces)

    def columns(self, start: int, stop: int) -> tuple[InstanceColumns, int] | None:
        """Return the row group of consecutive rows of `instances` as arrays, and its first row.

        None if they are in several row groups, or if only some rows of the group have masks.
        """
        group = int(np.searchsorted(self.firsts, start, side="right")) - 1
        if group == self._parquet.num_row_groups or stop > self.firsts[group + 1]:
            return None
        if group not in self._arrays:
            self._arrays[group] = InstanceColumns.of(self.table(group))
        self._arrays.move_to_end(group)
        while len(self._arrays) > _HELD_GROUPS:
            self._arrays.popitem(last=False)
        columns = self._arrays[group]
        return None if columns is None else (columns, int(self.firsts[group]))

    def may_hold(self, group: int, value: Any) -> bool:
        """Return whether a value of the first column can be in a row group, by its statistics."""
        metadata = self._parquet.metadata.row_group(group)
        for index in range(metadata.num_columns):
            column = metadata.column(index)
            if column.path_in_schema == self._columns[0]:
                statistics = column.statistics
                known = statistics is not None and statistics.has_min_max
                return not known or bool(statistics.min <= value <= statistics.max)
        return True


class OpenPart:
    """The files of one part, and the row where each image's instances begin."""

    def __init__(self, storage: Storage, part: Part) -> None:
        self.part = part
        with reading(storage, part.images, part.instances), ExitStack() as stack:
            images, instances = open_part(stack, storage, part)
            self.images = RowGroups(images, _IMAGE)
            self.instances = RowGroups(instances, _FOUND)
            counts = checked_counts(storage.url, part, images, instances)
            self._stack = stack.pop_all()
        self.starts: NDArray[np.int64] = np.cumsum(counts) - counts

    def close(self) -> None:
        """Close the files."""
        self._stack.close()


def open_part(stack: ExitStack, storage: Storage, part: Part) -> tuple[pq.ParquetFile, pq.ParquetFile]:
    """Open the images and the instances of a part until the stack is closed."""
    images, instances = (
        stack.enter_context(pq.ParquetFile(stack.enter_context(storage.open(path))))
        for path in (part.images, part.instances)
    )
    return images, instances

"""The manifest of a run: its inputs, written once, and read by ranges of rows and by shards.

`manifest.parquet` contains all inputs, and `skipped.parquet` what was listed and is no input. A retry adds a list of
the rows that it processes again, each with the size and etag of the input when the retry was planned: a file that was
replaced by a valid one is processed as it was then. An update writes a manifest of its own: all rows of the one before,
then those that it adds; and the list of the rows that no longer count.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RunError
from ..io.parquet import decode_table
from ..io.storage import Storage
from ..schema import METADATA, PLACE, RETIRED
from ..tiling.index import GRID, Cutting, WindowIndex
from .plan import (
    MANIFEST,
    Plan,
    Shard,
    grid_file,
    manifest_file,
    plan_file,
    planned_rows,
    read_generation,
    read_plans,
    read_run,
    retired_file,
    rows_file,
)

SKIPPED_NAME: Final = "skipped.parquet"
ROW_GROUP: Final = 8192
"""Rows per row group of the manifest; an actor reads whole row groups to get its shard."""
ROWS: Final = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("etag", pa.string()),
    ],
    metadata=METADATA,
)
"""A retry's list: rows of the manifest, ascending, with each input's size and etag, null if unknown."""


def write_manifest(storage: Storage, table: pa.Table, generation: int = 1) -> str:
    """Write the manifest of the first generation or of an update, the same bytes for the same table.

    Returns:
        Its sha256, hex; its path is `plan.manifest_file`.

    Raises:
        RunError: the store failed.
    """
    return _write_named(storage, table, functools.partial(manifest_file, generation))


def skipped_file(generation: int, sha256: str) -> str:
    """Return the path of what the listing of a generation skipped, of schema `SKIPPED`."""
    return SKIPPED_NAME if generation == 1 else f"skipped-{generation}-{sha256[:16]}.parquet"


def write_skipped(storage: Storage, table: pa.Table, generation: int = 1) -> str | None:
    """Write what a listing skipped, of `schema.SKIPPED`, and return its sha256, hex; None if nothing was: no file.

    Raises:
        RunError: the store failed.
    """
    if not table.num_rows:
        if generation == 1 and storage.exists(SKIPPED_NAME):  # of an earlier planning
            storage.remove(SKIPPED_NAME)
        return None
    return _write_named(storage, table, functools.partial(skipped_file, generation))


def read_skipped(storage: Storage) -> pa.Table:
    """Return `skipped.parquet`, of schema `SKIPPED`.

    Raises:
        RunError: it is missing.
    """
    try:
        return decode_table(storage.read(SKIPPED_NAME))
    except FileNotFoundError as error:
        raise RunError(f"{storage.url}/{SKIPPED_NAME} is missing; {_RESTORE}") from error


def check_manifest(storage: Storage, plan: Plan) -> None:
    """Compare the manifest of a plan with the digest there.

    Raises:
        RunError: it is missing, or is not the one that was planned.
    """
    try:
        with storage.open(plan.manifest) as file:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise RunError(f"{storage.url}/{plan.manifest} is missing; {_RESTORE}") from error
    if digest.hexdigest() != plan.manifest_sha256:
        raise RunError(f"{storage.url}/{plan.manifest} is not the one that was planned; {_RESTORE}")


_CHUNK_BYTES: Final = 16 * 2**20
_RESTORE: Final = "restore it, or start again in an empty directory"


def write_rows(storage: Storage, generation: int, table: pa.Table) -> str:
    """Write the list of a retry, of schema `ROWS`, and return its sha256, hex.

    Raises:
        RunError: the store failed.
    """
    return _write_named(storage, table.cast(ROWS), functools.partial(rows_file, generation))


def write_retired(storage: Storage, generation: int, table: pa.Table) -> str:
    """Write an update's list of rows that no longer count, of schema `RETIRED`, and return its sha256, hex.

    Raises:
        RunError: the store failed.
    """
    return _write_named(storage, table.cast(RETIRED), functools.partial(retired_file, generation))


def read_retired(storage: Storage, plans: Sequence[Plan]) -> pa.Table:
    """Return the rows of the manifest that no longer count, of schema `RETIRED`, in order; none without an update.

    Raises:
        RunError: the list is missing, or is not the one that the latest update names.
    """
    for plan in reversed(plans):
        if plan.update is not None:
            return _read_named(storage, plan.retired_file or "", plan.update.retired_sha256)
    return RETIRED.empty_table()


def current_rows(n_rows: int, retired: pa.Table) -> NDArray[np.int64]:
    """Return the rows of a manifest of `n_rows` that count, (N,) int64, ascending.

    Args:
        n_rows: of the manifest.
        retired: of schema `RETIRED`.
    """
    return np.setdiff1d(np.arange(n_rows), retired["row"].to_numpy(), assume_unique=True)


def write_grid(storage: Storage, table: pa.Table) -> str:
    """Write the list of the images' windows, of schema `GRID`, and return its sha256, hex.

    Raises:
        RunError: the store failed.
    """
    return _write_named(storage, table.cast(GRID), grid_file)


def read_grid(storage: Storage, plan: Plan) -> pa.Table:
    """Return the list of the images' windows, of schema `GRID`.

    Raises:
        ValueError: the plan has no windows.
        RunError: the list is missing, or is not the one that the plan names.
    """
    if plan.grid_file is None or plan.grid_sha256 is None:
        raise ValueError("the plan has no windows")
    return _read_named(storage, plan.grid_file, plan.grid_sha256)


def read_rows(storage: Storage, plan: Plan) -> pa.Table:
    """Return the list of a retry, of schema `ROWS`.

    Raises:
        ValueError: the plan is of the first generation.
        RunError: the list is missing, or is not the one that the plan names.
    """
    if plan.rows_file is None or plan.rows_sha256 is None:
        raise ValueError("the first generation has no list")
    return _read_named(storage, plan.rows_file, plan.rows_sha256)


def _write_named(storage: Storage, table: pa.Table, path_of: Callable[[str], str]) -> str:
    """Write a table to the path that follows from its sha256, hex, and return that."""
    data = _parquet(table)
    digest = hashlib.sha256(data).hexdigest()
    storage.write(path_of(digest), data)
    return digest


def _read_named(storage: Storage, path: str, sha256: str) -> pa.Table:
    try:
        data = storage.read(path)
    except FileNotFoundError as error:
        raise RunError(f"{storage.url}/{path} is missing; {_RESTORE}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError(f"{storage.url}/{path} is not the one that was planned; {_RESTORE}")
    return decode_table(data).combine_chunks()


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(METADATA)
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for begin in range(0, len(table), ROW_GROUP):
            # However the table is divided in memory, the bytes are the same.
            writer.write_table(table.slice(begin, ROW_GROUP).combine_chunks(), row_group_size=ROW_GROUP)
    data: bytes = sink.getvalue().to_pybytes()
    return data


class ManifestReader:
    """The manifest of a run; only the row groups that are needed are read.

    Not thread-safe.

    Args:
        storage: the run's directory.
        path: that of the manifest, `Plan.manifest`.

    Raises:
        FileNotFoundError: there is no manifest.
        RunError: the store failed.
    """

    def __init__(self, storage: Storage, path: str = MANIFEST) -> None:
        self._source = storage.open(path)
        self._file = pq.ParquetFile(self._source, pre_buffer=True)
        groups = self._file.metadata.num_row_groups
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._last: tuple[int, pa.Table] = (-1, self.schema.empty_table())

    @property
    def num_rows(self) -> int:
        """The number of inputs."""
        return int(self._starts[-1])

    @property
    def schema(self) -> pa.Schema:
        """`schema.MANIFEST` and the user's additional columns."""
        return self._file.schema_arrow

    def rows(self, start: int, stop: int) -> pa.Table:
        """Return the rows from `start` to before `stop`.

        Raises:
            ValueError: the manifest does not have all of them.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise ValueError(f"rows {start} to {stop} are not within {self.num_rows} rows")
        first = np.searchsorted(self._starts, start, side="right") - 1
        end = np.searchsorted(self._starts, stop, side="left")
        tables = [self.schema.empty_table()]
        for group in range(int(first), int(end) if stop > start else 0):
            table, low = self._group(group), int(self._starts[group])
            inside = max(start - low, 0)
            tables.append(table.slice(inside, stop - low - inside))
        return pa.concat_tables(tables).combine_chunks()

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """Return single rows, (N,) int64 in ascending order.

        Raises:
            ValueError: the manifest does not have all of them, or they do not ascend.
        """
        if len(rows) and not (rows[0] >= 0 and rows[-1] < self.num_rows and (np.diff(rows) > 0).all()):
            raise ValueError(f"rows {rows} are not within {self.num_rows} rows, or do not ascend")
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        tables = [self.schema.empty_table()]
        for of_group in np.split(rows, np.flatnonzero(np.diff(groups)) + 1) if len(rows) else ():
            group = int(np.searchsorted(self._starts, of_group[0], side="right")) - 1
            tables.append(self._group(group).take(pa.array(of_group - self._starts[group])))
        return pa.concat_tables(tables).combine_chunks()

    def _group(self, group: int) -> pa.Table:
        if self._last[0] != group:
            self._last = (group, self._file.read_row_group(group))
        return self._last[1]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_window_index(storage: Storage, plans: Sequence[Plan] | None = None) -> WindowIndex | None:
    """Return the windows of a run; None if its images are not cut into windows.

    Args:
        storage: the run's directory.
        plans: of all generations; None: read here.

    Raises:
        RunError: the list of windows is missing, or is not the one that was planned.
    """
    plans = read_plans(storage) if plans is None else plans
    if not plans or plans[-1].grid_file is None:
        return None
    settings = read_run(storage)["settings"]
    cutting = Cutting(settings["window"], settings["overlap"])
    return WindowIndex(read_grid(storage, plans[-1]), cutting, planned_rows(plans))


def read_current_windows(storage: Storage, plans: Sequence[Plan] | None = None) -> WindowIndex | None:
    """Return the windows of the images that count, which are numbered as in the table `images`, from 0.

    Args:
        storage: the run's directory.
        plans: of all generations; None: read here.

    Raises:
        RunError: as `read_window_index`.
    """
    plans = read_plans(storage) if plans is None else plans
    window_index = read_window_index(storage, plans)
    retired = read_retired(storage, plans)
    if window_index is None or not len(retired):
        return window_index
    return window_index.only(current_rows(window_index.n_images, retired))


class ShardReader:
    """Reads the inputs of shards of any generation.

    Not thread-safe.

    Raises:
        FileNotFoundError: there is no manifest.
        RunError: the store failed.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        plans = read_plans(storage)
        self._plans = {plan.generation: plan for plan in plans}
        self._manifest = ManifestReader(storage, plans[-1].manifest if plans else MANIFEST)
        self._windows = read_window_index(storage, plans)
        self._lists: dict[int, pa.Table] = {}

    def rows(self, shard: Shard) -> tuple[NDArray[np.int64], pa.Table]:
        """Return the inputs of a shard.

        Returns:
            The numbers of its rows in the manifest, (N,) int64, ascending; and those rows of the manifest; for a retry
            with `bytes` and `etag` as they were when the retry was planned. In a run of windows the numbers are those
            of windows, and the rows are of schema `ITEMS`.

        Raises:
            ValueError: the manifest or list does not have all rows of the shard.
            RunError: the list of a retry is missing, or is not the one that was planned.
        """
        first = 0 if shard.generation == 1 else self._plan(shard.generation).first_row
        if first is not None:
            rows = np.arange(first + shard.start, first + shard.stop)
            return rows, self._table(rows)
        listed = self._list(shard.generation)
        if not 0 <= shard.start <= shard.stop <= len(listed):
            raise ValueError(
                f"rows {shard.start} to {shard.stop} are not within the {len(listed)} rows of the retry"
            )
        listed = listed.slice(shard.start, len(shard)).combine_chunks()
        rows = listed["row"].to_numpy()
        table = self._table(rows)
        if PLACE.name in table.schema.names:  # what moved within a new archive is looked up there
            same = pc.fill_null(pc.equal(table["etag"], listed["etag"]), fill_value=False)
            place = pc.if_else(same, table[PLACE.name], pa.scalar(None, PLACE.type))
            table = table.set_column(table.schema.get_field_index(PLACE.name), PLACE, place)
        for name in ("bytes", "etag"):
            table = table.set_column(
                table.schema.get_field_index(name), table.schema.field(name), listed[name]
            )
        return rows, table

    def _table(self, rows: NDArray[np.int64]) -> pa.Table:
        if self._windows is None:
            return self._manifest.take(rows)
        images = np.unique(self._windows.rows_of(rows))
        return self._windows.table(rows, self._manifest.take(images), images)

    def _list(self, generation: int) -> pa.Table:
        if generation not in self._lists:
            self._lists[generation] = read_rows(self._storage, self._plan(generation))
        return self._lists[generation]

    def _plan(self, generation: int) -> Plan:
        if generation not in self._plans:
            plan = read_generation(self._storage, generation)
            if plan is None:
                raise RunError(f"{self._storage.url}/{plan_file(generation)} is missing; {_RESTORE}")
            self._plans[generation] = plan
        return self._plans[generation]

    def close(self) -> None:
        """Close the manifest."""
        self._manifest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

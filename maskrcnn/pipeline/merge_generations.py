"""Merge the results of all generations: for each row, the latest one counts, until an update retires the row.

The rows of the manifest come from the first generation and from updates, each of which appends its own; retries process
single rows again. A part of the tables is made from a group of shards of consecutive rows, one after the other, so that
memory holds only one shard and the results of retries for its rows.

A later generation leaves most parts as they are. So groups are divided where those of the generation before were, and
each knows the latest generation that changed it, after which its files are named.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import RunError
from ..io.parquet import read_checked
from ..io.storage import Storage
from ..stats import Stats
from ..types import Category
from .receipts import ChosenReceipt

PART_BYTES: Final = 128 * 2**20
PART_ROWS: Final = 1_000_000
"""Small rows make a part too: it is one task, and one file of COCO JSON."""


@dataclass(frozen=True, slots=True, eq=False)
class RetryShard:
    """A shard of a retry, with the rows of the manifest that it processed: (N,) int64, ascending."""

    shard: ChosenReceipt
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The shards that become one part of each table."""

    start: int
    """First row of the manifest, or window, in the first shard."""
    shards: tuple[ChosenReceipt, ...]
    """Shards of consecutive rows."""
    redone: tuple[tuple[RetryShard, ...], ...] = ()
    """For each retry, in order, its shards with rows of this group; they may have other rows too."""
    retired: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(N,) int64, ascending: the rows of this group, or windows, that do not count."""
    generation: int = 1
    """The latest one that changed a row of this group."""

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.start + sum(shard.images.rows for shard in self.shards)

    @property
    def part_name(self) -> str:
        """The name of its files: in order of rows, and other than before if a row has changed."""
        return f"part-{self.start:010d}-{self.generation}.parquet"


@dataclass(frozen=True, slots=True, eq=False)
class RetryResult:
    """The results of one generation for rows of the manifest, (N,) int64: their `images` and `instances`."""

    rows: NDArray[np.int64]
    images: pa.Table
    instances: pa.Table
    source: str = ""
    """Path of the file that it was read from."""


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """What a generation contributes to the tables."""

    number: int
    shards: Sequence[ChosenReceipt] = ()
    """The shards of the rows that it appends: of the first generation or an update."""
    redone: Sequence[RetryShard] = ()
    """The shards of a retry."""
    retired: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(N,) int64, ascending: the rows of the manifest, or windows, that no longer count from this one on."""


def group_shards(
    generations: Sequence[Generation],
    part_bytes: int = PART_BYTES,
    part_rows: int = PART_ROWS,
    may_begin: Callable[[int], bool] = lambda _: True,
) -> list[Group]:
    """Cut the shards of consecutive rows, in order, into groups of at most `part_bytes` and `part_rows`.

    A group has at least one shard, and those of one generation only. The size of a retry's shard is divided equally
    among its rows. A group that a retry makes more than twice as large is cut again.

    Args:
        generations: of the run, in order.
        part_bytes: maximum size of the instances, or of the images, of a group.
        part_rows: maximum number of them.
        may_begin: whether a group may begin with this row; otherwise the group before it becomes larger.
    """
    shards = [shard for generation in generations for shard in generation.shards]
    starts = np.cumsum([0, *(shard.images.rows for shard in shards)])
    sizes = np.zeros((len(shards), 4), np.int64)
    limits = np.array([part_bytes, part_bytes, part_rows, part_rows])

    def cut(low: int, high: int) -> list[int]:
        cuts, total = [low], np.zeros(4, np.int64)
        for index in range(low, high):
            total = total + sizes[index]
            if index > low and (total > limits).any() and may_begin(int(starts[index])):
                cuts.append(index)
                total = sizes[index]
        return cuts

    changed: dict[int, int] = {}
    """The latest generation that changed a group, by the group's first shard, in order."""
    n_shards = 0
    for generation in generations:
        low, n_shards = n_shards, n_shards + len(generation.shards)
        for index in range(low, n_shards):
            sizes[index] = _sizes(shards[index])
        rows = [generation.retired]
        for again in generation.redone:
            places = np.searchsorted(starts, again.rows, side="right") - 1
            np.add.at(sizes, places, np.array(_sizes(again.shard)) // len(again.rows))
            rows.append(again.rows)
        hit = np.unique(np.searchsorted(starts, np.concatenate(rows), side="right") - 1)
        bounds = [*changed, low]
        for first, stop in pairwise(bounds):
            if np.searchsorted(hit, first) < np.searchsorted(hit, stop):
                again_cut = [first]
                if (sizes[first:stop].sum(axis=0) > 2 * limits).any():
                    again_cut = cut(first, stop)
                changed |= dict.fromkeys(again_cut, generation.number)
        changed = dict(sorted(changed.items())) | dict.fromkeys(
            cut(low, n_shards) if n_shards > low else (), generation.number
        )
    retired = np.sort(np.concatenate([generation.retired for generation in generations]))
    groups = []
    for (low, number), high in zip(changed.items(), [*list(changed)[1:], len(shards)], strict=True):
        start, stop = int(starts[low]), int(starts[high])
        first, end = np.searchsorted(retired, [start, stop])
        redone = tuple(_within(generation.redone, start, stop) for generation in generations)
        groups.append(
            Group(start, tuple(shards[low:high]), tuple(filter(None, redone)), retired[first:end], number)
        )
    return [group for group in groups if len(group.retired) < group.stop - group.start]


def _sizes(shard: ChosenReceipt) -> tuple[int, int, int, int]:
    return shard.images.bytes, shard.instances.bytes, shard.images.rows, shard.instances.rows


def _within(redone: Sequence[RetryShard], start: int, stop: int) -> tuple[RetryShard, ...]:
    return tuple(each for each in redone if each.rows[-1] >= start and each.rows[0] < stop)


def merge_results(
    start: int, images: pa.Table, instances: pa.Table, results: Sequence[RetryResult]
) -> tuple[pa.Table, pa.Table]:
    """Return a shard's tables, with the results of later generations in place of those of the first.

    Args:
        start: row of the manifest of the first row of `images`.
        images: one row for each row of the manifest from `start` on.
        instances: those of these images, in order of `id`.
        results: for rows of this shard; if rows repeat, the last result counts.

    Raises:
        RunError: a result is of other images than its rows.
    """
    tables = [RetryResult(np.arange(start, start + len(images)), images, instances), *results]
    ends = np.cumsum([len(table.rows) for table in tables])
    source = np.arange(len(images))
    for result, end in zip(tables[1:], ends[1:].tolist(), strict=True):
        places = result.rows - start
        if not images["image_id"].take(pa.array(places)).equals(result.images["image_id"]):
            raise RunError(
                f"{result.source} contains other rows than the retry's plan; remove its receipt, and retry again"
            )
        source[places] = np.arange(end - len(places), end)
    every_image = pa.concat_tables([table.images for table in tables])
    found = []
    for table, end in zip(tables, ends.tolist(), strict=True):
        counting = source[(source >= end - len(table.rows)) & (source < end)]
        ids = every_image["image_id"].take(pa.array(counting))
        found.append(table.instances.filter(pc.is_in(table.instances["image_id"], ids)))
    every_instance = pa.concat_tables(found)
    return every_image.take(pa.array(source)), every_instance.take(pc.sort_indices(every_instance["id"]))


class GroupReader:
    """Reads the tables of a group, shard by shard, in order; each may be read once, `images` first.

    Raises:
        RunError: a file is missing, or does not match its receipt.
    """

    def __init__(self, storage: Storage, group: Group, categories: Sequence[Category]) -> None:
        self._storage = storage
        self._group = group
        self._retries = [_RetryReader(storage, generation) for generation in group.redone]
        self.stats = Stats.zero(categories)
        """Statistics of the shards of which not all rows count as they are; complete once `instances` was read to its
        end."""

    def images(self) -> Iterator[pa.Table]:
        """Yield the rows of `images`."""
        for start, shard in self._shards():
            images = read_checked(self._storage, shard.images)
            if results := self._results(start, len(images)):
                images, _ = merge_results(start, images, results[0].instances.slice(0, 0), results)
            yield images.filter(self._counting(start, len(images)))

    def instances(self) -> Iterator[pa.Table]:
        """Yield the rows of `instances`."""
        for start, shard in self._shards():
            instances = read_checked(self._storage, shard.instances)
            if (changed := self._changed(start, shard)) is not None:
                images, instances = self._merged(
                    start, changed, read_checked(self._storage, shard.images), instances
                )
                self.stats = self.stats + Stats.of_tables(images, instances, self.stats.categories)
            yield instances

    def count(self) -> Stats:
        """Return `stats` without reading the other shards."""
        for start, shard in self._shards():
            if (changed := self._changed(start, shard)) is not None:
                tables = [read_checked(self._storage, file) for file in (shard.images, shard.instances)]
                merged = self._merged(start, changed, *tables)
                self.stats = self.stats + Stats.of_tables(*merged, self.stats.categories)
        return self.stats

    def _changed(self, start: int, shard: ChosenReceipt) -> list[RetryResult] | None:
        """Return the results of retries for a shard; None if all its rows count as they are."""
        results = self._results(start, shard.images.rows)
        return results if results or not all(self._counting(start, shard.images.rows)) else None

    def _merged(
        self, start: int, results: list[RetryResult], images: pa.Table, instances: pa.Table
    ) -> tuple[pa.Table, pa.Table]:
        images, instances = merge_results(start, images, instances, results)
        images = images.filter(self._counting(start, len(images)))
        return images, instances.filter(pc.is_in(instances["image_id"], images["image_id"]))

    def _counting(self, start: int, n_rows: int) -> NDArray[np.bool_]:
        """Return whether each of a shard's rows counts, (n_rows,) bool."""
        low, high = np.searchsorted(self._group.retired, [start, start + n_rows])
        counting = np.ones(n_rows, np.bool_)
        counting[self._group.retired[low:high] - start] = False
        return counting

    def _shards(self) -> Iterator[tuple[int, ChosenReceipt]]:
        start = self._group.start
        for shard in self._group.shards:
            yield start, shard
            start += shard.images.rows

    def _results(self, start: int, n_rows: int) -> list[RetryResult]:
        return [result for reader in self._retries for result in reader.between(start, start + n_rows)]


class _RetryReader:
    """Reads the results of one later generation, shard by shard as the rows ascend."""

    def __init__(self, storage: Storage, shards: Sequence[RetryShard]) -> None:
        self._storage = storage
        self._shards = shards
        self._firsts = np.array([each.rows[0] for each in shards], np.int64)
        self._lasts = np.array([each.rows[-1] for each in shards], np.int64)
        self._held: tuple[int, pa.Table, pa.Table] | None = None

    def between(self, start: int, stop: int) -> Iterator[RetryResult]:
        low, high = np.searchsorted(self._lasts, start), np.searchsorted(self._firsts, stop)
        for index in range(int(low), int(high)):
            rows = self._shards[index].rows
            first, end = np.searchsorted(rows, [start, stop])
            if first < end:
                images, instances = self._tables(index)
                images = images.slice(first, end - first)
                yield RetryResult(
                    rows[first:end],
                    images,
                    instances.filter(pc.is_in(instances["image_id"], images["image_id"])),
                    self._shards[index].shard.images.path,
                )

    def _tables(self, index: int) -> tuple[pa.Table, pa.Table]:
        if self._held is None or self._held[0] != index:
            shard = self._shards[index].shard
            images, instances = (
                read_checked(self._storage, file) for file in (shard.images, shard.instances)
            )
            self._held = (index, images, instances)
        return self._held[1:]

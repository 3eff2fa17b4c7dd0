"""Merge the results of retries into those of the first generation: for each row, the latest generation counts.

A part of the tables is made from a group of shards of the first generation, one after the other, so that memory holds
only one shard and the results of retries for its rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

    number: int
    start: int
    """First row of the manifest in the first shard."""
    shards: tuple[ChosenReceipt, ...]
    """Consecutive shards of the first generation."""
    redone: tuple[tuple[RetryShard, ...], ...]
    """For each later generation, in order, its shards with rows of this group; they may have other rows too."""


@dataclass(frozen=True, slots=True, eq=False)
class RetryResult:
    """The results of one generation for rows of the manifest, (N,) int64: their `images` and `instances`."""

    rows: NDArray[np.int64]
    images: pa.Table
    instances: pa.Table
    source: str = ""
    """Path of the file that it was read from."""


def _sizes(shard: ChosenReceipt) -> tuple[int, int, int, int]:
    return shard.images.bytes, shard.instances.bytes, shard.images.rows, shard.instances.rows


def group_shards(
    chosen: Sequence[ChosenReceipt],
    redone: Sequence[Sequence[RetryShard]] = (),
    part_bytes: int = PART_BYTES,
    part_rows: int = PART_ROWS,
    may_begin: Callable[[int], bool] = lambda _: True,
) -> list[Group]:
    """Cut the shards, in order, into groups of at most `part_bytes` and `part_rows` of instances or images.

    A group has at least one shard. The size of a retry's shard is divided equally among its rows.

    Args:
        chosen: receipts of the first generation, in the order of its plan.
        redone: shards of the later generations.
        part_bytes: maximum size of the instances, or of the images, of a group.
        part_rows: maximum number of them.
        may_begin: whether a group may begin with this row; otherwise the group before it becomes larger.
    """
    starts = np.cumsum([0, *(shard.images.rows for shard in chosen)])
    sizes = np.array([_sizes(shard) for shard in chosen], np.int64).reshape(-1, 4)
    for again in (each for generation in redone for each in generation):
        found = np.array(_sizes(again.shard))
        np.add.at(sizes, np.searchsorted(starts, again.rows, side="right") - 1, found // len(again.rows))
    limits = np.array([part_bytes, part_bytes, part_rows, part_rows])
    cuts, total = [0], np.zeros(4, np.int64)
    for index, more in enumerate(sizes):
        total = total + more
        if index and (total > limits).any() and may_begin(int(starts[index])):
            cuts.append(index)
            total = more
    return [
        Group(number, int(starts[low]), tuple(chosen[low:high]), _within(redone, starts[low], starts[high]))
        for number, (low, high) in enumerate(pairwise([*cuts, len(chosen)]))
    ]


def _within(
    redone: Sequence[Sequence[RetryShard]], start: int, stop: int
) -> tuple[tuple[RetryShard, ...], ...]:
    return tuple(
        tuple(each for each in generation if each.rows[-1] >= start and each.rows[0] < stop)
        for generation in redone
    )


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
        """Statistics of the shards with rows of a retry; complete once `instances` was read to its end."""

    def images(self) -> Iterator[pa.Table]:
        """Yield the rows of `images`."""
        for start, shard in self._shards():
            images = read_checked(self._storage, shard.images)
            if results := self._results(start, len(images)):
                images, _ = merge_results(start, images, results[0].instances.slice(0, 0), results)
            yield images

    def instances(self) -> Iterator[pa.Table]:
        """Yield the rows of `instances`."""
        for start, shard in self._shards():
            instances = read_checked(self._storage, shard.instances)
            if results := self._results(start, shard.images.rows):
                images = read_checked(self._storage, shard.images)
                images, instances = merge_results(start, images, instances, results)
                self.stats = self.stats + Stats.of_tables(images, instances, self.stats.categories)
            yield instances

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

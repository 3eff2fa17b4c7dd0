"""What later generations of the plan found, laid over the first: the latest that did a row counts for it.

A part of the tables is made from a group of shards of the first generation, one after the other, so that no more is
held in memory than a shard and those pieces of retries that belong to its rows.
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


@dataclass(frozen=True, slots=True, eq=False)
class Redone:
    """A shard of a retry, with the rows of the manifest that it did: (N,) int64, ascending."""

    shard: ChosenReceipt
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What becomes one part of each table."""

    number: int
    start: int
    """Row of the manifest with which the first shard begins."""
    shards: tuple[ChosenReceipt, ...]
    """Consecutive, of the first generation."""
    redone: tuple[tuple[Redone, ...], ...]
    """By later generation, in order: its shards that did rows of this group, and perhaps others besides."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows of the manifest, (N,) int64, and what a generation found: `images`, one a row, and all their `instances`."""

    rows: NDArray[np.int64]
    images: pa.Table
    instances: pa.Table
    source: str = ""
    """Where it was read."""


def group_shards(
    chosen: Sequence[ChosenReceipt],
    redone: Sequence[Sequence[Redone]] = (),
    part_bytes: int = PART_BYTES,
    may_begin: Callable[[int], bool] = lambda _: True,
) -> list[Group]:
    """Cut the shards, in order, into groups of at most `part_bytes` of instances or images, at least one shard each.

    Of what a retry found, each of its rows counts an equal share.

    Args:
        may_begin: whether a group may begin with this row; if not, it is the larger for it.
    """
    starts = np.cumsum([0, *(shard.images.rows for shard in chosen)])
    sizes = np.array([[shard.images.bytes, shard.instances.bytes] for shard in chosen], np.int64)
    for again in (each for generation in redone for each in generation):
        found = np.array([again.shard.images.bytes, again.shard.instances.bytes])
        np.add.at(sizes, np.searchsorted(starts, again.rows, side="right") - 1, found // len(again.rows))
    cuts, images_bytes, instances_bytes = [0], 0, 0
    for index, (more_images, more_instances) in enumerate(sizes.tolist()):
        images_bytes, instances_bytes = images_bytes + more_images, instances_bytes + more_instances
        if index and max(images_bytes, instances_bytes) > part_bytes and may_begin(int(starts[index])):
            cuts.append(index)
            images_bytes, instances_bytes = more_images, more_instances
    return [
        Group(number, int(starts[low]), tuple(chosen[low:high]), _within(redone, starts[low], starts[high]))
        for number, (low, high) in enumerate(pairwise([*cuts, len(chosen)]))
    ]


def _within(redone: Sequence[Sequence[Redone]], start: int, stop: int) -> tuple[tuple[Redone, ...], ...]:
    return tuple(
        tuple(each for each in generation if each.rows[-1] >= start and each.rows[0] < stop)
        for generation in redone
    )


def overlaid(
    start: int, images: pa.Table, instances: pa.Table, pieces: Sequence[Piece]
) -> tuple[pa.Table, pa.Table]:
    """Return a shard's tables with what later generations found in the place of what the first did.

    Args:
        start: row of the manifest of the first of `images`.
        images: one for each row from `start` on.
        instances: of these images, in order of `id`.
        pieces: of rows of this shard; later ones count where rows repeat.

    Raises:
        RunError: a piece is of other images than its rows.
    """
    tables = [Piece(np.arange(start, start + len(images)), images, instances), *pieces]
    ends = np.cumsum([len(table.rows) for table in tables])
    source = np.arange(len(images))
    for piece, end in zip(tables[1:], ends[1:].tolist(), strict=True):
        places = piece.rows - start
        if not images["image_id"].take(pa.array(places)).equals(piece.images["image_id"]):
            raise RunError(
                f"{piece.source} is of other rows than the retry's plan; remove its receipt, and retry again"
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
    """The tables of a group, shard by shard, in order; each is to be read once, `images` first.

    Raises:
        RunError: a file is missing, or not what its receipt says.
    """

    def __init__(self, storage: Storage, group: Group, categories: Sequence[Category]) -> None:
        self._storage = storage
        self._group = group
        self._later = [_Later(storage, generation) for generation in group.redone]
        self.stats = Stats.zero(categories)
        """Of the shards of which something was done again; complete once `instances` was read to its end."""

    def images(self) -> Iterator[pa.Table]:
        """Yield the rows of `images`."""
        for start, shard in self._shards():
            images = read_checked(self._storage, shard.images)
            if pieces := self._pieces(start, len(images)):
                images, _ = overlaid(start, images, pieces[0].instances.slice(0, 0), pieces)
            yield images

    def instances(self) -> Iterator[pa.Table]:
        """Yield the rows of `instances`."""
        for start, shard in self._shards():
            instances = read_checked(self._storage, shard.instances)
            if pieces := self._pieces(start, shard.images.rows):
                images = read_checked(self._storage, shard.images)
                images, instances = overlaid(start, images, instances, pieces)
                self.stats = self.stats + Stats.of_tables(images, instances, self.stats.categories)
            yield instances

    def _shards(self) -> Iterator[tuple[int, ChosenReceipt]]:
        start = self._group.start
        for shard in self._group.shards:
            yield start, shard
            start += shard.images.rows

    def _pieces(self, start: int, n_rows: int) -> list[Piece]:
        return [piece for later in self._later for piece in later.between(start, start + n_rows)]


class _Later:
    """What one later generation found, read shard by shard as the rows ascend."""

    def __init__(self, storage: Storage, shards: Sequence[Redone]) -> None:
        self._storage = storage
        self._shards = shards
        self._firsts = np.array([each.rows[0] for each in shards], np.int64)
        self._lasts = np.array([each.rows[-1] for each in shards], np.int64)
        self._held: tuple[int, pa.Table, pa.Table] | None = None

    def between(self, start: int, stop: int) -> Iterator[Piece]:
        low, high = np.searchsorted(self._lasts, start), np.searchsorted(self._firsts, stop)
        for index in range(int(low), int(high)):
            rows = self._shards[index].rows
            first, end = np.searchsorted(rows, [start, stop])
            if first < end:
                images, instances = self._tables(index)
                images = images.slice(first, end - first)
                yield Piece(
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

"""The ground truth cut by the run's parts, in files beside the run that tasks anywhere can read."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..formats.coco_reader import CocoImages
from ..io.parquet import BATCH_ROWS, Part, read_table, write_tables
from ..io.storage import Storage
from ..io.temporary import Spilled
from .alignment import PairedCategories, PairedImages
from .evaluate_part import SHARE, Task


def image_order(
    images: CocoImages, parts: Sequence[Part], paired: PairedImages
) -> list[tuple[Part, NDArray[np.int64]]]:
    """Return each part with the rank of its images by the ground truth's ids, the order in which COCO takes them."""
    rank = np.empty(len(images), np.int64)
    rank[sorted(range(len(rank)), key=lambda at: images.ids[at])] = np.arange(len(rank))
    order = np.where(paired.ground_truth >= 0, rank[paired.ground_truth], -1)
    bounds = np.cumsum([part.n_images for part in parts])[:-1]
    return list(zip(parts, np.split(order, bounds), strict=True))


class Shares:
    """The share of the ground truth of each part, a Parquet file of `SHARE`.

    Args:
        storage: the run's directory.
        folder: where the files go, below it.
        parts: each part with the rank of its images; see `image_order`.
    """

    def __init__(
        self, storage: Storage, folder: str, parts: Iterable[tuple[Part, NDArray[np.int64]]]
    ) -> None:
        self._storage = storage
        self.folder = folder
        self.tasks = [
            Task(part, f"{folder}/{number:05d}.parquet", order) for number, (part, order) in enumerate(parts)
        ]

    def write(
        self, annotations: Iterable[pa.Table], paired: PairedImages, categories: PairedCategories
    ) -> int:
        """Write all files from tables of `coco_checks.ANNOTATIONS`; return the number of annotations."""
        row_of = np.full(len(paired.missing) + int((paired.ground_truth >= 0).sum()), -1, np.int64)
        evaluated = np.flatnonzero(paired.ground_truth >= 0)
        row_of[paired.ground_truth[evaluated]] = evaluated
        firsts = np.cumsum([0, *(task.part.n_images for task in self.tasks)])
        pieces, count = Spilled[pa.Table](), 0
        of_part: list[list[int]] = [[] for _ in self.tasks]
        for table in annotations:
            count += len(table)
            category = categories.of_ground_truth[table["category"].to_numpy()]
            rows = np.where(category < 0, -1, row_of[table["image"].to_numpy()])
            part = np.searchsorted(firsts, rows, side="right") - 1
            for number in np.unique(part[rows >= 0]).tolist():
                chosen = np.flatnonzero((part == number) & (rows >= 0))
                own = {"row": rows[chosen] - firsts[number], "category": category[chosen]}
                of_part[number].append(pieces.append(_share_of(table.take(pa.array(chosen)), own)))
        for task, numbers in zip(self.tasks, of_part, strict=True):
            share = pa.concat_tables([SHARE.empty_table(), *(pieces[number] for number in numbers)])
            # Within an image, in the order of the file.
            order = np.argsort(share["row"].to_numpy(), kind="stable")
            write_tables(self._storage, task.share, SHARE, _in_order(share, order))
        return count

    def read(self, number: int, row: int) -> pa.Table:
        """Return the rows of one image of a part, `SHARE`."""
        share = read_table(self._storage, self.tasks[number].share)
        return share.filter(pc.field("row") == row)


def _share_of(annotations: pa.Table, own: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Return annotations as rows of `SHARE`, with columns of its own."""
    columns = [pa.array(own[name]) if name in own else annotations[name] for name in SHARE.names]
    return pa.table(columns, schema=SHARE)


def _in_order(table: pa.Table, order: NDArray[np.intp]) -> Iterator[pa.Table]:
    """Yield the rows of a table in another order, some thousands at a time."""
    batches = table.to_batches()
    firsts = np.cumsum([0, *map(len, batches)])
    for start in range(0, len(order), BATCH_ROWS):
        chosen = order[start : start + BATCH_ROWS]
        by_row = np.argsort(chosen)
        cuts = np.searchsorted(chosen[by_row], firsts)
        # Not one `take` from the table: it would join the masks of all its rows first.
        taken = [
            batch.take(pa.array(chosen[by_row[low:high]] - first))
            for batch, first, (low, high) in zip(batches, firsts, itertools.pairwise(cuts), strict=False)
            if high > low
        ]
        yield pa.Table.from_batches(taken).take(pa.array(np.argsort(by_row)))

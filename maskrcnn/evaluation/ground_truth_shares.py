"""The ground truth cut by the run's parts, in files beside the run that tasks anywhere can read."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..formats.coco_reader import CocoImages
from ..io.parquet import BATCH_ROWS, Part, read_table, write_tables
from ..io.storage import Storage
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

    def write(self, annotations: pa.Table, paired: PairedImages, categories: PairedCategories) -> None:
        """Write all files, one at a time, from `coco_checks.ANNOTATIONS`."""
        row_of = np.full(len(paired.missing) + int((paired.ground_truth >= 0).sum()), -1, np.int64)
        evaluated = np.flatnonzero(paired.ground_truth >= 0)
        row_of[paired.ground_truth[evaluated]] = evaluated
        rows = row_of[annotations["image"].to_numpy()]
        category = categories.of_ground_truth[annotations["category"].to_numpy()]
        rows[category < 0] = -1
        by_row = np.argsort(rows, kind="stable")  # within an image, in the order of the file
        batches = annotations.to_batches()
        first = 0
        for task in self.tasks:
            stop = first + task.part.n_images
            chosen = by_row[slice(*np.searchsorted(rows, [first, stop], sorter=by_row))]
            pieces = (chosen[at : at + BATCH_ROWS] for at in range(0, len(chosen), BATCH_ROWS))
            share = (_share_of(batches, some, rows[some] - first, category[some]) for some in pieces)
            write_tables(self._storage, task.share, SHARE, share)
            first = stop

    def read(self, number: int, row: int) -> pa.Table:
        """Return the rows of one image of a part, `SHARE`."""
        share = read_table(self._storage, self.tasks[number].share)
        return share.filter(pc.field("row") == row)


def _share_of(
    annotations: Sequence[pa.RecordBatch],
    chosen: NDArray[np.intp],
    rows: NDArray[np.int64],
    category: NDArray[np.int32],
) -> pa.Table:
    """Return chosen annotations as rows of `SHARE`; masks are copied, so a few thousand at a time."""
    order = np.argsort(chosen)
    ends = np.cumsum([len(batch) for batch in annotations])
    cuts = np.searchsorted(chosen[order], [0, *ends])
    taken = []
    # Not one `take` from all: it would join the masks of all first.
    for batch, end, (low, high) in zip(annotations, ends, itertools.pairwise(cuts), strict=True):
        if high > low:
            taken.append(batch.take(pa.array(chosen[order[low:high]] - (end - len(batch)))))
    share = pa.Table.from_batches(taken).take(pa.array(np.argsort(order)))
    own = {"row": pa.array(rows), "category": pa.array(category)}
    columns = [own[name] if name in own else share[name] for name in SHARE.names]
    return pa.table(columns, schema=SHARE)

"""The differences of two runs as tables: a row per instance that differs, and a row per image that differs."""

import functools
import heapq
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..io.parquet import BATCH_ROWS, ROW_GROUP_ROWS, write_tables
from ..io.storage import Storage
from ..pipeline.success import RunAll, run_here
from ..types import Detections
from .diff import Comparison, ImageDiff, ImageRange, Tally
from .diff_matching import KINDS, Rules
from .reader import ImageRow, RunReader
from .run import Run

RANGE_IMAGES: Final = ROW_GROUP_ROWS
"""Images of A that are compared by one task."""

_BOX: Final = pa.struct([pa.field(side, pa.float32()) for side in ("xmin", "ymin", "xmax", "ymax")])
INSTANCES: Final = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        ("image_id_a", pa.int64()),
        ("image_id_b", pa.int64()),
        pa.field("kind", pa.string(), nullable=False),
        *[(f"instance_{run}", pa.int32()) for run in "ab"],
        *[(f"category_{run}", pa.string()) for run in "ab"],
        *[(f"score_{run}", pa.float32()) for run in "ab"],
        *[(f"area_{run}", pa.int64()) for run in "ab"],
        *[(f"box_{run}", _BOX) for run in "ab"],
        ("iou", pa.float32()),
    ]
)
"""Of `diff.parquet`: one row per instance that is not the same; null if a run does not have it."""
IMAGES: Final = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        ("image_id_a", pa.int64()),
        ("image_id_b", pa.int64()),
        pa.field("outcome", pa.string(), nullable=False),
        ("status_a", pa.string()),
        ("status_b", pa.string()),
        *[pa.field(kind, pa.int32(), nullable=False) for kind in KINDS],
    ]
)
"""Of `images.parquet`: one row per image that differs."""


@dataclass(frozen=True, slots=True)
class RangeDiff:
    """The result of comparing one range."""

    tally: Tally
    most: list[tuple[float, int, tuple[ImageRow, ImageRow]]]
    """The images with the most differences: weight, minus the place in the range, rows; in descending order."""


@dataclass(frozen=True, slots=True)
class RangeTask:
    """What the comparisons of all ranges share."""

    a: Run
    b: Run
    rules: Rules
    output: Storage | None
    folder: str
    """Below the output, for the tables of the ranges."""
    count: int
    """The maximum number of images to return with the most differences."""

    def paths(self, number: int) -> tuple[str, str]:
        """Return the paths of the tables of a range: of instances, of images."""
        return f"{self.folder}/{number:06d}-instances.parquet", f"{self.folder}/{number:06d}-images.parquet"


def compare_range(task: RangeTask, numbered: tuple[int, ImageRange]) -> RangeDiff:
    """Compare the images of one range, and write the differences as tables of its own.

    Raises:
        UsageError: the tables of a run disagree.
        RunError: a run cannot be read, or a table cannot be stored.
    """
    number, within = numbered
    most: list[tuple[float, int, tuple[ImageRow, ImageRow]]] = []
    rows: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    with RunReader(task.a) as a, RunReader(task.b) as b:
        comparison = Comparison(a, b, task.rules)
        tally = Tally(comparison.categories)

        def changed() -> Iterator[pa.Table]:
            # Tables of single images would take many times the memory of their rows.
            columns: dict[str, list[Any]] = {name: [] for name in INSTANCES.names}
            for place, image in enumerate(comparison.images(within)):
                tally.add(image)
                if image.a is not None and image.b is not None and image.weight:
                    heapq.heappush(most, (image.weight, -place, (image.a, image.b)))
                    if len(most) > task.count:
                        heapq.heappop(most)
                if task.output is not None:
                    rows.extend(_image_row(image))
                    if len(rows) >= BATCH_ROWS:  # a table takes a tenth of the memory of its rows
                        tables.append(pa.Table.from_pylist(rows, IMAGES))
                        rows.clear()
                    if len(image.changed):
                        for name, values in _instance_rows(image, comparison.categories).items():
                            columns[name] += values
                    if len(columns["name"]) >= BATCH_ROWS:
                        yield pa.Table.from_pydict(columns, INSTANCES)
                        columns = {name: [] for name in INSTANCES.names}
            yield pa.Table.from_pydict(columns, INSTANCES)

        if task.output is None:
            for _ in changed():
                pass
        else:
            of_instances, of_images = task.paths(number)
            write_tables(task.output, of_instances, INSTANCES, changed())
            write_tables(task.output, of_images, IMAGES, [*tables, pa.Table.from_pylist(rows, IMAGES)])
    return RangeDiff(tally, sorted(most, reverse=True, key=lambda entry: entry[:2]))


def compare_runs(
    comparison: Comparison, output: Storage | None, count: int, run_all: RunAll = run_here
) -> tuple[Tally, list[tuple[ImageRow, ImageRow]]]:
    """Compare two runs, and write the differences as tables.

    Args:
        comparison: of the runs.
        output: gets `diff.parquet` and `images.parquet`; None: nothing is written.
        count: number of images with the most differences to return.
        run_all: how the ranges of images are distributed.

    Returns:
        The totals, and the images with the most differences, in descending order.

    Raises:
        UsageError: the runs have no image in common, or none that did not fail in both, or the tables of one disagree.
        RunError: a run cannot be read, or a table cannot be stored.
    """
    ranges = comparison.ranges(RANGE_IMAGES)
    comparison.check_related(ranges)
    folder = f"ranges-{uuid.uuid4().hex}"
    task = RangeTask(*comparison.runs, comparison.rules, output, folder, count)
    try:
        diffs: list[RangeDiff] = run_all(functools.partial(compare_range, task), list(enumerate(ranges)))
        if output is not None:
            paths = [task.paths(number) for number in range(len(ranges))]
            tables = (("diff.parquet", INSTANCES), ("images.parquet", IMAGES))
            for (name, schema), of_ranges in zip(tables, zip(*paths, strict=True), strict=True):
                write_tables(output, name, schema, _rows_of(output, of_ranges))
    finally:
        if output is not None:
            output.remove_tree(folder)
    tally = Tally(comparison.categories)
    for diff in diffs:
        tally.add_all(diff.tally)
    most = [
        (-weight, number, -place, pair)
        for number, diff in enumerate(diffs)
        for weight, place, pair in diff.most
    ]
    return tally, [pair for *_, pair in sorted(most, key=lambda entry: entry[:3])[:count]]


def _rows_of(storage: Storage, paths: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of some tables, one after the other."""
    for path in paths:
        with storage.open(path) as stored, pq.ParquetFile(stored) as file:
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                yield pa.Table.from_batches([batch])


def _image_row(image: ImageDiff) -> list[dict[str, Any]]:
    counts = np.bincount(image.kinds, minlength=len(KINDS)).tolist()
    differs = image.status in ("only_a", "only_b", "resized") or image.status_changed
    if not differs and not len(image.changed):
        return []
    a, b = image.a, image.b
    one = {
        "name": image.name,
        "image_id_a": a and a.image_id,
        "image_id_b": b and b.image_id,
        "outcome": image.status,
        "status_a": a and a.status,
        "status_b": b and b.status,
    }
    return [one | dict(zip(KINDS, counts, strict=True))]


def _instance_rows(image: ImageDiff, categories: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return the instances of an image that are not the same, by column of `INSTANCES`."""
    changed = image.changed
    a, b = image.a, image.b
    kinds = image.kinds[changed]
    columns: dict[str, list[Any]] = {
        "name": [image.name] * len(changed),
        "image_id_a": [a and a.image_id] * len(changed),
        "image_id_b": [b and b.image_id] * len(changed),
        "kind": [KINDS[kind] for kind in kinds.tolist()],
    }
    for run, found, rows, numbers in (
        ("a", image.found_a, image.rows_a[changed], image.numbers_a),
        ("b", image.found_b, image.rows_b[changed], image.numbers_b),
    ):
        here = [row if row >= 0 else None for row in rows.tolist()]
        columns |= _side(found, here, numbers, categories, run) if found is not None else {}
    matched = (image.rows_a[changed] >= 0) & (image.rows_b[changed] >= 0)
    iou = zip(image.iou[changed].astype(np.float32).tolist(), matched.tolist(), strict=True)
    columns["iou"] = [value if both else None for value, both in iou]
    return columns


def _side(
    found: Detections,
    rows: list[int | None],
    numbers: NDArray[np.int64],
    categories: tuple[str, ...],
    run: str,
) -> dict[str, Any]:
    def of(values: list[Any]) -> list[Any]:
        return [None if row is None else values[row] for row in rows]

    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [dict(zip(sides, box, strict=True)) for box in found.boxes.tolist()]
    return {
        f"instance_{run}": of(numbers.tolist()),
        f"category_{run}": of([categories[label] for label in found.labels.tolist()]),
        f"score_{run}": of(found.scores.tolist()),
        f"area_{run}": of(found.areas.tolist()),
        f"box_{run}": of(boxes),
    }

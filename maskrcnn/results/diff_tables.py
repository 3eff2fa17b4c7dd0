"""The differences of two runs as tables: a row per instance that differs, and a row per image that differs."""

import heapq
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..io.parquet import BATCH_ROWS, write_tables
from ..io.storage import Storage
from ..types import Detections
from .diff import Comparison, ImageDiff, Tally
from .diff_matching import KINDS
from .reader import ImageRow

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


def compare_runs(
    comparison: Comparison, output: Storage | None, count: int
) -> tuple[Tally, list[tuple[ImageRow, ImageRow]]]:
    """Compare two runs, and write the differences as tables.

    Args:
        comparison: of the runs.
        output: gets `diff.parquet` and `images.parquet`; None: nothing is written.
        count: number of images with the most differences to return.

    Returns:
        The totals, and the images with the most differences, in descending order.

    Raises:
        UsageError: the runs have no image in common, or none that did not fail in both, or the tables of one disagree.
        RunError: a run cannot be read, or a table cannot be stored.
    """
    comparison.check_related()
    tally = Tally(comparison.categories)
    most: list[tuple[float, int, tuple[ImageRow, ImageRow]]] = []
    rows: list[dict[str, Any]] = []
    tables: list[pa.Table] = []

    def changed() -> Iterator[pa.Table]:
        for number, image in enumerate(comparison):
            tally.add(image)
            if image.a is not None and image.b is not None and image.weight:
                heapq.heappush(most, (image.weight, -number, (image.a, image.b)))
                if len(most) > count:
                    heapq.heappop(most)
            if output is not None:
                rows.extend(_image_row(image))
                if len(rows) >= BATCH_ROWS:  # a table takes a tenth of the memory of its rows
                    tables.append(pa.Table.from_pylist(rows, IMAGES))
                    rows.clear()
                if len(image.changed):
                    yield _instance_rows(image, comparison.categories)

    if output is None:
        for _ in changed():
            pass
    else:
        write_tables(output, "diff.parquet", INSTANCES, changed())
        write_tables(output, "images.parquet", IMAGES, [*tables, pa.Table.from_pylist(rows, IMAGES)])
    return tally, [entry[2] for entry in sorted(most, key=lambda entry: (-entry[0], -entry[1]))]


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


def _instance_rows(image: ImageDiff, categories: tuple[str, ...]) -> pa.Table:
    changed = image.changed
    a, b = image.a, image.b
    kinds = image.kinds[changed]
    columns: dict[str, Any] = {
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
    columns["iou"] = pa.array(image.iou[changed].astype(np.float32), mask=~matched)
    return pa.table([pa.array(columns[f.name], f.type) for f in INSTANCES], schema=INSTANCES)


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

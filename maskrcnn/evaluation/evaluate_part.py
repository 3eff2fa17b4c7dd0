"""Evaluate one part of a run against its share of the ground truth, some thousand objects at a time.

The ground truth is cut by part, each share a Parquet file beside the run: no task holds more of it than its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RunError, UsageError
from ..formats.coco_checks import ANNOTATIONS
from ..io.parquet import Part, RowsInOrder, read_table
from ..io.storage import Storage
from ..results.part_checks import reading
from .average_precision import Tally
from .image_scores import COUNTS, Detected, Expected, Kind, Objects, ScoredImages, score_images, worst_first

BATCH_OBJECTS: Final = 16_384
"""Detections and ground-truth objects evaluated at once; an image is never divided."""
_DETECTION_COLUMNS: Final = ["category_id", "score", "box", "area", "segmentation", "frame"]

SHARE: Final = pa.schema(
    [
        ("row", pa.int64()),
        *[field for field in ANNOTATIONS if field.name not in ("image", "mask_area")],
    ]
)
"""A part's share of the ground truth, in order of `row`, the image's place in the part; `category` is a place among the
evaluated categories."""


@dataclass(frozen=True, slots=True)
class Task:
    """One part of a run, and where its share of the ground truth is."""

    part: Part
    share: str
    """Path below the run of its share of the ground truth."""
    order: NDArray[np.int64]
    """(rows,) rank of each image by the ground truth's ids; -1: the ground truth does not have it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings that all parts share."""

    of_run: Mapping[int, int]
    """Category from 0 by the run's id; others are not evaluated."""
    categories: int
    max_dets: int
    masks: bool
    """Whether the ground truth has masks."""


WORST: Final = 9
"""The number of images with the lowest panoptic quality, of each part, whose matches are kept for pictures."""


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """Which detections and objects of an image were matched, at a score of `COUNTED_SCORE` and an IoU of 0.5."""

    row: int
    """The image's place in the part."""
    pq: float
    faults: int
    """False positives and false negatives."""
    detections: NDArray[np.int64]
    """(D,) numbers in the image of the detections with that score, of the evaluated categories."""
    detections_matched: NDArray[np.bool_]
    """(D,) as in `image_scores.Outcomes`."""
    objects_matched: NDArray[np.bool_]
    """(G,) of the image's rows of `SHARE`, in their order, as in `image_scores.Outcomes`."""


@dataclass(frozen=True, slots=True)
class PartScore:
    """The result of one part."""

    tallies: Mapping[Kind, Sequence[Tally]]
    counts: pa.Table
    """A row for each evaluated image: `row`, its place in the part, and the columns of `image_scores.Counts`."""
    confusion: NDArray[np.int64]
    truncated: int
    """The number of images with more detections of a category than count."""
    detections: int
    """The number of detections of evaluated categories in evaluated images."""
    worst: Sequence[ImageOutcome]
    """Of the at most `WORST` images with the lowest panoptic quality, in ascending order."""


def score_part(url: str, terms: Terms, task: Task) -> PartScore:
    """Evaluate one part.

    Raises:
        UsageError: an image of the run has 2^32 pixels or more, or a file of the part is missing or damaged.
        RunError: a part cannot be read.
    """
    storage = Storage(url)
    with reading(storage, task.part.images, task.part.instances):
        return _scored(storage, terms, task)


def _scored(storage: Storage, terms: Terms, task: Task) -> PartScore:
    images = read_table(storage, task.part.images, ["n_instances"])
    share = read_table(storage, task.share)
    counts = images["n_instances"].to_numpy().astype(np.int64)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    objects = np.searchsorted(share["row"].to_numpy(), np.arange(len(counts) + 1))
    batches, rows, detections = [], [], 0
    worst: list[ImageOutcome] = []
    with storage.open(task.part.instances) as file, pq.ParquetFile(file) as parquet:
        if parquet.metadata.num_rows != firsts[-1]:
            raise RunError(f"{task.part.instances} does not follow the rows of {task.part.images}")
        reader = RowsInOrder(parquet, _DETECTION_COLUMNS)
        for start, stop in _batches(counts + np.diff(objects)):
            table = reader.take(int(firsts[stop] - firsts[start]))
            evaluated = np.flatnonzero(task.order[start:stop] >= 0)
            if not len(evaluated):
                continue
            detected, numbers = _detections(table, counts[start:stop], evaluated, terms)
            expected = _expected(
                share.slice(objects[start], objects[stop] - objects[start]),
                start + evaluated,
                detected,
                terms,
            )
            order = task.order[start + evaluated]
            batches.append(score_images(detected, expected, order, terms.categories, terms.max_dets))
            detections += len(detected.objects)
            rows.append(start + evaluated)
            worst = _worst(worst, _outcomes(batches[-1], rows[-1], detected, expected, numbers))
    return _score(batches, rows, terms, detections, worst)


def _outcomes(
    batch: ScoredImages,
    rows: NDArray[np.intp],
    detected: Detected,
    expected: Expected,
    numbers: NDArray[np.int64],
) -> Iterator[ImageOutcome]:
    """Yield the outcomes of the worst images of a batch."""
    counts, outcomes = batch.counts, batch.outcomes
    faults = counts.false_negatives + counts.false_positives
    image = detected.objects.image[outcomes.detections]
    for place in worst_first(counts.pq, faults, WORST).tolist():
        own = slice(*np.searchsorted(image, [place, place + 1]))
        objects = slice(*np.searchsorted(expected.objects.image, [place, place + 1]))
        yield ImageOutcome(
            row=int(rows[place]),
            pq=float(counts.pq[place]),
            faults=int(faults[place]),
            detections=numbers[outcomes.detections[own]],
            detections_matched=outcomes.detections_matched[own],
            objects_matched=outcomes.objects_matched[objects],
        )


def _worst(held: list[ImageOutcome], more: Iterator[ImageOutcome]) -> list[ImageOutcome]:
    return sorted([*held, *more], key=lambda image: (image.pq, -image.faults))[:WORST]


def _batches(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut consecutive images into batches of some `BATCH_OBJECTS` objects, and not too many images."""
    start = held = 0
    for image, size in enumerate(sizes.tolist()):
        if image > start and (held + size > BATCH_OBJECTS or image - start >= BATCH_OBJECTS):
            yield start, image
            start, held = image, 0
        held += size
    if len(sizes):
        yield start, len(sizes)


def _detections(
    table: pa.Table, counts: NDArray[np.int64], evaluated: NDArray[np.intp], terms: Terms
) -> tuple[Detected, NDArray[np.int64]]:
    """Return the instances of evaluated images and categories, and the number of each in its image.

    Images count from 0 among the evaluated ones.
    """
    place = np.full(len(counts), -1, np.int64)
    place[evaluated] = np.arange(len(evaluated))
    image = np.repeat(place, counts)
    label = table["category_id"].to_numpy()
    ids = np.array(sorted(terms.of_run), np.int64)
    at = np.minimum(np.searchsorted(ids, label), max(len(ids) - 1, 0))
    known = ids[at] == label if len(ids) else np.zeros(len(label), np.bool_)
    kept = np.flatnonzero(known & (image >= 0))
    category = np.array([terms.of_run[id_] for id_ in ids.tolist()], np.int32)
    table = table.take(pa.array(kept)).combine_chunks()
    if table["frame"].null_count < len(table):
        raise UsageError(
            "an image has 2^32 pixels or more, for which COCO has no masks: leave it out of the ground truth"
        )
    masks = None
    if terms.masks:
        segmentation = table["segmentation"].combine_chunks()
        counts_text = segmentation.field("counts").to_pylist()
        sizes = segmentation.field("size").flatten().to_numpy().reshape(-1, 2).tolist()
        masks = [{"size": size, "counts": text} for size, text in zip(sizes, counts_text, strict=True)]
    objects = Objects(
        image[kept], category[at[kept]] if len(ids) else np.empty(0, np.int32), _boxes(table), masks
    )
    numbers = kept - np.repeat(np.cumsum(counts) - counts, counts)[kept]
    return Detected(objects, table["score"].to_numpy(), table["area"].to_numpy()), numbers


def _boxes(table: pa.Table) -> NDArray[np.float64]:
    """Return boxes as in the run's COCO results: x, y, width, height, each with the fewest digits that identify it.

    What is evaluated here is thus, to the last digit, what pycocotools reads there.
    """
    xmin, ymin, xmax, ymax = table["box"].combine_chunks().flatten()
    sides = (xmin, ymin, pc.subtract(xmax, xmin), pc.subtract(ymax, ymin))
    return np.stack([side.cast(pa.string()).cast(pa.float64()).to_numpy() for side in sides], axis=1)


def _expected(share: pa.Table, rows: NDArray[np.intp], detected: Detected, terms: Terms) -> Expected:
    """Return the objects of some images; masks only in images with detections, because others need none."""
    image = np.searchsorted(rows, share["row"].to_numpy())
    masks: list[dict[str, Any]] | None = None
    if terms.masks:
        needed = np.flatnonzero(np.isin(image, detected.objects.image))
        chosen = share.take(pa.array(needed))
        masks = [{} for _ in range(len(share))]
        for at, mask in zip(needed.tolist(), masks_of(chosen), strict=True):
            masks[at] = mask
    boxes = np.stack([share[side].to_numpy() for side in ("x", "y", "width", "height")], axis=1)
    objects = Objects(image, share["category"].to_numpy(), boxes, masks)
    crowd = share["crowd"].to_numpy(zero_copy_only=False)
    return Expected(objects, share["area"].to_numpy(), crowd)


def masks_of(share: pa.Table) -> list[dict[str, Any]]:
    """Return the masks of rows of a share, `SHARE`, as `pycocotools.mask` takes them."""
    columns = (share[name].to_pylist() for name in ("mask_height", "mask_width", "counts"))
    return [
        {"size": [height, width], "counts": counts} for height, width, counts in zip(*columns, strict=True)
    ]


def _score(
    batches: Sequence[ScoredImages],
    rows: Sequence[NDArray[np.intp]],
    terms: Terms,
    detections: int,
    worst: Sequence[ImageOutcome],
) -> PartScore:
    columns = {"row": np.concatenate([np.empty(0, np.int64), *rows])}
    for name, kind in COUNTS.items():
        columns[name] = np.concatenate([np.empty(0, kind), *(b.counts.columns()[name] for b in batches)])
    size = terms.categories + 1
    return PartScore(
        {kind: [b.tallies[kind] for b in batches] for kind in (batches[0].tallies if batches else ())},
        pa.table(columns),
        sum((b.confusion for b in batches), start=np.zeros((size, size), np.int64)),
        sum(int(b.truncated.sum()) for b in batches),
        detections,
        worst,
    )

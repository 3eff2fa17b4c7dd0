"""One part of a run against its share of the ground truth, read and weighed some thousand objects at a time.

The truth is cut by part, each share a Parquet file beside the run: no task holds more of it than its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import RunError, UsageError
from ..formats.coco_reader import ANNOTATIONS
from ..io.parquet import Part
from ..io.storage import Storage
from ..masks.rle_decode import read_masks
from .average_precision import Tally
from .image_scores import Expected, Found, Kind, Objects, ScoredImages, score_images, worst_first

BATCH_OBJECTS: Final = 16_384
"""Found and true, weighed at once; an image is never divided."""
_FARTHEST: Final = 1e7
"""Pixels: beyond it no corner of a polygon lies."""
_FOUND_COLUMNS: Final = ["category_id", "score", "box", "area", "segmentation", "frame"]

SHARE: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("image_height", pa.int32()),
        ("image_width", pa.int32()),
        *[field for field in ANNOTATIONS if field.name != "image"],
    ]
)
"""A part's share of the truth, in order of `row`, the image's place in the part; `category` counts as weighed."""


@dataclass(frozen=True, slots=True)
class Task:
    """One part of a run, and what is to be known of it."""

    part: Part
    share: str
    """Path below the run of its share of the truth."""
    order: NDArray[np.int64]
    """(rows,) place of each image among all that are weighed; -1: the truth does not have it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """By which all parts are weighed."""

    of_run: Mapping[int, int]
    """Category from 0 by the run's id; others are not weighed."""
    categories: int
    max_dets: int
    masks: bool
    """Whether the truth has masks."""


WORST: Final = 9
"""Images with the lowest quality, of each part, whose matches are kept for pictures."""


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """Which detections and objects of an image were matched, at a score of `SURE` and an IoU of 0.5."""

    row: int
    """The image's place in the part."""
    quality: float
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
    """What is known of a part."""

    tallies: Mapping[Kind, Sequence[Tally]]
    counts: pa.Table
    """A row for each weighed image: `row`, its place in the part, and the columns of `scoring.Counts`."""
    confusion: NDArray[np.int64]
    truncated: int
    """Images with more detections of a category than were weighed."""
    detections: int
    """Of weighed categories in weighed images."""
    worst: Sequence[ImageOutcome]
    """Of the at most `WORST` images with the lowest quality, those first."""


def score_part(url: str, terms: Terms, task: Task) -> PartScore:
    """Weigh one part.

    Raises:
        UsageError: a mask of the truth is none, or one of the run has 2^32 pixels and more.
        RunError: a part cannot be read.
    """
    storage = Storage(url)
    with storage.open(task.part.images) as file:
        images = pq.read_table(file, columns=["n_instances", "height", "width"])
    with storage.open(task.share) as file:
        share = pq.read_table(file)
    counts = images["n_instances"].to_numpy().astype(np.int64)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    things = np.searchsorted(share["row"].to_numpy(), np.arange(len(counts) + 1))
    batches, rows, detections = [], [], 0
    worst: list[ImageOutcome] = []
    with storage.open(task.part.instances) as file, pq.ParquetFile(file) as parquet:
        if parquet.metadata.num_rows != firsts[-1]:
            raise RunError(f"{task.part.instances} does not follow the rows of {task.part.images}")
        reader = _Reader(parquet)
        for start, stop in _batches(counts + np.diff(things)):
            table = reader.take(int(firsts[stop] - firsts[start]))
            weighed = np.flatnonzero(task.order[start:stop] >= 0)
            if not len(weighed):
                continue
            found, numbers = _found(table, counts[start:stop], weighed, terms)
            expected = _expected(
                share.slice(things[start], things[stop] - things[start]),
                start + weighed,
                found,
                images,
                terms,
            )
            order = task.order[start + weighed]
            batches.append(score_images(found, expected, order, terms.categories, terms.max_dets))
            detections += len(found.objects)
            rows.append(start + weighed)
            worst = _worst(worst, _outcomes(batches[-1], rows[-1], found, expected, numbers))
    return _score(batches, rows, terms, detections, worst)


def _outcomes(
    batch: ScoredImages,
    rows: NDArray[np.intp],
    found: Found,
    expected: Expected,
    numbers: NDArray[np.int64],
) -> Iterator[ImageOutcome]:
    """Give the outcomes of the worst images of a batch."""
    counts, outcomes = batch.counts, batch.outcomes
    faults = counts.missed + counts.spurious
    image = found.objects.image[outcomes.detections]
    for place in worst_first(counts.quality, faults, WORST).tolist():
        own = slice(*np.searchsorted(image, [place, place + 1]))
        objects = slice(*np.searchsorted(expected.objects.image, [place, place + 1]))
        yield ImageOutcome(
            row=int(rows[place]),
            quality=float(counts.quality[place]),
            faults=int(faults[place]),
            detections=numbers[outcomes.detections[own]],
            detections_matched=outcomes.detections_matched[own],
            objects_matched=outcomes.objects_matched[objects],
        )


def _worst(held: list[ImageOutcome], more: Iterator[ImageOutcome]) -> list[ImageOutcome]:
    return sorted([*held, *more], key=lambda image: (image.quality, -image.faults))[:WORST]


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


class _Reader:
    """The rows of a part's instances, taken in order."""

    def __init__(self, parquet: pq.ParquetFile) -> None:
        self._batches = parquet.iter_batches(BATCH_OBJECTS, columns=_FOUND_COLUMNS, use_threads=False)
        self._waiting = parquet.schema_arrow.empty_table().select(_FOUND_COLUMNS)

    def take(self, count: int) -> pa.Table:
        tables, held = [self._waiting], len(self._waiting)
        while held < count:
            tables.append(pa.Table.from_batches([next(self._batches)]))
            held += len(tables[-1])
        table = pa.concat_tables(tables, promote_options="permissive")
        self._waiting = table.slice(count)
        return table.slice(0, count)


def _found(
    table: pa.Table, counts: NDArray[np.int64], weighed: NDArray[np.intp], terms: Terms
) -> tuple[Found, NDArray[np.int64]]:
    """Return the instances of weighed images and categories, and the number of each in its image.

    Images count from 0 among those weighed.
    """
    place = np.full(len(counts), -1, np.int64)
    place[weighed] = np.arange(len(weighed))
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
            "an image has 2^32 pixels or more, for which COCO has no masks: it cannot be weighed"
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
    return Found(objects, table["score"].to_numpy(), table["area"].to_numpy()), numbers


def _boxes(table: pa.Table) -> NDArray[np.float64]:
    """Return boxes as the run's COCO results have them: x, y, width, height, each with as few digits as tell it.

    So what is weighed here is, to the last digit, what pycocotools reads there.
    """
    xmin, ymin, xmax, ymax = table["box"].combine_chunks().flatten()
    sides = (xmin, ymin, pc.subtract(xmax, xmin), pc.subtract(ymax, ymin))
    return np.stack([side.cast(pa.string()).cast(pa.float64()).to_numpy() for side in sides], axis=1)


def _expected(
    share: pa.Table, rows: NDArray[np.intp], found: Found, images: pa.Table, terms: Terms
) -> Expected:
    """Return the objects of some images; masks only where something was found, for else nobody asks for them."""
    image = np.searchsorted(rows, share["row"].to_numpy())
    masks: list[dict[str, Any]] | None = None
    if terms.masks:
        needed = np.flatnonzero(np.isin(image, found.objects.image))
        asked = share.take(pa.array(needed))
        masks = [{} for _ in range(len(share))]
        for at, mask in zip(needed.tolist(), masks_of(asked, images), strict=True):
            masks[at] = mask
    boxes = np.stack([share[side].to_numpy() for side in ("x", "y", "width", "height")], axis=1)
    objects = Objects(image, share["category"].to_numpy(), boxes, masks)
    crowd = share["crowd"].to_numpy(zero_copy_only=False)
    return Expected(objects, share["area"].to_numpy(), crowd)


def masks_of(share: pa.Table, images: pa.Table) -> list[dict[str, Any]]:
    """Return the masks of rows of a share as `pycocotools.mask` takes them.

    Args:
        share: rows of `SHARE`.
        images: `height` and `width` of the part's images, for those whose size the truth does not state.

    Raises:
        UsageError: one is no mask.
    """
    stated = [share[name].to_numpy() for name in ("image_height", "image_width")]
    place = share["row"].to_numpy()
    seen = [images[name].fill_null(0).to_numpy()[place] for name in ("height", "width")]
    heights, widths = (np.where(ours > 0, ours, theirs) for ours, theirs in zip(stated, seen, strict=True))
    _check(share)
    columns = (share[name].to_pylist() for name in ("shape", "rings", "mask_height", "mask_width"))
    masks = []
    for shape, rings, mask_height, mask_width, height, width in zip(
        *columns, heights.tolist(), widths.tolist(), strict=True
    ):
        if not rings:
            masks.append({"size": [mask_height, mask_width], "counts": shape})
            continue
        bounds = np.cumsum(rings)[:-1]
        polygons = [ring.tolist() for ring in np.split(np.frombuffer(shape, np.float64), bounds)]
        masks.append(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    return masks


def _check(share: pa.Table) -> None:
    """Raise UsageError where a shape would be read as something else, or beyond its end."""
    is_rle = pc.equal(pc.list_value_length(share["rings"]), 0).to_numpy(zero_copy_only=False)
    texts = share.filter(pa.array(is_rle))
    shapes = texts["shape"].combine_chunks()
    offsets, data = shapes.buffers()[1:]
    bounds = (
        np.frombuffer(offsets, np.int64)[shapes.offset : shapes.offset + len(shapes) + 1]
        if len(shapes)
        else [0]
    )
    text = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    sides = (texts[name].to_numpy() for name in ("mask_height", "mask_width"))
    intact = read_masks(text, np.asarray(bounds), *sides).intact
    bad = texts["number"].to_numpy()[~intact].tolist()
    polygons = share.filter(pa.array(~is_rle))
    for number, shape in zip(polygons["number"].to_pylist(), polygons["shape"].to_pylist(), strict=True):
        corners = np.frombuffer(shape, np.float64)
        if not (np.abs(corners) < _FARTHEST).all():  # also what is not a number
            bad.append(number)
    if bad:
        raise UsageError(
            f"annotation {min(bad)} of the truth has a segmentation that is no mask of its image "
            f"({len(bad)} such annotations in this part)"
        )


def _score(
    batches: Sequence[ScoredImages],
    rows: Sequence[NDArray[np.intp]],
    terms: Terms,
    detections: int,
    worst: Sequence[ImageOutcome],
) -> PartScore:
    names = ("n_truth", "n_found", "matched", "missed", "spurious", "quality")
    types = [np.int32] * 5 + [np.float32]
    columns = {"row": np.concatenate([np.empty(0, np.int64), *rows])}
    for name, kind in zip(names, types, strict=True):
        columns[name] = np.concatenate([np.empty(0, kind), *(getattr(b.counts, name) for b in batches)])
    size = terms.categories + 1
    return PartScore(
        {kind: [b.tallies[kind] for b in batches] for kind in (batches[0].tallies if batches else ())},
        pa.table(columns),
        sum((b.confusion for b in batches), start=np.zeros((size, size), np.int64)),
        sum(int(b.truncated.sum()) for b in batches),
        detections,
        worst,
    )

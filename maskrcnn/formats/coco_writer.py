"""Write COCO JSON from the tables as a stream: rows of text are built column by column and never all held.

Reading, conversion to text and writing overlap: Arrow works outside of Python's lock.

Two forms, as https://cocodataset.org/#format-data and #format-results define them. The *dataset* form holds
the images, and one annotation per instance, whose `area` and `bbox` are the mask's; the *results* form is the
bare list that `COCO.loadRes` takes. Results are two lists, one with the model's boxes and one with the masks: of an
entry that has both, `loadRes` takes the box's width times height as the area of the mask, and AP by size is wrong.
Every tool reads a COCO file as a whole: a large run gets several, each valid on its own.
"""

import functools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import RunError, UsageError
from ..io.parquet import Part
from ..io.storage import Storage
from ..types import Category

MODES: Final = ("auto", "always", "never")
MAX_ANNOTATIONS: Final = 2_000_000
"""Above it, `auto` writes several files. `pycocotools` takes some 6 GB to load this many."""
BATCH_ROWS: Final = 8192
"""The number of rows converted to text at once: some megabytes."""
THREADS: Final = 2
"""The number of batches converted to text at once, while the caller's thread reads and writes."""

_IMAGE_COLUMNS: Final = ("image_id", "name", "status", "width", "height")
ANNOTATION_COLUMNS: Final = (
    "id", "image_id", "category_id", "score", "area", "box", "mask_box", "segmentation", "frame",
)  # fmt: skip
_TABLE_ROWS: Final = 2**14

IouType = Literal["bbox", "segm"]
"""What results are compared by, in pycocotools' words: boxes or masks."""
IOU_TYPES: Final[tuple[IouType, ...]] = ("bbox", "segm")


@dataclass(frozen=True, slots=True)
class CocoFile:
    """One dataset file and its files of results, and the parts whose images they hold."""

    parts: tuple[Part, ...]
    suffix: str = ""
    """Distinguishes the files of a large run; empty where there is one of each."""
    iou_types: tuple[IouType, ...] = IOU_TYPES
    """Of the files of results: boxes, and masks if the model detects them."""

    @property
    def dataset_target(self) -> str:
        """The path of the dataset form below the run's directory."""
        return f"coco/instances{self.suffix}.json"

    def results_target(self, iou_type: IouType) -> str:
        """Return the path of the results form, of boxes or of masks, below the run's directory."""
        return f"coco/results_{iou_type}{self.suffix}.json"

    @property
    def targets(self) -> tuple[str, ...]:
        """All paths, in the order in which they are written."""
        return (self.dataset_target, *map(self.results_target, self.iou_types))


def plan_files(parts: Sequence[Part], mode: str, *, masks: bool = True) -> list[CocoFile]:
    """Return the COCO files of a run; each can be written separately, by `write_dataset` and `write_results`.

    Args:
        parts: all parts of the run, in order.
        mode: `never`: no files. `always`: one set of files, of any size. `auto`: one set up to
            `MAX_ANNOTATIONS`; above it, one for each group of consecutive parts that stays below it. A larger
            part is a group of its own, because the images of a part are not divided.

        masks: whether the model detects masks.

    Raises:
        UsageError: the mode is unknown.
    """
    if mode not in MODES:
        raise UsageError(f"--coco {mode!r} is unknown: use one of {', '.join(MODES)}")
    if mode == "never":
        return []
    iou_types: tuple[IouType, ...] = IOU_TYPES if masks else ("bbox",)
    if mode == "always" or sum(part.n_instances for part in parts) <= MAX_ANNOTATIONS:
        return [CocoFile(tuple(parts), iou_types=iou_types)]

    groups: list[list[Part]] = []
    n_annotations = 0
    for part in parts:
        if groups and n_annotations + part.n_instances <= MAX_ANNOTATIONS:
            groups[-1].append(part)
            n_annotations += part.n_instances
        else:
            groups.append([part])
            n_annotations = part.n_instances
    return [CocoFile(tuple(group), f"-{number:05d}", iou_types) for number, group in enumerate(groups)]


def write_dataset(
    storage: Storage,
    parts: Iterable[Part],
    categories: Sequence[Category],
    target: str,
    info: dict[str, Any],
    *,
    destination: Storage | None = None,
) -> int:
    """Write the COCO dataset form of some parts, and return the number of its annotations.

    Images that failed are left out. An annotation keeps its `score`, and `iscrowd` is 0. An empty mask has
    area 0 and bbox [0, 0, 0, 0]. Without masks, `bbox` is the model's box, and there is no `segmentation`.

    Args:
        storage: the run.
        parts: the parts whose images the file holds, in order; they are read twice.
        target: path below the destination.
        info: the file's `info`, JSON values.
        destination: where to write; None: into the run itself.

    Raises:
        UsageError: a mask is encoded in a frame of its own (rasters of 2^32 pixels and more): COCO has no
            form for it.
        RunError: a part cannot be read, or the file cannot be stored.
    """
    parts = tuple(parts)

    def write(file: BinaryIO) -> int:
        return render_dataset(file, storage, parts, categories, info)

    return _put(destination or storage, target, write)


def render_dataset(
    file: BinaryIO,
    storage: Storage,
    parts: Sequence[Part],
    categories: Sequence[Category],
    info: dict[str, Any],
) -> int:
    """Write into an open file what `write_dataset` stores: the same bytes for the same tables."""
    described = [{"id": category.id, "name": category.name, "supercategory": ""} for category in categories]
    file.write(f'{{"info":{_json(info)},"licenses":[],"categories":{_json(described)},'.encode())
    file.write(b'"images":')
    _write_array(file, map(_image_rows, image_batches(storage, parts)))
    file.write(b',"annotations":')
    batches = instance_batches(storage, parts, ANNOTATION_COLUMNS)
    with ThreadPoolExecutor(THREADS) as pool:
        count = _write_array(file, _in_threads(pool, _annotation_rows, batches))
    file.write(b"}\n")
    return count


def write_results(
    storage: Storage,
    parts: Iterable[Part],
    target: str,
    iou_type: IouType,
    *,
    destination: Storage | None = None,
) -> int:
    """Write the COCO results form of some parts, of boxes or of masks, and return the number of its entries.

    Arguments and errors are `write_dataset`'s.
    """

    def write(file: BinaryIO) -> int:
        return render_results(file, storage, parts, iou_type)

    return _put(destination or storage, target, write)


def render_results(file: BinaryIO, storage: Storage, parts: Iterable[Part], iou_type: IouType) -> int:
    """Write into an open file what `write_results` stores: the same bytes for the same tables."""
    shape, rows = ("box", _box_rows) if iou_type == "bbox" else ("segmentation", _mask_rows)
    batches = instance_batches(storage, parts, ("image_id", "category_id", "score", shape, "frame"))
    with ThreadPoolExecutor(THREADS) as pool:
        count = _write_array(file, _in_threads(pool, rows, batches))
    file.write(b"\n")
    return count


# Reading


def image_batches(
    storage: Storage, parts: Iterable[Part], columns: Sequence[str] = _IMAGE_COLUMNS
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `images` that are ok or empty, some thousands at a time.

    Args:
        columns: the columns to read; `status` must be one of them.
    """
    for part in parts:
        for batch in _batches(storage, part.images, columns):
            yield batch.filter(pc.not_equal(batch["status"], "failed"))


def instance_batches(
    storage: Storage, parts: Iterable[Part], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of the rows of `instances`, some thousands of rows at a time.

    Raises:
        UsageError: `frame` is one of the columns, and a mask is encoded in a frame of its own.
        RunError: a score or a box is not finite; JSON has no form for it.
    """
    for part in parts:
        for batch in _batches(storage, part.instances, columns):
            if "frame" in columns:
                _refuse_frames(batch)
            for number in _floats(batch):
                if not pc.all(pc.is_finite(number), min_count=0).as_py():
                    raise RunError(f"{part.instances} holds a score or a box that is not a finite number")
            yield batch


def _batches(storage: Storage, path: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with storage.open(path) as stored, pq.ParquetFile(stored) as file:
        # Arrow's own threads, one per column, take some 45 MB more; one column is most of the work.
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False)


def _floats(batch: pa.RecordBatch) -> list[pa.Array]:
    scores = [batch["score"]] if "score" in batch.schema.names else []
    return scores + (batch["box"].flatten() if "box" in batch.schema.names else [])


def _refuse_frames(batch: pa.RecordBatch) -> None:
    if batch["frame"].null_count == len(batch):
        return
    image_id = batch.filter(pc.is_valid(batch["frame"]))["image_id"][0].as_py()
    raise UsageError(
        f"image {image_id} has 2^32 pixels or more: its masks are encoded in frames of their own, which "
        "neither COCO nor a label map can hold: read them from the tables, or run with --coco never"
    )


# Rows of text


def _image_rows(batch: pa.RecordBatch) -> pa.LargeStringArray:
    # The only text from the user. It is escaped to ASCII, because pycocotools opens with the locale's encoding; all
    # names at once, and then split at line feeds, which are escaped within names.
    names = json.dumps(batch["name"].to_pylist(), separators=("\n", ":"))[1:-1].split("\n")
    return _joined(
        ',\n{"id":', batch["image_id"], ',"file_name":', pa.array(names[: len(batch)], pa.large_string()),
        ',"width":', batch["width"], ',"height":', batch["height"], "}",
    )  # fmt: skip


def _annotation_rows(batch: pa.RecordBatch) -> pa.LargeStringArray:
    if batch["segmentation"].null_count:
        return _box_annotation_rows(batch)
    xmin, ymin, xmax, ymax = batch["mask_box"].flatten()
    return _joined(
        ',\n{"id":', batch["id"], _repeating(',"image_id":', batch["image_id"], ',"category_id":'),
        *_category_and_segmentation(batch), '"},"area":', batch["area"],
        _small(',"bbox":[', xmin, ","), _small("", ymin, ","), _small("", pc.subtract(xmax, xmin), ","),
        _small("", pc.subtract(ymax, ymin), '],"iscrowd":0,"score":'), batch["score"], "}",
    )  # fmt: skip


def _box_annotation_rows(batch: pa.RecordBatch) -> pa.LargeStringArray:
    return _joined(
        ',\n{"id":', batch["id"], _repeating(',"image_id":', batch["image_id"], ',"category_id":'),
        _repeating("", batch["category_id"], ""), ',"area":', batch["area"],
        *_bbox(batch), '],"iscrowd":0,"score":', batch["score"], "}",
    )  # fmt: skip


def _box_rows(batch: pa.RecordBatch) -> pa.LargeStringArray:
    return _joined(
        _repeating(',\n{"image_id":', batch["image_id"], ',"category_id":'),
        _repeating("", batch["category_id"], ""), *_bbox(batch), '],"score":', batch["score"], "}",
    )  # fmt: skip


def _bbox(batch: pa.RecordBatch) -> list[str | pa.Array]:
    xmin, ymin, xmax, ymax = batch["box"].flatten()
    sides = pc.subtract(xmax, xmin), pc.subtract(ymax, ymin)
    return [',"bbox":[', xmin, ",", ymin, ",", sides[0], ",", sides[1]]


def _mask_rows(batch: pa.RecordBatch) -> pa.LargeStringArray:
    return _joined(
        _repeating(',\n{"image_id":', batch["image_id"], ',"category_id":'),
        *_category_and_segmentation(batch), '"},"score":', batch["score"], "}",
    )  # fmt: skip


def _category_and_segmentation(batch: pa.RecordBatch) -> list[pa.Array]:
    size, counts = batch["segmentation"].flatten()
    height, width = size.flatten().to_numpy().reshape(-1, 2).astype(np.int64).T
    sizes = pa.array(height << 32 | width).dictionary_encode()
    values = sizes.dictionary.to_numpy()
    heights, widths = pa.array(values >> 32), pa.array(values & 0xFFFFFFFF)
    texts = _joined(',"segmentation":{"size":[', heights, ",", widths, '],"counts":"')
    # A run-length string uses the characters from "0" to "o"; JSON escapes one of them, the backslash.
    escaped = pc.replace_substring(counts, "\\", "\\\\")
    return [_repeating("", batch["category_id"], ""), texts.take(sizes.indices), escaped]


# A number that occurs often is converted once, together with the constants around it, and its text is reused.


def _repeating(before: str, column: pa.Array, after: str) -> pa.LargeStringArray:
    encoded = column.dictionary_encode()
    return _joined(before, encoded.dictionary, after).take(encoded.indices)


def _small(before: str, column: pa.Array, after: str) -> pa.LargeStringArray:
    """Write pixel values, most of which are below `_TABLE_ROWS`."""
    extent = pc.min_max(column).as_py()
    if len(column) and extent["min"] >= 0 and extent["max"] < _TABLE_ROWS:
        return _number_table(before, after).take(column)
    return _repeating(before, column, after)


@functools.lru_cache(maxsize=8)
def _number_table(before: str, after: str) -> pa.LargeStringArray:
    return _joined(before, pa.array(np.arange(_TABLE_ROWS)), after)


def _joined(*pieces: str | pa.Array) -> pa.LargeStringArray:
    """Join columns and constants into one text per row.

    Arrow writes a float32 with the fewest digits that identify it, as numpy does.
    """
    text = [
        pa.scalar(piece, pa.large_string()) if isinstance(piece, str) else piece.cast(pa.large_string())
        for piece in pieces
    ]
    return pc.binary_join_element_wise(*text, pa.scalar("", pa.large_string()))


# Writing


def _in_threads(
    pool: ThreadPoolExecutor,
    rows: Callable[[pa.RecordBatch], pa.LargeStringArray],
    batches: Iterable[pa.RecordBatch],
) -> Iterator[pa.LargeStringArray]:
    """Yield the rows of text of each batch, in order; the next `THREADS` batches are converted meanwhile."""
    waiting: deque[Future[pa.LargeStringArray]] = deque()
    for batch in batches:
        waiting.append(pool.submit(rows, batch))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _write_array(file: BinaryIO, batches: Iterable[pa.LargeStringArray]) -> int:
    """Write rows, each of which begins with a comma, as a JSON array, and return their number."""
    count = 0
    file.write(b"[")
    for rows in batches:
        if len(rows) == 0:
            continue
        # The texts of a batch are contiguous in its buffer, which is written as it is.
        _, offsets, data = rows.buffers()
        first, last = np.frombuffer(offsets, np.int64)[[rows.offset, rows.offset + len(rows)]]
        skip_comma = 0 if count else 1
        file.write(memoryview(data)[first + skip_comma : last])
        count += len(rows)
    file.write(b"]")
    return count


def _put(destination: Storage, target: str, write: Callable[[BinaryIO], int]) -> int:
    with destination.building(target) as local, local.open("wb") as file:
        return write(file)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)

"""COCO JSON from the tables, streamed: rows of text are built a column at a time and never held together.

Two forms, as https://cocodataset.org/#format-data and #format-results define them. The *dataset* form holds
the images, and an annotation an instance, whose `area` and `bbox` are the mask's; the *results* form is the
bare list that `COCO.loadRes` takes, whose `bbox` is the model's box. Every tool reads a COCO file as a whole:
a large run gets several, each valid on its own.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import RunError, UsageError
from .parts import Part
from .rle import rle_boxes_xywh
from .storage import Storage
from .types import Category

MODES: Final = ("auto", "always", "never")
MAX_ANNOTATIONS: Final = 2_000_000
"""Above it, `auto` writes several files. `pycocotools` takes some 6 GB to load so many."""
BATCH_ROWS: Final = 8192
"""Rows turned into text at once: some megabytes."""

_IMAGE_COLUMNS: Final = ("image_id", "name", "status", "width", "height")
_INSTANCE_COLUMNS: Final = (
    "id", "image_id", "category_id", "score", "box", "area", "segmentation", "frame",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CocoFile:
    """One pair of COCO files, and the parts whose images it holds."""

    parts: tuple[Part, ...]
    dataset_target: str
    """Path below the run's directory."""
    results_target: str


def plan_files(parts: Sequence[Part], mode: str) -> list[CocoFile]:
    """Return the COCO files of a run; each can be written on its own, by `write_dataset` and `write_results`.

    Args:
        parts: all parts of the run, in order.
        mode: `never`: none. `always`: one pair of files, however large. `auto`: one pair up to
            `MAX_ANNOTATIONS`; above it, one for each group of consecutive parts that stays below. A part that
            is larger is a group of its own, because a part's images are not divided.

    Raises:
        UsageError: there is no such mode.
    """
    if mode not in MODES:
        raise UsageError(f"--coco is one of {', '.join(MODES)}, not {mode!r}")
    if mode == "never":
        return []
    if mode == "always" or sum(part.n_instances for part in parts) <= MAX_ANNOTATIONS:
        return [CocoFile(tuple(parts), "coco/instances.json", "coco/results.json")]

    groups: list[list[Part]] = []
    n_annotations = 0
    for part in parts:
        if groups and n_annotations + part.n_instances <= MAX_ANNOTATIONS:
            groups[-1].append(part)
            n_annotations += part.n_instances
        else:
            groups.append([part])
            n_annotations = part.n_instances
    return [
        CocoFile(tuple(group), f"coco/instances-{number:05d}.json", f"coco/results-{number:05d}.json")
        for number, group in enumerate(groups)
    ]


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
    area 0 and bbox [0, 0, 0, 0].

    Args:
        storage: the run.
        parts: the parts whose images the file holds, in order; they are read twice.
        target: path below the destination.
        info: the file's `info`, JSON values.
        destination: where to write; None: into the run itself.

    Raises:
        UsageError: a mask is drawn in a frame of its own (rasters of 2^32 pixels and more): COCO has no word
            for it.
        RunError: a part cannot be read, or the file cannot be stored.
    """
    parts = tuple(parts)
    described = [{"id": category.id, "name": category.name, "supercategory": ""} for category in categories]

    def write(file: BinaryIO) -> int:
        file.write(f'{{"info":{_json(info)},"licenses":[],"categories":{_json(described)},'.encode())
        file.write(b'"images":')
        _write_array(file, (_image_rows(batch) for batch in image_batches(storage, parts)))
        file.write(b',"annotations":')
        count = _write_array(file, (_annotation_rows(b) for b in instance_batches(storage, parts)))
        file.write(b"}\n")
        return count

    return _put(destination or storage, target, write)


def write_results(
    storage: Storage, parts: Iterable[Part], target: str, *, destination: Storage | None = None
) -> int:
    """Write the COCO results form of some parts, and return the number of its entries.

    Arguments and errors are `write_dataset`'s.
    """

    def write(file: BinaryIO) -> int:
        count = _write_array(file, (_result_rows(batch) for batch in instance_batches(storage, parts)))
        file.write(b"\n")
        return count

    return _put(destination or storage, target, write)


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
    storage: Storage, parts: Iterable[Part], columns: Sequence[str] = _INSTANCE_COLUMNS
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `instances`, some thousands at a time.

    Raises:
        UsageError: `frame` is one of the columns, and a mask is drawn in a frame of its own.
        RunError: a score or a box is not finite; JSON has no word for it.
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
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))


def _floats(batch: pa.RecordBatch) -> list[pa.Array]:
    scores = [batch["score"]] if "score" in batch.schema.names else []
    return scores + (batch["box"].flatten() if "box" in batch.schema.names else [])


def _refuse_frames(batch: pa.RecordBatch) -> None:
    if batch["frame"].null_count == len(batch):
        return
    image_id = batch.filter(pc.is_valid(batch["frame"]))["image_id"][0].as_py()
    raise UsageError(
        f"image {image_id} has 2^32 pixels or more: its masks are drawn in frames of their own, which "
        "neither COCO nor a label map can hold; read them from the tables, or run with --coco never"
    )


# Rows of text


def _image_rows(batch: pa.RecordBatch) -> pa.LargeStringArray:
    # The only text that a user chose. Escaped to ASCII, because pycocotools opens with the locale's encoding.
    names = pa.array([json.dumps(name) for name in batch["name"].to_pylist()], pa.large_string())
    return _joined(
        ',\n{"id":', batch["image_id"], ',"file_name":', names,
        ',"width":', batch["width"], ',"height":', batch["height"], "}",
    )  # fmt: skip


def _annotation_rows(batch: pa.RecordBatch) -> pa.LargeStringArray:
    x, y, width, height = rle_boxes_xywh(batch["segmentation"].to_pylist()).astype(np.int64).T
    return _joined(
        ',\n{"id":', batch["id"], ',"image_id":', batch["image_id"], ',"category_id":', batch["category_id"],
        *_segmentation(batch), ',"area":', batch["area"],
        ',"bbox":[', pa.array(x), ",", pa.array(y), ",", pa.array(width), ",", pa.array(height),
        '],"iscrowd":0,"score":', batch["score"], "}",
    )  # fmt: skip


def _result_rows(batch: pa.RecordBatch) -> pa.LargeStringArray:
    xmin, ymin, xmax, ymax = batch["box"].flatten()
    width, height = pc.subtract(xmax, xmin), pc.subtract(ymax, ymin)
    return _joined(
        ',\n{"image_id":', batch["image_id"], ',"category_id":', batch["category_id"], *_segmentation(batch),
        ',"bbox":[', xmin, ",", ymin, ",", width, ",", height, '],"score":', batch["score"], "}",
    )  # fmt: skip


def _segmentation(batch: pa.RecordBatch) -> list[str | pa.Array]:
    size, counts = batch["segmentation"].flatten()
    height, width = pc.list_element(size, 0), pc.list_element(size, 1)
    # A run-length string uses the characters from "0" to "o"; JSON escapes one of them, the backslash.
    escaped = pc.replace_substring(counts, "\\", "\\\\")
    return [',"segmentation":{"size":[', height, ",", width, '],"counts":"', escaped, '"}']


def _joined(*pieces: str | pa.Array) -> pa.LargeStringArray:
    """Join columns and constants into one text a row.

    Arrow writes a float32 with the fewest digits that give it back, as numpy does.
    """
    text = [
        pa.scalar(piece, pa.large_string()) if isinstance(piece, str) else piece.cast(pa.large_string())
        for piece in pieces
    ]
    return pc.binary_join_element_wise(*text, pa.scalar("", pa.large_string()))


# Writing


def _write_array(file: BinaryIO, batches: Iterable[pa.LargeStringArray]) -> int:
    """Write rows, each of which begins with a comma, as a JSON array, and return their number."""
    count = 0
    file.write(b"[")
    for rows in batches:
        if len(rows) == 0:
            continue
        # The texts of a batch lie one behind the other in its buffer: they are written as they lie.
        _, offsets, data = rows.buffers()
        first, last = np.frombuffer(offsets, np.int64)[[rows.offset, rows.offset + len(rows)]]
        skip_comma = 0 if count else 1
        file.write(memoryview(data)[first + skip_comma : last])
        count += len(rows)
    file.write(b"]")
    return count


def _put(destination: Storage, target: str, write: Callable[[BinaryIO], int]) -> int:
    with tempfile.TemporaryDirectory(prefix="maskrcnn-") as folder:
        local = Path(folder) / "coco.json"
        with local.open("wb") as file:
            count = write(file)
        destination.put_file(target, local)
    return count


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)

"""A COCO dataset to learn from: read, checked before the first step, and frozen as one table.

What cannot be learned from is listed by kind: an error stops a training, or its image or annotation is left out where
the user says so; a warning names what is left out or mended anyway.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .decode import Limits, decode_image
from .errors import ItemError, UsageError
from .sources import folder_of, usage_errors
from .storage import Storage, is_remote, read_input
from .stores import join
from .types import Category
from .unrle import read_masks

EXAMPLES: Final = 3
"""How many places a finding names."""
LIMITS: Final = Limits(max_pixels=10**9, max_bytes=2**31, max_aspect=float("inf"))
"""An image to learn from may be this large; smaller machines fail earlier, by memory."""
SPLIT: Final = 10_000

SCHEMA: Final = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("labels", pa.list_(pa.int64()), nullable=False),
        pa.field("masks", pa.list_(pa.binary()), nullable=False),
    ]
)
"""One row an image, in order of id. `labels` count the dataset's categories from 1; `masks` are COCO's compressed run
lengths over the whole image. Crowds and empty masks are not among them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing that is wrong, or worth knowing, with a dataset."""

    kind: str
    """What it is, in words."""
    error: bool
    """Whether it stops a training, unless what it concerns is left out."""
    count: int
    examples: tuple[str, ...]
    """At most `EXAMPLES` places."""

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        level = "error" if self.error else "warning"
        return f"{level}: {self.count:,} × {self.kind}: {', '.join(self.examples)}{more}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """What can be learned from, and what could not."""

    images: pa.Table
    """Of `SCHEMA`."""
    categories: tuple[Category, ...]
    """In the order of their ids; label 1 is the first."""
    findings: tuple[Finding, ...]

    @property
    def n_objects(self) -> int:
        """How many masks there are."""
        return int(self.images["labels"].combine_chunks().values.__len__()) if self.images.num_rows else 0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a training."""
        return tuple(finding for finding in self.findings if finding.error)


@dataclass(slots=True)
class _Findings:
    found: dict[tuple[bool, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def error(self, kind: str, where: object) -> None:
        self.found[True, kind].append(str(where))

    def warning(self, kind: str, where: object) -> None:
        self.found[False, kind].append(str(where))

    def listed(self) -> tuple[Finding, ...]:
        """Return errors first, each kind once."""
        return tuple(
            Finding(kind, error, len(places), tuple(places[:EXAMPLES]))
            for (error, kind), places in sorted(
                self.found.items(), key=lambda item: (not item[0][0], item[0][1])
            )
        )


def read_dataset(
    source: str,
    images_root: str | None = None,
    *,
    expected: tuple[Category, ...] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Dataset:
    """Read a dataset and check all of it: each annotation, and each image to its last pixel.

    Args:
        source: path or URL of a COCO JSON: `images`, `annotations` with polygons or run lengths, `categories`.
        images_root: what `file_name` is relative to; None: the JSON's folder, or `images` or the JSON's own name
            without its suffix in there, the first in which the first image exists.
        expected: categories that it must have, as those of the training set for a validation set.
        progress: told how many images of all were looked at.

    Raises:
        UsageError: it is no COCO JSON, has no image, no category, or other categories than expected.
        RunError: its store cannot be read at all.
    """
    content = _content(source)
    findings = _Findings()
    categories = _categories(source, content["categories"], findings)
    if expected is not None and categories != expected:
        raise UsageError(
            f"{source} has other categories than the training set: {_names(categories)} instead of {_names(expected)}"
        )
    images = _images(content["images"], findings)
    if not images:
        raise UsageError(f"{source} lists no image")
    root = images_root or _root_of(source, next(iter(images.values()))["file_name"])
    objects = _objects(content["annotations"], images, categories, findings)
    sound = _sound_images(images, root, findings, progress)
    table = _table(sound, root, objects)
    _count(table, categories, findings)
    return Dataset(table, categories, findings.listed())


def split_dataset(images: pa.Table, share: float) -> tuple[pa.Table, pa.Table]:
    """Set a share of the images apart for validation, by their names, so that the same ones are always chosen.

    Raises:
        UsageError: nothing would be left on one side.
    """
    drawn = [int(sha256(name.encode()).hexdigest()[:12], 16) % SPLIT for name in images["name"].to_pylist()]
    apart = pa.array([number < share * SPLIT for number in drawn])
    train, validation = images.filter(pa.compute.invert(apart)), images.filter(apart)
    if not train.num_rows or not validation.num_rows:
        raise UsageError(
            f"{images.num_rows} images cannot be split into training and validation at a share of {share}: give --val"
        )
    return train, validation


def coco_truth(images: pa.Table, categories: tuple[Category, ...]) -> dict[str, Any]:
    """Return a frozen table in COCO dataset form, as `evaluate` takes it."""
    annotations: list[dict[str, Any]] = []
    for row in images.to_pylist():
        for label, counts in zip(row["labels"], row["masks"], strict=True):
            rle = {"size": [row["height"], row["width"]], "counts": counts}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": row["image_id"],
                    "category_id": categories[label - 1].id,
                    "segmentation": rle,
                    "area": int(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": row["image_id"], "file_name": row["name"], "height": row["height"], "width": row["width"]}
            for row in images.select(["image_id", "name", "height", "width"]).to_pylist()
        ],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in categories],
    }


# --- the JSON -----------------------------------------------------------------------------------------------


def _content(source: str) -> dict[str, Any]:
    with usage_errors(source), Storage(folder_of(source)).open(source.rpartition("/")[2]) as file:
        content = json.loads(file.read())
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UsageError(f"{source}: not a COCO dataset: it has no list `{key}`")
    return dict(content)


def _names(categories: Iterable[Category]) -> str:
    return ", ".join(f"{category.id} {category.name}" for category in categories)


def _categories(source: str, entries: list[Mapping[str, Any]], findings: _Findings) -> tuple[Category, ...]:
    by_id: dict[int, Category] = {}
    names: set[str] = set()
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if (
            type(number) is not int
            or not 1 <= number < 2**31
            or not isinstance(name, str)
            or not name.strip()
        ):
            findings.error("category without an id of at least 1 and a name", json.dumps(entry)[:80])
        elif number in by_id:
            findings.error("category id used twice", f"{number} {name!r}")
        elif name in names:
            findings.error("category name used twice", f"{number} {name!r}")
        else:
            by_id[number] = Category(number, name)
            names.add(name)
    if not by_id:
        raise UsageError(f"{source} has no category with an id of at least 1 and a name")
    return tuple(by_id[number] for number in sorted(by_id))


def _images(entries: list[Mapping[str, Any]], findings: _Findings) -> dict[int, Mapping[str, Any]]:
    images: dict[int, Mapping[str, Any]] = {}
    for entry in entries:
        number, name = entry.get("id"), entry.get("file_name")
        sizes = (entry.get("height"), entry.get("width"))
        if type(number) is not int or not 0 <= number < 2**63 or not isinstance(name, str) or not name:
            findings.error("image without an integer id and a file_name", json.dumps(entry)[:80])
        elif number in images:
            findings.error("image id used twice", f"{number} {name}")
        elif not all(type(side) is int and side > 0 for side in sizes):
            findings.error("image without height and width", name)
        else:
            images[number] = entry
    return images


def _root_of(source: str, first: str) -> str:
    folder, stem = folder_of(source), source.rpartition("/")[2].rpartition(".")[0]
    storage = Storage(folder)
    for below in ("", "images/", f"{stem}/"):
        if storage.exists(below + first):
            return join(folder, below) if below else folder
    return folder


# --- annotations --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Objects:
    """Masks that have a place in the table, as columns."""

    image_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    masks: list[bytes] = field(default_factory=list)


def _objects(
    entries: list[Mapping[str, Any]],
    images: Mapping[int, Mapping[str, Any]],
    categories: tuple[Category, ...],
    findings: _Findings,
) -> _Objects:
    labels = {category.id: label for label, category in enumerate(categories, start=1)}
    drafts, places, boxes = _Objects(), [], []
    seen: set[Any] = set()
    for number, entry in enumerate(entries):
        where = f"annotation {entry.get('id', f'no. {number + 1}')}"
        image = images.get(entry.get("image_id"))  # type: ignore[arg-type]
        if type(entry.get("id")) is not int:
            findings.error("annotation without an integer id", where)
        elif entry["id"] in seen:
            findings.error("annotation id used twice", where)
        elif image is None:
            findings.error("annotation of an unknown image", f"{where} of image {entry.get('image_id')}")
        elif entry.get("category_id") not in labels:
            findings.error("annotation of an unknown category", f"{where}: {entry.get('category_id')}")
        elif (box := _box(entry.get("bbox"))) is None:
            findings.error("box that is not four finite numbers", f"{where}: {entry.get('bbox')}")
        elif isinstance(mask := _mask(entry.get("segmentation"), image), str):
            findings.error(mask, where)
        elif entry.get("iscrowd", 0):
            findings.warning("crowd, which is not learned from", where)
        else:
            drafts.image_ids.append(image["id"])
            drafts.labels.append(labels[entry["category_id"]])
            drafts.masks.append(mask)
            places.append(where)
            boxes.append(box)
        seen.add(entry.get("id") if type(entry.get("id")) is int else None)
    return _measured(drafts, places, boxes, images, findings)


def _measured(
    drafts: _Objects,
    places: list[str],
    boxes: list[NDArray[np.float64]],
    images: Mapping[int, Mapping[str, Any]],
    findings: _Findings,
) -> _Objects:
    """Keep the masks that are sound and not empty; compare boxes with them."""
    kept = _Objects()
    heights, widths = (
        np.array([images[i][side] for i in drafts.image_ids], np.int64) for side in ("height", "width")
    )
    offsets = np.cumsum([0, *map(len, drafts.masks)])
    read = read_masks(np.frombuffer(b"".join(drafts.masks), np.uint8), offsets, heights, widths)
    for i, where in enumerate(places):
        x, y, width, height = boxes[i]
        if not read.intact[i]:
            findings.error("mask whose run lengths are damaged", where)
            continue
        if not read.areas[i]:
            findings.warning("empty mask, left out", where)
            continue
        if width <= 0 or height <= 0:
            findings.warning("box without area; the mask's own is used", where)
        elif min(x, y) < -1 or x + width > widths[i] + 1 or y + height > heights[i] + 1:
            findings.warning("box that leaves its image; the mask's own is used", where)
        elif _iou(np.array([x, y, x + width, y + height]), read.boxes[i]) < 0.5:
            findings.warning("box that does not fit its mask; the mask's own is used", where)
        kept.image_ids.append(drafts.image_ids[i])
        kept.labels.append(drafts.labels[i])
        kept.masks.append(drafts.masks[i])
    return kept


def _box(value: Any) -> NDArray[np.float64] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(side, int | float) and math.isfinite(side) for side in value):
        return None
    return np.array(value, np.float64)


def _mask(segmentation: Any, image: Mapping[str, Any]) -> bytes | str:
    """Return the compressed run lengths of a mask, or what is wrong with it."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if segmentation.get("size") != [height, width]:
            return "mask of another size than its image"
        if isinstance(counts, str):
            return counts.encode("ascii", "replace")
        if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
            return "mask whose run lengths are damaged"
        if sum(counts) != height * width:
            return "mask whose run lengths are damaged"
        return bytes(
            coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        )
    if not isinstance(segmentation, list) or not segmentation:
        return "annotation without a mask"
    for ring in segmentation:
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2:
            return "polygon of fewer than three points"
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in ring):
            return "polygon with a point that is not finite"
        # pycocotools walks every pixel of an edge, however far away it leads.
        if max(map(abs, ring)) > 16 * max(height, width):
            return "polygon with a point far outside of its image"
    return bytes(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))["counts"])


def _iou(one: NDArray[Any], other: NDArray[Any]) -> float:
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(inner, 0)))
    return shared / (float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - shared)


# --- images -------------------------------------------------------------------------------------------------


def _sound_images(
    images: Mapping[int, Mapping[str, Any]],
    root: str,
    findings: _Findings,
    progress: Callable[[int, int], None],
) -> list[Mapping[str, Any]]:
    """Return the images that can be decoded and have the size that the dataset says, in order of id."""
    sound = []
    with ThreadPoolExecutor(max_workers=min(32, 2 * (os.cpu_count() or 1))) as pool:
        entries = [images[number] for number in sorted(images)]
        uris = [join(root, entry["file_name"]) for entry in entries]
        for done, (entry, shape) in enumerate(zip(entries, pool.map(_shape, uris), strict=True), start=1):
            expected = (entry["height"], entry["width"])
            if isinstance(shape, str):
                findings.error("image that cannot be read", f"{entry['file_name']} ({shape})")
            elif shape != expected:
                is_, said = (f"{height} x {width}" for height, width in (shape, expected))
                findings.error(
                    "image of another size than stated", f"{entry['file_name']} ({is_}, not {said})"
                )
            else:
                sound.append(entry)
            progress(done, len(entries))
    return sound


def _shape(uri: str) -> tuple[int, int] | str:
    try:
        pixels = decode_image(read_input(uri, LIMITS.max_bytes), LIMITS).pixels
    except ItemError as error:
        return error.code
    return pixels.shape[0], pixels.shape[1]


def _table(images: list[Mapping[str, Any]], root: str, objects: _Objects) -> pa.Table:
    of: dict[int, list[int]] = defaultdict(list)
    for position, image_id in enumerate(objects.image_ids):
        of[image_id].append(position)
    uris = [join(root, entry["file_name"]) for entry in images]
    columns = {
        "image_id": [entry["id"] for entry in images],
        "name": [entry["file_name"] for entry in images],
        "uri": [uri if is_remote(uri) else os.path.abspath(uri) for uri in uris],  # noqa: PTH100 (keeps links)
        "height": [entry["height"] for entry in images],
        "width": [entry["width"] for entry in images],
        "labels": [[objects.labels[i] for i in of[entry["id"]]] for entry in images],
        "masks": [[objects.masks[i] for i in of[entry["id"]]] for entry in images],
    }
    return pa.table(columns, schema=SCHEMA)


def _count(table: pa.Table, categories: tuple[Category, ...], findings: _Findings) -> None:
    labels = set(table["labels"].combine_chunks().flatten().to_pylist())
    for label, category in enumerate(categories, start=1):
        if label not in labels:
            findings.warning("category that no object has", category.name)
    empty = table.filter(pa.compute.equal(pa.compute.list_value_length(table["labels"]), 0))
    for name in empty["name"].to_pylist():
        findings.warning("image without an object, learned from as background", name)

"""A COCO dataset to learn from: read, checked before the first step, and frozen as one table.

What cannot be learned from is listed by kind: an error stops a training, or its image or annotation is left out where
the user says so; a warning names what is left out or mended anyway.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pycocotools import mask as coco_mask

from ..errors import ItemError, UsageError
from ..formats.coco_checks import Finding, Findings, Objects, is_integer, read_objects
from ..imaging.decode import Limits, decode_image
from ..io.inputs import read_input
from ..io.sources import open_source, usage_errors
from ..io.storage import Storage
from ..io.url import Url
from ..types import Category

LIMITS: Final = Limits(max_pixels=178_956_970, max_bytes=2**31, max_aspect=float("inf"))
"""Larger images are refused by their headers; `segment` does not read them whole either."""
SPLIT: Final = 10_000
_PROBES: Final = 20

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
    findings = Findings()
    categories, faulty_categories = _categories(source, content["categories"], findings)
    if expected is not None and categories != expected:
        raise UsageError(
            f"{source} has other categories than the training set: {_names(categories)} instead of {_names(expected)}"
        )
    if not content["images"]:
        raise UsageError(f"{source} lists no image")
    images, faulty = _images(content["images"], findings)
    root = images_root or _root_of(source, [entry["file_name"] for entry in images.values()])
    objects = read_objects(
        content["annotations"],
        images,
        categories,
        findings,
        faulty=faulty,
        faulty_categories=faulty_categories,
    )
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
    apart = pa.array([number < share * SPLIT for number in drawn], pa.bool_())
    train, validation = images.filter(pa.compute.invert(apart)), images.filter(apart)
    if not train.num_rows or not validation.num_rows:
        raise UsageError(
            f"{images.num_rows} images cannot be split into training and validation at a share of {share}: give --val"
        )
    return train, validation


def coco_ground_truth(images: pa.Table, categories: tuple[Category, ...]) -> dict[str, Any]:
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
    with usage_errors(source), open_source(source) as file:
        content = json.loads(file.read())
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UsageError(f"{source}: not a COCO dataset: it has no list `{key}`")
    return dict(content)


def _names(categories: Iterable[Category]) -> str:
    return ", ".join(f"{category.id} {category.name}" for category in categories)


def _categories(
    source: str, entries: list[Mapping[str, Any]], findings: Findings
) -> tuple[tuple[Category, ...], set[int]]:
    """Return the sound categories, and the ids of the others."""
    by_id: dict[int, Category] = {}
    faulty: set[int] = set()
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if (
            not is_integer(number)
            or not 1 <= number < 2**31
            or not isinstance(name, str)
            or not _is_name(name)
        ):
            findings.error("category without an id of at least 1 and a name", json.dumps(entry))
        elif number in by_id:
            findings.error("category id used twice", f"{number} {name!r}")
        elif name in (category.name for category in by_id.values()):
            findings.error("category name used twice", f"{number} {name!r}")
            faulty.add(number)
        else:
            by_id[number] = Category(number, name)
    alike = Counter(category.name.strip().casefold() for category in by_id.values())
    for category in by_id.values():
        if alike[category.name.strip().casefold()] > 1:
            findings.warning(
                "category name that differs from another in case or blanks alone", repr(category.name)
            )
    if not by_id:
        raise UsageError(f"{source} has no category with an id of at least 1 and a name")
    return tuple(by_id[number] for number in sorted(by_id)), faulty


def _is_name(name: str) -> bool:
    return bool(name.strip()) and name.replace(" ", "").isprintable()


def _images(
    entries: list[Mapping[str, Any]], findings: Findings
) -> tuple[dict[int, Mapping[str, Any]], set[int]]:
    """Return the sound images by id, and the ids of the others."""
    images: dict[int, Mapping[str, Any]] = {}
    faulty: set[int] = set()
    names: set[str] = set()
    for entry in entries:
        number, name = entry.get("id"), entry.get("file_name")
        sizes = [side for side in (entry.get("height"), entry.get("width")) if is_integer(side)]
        if not is_integer(number) or number < 0 or not isinstance(name, str) or not name:
            findings.error("image without an integer id and a file_name", json.dumps(entry))
            faulty.update([number] if is_integer(number) and number not in images else [])
            continue
        if number in images:
            findings.error("image id used twice", f"{number} {name}")
            continue
        faulty.add(number)
        if not _is_below(name):
            findings.error("image whose file_name is no path below the images' folder", repr(name))
        elif len(sizes) < 2 or min(sizes) < 1:
            findings.error("image without height and width", name)
        elif sizes[0] * sizes[1] > LIMITS.max_pixels:
            findings.error("image of more pixels than are learned from", f"{name}: {sizes[0]} x {sizes[1]}")
        else:
            if name in names:
                findings.warning("file_name of two images", name)
            names.add(name)
            faulty.discard(number)
            images[number] = entry
    return images, faulty


def _is_below(name: str) -> bool:
    return name.isprintable() and "://" not in name and not {"", ".", ".."} & set(name.split("/"))


def _root_of(source: str, names: Sequence[str]) -> str:
    """Return the folder in which most of some images exist: the JSON's, or one in there."""
    folder, stem = Url.parse(source).folder, source.rpartition("/")[2].rpartition(".")[0]
    storage = Storage(folder.text)
    some = names[:: max(1, len(names) // _PROBES)][:_PROBES]
    found = {
        below: sum(storage.exists(below + name) for name in some) for below in ("", "images/", f"{stem}/")
    }
    below = max(found, key=lambda place: found[place])
    return (folder.join(below) if below else folder).text


# --- images -------------------------------------------------------------------------------------------------


def _sound_images(
    images: Mapping[int, Mapping[str, Any]],
    root: str,
    findings: Findings,
    progress: Callable[[int, int], None],
) -> list[Mapping[str, Any]]:
    """Return the images that can be decoded and have the size that the dataset says, in order of id."""
    sound = []
    with ThreadPoolExecutor(max_workers=min(32, 2 * (os.cpu_count() or 1))) as pool:
        entries = [images[number] for number in sorted(images)]
        uris = [Url.parse(root).join(entry["file_name"]).text for entry in entries]
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
    if Url.parse(uri).is_local and not Path(uri).is_file():  # a pipe would be waited for
        return "not_found"
    try:
        pixels = decode_image(read_input(uri, LIMITS.max_bytes), LIMITS).pixels
    except ItemError as error:
        return error.code
    return pixels.shape[0], pixels.shape[1]


def _table(images: list[Mapping[str, Any]], root: str, objects: Objects) -> pa.Table:
    of: dict[int, list[int]] = defaultdict(list)
    for position, image_id in enumerate(objects.image_ids):
        of[image_id].append(position)
    uris = [Url.parse(root).join(entry["file_name"]).text for entry in images]
    columns = {
        "image_id": [entry["id"] for entry in images],
        "name": [entry["file_name"] for entry in images],
        "uri": [os.path.abspath(uri) if Url.parse(uri).is_local else uri for uri in uris],  # noqa: PTH100 (keeps links)
        "height": [entry["height"] for entry in images],
        "width": [entry["width"] for entry in images],
        "labels": [[objects.labels[i] for i in of[entry["id"]]] for entry in images],
        "masks": [[objects.masks[i] for i in of[entry["id"]]] for entry in images],
    }
    return pa.table(columns, schema=SCHEMA)


def _count(table: pa.Table, categories: tuple[Category, ...], findings: Findings) -> None:
    labels = set(table["labels"].combine_chunks().flatten().to_pylist())
    for label, category in enumerate(categories, start=1):
        if label not in labels:
            findings.warning("category that no object has", category.name)
    empty = table.filter(pa.compute.equal(pa.compute.list_value_length(table["labels"]), 0))
    for name in empty["name"].to_pylist():
        findings.warning("image without an object, learned from as background", name)

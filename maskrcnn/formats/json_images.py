"""The images that a JSON of COCO, LVIS or MegaDetector lists, as inputs to segment."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import methodcaller
from typing import Any, Final

import pyarrow as pa

from ..errors import UsageError, plural
from ..io.manifests.json_columns import column_of, exact_number
from ..io.manifests.manifest_columns import MAX_COLUMNS
from ..io.manifests.sources import usage_errors
from .coco_findings import is_number
from .coco_reader import check_objects, lists_of, name_of

_CATEGORIES: Final = "detection_categories"
_DETECTIONS: Final = "detections"


def read_json_images(source: str, *, from_web: bool = False) -> pa.Table:
    """Return the images of a dataset as inputs to segment: `uri`, `name`, `image_id`, and all further keys.

    Values that no type of a table holds exactly, and those of unlike types, become JSON text. Of MegaDetector's results
    the detections become their number and the best confidences, see `_of_megadetector`.

    Args:
        source: COCO or LVIS, or MegaDetector's results for a batch of images.
        from_web: whether the uri of an LVIS image is its `coco_url`, and not its name.

    Raises:
        UsageError: it cannot be read, has no list `images`, an image has no name, or there are too many keys.
    """
    images: list[dict[str, Any]] = []
    categories: Any = {}
    for name, entries in lists_of(source, ("images",), (_CATEGORIES,), parse_float=exact_number):
        if name == _CATEGORIES:
            categories = entries[0]
            continue
        check_objects(source, name, entries)
        images += map(_summarized, entries)
    key = "file_name"
    if any("file" in image for image in images) and not any(key in image for image in images):
        key = "file"
        known = categories if isinstance(categories, dict) else {}
        images = [_of_megadetector(image, known) for image in images]
    names = [image.get(key) if key == "file" else name_of(image) for image in images]
    nameless = sum(not isinstance(name, str) for name in names)
    if nameless:
        raise UsageError(f"{source}: {nameless:,} of {plural(len(images), 'image')} without `{key}`: add it")
    uris = [image.get("coco_url") if from_web and key not in image else None for image in images]
    return _table(source, images, key, names, [uri or name for uri, name in zip(uris, names, strict=True)])


@dataclass(frozen=True, slots=True)
class _Detections:
    """What is kept of the detections in one image."""

    count: int
    best: dict[str, float]
    """The highest confidence by the id of a category."""


def _summarized(image: dict[str, Any]) -> dict[str, Any]:
    """Return an image of MegaDetector with a summary of its detections, which would take most of the memory."""
    detections = image.get(_DETECTIONS)
    if "file" not in image or "file_name" in image or not isinstance(detections, list):
        return image
    best: dict[str, float] = {}
    for detection in detections:
        conf = detection.get("conf") if isinstance(detection, dict) else None
        if is_number(conf) or isinstance(conf, Decimal):
            category = str(detection.get("category"))
            best[category] = max(best.get(category, 0.0), float(conf))
    return image | {_DETECTIONS: _Detections(len(detections), best)}


def _of_megadetector(image: dict[str, Any], categories: Mapping[str, Any]) -> dict[str, Any]:
    """Return an image with columns in place of its detections; null where it could not be read.

    `n_detections` and `max_detection_conf` distinguish empty images from others. `max_conf_animal` and its like, one
    per category of the file, select images of animals, or leave out those of people. The boxes stay in MegaDetector's
    file, whose `file` is the name of the input.
    """
    detections = image.get(_DETECTIONS)
    best = {_column(name): None for name in categories.values()} | {"max_detection_conf": None}
    columns: dict[str, Any] = {"n_detections": None, **best}
    if isinstance(detections, _Detections):
        columns = dict.fromkeys(best, 0.0) | {"n_detections": detections.count}
        for category, conf in detections.best.items():
            for column in (_column(categories.get(category, category)), "max_detection_conf"):
                columns[column] = max(columns.get(column) or 0.0, conf)
        image = {key: value for key, value in image.items() if key != _DETECTIONS}
    return {key: value for key, value in (columns | image).items() if key != _DETECTIONS or value is not None}


def _column(category: Any) -> str:
    """Return the name of a category's column.

    >>> _column("animal"), _column("Red fox (adult)")
    ('max_conf_animal', 'max_conf_red_fox_adult')
    """
    return "max_conf_" + re.sub(r"\W+", "_", str(category).lower()).strip("_")


def _table(
    source: str, images: Sequence[Mapping[str, Any]], named_by: str, names: Sequence[Any], uris: Sequence[Any]
) -> pa.Table:
    keys = dict.fromkeys(key for image in images for key in image if key != named_by)
    if len(keys) > MAX_COLUMNS:
        raise UsageError(
            f"{source}: its images have {len(keys):,} different keys, and at most {MAX_COLUMNS:,} can be carried: "
            "leave out those that are not needed"
        )
    with usage_errors(source):
        columns = {"uri": pa.array(uris, pa.string()), "name": pa.array(names, pa.string())}
        for key in keys:
            column = "image_id" if key == "id" else key
            while key != "id" and (
                column in ("uri", "name", "image_id") or (column != key and column in keys)
            ):
                column = f"input_{column}"
            columns[column] = column_of(list(map(methodcaller("get", key), images)))
        return pa.table(columns)

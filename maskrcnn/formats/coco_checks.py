"""The annotations of a COCO dataset, checked one by one: what is wrong with each is found, named and counted."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..masks.rle_decode import read_masks
from ..types import Category

EXAMPLES: Final = 3
"""How many places a finding names."""
DAMAGED: Final = "mask whose run lengths are damaged"
_FAR: Final = 16
"""A point so many times the image's side away from its corner is no point of it."""


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
        return f"{level}: {self.kind} ({self.count:,}): {', '.join(self.examples)}{more}"


@dataclass(slots=True)
class Findings:
    """Findings as they come up."""

    found: dict[tuple[bool, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def error(self, kind: str, where: object) -> None:
        """Note what stops a training."""
        self.found[True, kind].append(shortened(where))

    def warning(self, kind: str, where: object) -> None:
        """Note what is worth knowing."""
        self.found[False, kind].append(shortened(where))

    def listed(self) -> tuple[Finding, ...]:
        """Return errors first, each kind once."""
        return tuple(
            Finding(kind, error, len(places), tuple(places[:EXAMPLES]))
            for (error, kind), places in sorted(
                self.found.items(), key=lambda item: (not item[0][0], item[0][1])
            )
        )


def shortened(value: object) -> str:
    """Return a value as text of at most 80 characters."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value of a JSON is an integer that fits into 64 bits; `true` is none."""
    return type(value) is int and abs(value) < 2**63


@dataclass(slots=True)
class Objects:
    """Masks that have a place in the table, as columns."""

    image_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    masks: list[bytes] = field(default_factory=list)


def read_objects(
    entries: list[Mapping[str, Any]],
    images: Mapping[int, Mapping[str, Any]],
    categories: tuple[Category, ...],
    findings: Findings,
    *,
    faulty: Collection[int] = (),
    faulty_categories: Collection[int] = (),
) -> Objects:
    """Return the masks that can be learned from, and note what is wrong with the others.

    Args:
        entries: of the JSON.
        images: the sound entries of the images, by id.
        categories: in the order of their labels.
        findings: where it is noted.
        faulty: images that have been noted: of their annotations nothing more is said.
        faulty_categories: the same of categories.
    """
    labels = {category.id: label for label, category in enumerate(categories, start=1)}
    drafts, places, boxes = Objects(), [], []
    seen: set[Any] = set()
    for number, entry in enumerate(entries):
        where = f"annotation {shortened(entry.get('id', f'no. {number + 1}'))}"
        own, image_id, category_id = (entry.get(key) for key in ("id", "image_id", "category_id"))
        image = images.get(image_id) if is_integer(image_id) else None
        known = is_integer(category_id) and category_id in labels
        if not is_integer(own):
            findings.error("annotation without an integer id", where)
            continue
        doubled = own in seen
        seen.add(own)
        if doubled:
            findings.error("annotation id used twice", where)
        elif image is None:
            if not is_integer(image_id) or image_id not in faulty:
                findings.error("annotation of an unknown image", f"{where} of image {image_id}")
        elif not known:
            if not is_integer(category_id) or category_id not in faulty_categories:
                findings.error("annotation of an unknown category", f"{where}: {category_id}")
        elif entry.get("iscrowd", 0) not in (0, 1):
            findings.error("iscrowd that is neither 0 nor 1", f"{where}: {entry['iscrowd']}")
        elif (box := _box(entry.get("bbox"))) is None:
            findings.error("box that is not four finite numbers", f"{where}: {entry.get('bbox')}")
        elif isinstance(mask := _mask(entry.get("segmentation"), image), str):
            findings.error(mask, where)
        elif entry.get("iscrowd", 0):
            findings.warning("crowd, which is not learned from", where)
        else:
            drafts.image_ids.append(image["id"])
            drafts.labels.append(labels[int(entry["category_id"])])
            drafts.masks.append(mask)
            places.append(where)
            boxes.append(box)
    return _measured(drafts, places, boxes, images, findings)


def _measured(
    drafts: Objects,
    places: list[str],
    boxes: list[NDArray[np.float64]],
    images: Mapping[int, Mapping[str, Any]],
    findings: Findings,
) -> Objects:
    """Keep the masks that are sound and not empty; compare boxes with them."""
    kept = Objects()
    heights, widths = (
        np.array([images[i][side] for i in drafts.image_ids], np.int64) for side in ("height", "width")
    )
    offsets = np.cumsum([0, *map(len, drafts.masks)])
    read = read_masks(np.frombuffer(b"".join(drafts.masks), np.uint8), offsets, heights, widths)
    for i, where in enumerate(places):
        x, y, width, height = boxes[i]
        if not read.intact[i]:
            findings.error(DAMAGED, where)
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
    if not all(map(_is_number, value)):
        return None
    return np.array(value, np.float64)


def _is_number(value: object) -> bool:
    # JSON has integers of any size, of which no float can be made.
    return type(value) in (int, float) and abs(value) < 2**53 and math.isfinite(value)  # type: ignore[arg-type]


def _mask(segmentation: Any, image: Mapping[str, Any]) -> bytes | str:
    """Return the compressed run lengths of a mask, or what is wrong with it."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, dict):
        return _mask_of_runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        return "annotation without a mask"
    for ring in segmentation:
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2:
            return "polygon of fewer than three points"
        if not all(map(_is_number, ring)):
            return "polygon with a point that is not finite"
        # pycocotools walks every pixel of an edge, however far away it leads.
        if max(map(abs, ring)) > _FAR * max(height, width):
            return "polygon with a point far outside of its image"
    return bytes(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))["counts"])


def _mask_of_runs(segmentation: Mapping[str, Any], height: int, width: int) -> bytes | str:
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        return "mask of another size than its image"
    if isinstance(counts, str):
        return counts.encode("ascii", "replace")  # whether it is one is seen for all masks at once
    if not isinstance(counts, list) or not all(is_integer(run) and run >= 0 for run in counts):
        return DAMAGED
    if sum(counts) != height * width:
        return DAMAGED
    rle = {"size": [height, width], "counts": counts}
    return bytes(coco_mask.frPyObjects(rle, height, width)["counts"])


def _iou(one: NDArray[Any], other: NDArray[Any]) -> float:
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(inner, 0)))
    return shared / (float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - shared)

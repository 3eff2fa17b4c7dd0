"""The annotations of a COCO dataset, checked one by one: what is wrong with each is named and counted.

A `Draft` holds some thousand annotations as the file has them, without what needs the images: the lists of images and
categories may follow the annotations in the file. `check_draft` then turns it into columns. A faulty annotation costs
only itself. Area and box follow from the mask where they are missing.
"""

import itertools
import re
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..masks.rle_decode import ReadMasks, read_masks
from .coco_boxes import odd_areas, odd_areas_alone, odd_boxes, odd_boxes_alone
from .coco_findings import Findings, id_of, is_number, is_number_as_text, shortened
from .coco_segmentations import DAMAGED, NONE, OTHER_SIZE, Shape, polygon_areas, read_segmentation

NOT_AN_OBJECT: Final = "annotation that is not an object"
_CROWD: Final = "iscrowd that is neither 0 nor 1"
DOUBLED: Final = "annotation id used twice, here and by an earlier annotation (give each its own)"
TURNED: Final = "mask whose size is its image's the other way round (COCO's `size` is height, width)"
IMAGE_LEFT_OUT: Final = "annotation of an image that is left out"
CATEGORY_LEFT_OUT: Final = "annotation of a category that is left out"
_FAR: Final = 16
"""A point farther from the origin than this many times the image's longer side is an error."""

ANNOTATIONS: Final = pa.schema(
    [
        ("number", pa.int64()),
        ("image", pa.int32()),
        ("category", pa.int32()),
        ("crowd", pa.bool_()),
        ("area", pa.float64()),
        *[(side, pa.float64()) for side in ("x", "y", "width", "height")],
        ("mask_height", pa.int32()),
        ("mask_width", pa.int32()),
        ("mask_area", pa.int64()),
        ("counts", pa.large_binary()),
    ]
)
"""`number` is the place in the file, from 1; `image` and `category` are places in the dataset's lists. `counts` is a
compressed RLE of mask_height x mask_width pixels, the image's; where only boxes are used, it is null and `mask_area` 0.
"""


@dataclass(frozen=True, slots=True)
class Draft:
    """Consecutive annotations, without their places in the lists of images and categories."""

    first: int
    """The place of the first in the file, from 1."""
    ids: NDArray[np.int64]
    """(n,) the annotation's id, or of a text a hash of it."""
    has_id: NDArray[np.bool_]
    text_ids: Collection[int]
    """Rows whose id is a text."""
    image_ids: Sequence[int | str | None] | NDArray[np.int64]
    category_ids: Sequence[int | str | None] | NDArray[np.int64]
    crowd: NDArray[np.bool_]
    numbers: NDArray[np.float64]
    """(n, 5) area, x, y, width, height; NaN where they are missing or invalid."""
    absent: NDArray[np.bool_]
    """(n, 2) whether the area, and the box, is missing or null."""
    mask_sizes: NDArray[np.int64]
    """(n, 2) height and width that an RLE states; zeros for polygons."""
    shapes: pa.Array
    """(n,) compressed RLE, or the float64 of all rings of a polygon; null where there is none."""
    rings: pa.Array
    """(n,) the count of numbers of each ring; empty for an RLE."""
    quoted: Collection[int]
    """Rows whose area or box has numbers in quotes."""
    faults: Mapping[int, str]
    """What is wrong with a row in itself, by row."""

    def __len__(self) -> int:
        return len(self.crowd)

    @property
    def has_shapes(self) -> bool:
        """Whether any annotation has a segmentation, be it valid or not."""
        others = (_CROWD, NOT_AN_OBJECT)
        return self.shapes.null_count < len(self) or any(f not in others for f in self.faults.values())


def draft_of(entries: Sequence[Any], first: int) -> Draft:
    """Return entries of the list `annotations` as columns.

    Args:
        entries: values of the JSON.
        first: the place of the first in the file, from 1.
    """
    faults = {row: NOT_AN_OBJECT for row, e in enumerate(entries) if type(e) is not dict}
    entries = [{} if row in faults else entry for row, entry in enumerate(entries)]
    ids = [id_of(entry.get("id")) for entry in entries]
    shapes: list[Shape] = []
    for row, entry in enumerate(entries):
        shape = read_segmentation(entry.get("segmentation"))
        if isinstance(shape, str):
            faults.setdefault(row, shape)
            shape = NONE
        shapes.append(shape)
    crowds = [entry.get("iscrowd") or 0 for entry in entries]
    for row, crowd in enumerate(crowds):
        if crowd not in (0, 1):
            faults.setdefault(row, _CROWD)
    numbers = np.array([_numbers(entry) for entry in entries], np.float64).reshape(-1, 5)
    invalid = np.flatnonzero(np.isnan(numbers).any(axis=1)).tolist()
    return Draft(
        first,
        np.array([hash(i) if isinstance(i, str) else i or 0 for i in ids], np.int64),
        np.array([i is not None for i in ids], np.bool_),
        {row for row, value in enumerate(ids) if isinstance(value, str)},
        _compact([id_of(entry.get("image_id")) for entry in entries]),
        _compact([id_of(entry.get("category_id")) for entry in entries]),
        np.array([crowd == 1 for crowd in crowds], np.bool_),
        numbers,
        np.array([[entry.get(key) is None for key in ("area", "bbox")] for entry in entries]).reshape(-1, 2),
        np.array([shape[:2] for shape in shapes], np.int64).reshape(-1, 2),
        pa.array([shape.data for shape in shapes], pa.large_binary()),
        pa.array([shape.rings for shape in shapes], pa.list_(pa.int32())),
        {row for row in invalid if _is_quoted(entries[row])},
        faults,
    )


def _compact(ids: list[int | str | None]) -> list[int | str | None] | NDArray[np.int64]:
    return np.array(ids, np.int64) if all(type(value) is int for value in ids) else ids


def _is_quoted(entry: Mapping[str, Any]) -> bool:
    """Return whether the area or the box of an annotation has numbers in quotes."""
    box = entry.get("bbox")
    return any(map(is_number_as_text, [entry.get("area"), *(box if isinstance(box, list) else [])]))


def _numbers(entry: Mapping[str, Any]) -> tuple[float, ...]:
    """Return area and box of an annotation, NaN where they are missing or invalid."""
    area, box = entry.get("area"), entry.get("bbox")
    sides = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
    return (
        area if is_number(area) and area >= 0 else float("nan"),
        *(box if sides and isinstance(box, list) else [float("nan")] * 4),
    )


# --- with the images --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """The images, or the categories, that annotations name."""

    places: Mapping[int | str | None, int]
    """The place of each usable one in its list, by id."""
    left_out: Mapping[int | str | None, str]
    """Why annotations of the others are left out, by id."""


def check_draft(
    draft: Draft,
    doubled: NDArray[np.bool_],
    images: Listed,
    categories: Listed,
    sizes: NDArray[np.int64],
    left_out: NDArray[np.bool_],
    findings: Findings,
    *,
    masks: bool,
) -> pa.Table:
    """Return the annotations that can be used, of `ANNOTATIONS`, and add what is wrong with the others.

    Args:
        draft: the annotations.
        doubled: (n,) whether an earlier annotation has the same id.
        images: the dataset's.
        categories: the dataset's.
        sizes: (N, 2) height and width of each image in pixels; masks of images without a size are left out silently.
        left_out: (N,) images that the caller has reported and does not use.
        findings: where it is added.
        masks: whether annotations must have masks; else only their boxes are used, and masks only where these miss.
    """
    rows, image, category = _usable(draft, doubled, images, categories, left_out, findings, masks=masks)
    masked = _has_mask(draft, rows) & (masks | np.isnan(draft.numbers[rows, 1]))
    sound, texts, found = _read_masks(draft, rows, masked, sizes[image], findings)
    rows, image, category, masked = rows[sound], image[sound], category[sound], masked[sound]
    _check_masked(draft, rows[masked], sizes[image[masked]], texts, found, findings)
    area, boxes = _filled(draft, rows, masked, found, findings)
    usable = ~np.isnan(boxes[:, 0])
    if not masks:
        _check_boxes(draft, rows[usable], sizes[image[usable]], boxes[usable], findings)
    table = pa.table(
        [
            pa.array(rows + draft.first, pa.int64()),
            pa.array(image, pa.int32()),
            pa.array(category, pa.int32()),
            pa.array(draft.crowd[rows]),
            pa.array(area),
            *(pa.array(side) for side in boxes.T),
            *(pa.array(side, pa.int32()) for side in sizes[image].T),
            pa.array(found.areas if masks else np.zeros(len(rows), np.int64)),
            pa.array(texts if masks else [None] * len(rows), pa.large_binary()),
        ],
        schema=ANNOTATIONS,
    )
    return table if usable.all() else table.filter(pa.array(usable))


def _has_mask(draft: Draft, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows have a segmentation."""
    valid: NDArray[np.bool_] = draft.shapes.is_valid().to_numpy(zero_copy_only=False)
    return valid[rows]


def _read_masks(
    draft: Draft,
    rows: NDArray[np.int64],
    masked: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    findings: Findings,
) -> tuple[NDArray[np.bool_], list[bytes], ReadMasks]:
    """Decode the masks of some rows.

    Args:
        draft: the annotations.
        rows: (n,) of the draft.
        masked: (n,) whether the mask of a row is needed.
        sizes: (n, 2) height and width of the images in pixels.
        findings: where faulty masks are added.

    Returns:
        (n,) which rows can be used, since their mask is not needed or intact; and the run lengths, boxes and areas of
        the intact masks.
    """
    at = np.flatnonzero(masked)
    read = _masks(draft, rows[at], sizes[at], findings)
    at = at[np.array([text is not None for text in read], np.bool_)]
    texts = [text for text in read if text is not None]
    found = read_masks(
        np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)]), *sizes[at].T
    )
    for row in rows[at[~found.intact]].tolist():
        findings.error(DAMAGED, _where(draft, row))
    intact = np.flatnonzero(found.intact)
    sound = ~masked
    sound[at[intact]] = True
    found = ReadMasks(found.intact[intact], found.areas[intact], found.boxes[intact])
    return sound, [texts[k] for k in intact.tolist()], found


def _check_masked(
    draft: Draft,
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    texts: Sequence[bytes],
    found: ReadMasks,
    findings: Findings,
) -> None:
    """Add the boxes and areas of rows that do not fit their masks."""
    rings = pa.compute.list_value_length(draft.rings).to_numpy(zero_copy_only=False)[rows]
    for at, kind in odd_boxes(draft.numbers[rows, 1:], sizes, found, texts, rings == 0):
        findings.warning(kind, _where(draft, int(rows[at])))
    _check_areas(draft, rows, found, findings)


def _check_boxes(
    draft: Draft,
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    boxes: NDArray[np.float64],
    findings: Findings,
) -> None:
    """Add the boxes that are odd in their images, and the areas that are in their boxes, where masks are not used."""
    for at, kind in odd_boxes_alone(boxes, sizes):
        findings.warning(kind, _where(draft, int(rows[at])))
    # The area of a mask is compared with the mask.
    stated = np.flatnonzero(~np.isnan(draft.numbers[rows, 1]))
    for at, kind in odd_areas_alone(draft.numbers[rows[stated], 0], boxes[stated]):
        findings.warning(kind, _where(draft, int(rows[stated[at]])))


def _check_areas(draft: Draft, rows: NDArray[np.int64], found: ReadMasks, findings: Findings) -> None:
    """Add the areas that contradict masks, each with that of the mask."""

    def of_polygons(at: NDArray[np.int64]) -> NDArray[np.float64]:
        chosen = pa.array(rows[at])
        return polygon_areas(*(column.take(chosen).to_pylist() for column in (draft.shapes, draft.rings)))

    for at, kind in odd_areas(draft.numbers[rows, 0], draft.numbers[rows, 1:], found, of_polygons):
        row = int(rows[at])
        findings.warning(
            kind, f"{_where(draft, row)} ({draft.numbers[row, 0]:g} instead of {int(found.areas[at]):,})"
        )


def _where(draft: Draft, row: int) -> str:
    if draft.has_id[row] and row not in draft.text_ids:
        return f"annotation {draft.ids[row]}"
    return f"annotation no. {draft.first + row}"


def _usable(
    draft: Draft,
    doubled: NDArray[np.bool_],
    images: Listed,
    categories: Listed,
    left_out: NDArray[np.bool_],
    findings: Findings,
    *,
    masks: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows without a fault of their own, and the places of their images and categories."""
    kept: list[tuple[int, int, int]] = []
    shaped = draft.shapes.is_valid().to_numpy(zero_copy_only=False)
    image_ids, category_ids = (
        ids.tolist() if isinstance(ids, np.ndarray) else ids for ids in (draft.image_ids, draft.category_ids)
    )
    for row, (image_id, category_id) in enumerate(zip(image_ids, category_ids, strict=True)):
        image, category = images.places.get(image_id, -1), categories.places.get(category_id, -1)
        if not draft.has_id[row] and draft.faults.get(row) != NOT_AN_OBJECT:
            findings.warning("annotation without an id", _where(draft, row))
        if doubled[row]:
            shown = "" if row in draft.text_ids else f" (id {draft.ids[row]})"
            findings.error(DOUBLED, f"annotation no. {draft.first + row}{shown}")
        elif draft.faults.get(row) == NOT_AN_OBJECT:
            findings.error(NOT_AN_OBJECT, _where(draft, row))
        elif image < 0:
            kind = images.left_out.get(image_id) or _unknown(
                image_id, images.places, "an unknown image", "images"
            )
            findings.add(
                kind, f"{_where(draft, row)}: image {shortened(repr(image_id))}", error=kind != IMAGE_LEFT_OUT
            )
        elif category < 0:
            kind = categories.left_out.get(category_id) or _unknown(
                category_id, categories.places, "an unknown category", "categories"
            )
            findings.add(
                kind,
                f"{_where(draft, row)}: category {shortened(repr(category_id))}",
                error=kind != CATEGORY_LEFT_OUT,
            )
        elif left_out[image]:
            findings.warning(IMAGE_LEFT_OUT, _where(draft, row))
        elif row in draft.faults:
            findings.error(draft.faults[row], _where(draft, row))
        elif masks and not shaped[row]:
            findings.error("annotation without a mask", _where(draft, row))
        else:
            kept.append((row, image, category))
    rows, image_places, category_places = np.array(kept, np.int64).reshape(-1, 3).T
    return rows, image_places, category_places


def _unknown(id_: int | str | None, places: Mapping[int | str | None, int], what: str, listed: str) -> str:
    """Return what an id is that is not listed; often it is, as a text or as an integer."""
    kind = f"annotation of {what}"
    if isinstance(id_, str) and re.fullmatch(r"[0-9]{1,18}", id_) and int(id_) in places:
        return f"{kind} (ids are text in annotations and integers in {listed})"
    if isinstance(id_, int) and str(id_) in places:
        return f"{kind} (ids are integers in annotations and text in {listed})"
    return kind


def _masks(
    draft: Draft, rows: NDArray[np.int64], sizes: NDArray[np.int64], findings: Findings
) -> list[bytes | None]:
    """Return the compressed run lengths of each row; None where they are faulty or the image's size is unknown."""
    chosen = pa.array(rows)
    shapes, rings = (column.take(chosen).to_pylist() for column in (draft.shapes, draft.rings))
    masks: list[bytes | None] = []
    for row, shape, lengths, stated, (height, width) in zip(
        rows.tolist(), shapes, rings, draft.mask_sizes[rows].tolist(), sizes.tolist(), strict=True
    ):
        masks.append(None)
        if not height:
            continue
        if not lengths:
            if stated == [height, width]:
                masks[-1] = shape
            else:
                kind = TURNED if stated == [width, height] else OTHER_SIZE
                findings.error(kind, _where(draft, row))
            continue
        points = array("d", shape).tolist()
        # pycocotools visits every pixel of an edge, however far outside of the image it leads.
        if max(abs(min(points)), abs(max(points))) > _FAR * max(height, width):
            findings.error("polygon with a point far outside of its image", _where(draft, row))
            continue
        ends = list(itertools.accumulate(lengths, initial=0))
        polygons = [points[begin:end] for begin, end in itertools.pairwise(ends)]
        masks[-1] = bytes(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"])
    return masks


_NO_BOX: Final = "annotation without a bbox"
_NO_AREA: Final = "annotation without an area"
_INVALID_BOX: Final = "bbox that is not four finite numbers"
_INVALID_AREA: Final = "area that is not a number of at least 0"


def _filled(
    draft: Draft,
    rows: NDArray[np.int64],
    masked: NDArray[np.bool_],
    found: ReadMasks,
    findings: Findings,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return areas, and boxes as x, y, width, height; those that miss are the masks', the areas of others their boxes'.

    Args:
        draft: the annotations.
        rows: (n,) of the draft.
        masked: (n,) whether `found` has the mask of a row; without one a box that misses stays NaN, which is an error.
        found: the masks' boxes and areas.
        findings: where is added what misses.
    """
    area, boxes = draft.numbers[rows, 0].copy(), draft.numbers[rows, 1:].copy()
    no_area, no_box = np.isnan(area), np.isnan(boxes[:, 0])

    def kind_of(at: int, column: int, names: tuple[str, str]) -> str:
        if draft.absent[rows[at], column]:
            return names[0]
        return names[1] + (" (write numbers without quotes)" if int(rows[at]) in draft.quoted else "")

    for at in np.flatnonzero(no_box).tolist():
        kind = kind_of(at, 1, (_NO_BOX, _INVALID_BOX))
        how = "; the box of its mask is used" if masked[at] else ", and there is no mask to take it from"
        findings.add(kind + how, _where(draft, int(rows[at])), error=not masked[at])
    mask = np.cumsum(masked) - 1
    tight = found.boxes[mask[no_box & masked]].astype(np.float64)
    boxes[no_box & masked] = np.concatenate([tight[:, :2], tight[:, 2:] - tight[:, :2]], axis=1)
    area[no_area & masked] = found.areas[mask[no_area & masked]]
    alone = no_area & ~masked
    area[alone] = boxes[alone, 2] * boxes[alone, 3]
    for at in np.flatnonzero(~np.isnan(area) & no_area).tolist():
        kind = kind_of(at, 0, (_NO_AREA, _INVALID_AREA))
        source = "mask" if masked[at] else "box"
        findings.warning(f"{kind}; the area of its {source} is used", _where(draft, int(rows[at])))
    return area, boxes

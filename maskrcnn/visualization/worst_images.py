"""The images in which a run and its ground truth agree least, as pictures: ground truth beside detections.

Which detections and objects were matched is what the evaluation found, so pictures agree with the numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import ERROR_CODES, ItemError, RunError, plural
from ..evaluation.evaluate_part import ImageOutcome, masks_of
from ..evaluation.evaluate_run import Evaluation
from ..evaluation.ground_truth_shares import Shares
from ..imaging.geometry import Rect
from ..masks.crop import crop_detections
from ..masks.rle import rle_areas, rle_boxes_xyxy
from ..results.reader import ImageRow, RunReader
from ..types import Category, Detections, Pixels
from .draw import Color, draw_instances
from .gallery_windows import region_around
from .run_images import WHOLE_PIXELS
from .run_pixels import RunPixels, unreadable_note
from .templates import encode_jpeg

PICTURE_PX: Final = 520
RIGHT: Final[Color] = (86, 180, 233)
WRONG: Final[Color] = (240, 128, 20)
"""Blue and orange are told apart by all eyes, and on light and dark ground."""
_LABELLED: Final = 12
"""More objects in a picture are drawn without labels, which would hide them."""


@dataclass(frozen=True, slots=True)
class Worst:
    """An image, as the page shows it."""

    name: str
    caption: str
    truth: bytes | None
    """JPEG."""
    found: bytes | None
    note: str = ""
    """Why there are no pictures."""


@dataclass(frozen=True, slots=True)
class _Sides:
    """What is there and what was found in one frame, and which of each was matched."""

    truth: Detections
    truth_right: NDArray[np.bool_]
    found: Detections
    found_right: NDArray[np.bool_]


def draw_worst(reader: RunReader, evaluation: Evaluation, shares: Shares) -> list[Worst]:
    """Draw the worst images of an evaluation; one that cannot be read any more gets a note.

    Args:
        reader: of the run.
        evaluation: of the run.
        shares: of the ground truth.

    Raises:
        RunError: a table of the run cannot be read.
    """
    categories = [Category(k + 1, name) for k, name in enumerate(evaluation.categories)]
    firsts = np.cumsum([0, *(part.n_images for part in reader.parts)])
    drawn = []
    with RunPixels(reader.storage, reader.run.info) as pixels:
        for row, outcome in evaluation.worst.items():
            part, place = evaluation.places[row].tolist()
            image = reader.image(int(firsts[part]) + place)
            caption = _caption(evaluation.images.slice(row, 1).to_pylist()[0])
            if image.status == "failed" or image.height is None or image.width is None:
                why = ERROR_CODES.get(image.error or "", "no reason is stored")
                drawn.append(Worst(image.name, caption, None, None, f"It failed in the run: {why}."))
                continue
            sides = _sides(reader, image, shares.read(part, place), outcome, evaluation.of_run)
            large = pixels.windows is not None and image.height * image.width > WHOLE_PIXELS
            region = _region(sides, image) if large else None
            try:
                shown = pixels.read(image, region)
            except (ItemError, RunError) as fault:
                drawn.append(Worst(image.name, caption, None, None, unreadable_note(fault)))
                continue
            sides = sides if region is None else _within(sides, region)
            drawn.append(Worst(image.name, caption, *_drawn(shown, sides, categories)))
    return drawn


def _caption(row: Mapping[str, Any]) -> str:
    return (
        f"PQ {row['pq']:.2f}: {plural(row['n_ground_truth'], 'object')}, "
        f"{plural(row['true_positives'], 'true positive')}, "
        f"{plural(row['false_negatives'], 'false negative')}, {plural(row['false_positives'], 'false positive')}"
    )


def _sides(
    reader: RunReader, image: ImageRow, share: pa.Table, outcome: ImageOutcome, of_run: Mapping[int, int]
) -> _Sides:
    """Return both sides of an image, labelled by category from 1."""
    found = reader.detections(image).take(outcome.detections)
    labels = np.array([of_run[label] + 1 for label in found.labels.tolist()], np.int32)
    truth, kept = _truth(image, share)
    return _Sides(
        truth, outcome.objects_matched[kept], replace(found, labels=labels), outcome.detections_matched
    )


def _truth(image: ImageRow, share: pa.Table) -> tuple[Detections, list[int]]:
    """Return objects as detections with a score of 1, and their rows; those with masks of another size are left out."""
    size = [image.height or 1, image.width or 1]
    if share["counts"].null_count:
        empty = coco_mask.frPyObjects({"size": size, "counts": [size[0] * size[1]]}, *size)
        masks = [empty] * len(share)
    else:
        masks = masks_of(share)
    kept = [k for k, mask in enumerate(masks) if list(mask["size"]) == size]
    if not kept:
        return Detections.empty(*size), kept
    share, masks = share.take(pa.array(kept)), [masks[k] for k in kept]
    left, top, width, height = (share[name].to_numpy() for name in ("x", "y", "width", "height"))
    texts = [mask["counts"] for mask in masks]
    return Detections(
        height=size[0],
        width=size[1],
        boxes=np.stack([left, top, left + width, top + height], axis=1).astype(np.float32),
        labels=(share["category"].to_numpy() + 1).astype(np.int32),
        scores=np.ones(len(share), np.float32),
        masks=tuple(text if isinstance(text, bytes) else text.encode() for text in texts),
        areas=rle_areas(masks),
        mask_boxes=rle_boxes_xyxy(masks),
        capped=False,
    ), kept


def _region(sides: _Sides, image: ImageRow) -> Rect:
    """Return what to show of a large image: around the first fault."""
    boxes = np.concatenate([sides.truth.boxes[~sides.truth_right], sides.found.boxes[~sides.found_right]])
    boxes = boxes if len(boxes) else np.zeros((1, 4), np.float32)
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes[0].tolist(), strict=True))
    return region_around(box, image.height or 1, image.width or 1)


def _within(sides: _Sides, region: Rect) -> _Sides:
    """Return both sides as a region shows them."""

    def seen(detections: Detections, right: NDArray[np.bool_]) -> Iterator[Any]:
        xmin, ymin, xmax, ymax = detections.boxes.T
        inside = (xmin < region.right) & (ymin < region.bottom)
        inside &= (xmax > region.col_off) & (ymax > region.row_off)
        yield crop_detections(detections.take(np.flatnonzero(inside)), region)
        yield right[inside]

    return _Sides(*seen(sides.truth, sides.truth_right), *seen(sides.found, sides.found_right))


def _drawn(pixels: Pixels, sides: _Sides, categories: Sequence[Category]) -> tuple[bytes, bytes]:
    """Return the two pictures as JPEG."""
    names = {category.id: category.name for category in categories}
    pictures = []
    for found, right, scored in (
        (sides.truth, sides.truth_right, False),
        (sides.found, sides.found_right, True),
    ):
        crowded = len(found) > _LABELLED
        texts = [
            "" if crowded else f"{names[label][:20]} {score:.2f}" if scored else names[label][:20]
            for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
        ]
        picture = draw_instances(
            pixels,
            found,
            categories,
            min_score=0.0,
            max_side=PICTURE_PX,
            min_side=PICTURE_PX,
            scale=1.3,
            colors=[RIGHT if fine else WRONG for fine in right.tolist()],
            texts=texts,
        )
        pictures.append(encode_jpeg(picture))
    return pictures[0], pictures[1]

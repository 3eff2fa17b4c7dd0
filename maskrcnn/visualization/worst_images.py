"""Draw the images in which a run and its ground truth agree least: ground truth beside detections.

Which detections and objects are matched is taken from the evaluation, so that pictures agree with its numbers.
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
"""Blue and orange, which color-blind readers can distinguish, on light and dark pictures."""
_LABELLED: Final = 12
"""If a picture has more objects, they are drawn without labels, which would hide them."""


@dataclass(frozen=True, slots=True)
class Worst:
    """An image as shown on the page."""

    name: str
    caption: str
    ground_truth: bytes | None
    """JPEG."""
    detections: bytes | None
    note: str = ""
    """Why there are no pictures; empty if there are."""


@dataclass(frozen=True, slots=True)
class _Sides:
    """Ground truth and detections in one frame, and which of each were matched."""

    ground_truth: Detections
    ground_truth_matched: NDArray[np.bool_]
    detections: Detections
    detections_matched: NDArray[np.bool_]


def draw_worst(reader: RunReader, evaluation: Evaluation, shares: Shares) -> list[Worst]:
    """Draw the worst images of an evaluation. An image that cannot be read any more gets a note instead.

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
    counts = {
        name: row[f"{name.replace(' ', '_')}s"]
        for name in ("true positive", "false negative", "false positive")
    }
    objects = plural(counts["true positive"] + counts["false negative"], "object")
    return f"PQ {row['pq']:.2f}: " + ", ".join([objects, *(plural(n, name) for name, n in counts.items())])


def _sides(
    reader: RunReader, image: ImageRow, share: pa.Table, outcome: ImageOutcome, of_run: Mapping[int, int]
) -> _Sides:
    """Return both sides of an image, labelled by category from 1."""
    found = reader.detections(image).take(outcome.detections)
    labels = np.array([of_run[label] + 1 for label in found.labels.tolist()], np.int32)
    ground_truth, kept = _ground_truth(image, share)
    return _Sides(
        ground_truth, outcome.objects_matched[kept], replace(found, labels=labels), outcome.detections_matched
    )


def _ground_truth(image: ImageRow, share: pa.Table) -> tuple[Detections, list[int]]:
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
    """Return the region of a large image to show: around the first false negative or false positive."""
    boxes = np.concatenate(
        [
            sides.ground_truth.boxes[~sides.ground_truth_matched],
            sides.detections.boxes[~sides.detections_matched],
        ]
    )
    boxes = boxes if len(boxes) else np.zeros((1, 4), np.float32)
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes[0].tolist(), strict=True))
    return region_around(box, image.height or 1, image.width or 1)


def _within(sides: _Sides, region: Rect) -> _Sides:
    """Return both sides cropped to a region."""

    def seen(detections: Detections, right: NDArray[np.bool_]) -> Iterator[Any]:
        xmin, ymin, xmax, ymax = detections.boxes.T
        inside = (xmin < region.right) & (ymin < region.bottom)
        inside &= (xmax > region.col_off) & (ymax > region.row_off)
        yield crop_detections(detections.take(np.flatnonzero(inside)), region)
        yield right[inside]

    return _Sides(
        *seen(sides.ground_truth, sides.ground_truth_matched),
        *seen(sides.detections, sides.detections_matched),
    )


def _drawn(pixels: Pixels, sides: _Sides, categories: Sequence[Category]) -> tuple[bytes, bytes]:
    """Return the two pictures, ground truth and detections, as JPEG."""
    names = {category.id: category.name for category in categories}
    pictures = []
    for found, right, scored in (
        (sides.ground_truth, sides.ground_truth_matched, False),
        (sides.detections, sides.detections_matched, True),
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

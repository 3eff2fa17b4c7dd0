"""The images in which a run and its ground truth agree least, as pictures: what is there beside what was found."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import ERROR_CODES, ItemError, RunError
from ..evaluation.evaluate_part import masks_of
from ..evaluation.evaluate_run import Evaluation
from ..evaluation.ground_truth_shares import Shares
from ..evaluation.image_scores import SURE
from ..evaluation.matching import Edges, match, overlaps
from ..imaging.decode import Limits
from ..imaging.decode_pool import Decoders
from ..imaging.geometry import Rect
from ..masks.crop import crop_detections
from ..masks.rle import rle_areas, rle_boxes_xyxy
from ..pipeline.manifest import read_window_index
from ..results.reader import ImageRow, RunReader
from ..types import Category, Detections, Pixels
from .draw import Color, draw_instances
from .gallery_windows import region_around, region_pixels
from .run_images import WHOLE_PIXELS, focus_on, read_image

PICTURES: Final = 9
PICTURE_PX: Final = 520
RIGHT: Final[Color] = (86, 180, 233)
WRONG: Final[Color] = (240, 128, 20)
"""Blue and orange are told apart by all eyes, and on light and dark ground."""
_JPEG_QUALITY: Final = 80
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


def worst_rows(images: pa.Table, count: int = PICTURES) -> list[int]:
    """Return the rows of `images.parquet` with the least quality, of equal ones those with more faults first."""
    quality = images["quality"].to_numpy()
    faults = images["missed"].to_numpy() + images["spurious"].to_numpy()
    order = np.lexsort((-faults, quality))
    return [row for row in order[:count].tolist() if faults[row]]


def draw_worst(
    reader: RunReader, evaluation: Evaluation, shares: Shares, of_run: Mapping[int, int]
) -> list[Worst]:
    """Draw the worst images of an evaluation; one that cannot be read any more gives a note.

    Args:
        reader: of the run.
        evaluation: of the run.
        shares: of the truth.
        of_run: category from 0 by the run's category id.

    Raises:
        RunError: a table of the run cannot be read.
    """
    items = read_window_index(reader.storage)
    settings = reader.run.info.get("settings", {})
    drawn = []
    categories = [Category(k + 1, name) for k, name in enumerate(evaluation.categories)]
    firsts = np.cumsum([0, *(part.n_images for part in reader.parts)])
    with nullcontext() if items is None else Decoders(1) as decoders:
        for row in worst_rows(evaluation.images):
            part, place = evaluation.places[row].tolist()
            image = reader.image(int(firsts[part]) + place)
            caption = _caption(
                {name: evaluation.images[name][row].as_py() for name in evaluation.images.column_names}
            )
            if image.status == "failed" or image.height is None or image.width is None:
                why = ERROR_CODES.get(image.error or "", "it failed")
                drawn.append(Worst(image.name, caption, None, None, f"It failed in the run: {why}."))
                continue
            sides = _sides(reader, image, shares.read(part, place), of_run)
            large = items is not None and image.height * image.width > WHOLE_PIXELS
            region = _region(sides, image) if large else Rect(0, 0, image.width, image.height)
            try:
                if items is None or decoders is None:
                    limits = Limits(settings["max_pixels"], settings["max_bytes"], float("inf"))
                    pixels = read_image(image, limits)
                else:
                    focus = focus_on(image, 0, 0, 0.0, region)
                    pixels = region_pixels(decoders, reader.run.info, items, focus)
            except (ItemError, RunError) as fault:
                why = ERROR_CODES[fault.code] if isinstance(fault, ItemError) else "not from this machine"
                drawn.append(
                    Worst(image.name, caption, None, None, f"The image cannot be read any more: {why}.")
                )
                continue
            sides = _within(sides, region) if large else sides
            drawn.append(Worst(image.name, caption, *_drawn(pixels, sides, categories)))
    return drawn


def _caption(row: Mapping[str, Any]) -> str:
    return (
        f"quality {row['quality']:.2f}: {row['n_truth']:,} objects, {row['matched']:,} found, "
        f"{row['missed']:,} missed, {row['spurious']:,} spurious"
    )


def _sides(reader: RunReader, image: ImageRow, share: pa.Table, of_run: Mapping[int, int]) -> _Sides:
    """Return both sides of an image, labelled by category from 1."""
    found = reader.detections(image)
    known = np.array([of_run.get(label, -1) for label in found.labels.tolist()], np.int64)
    found = found.take(np.flatnonzero((known >= 0) & (found.scores >= SURE)))
    labels = np.array([of_run[label] + 1 for label in found.labels.tolist()], np.int32)
    truth, crowd = _truth(image, share)
    fitting = len(truth) > 0 and len(found) > 0
    edges = overlaps(found.rles(), truth.rles(), crowd) if fitting else overlaps([], [], crowd)
    same = labels[edges.found] == truth.labels[edges.truth]
    # Instances stand by score; the group is the category.
    order = np.argsort(labels, kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    edges = Edges(back[edges.found[same]], edges.truth[same], edges.iou[same])
    matches = match(
        edges,
        labels[order].astype(np.int64),
        crowd,
        crowd[:, None],
        np.zeros((len(labels), 1), np.bool_),
        np.array([0.5]),
    )
    truth_right = crowd.copy()
    truth_right[matches.partner[matches.partner >= 0]] = True
    right = np.zeros(len(labels), np.bool_)
    right[order] = matches.partner >= 0
    return _Sides(truth, truth_right, _labelled(found, labels), right)


def _labelled(found: Detections, labels: NDArray[np.int32]) -> Detections:
    fields = ("height", "width", "boxes", "scores", "masks", "areas", "mask_boxes", "capped", "frames")
    return Detections(labels=labels, **{name: getattr(found, name) for name in fields})


def _truth(image: ImageRow, share: pa.Table) -> tuple[Detections, NDArray[np.bool_]]:
    """Return what is there as if it had been found, and which of it are crowds; masks of another size are left out."""
    size = [image.height or 1, image.width or 1]
    if share["counts"].null_count:
        empty = coco_mask.frPyObjects({"size": size, "counts": [size[0] * size[1]]}, *size)
        masks = [empty] * len(share)
    else:
        masks = masks_of(share)
    kept = [k for k, mask in enumerate(masks) if list(mask["size"]) == size]
    if not kept:
        return Detections.empty(*size), np.zeros(0, np.bool_)
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
    ), share["crowd"].to_numpy(zero_copy_only=False)


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
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        pictures.append(buffer.getvalue())
    return pictures[0], pictures[1]

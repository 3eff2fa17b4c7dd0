"""Draw detections as pictures for notebooks, and pictures with captions on one sheet.

>>> maskrcnn.display_instances(pixels, segmenter.segment([pixels])[0], model.categories)   # doctest: +SKIP

Accepts `Detections` and the results of torchvision's networks, without importing torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from ..imaging.geometry import Rect
from ..masks.crop import crop_detections
from ..masks.rle import rle_areas, rle_boxes_xyxy
from ..types import Category, Detections, Pixels
from .draw import Color, draw_instances, draw_mask, short

ClassNames: TypeAlias = Sequence[Category] | Sequence[str] | Mapping[int, str]
"""Categories; or names by label, as a mapping or as a list whose first entry is the background."""

DISPLAY_SCORE: Final = 0.5
SMALLEST_PX: Final = 800
"""Smaller images are enlarged to this longest side, so that labels have room."""
CELL_PX: Final = 360
MASK_THRESHOLD: Final = 0.5
"""torchvision returns masks as probabilities; pixels above this are in the mask."""
_LABELLED: Final = 1 / 7
"""Maximum share of a picture that labels may cover."""
_CROWDED_TYPE_PX: Final = 11
_GAP_PX: Final = 14
_TYPE_PX: Final = 14
_INK: Final = ((28, 28, 30), (110, 110, 115))
_GROUND: Final = (255, 255, 255)
_BLANK: Final = (233, 233, 236)


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture on a sheet, with the lines below it."""

    picture: Pixels
    lines: tuple[str, ...] = ()


# For notebooks


def display_instances(
    image: Any,
    result: Detections | Mapping[str, Any],
    class_names: ClassNames | None = None,
    *,
    min_score: float = DISPLAY_SCORE,
    max_side: int | None = 1600,
) -> Image.Image:
    """Return an image with its instances drawn: masks, outlines, boxes, and labels with scores.

    Args:
        image: (height, width, 3) uint8 RGB; a Pillow image; or a tensor (3, height, width), uint8 or in [0, 1].
        result: `Detections`, or torchvision's dict: `boxes` (N, 4), `labels` (N,), and optionally `scores` (N,) and
            `masks` (N, 1, height, width) or (N, height, width), bool or probabilities.
        class_names: names of the labels; the first of a list is the background's. None: labels are shown as numbers.
        min_score: instances with lower scores are left out.
        max_side: the longest side of the picture in pixels; None: the size of the image.

    Returns:
        A Pillow image, which notebooks display.

    Raises:
        ValueError: the image has another shape, or the result belongs to an image of another size.
    """
    pixels = as_pixels(image)
    detections = as_detections(result, pixels.shape)
    if pixels.shape[:2] != (detections.height, detections.width):
        raise ValueError(f"detections of {detections.height} x {detections.width}, image of {pixels.shape}")
    shown = detections.take(np.flatnonzero(detections.scores >= np.float32(min_score)))
    side = max(SMALLEST_PX, *pixels.shape[:2])
    side = side if max_side is None else min(side, max_side)
    return Image.fromarray(draw_legibly(pixels, shown, as_categories(class_names), side))


def display_masks(
    image: Any,
    result: Detections | Mapping[str, Any],
    class_names: ClassNames | None = None,
    *,
    min_score: float = DISPLAY_SCORE,
    columns: int = 4,
    cell_px: int = CELL_PX,
    crop: bool = True,
) -> Image.Image:
    """Return a sheet with a picture of each instance, in color on a grey background, with label and score.

    Args:
        image: as for `display_instances`.
        result: as for `display_instances`.
        class_names: as for `display_instances`.
        min_score: instances with lower scores are left out.
        columns: number of columns of the sheet.
        cell_px: longest side of each picture, pixels.
        crop: show the instance with its surroundings; else the whole image.

    Raises:
        ValueError: the image has another shape, or the result is of an image of another size.
    """
    pixels = as_pixels(image)
    detections = as_detections(result, pixels.shape)
    cells = mask_cells(
        pixels, detections, as_categories(class_names), min_score=min_score, cell_px=cell_px, crop=crop
    )
    return Image.fromarray(sheet(cells, columns, cell_px=cell_px))


def as_pixels(image: Any) -> Pixels:
    """Return an image as (height, width, 3) uint8; see `display_instances`.

    Raises:
        ValueError: the image has another shape or dtype.
    """
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    of_torch = hasattr(image, "detach")
    pixels = _array(image)
    if of_torch and pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"the image has the shape {pixels.shape}: pass (height, width, 3)")
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise ValueError(
                f"the image has the dtype {pixels.dtype}: pass uint8, or floating point in [0, 1]"
            )
        pixels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def as_detections(result: Detections | Mapping[str, Any], shape: tuple[int, ...]) -> Detections:
    """Return a result as `Detections`; see `display_instances`.

    Args:
        result: `Detections`, which are returned, or torchvision's dict.
        shape: of the image, height and width first.

    Raises:
        ValueError: columns are missing, or disagree with each other or with the image's size.
    """
    if isinstance(result, Detections):
        return result
    if not isinstance(result, Mapping) or not {"boxes", "labels"} <= result.keys():
        raise ValueError(
            "the result is neither `Detections` nor a dict with boxes and labels: pass one of them"
        )
    height, width = shape[:2]
    boxes = _array(result["boxes"]).reshape(-1, 4).astype(np.float32)
    n, scores = len(boxes), result.get("scores")
    labels = _array(result["labels"]).astype(np.int32)
    scores = np.ones(n, np.float32) if scores is None else _array(scores).astype(np.float32)
    if result.get("masks") is None:
        return Detections.of_boxes(height, width, boxes, labels, scores, capped=False)
    masks = _masks(result["masks"], n, height, width)
    rles = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return Detections(
        height=height,
        width=width,
        boxes=boxes,
        labels=labels,
        scores=scores,
        masks=tuple(rle["counts"] for rle in rles),
        areas=rle_areas(rles),
        mask_boxes=rle_boxes_xyxy(rles),
        capped=False,
    )


def _masks(given: Any, n: int, height: int, width: int) -> NDArray[np.bool_]:
    masks = _array(given)
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.shape != (n, height, width):
        raise ValueError(
            f"masks of shape {masks.shape} for {n} boxes in an image of {height} x {width} pixels"
        )
    return np.asarray(masks > MASK_THRESHOLD)


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def as_categories(class_names: ClassNames | None) -> list[Category]:
    """Return the names of labels as categories; see `display_instances`."""
    if class_names is None:
        return []
    if isinstance(class_names, Mapping):
        return [Category(int(label), str(name)) for label, name in class_names.items() if int(label) > 0]
    named = enumerate(class_names)
    return [
        entry if isinstance(entry, Category) else Category(label, str(entry))
        for label, entry in named
        if isinstance(entry, Category) or label > 0
    ]


# Parts of pictures


def around(detections: Detections, number: int, least_px: int = 64) -> Rect:
    """Return the part of an image that shows an instance with its surroundings, square if the image allows it."""
    corners = detections.mask_boxes[number] if detections.areas[number] else detections.boxes[number]
    left, top, right, bottom = (float(side) for side in corners)
    side = max((right - left) / 0.6, (bottom - top) / 0.6, least_px)
    width, height = min(round(side), detections.width), min(round(side), detections.height)
    return Rect(
        int(np.clip(round((left + right - width) / 2), 0, detections.width - width)),
        int(np.clip(round((top + bottom - height) / 2), 0, detections.height - height)),
        width,
        height,
    )


def draw_legibly(
    pixels: Pixels,
    detections: Detections,
    categories: Sequence[Category],
    side: int,
    *,
    scale: float = 1.0,
    colors: Sequence[Color] | None = None,
) -> Pixels:
    """Return an image with all of its instances drawn, and as many labels as leave the image visible.

    If labels would cover more than a seventh of the picture, they become smaller; then scores are left out; then only
    objects larger than their label have one, highest scores first.

    Args:
        pixels: (height, width, 3) uint8.
        detections: of the image, ordered by score.
        categories: the categories of the labels.
        side: the longest side of the picture, pixels.
        scale: of lines and type.
        colors: of the instances; None: by their number.

    Raises:
        ValueError: the detections belong to an image of another size.
    """
    zoom = side / max(pixels.shape[:2])
    names = {category.id: short(category.name) for category in categories}
    named = [names.get(label, f"#{label}") for label in detections.labels.tolist()]
    texts = [f"{name} {score:.2f}" for name, score in zip(named, detections.scores.tolist(), strict=True)]
    room = _LABELLED * pixels.shape[0] * pixels.shape[1] * zoom**2
    if sum(_plate(texts, side, scale)) > room:
        scale = min(scale, max(_CROWDED_TYPE_PX * 50 / side, 0.6 * scale))
    if sum(_plate(texts, side, scale)) > room:
        texts = named
    plates = _plate(texts, side, scale)
    if sum(plates) > room:
        left, top, right, bottom = detections.boxes.T
        sizes = ((right - left) * (bottom - top) * zoom**2).tolist()
        for number, (plate, size) in enumerate(zip(plates, sizes, strict=True)):
            if size < 2 * plate or plate > room:
                texts[number] = ""
            else:
                room -= plate
    return draw_instances(
        pixels,
        detections,
        categories,
        min_score=0.0,
        min_side=side,
        max_side=side,
        scale=scale,
        colors=colors,
        texts=texts,
    )


def _plate(texts: Sequence[str], side: int, scale: float) -> list[float]:
    """Return the approximate number of pixels that each label covers."""
    type_px = max(9.0, scale * side / 50)
    return [1.4 * type_px * (0.55 * len(text) + 0.4) * type_px for text in texts]


def mask_cells(
    pixels: Pixels,
    detections: Detections,
    categories: Sequence[Category],
    *,
    min_score: float = DISPLAY_SCORE,
    cell_px: int = CELL_PX,
    crop: bool = True,
    numbers: Sequence[int] | None = None,
) -> list[Cell]:
    """Return one picture per instance, with label, score and area; see `display_masks`.

    Args:
        pixels: of the image.
        detections: of the image.
        categories: the categories of the labels.
        min_score: instances with lower scores are left out.
        cell_px: longest side of each picture, pixels.
        crop: show the instance with its surroundings; else the whole image.
        numbers: N numbers to show; None: the position of each instance.

    Raises:
        ValueError: the detections belong to an image of another size.
    """
    if pixels.shape[:2] != (detections.height, detections.width):
        raise ValueError(f"detections of {detections.height} x {detections.width}, image of {pixels.shape}")
    names = {category.id: category.name for category in categories}
    cells = []
    for number in np.flatnonzero(detections.scores >= np.float32(min_score)).tolist():
        one, shown = detections.take(np.array([number])), pixels
        if crop:
            region = around(detections, number)
            shown = pixels[region.row_off : region.bottom, region.col_off : region.right]
            one = crop_detections(one, region)
        label = int(detections.labels[number])
        if one.masks is None:
            picture = draw_instances(
                shown, one, categories, min_score=0, max_side=cell_px, min_side=cell_px, texts=[""]
            )
        else:
            picture = draw_mask(shown, one.rles()[0], max_side=cell_px, min_side=cell_px)
        lines = (
            f"{short(names.get(label, f'#{label}'))} {detections.scores[number]:.2f}",
            f"no. {number if numbers is None else numbers[number]}, {int(detections.areas[number]):,} px",
        )
        cells.append(Cell(picture, lines))
    return cells


def blank(width: int, height: int, text: str) -> Pixels:
    """Return a grey picture with a text, in place of a picture that cannot be drawn."""
    picture = Image.new("RGB", (width, height), _BLANK)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_TYPE_PX)
    lines = _wrapped(draw, text, font, width - 2 * _GAP_PX)[: max(1, height // (_TYPE_PX + 5) - 1)]
    top = (height - len(lines) * (_TYPE_PX + 5)) / 2
    for number, line in enumerate(lines):
        at = (width / 2, top + (number + 0.5) * (_TYPE_PX + 5))
        draw.text(at, line, fill=_INK[1], font=font, anchor="mm")
    return np.asarray(picture).copy()


def sheet(cells: Sequence[Cell], columns: int, *, cell_px: int = CELL_PX) -> Pixels:
    """Return one picture of many cells, each with its lines below it, row by row in columns of equal width.

    Args:
        cells: pictures of at most `cell_px` per side; larger ones are reduced.
        columns: cells per row, at least 1.
        cell_px: width of a column, pixels.

    Returns:
        (h, w, 3) uint8.

    Raises:
        ValueError: there are no cells or no columns.
    """
    if columns < 1 or not cells:
        raise ValueError(
            f"a sheet of {len(cells)} cells in {columns} columns: there must be at least one of each"
        )
    pictures = [_at_most(cell.picture, cell_px) for cell in cells]
    columns = min(columns, len(cells))
    line_px = _TYPE_PX + 5
    rows = [range(start, min(start + columns, len(cells))) for start in range(0, len(cells), columns)]
    heights = [max(pictures[k].height for k in row) for row in rows]
    below = [max(len(cells[k].lines) for k in row) * line_px for row in rows]
    height = sum(heights) + sum(below) + (len(rows) + 1) * _GAP_PX
    canvas = Image.new("RGB", (columns * (cell_px + _GAP_PX) + _GAP_PX, height), _GROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TYPE_PX)
    top = _GAP_PX
    for row, tall, lines_px in zip(rows, heights, below, strict=True):
        for column, k in enumerate(row):
            left = _GAP_PX + column * (cell_px + _GAP_PX)
            # Pictures of a row are aligned at the bottom, so that captions are right below them.
            canvas.paste(pictures[k], (left, top + tall - pictures[k].height))
            for number, line in enumerate(cells[k].lines):
                at = (left, top + tall + 3 + number * line_px)
                draw.text(at, _fitting(draw, line, font, cell_px), fill=_INK[min(number, 1)], font=font)
        top += tall + lines_px + _GAP_PX
    return np.asarray(canvas).copy()


def _at_most(picture: Pixels, side: int) -> Image.Image:
    found = Image.fromarray(picture)
    if max(found.size) > side:
        found.thumbnail((side, side), Image.Resampling.LANCZOS)
    return found


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """Return one line, shortened in its middle, where file names differ least."""
    line = " ".join(text.split())
    kept = len(line)
    while kept > 2 and draw.textlength(line, font=font) > width:
        kept -= 1
        whole = " ".join(text.split())
        line = f"{whole[: kept // 2]}…{whole[len(whole) - kept // 2 :]}"
    return line


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fitting(draw, line, font, width) for line in lines]

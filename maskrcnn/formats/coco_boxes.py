"""The boxes and areas of annotations, compared with their masks and images: which are odd, and how they would fit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..masks.rle_decode import ReadMasks, read_masks

FLAT: Final = "box without area"
LEAVES: Final = "box that leaves its image"
MISFIT: Final = "box that does not fit its mask"
BY_ROW: Final = "box that fits its mask only if the run lengths go by row (COCO's go by column)"
CORNERS: Final = (
    "box that fits its mask only as xmin, ymin, xmax, ymax (COCO's are xmin, ymin, width, height)"
)
CORNERS_ALONE: Final = (
    "box that lies in its image only as xmin, ymin, xmax, ymax (COCO's are xmin, ymin, width, height)"
)
_FITS_IOU: Final = 0.5
_RANGES: Final = "evaluate's small, medium and large go by it"
AREA: Final = f"area that does not fit its mask ({_RANGES})"
AREA_OF_BOX: Final = f"area that is its box's and not its mask's ({_RANGES})"
AREA_ALONE: Final = f"area that is 0 or larger than its box ({_RANGES})"
_AREA_TOLERANCE: Final = 0.1
"""Of the larger of two areas: outlines are simplified, and coordinates rounded, after the area was taken."""


def odd_boxes_alone(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    """Yield the rows of boxes without masks that are odd, and what they are.

    Args:
        boxes: (n, 4) x, y, width, height as stated, pixels.
        sizes: (n, 2) height and width of the images in pixels; zeros: unknown.
    """
    x, y, width, height = boxes.T
    flat, leaving = _faulty(boxes, sizes)
    leaving = leaving & ~flat & (sizes[:, 0] > 0)
    corners = (np.minimum(x, y) >= -1) & (width > x) & (height > y)
    corners &= (width <= sizes[:, 1] + 1) & (height <= sizes[:, 0] + 1)
    for row in np.flatnonzero(flat | leaving).tolist():
        yield row, FLAT if flat[row] else CORNERS_ALONE if corners[row] else LEAVES


def odd_boxes(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    found: ReadMasks,
    texts: Sequence[bytes],
    is_rle: NDArray[np.bool_],
) -> Iterator[tuple[int, str]]:
    """Yield the rows of boxes that do not fit their masks, and what they are, with the reading by which they would fit.

    Args:
        boxes: (n, 4) x, y, width, height as stated, pixels; NaN where they are not.
        sizes: (n, 2) height and width of the images in pixels.
        found: the masks' boxes and areas.
        texts: (n,) the masks' compressed run lengths.
        is_rle: (n,) whether a mask is stated as run lengths.
    """
    stated = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    flat, leaving = _faulty(boxes, sizes)
    fits = _iou(stated, found.boxes) >= _FITS_IOU
    corners = ~fits & (_iou(boxes, found.boxes) >= _FITS_IOU)
    strange = (flat | leaving | ~fits) & ~np.isnan(boxes[:, 0]) & (found.areas > 0)
    at = np.flatnonzero(strange)
    chosen = [texts[k] for k in at.tolist()]
    offsets = np.cumsum([0, *map(len, chosen)])
    # The same run lengths along the rows are those of the transposed mask along its columns.
    turned = read_masks(np.frombuffer(b"".join(chosen), np.uint8), offsets, sizes[at, 1], sizes[at, 0])
    by_row = (_iou(stated[at], turned.boxes[:, [1, 0, 3, 2]]) >= _FITS_IOU) & is_rle[at]
    for k, row_wise in zip(at.tolist(), by_row.tolist(), strict=True):
        kind = LEAVES if leaving[k] else MISFIT
        if flat[k]:
            kind = FLAT
        elif corners[k]:
            kind = CORNERS
        elif row_wise and not fits[k]:
            kind = BY_ROW
        yield k, kind


def odd_areas(
    areas: NDArray[np.float64],
    boxes: NDArray[np.float64],
    found: ReadMasks,
    of_polygons: Callable[[NDArray[np.int64]], NDArray[np.float64]],
) -> Iterator[tuple[int, str]]:
    """Yield the rows of areas that fit neither their mask nor its polygons, and what they are.

    Args:
        areas: (n,) as stated, pixels; NaN where they are not.
        boxes: (n, 4) x, y, width, height as stated, pixels; NaN where they are not.
        found: the masks' boxes and areas. Empty masks, which are reported as such, are left out.
        of_polygons: the areas that the polygons of rows enclose, which are not those of the pixels where they are
            thin; NaN for run lengths.
    """
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).astype(np.float64)
    pixels = found.areas.astype(np.float64)
    rows = np.flatnonzero((pixels > 0) & ~_fits(areas, pixels, sides) & ~np.isnan(areas))
    rows = rows[~_fits(areas[rows], of_polygons(rows), sides[rows])]
    of_boxes = np.abs(areas[rows] - boxes[rows, 2:].prod(axis=1)) < 1
    for row, of_box in zip(rows.tolist(), of_boxes.tolist(), strict=True):
        yield row, AREA_OF_BOX if of_box else AREA


def odd_areas_alone(areas: NDArray[np.float64], boxes: NDArray[np.float64]) -> Iterator[tuple[int, str]]:
    """Yield the rows of areas that no mask in their boxes has, and what they are: as `odd_areas`, without masks."""
    sides = boxes[:, 2:]
    of_box = sides.prod(axis=1)
    odd = (areas == 0) | ((areas > of_box) & ~_fits(areas, of_box, sides))
    for row in np.flatnonzero(odd & (sides > 0).all(axis=1)).tolist():
        yield row, AREA_ALONE


def _fits(
    areas: NDArray[np.float64], others: NDArray[np.float64], sides: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which areas are others, within a tolerance.

    It is a tenth, or half a pixel along an outline as long as that of the box, which is the difference between an
    outline around the pixels and one through their centers, as `cv2.contourArea` measures.

    Args:
        areas: (n,) pixels.
        others: (n,) pixels.
        sides: (n, 2) width and height of the boxes around them, pixels.
    """
    tolerance = np.maximum(_AREA_TOLERANCE * np.maximum(areas, others), sides.sum(axis=1))
    return np.asarray(np.abs(areas - others) <= tolerance)


def _faulty(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which boxes have no area, and which leave their image by more than a pixel."""
    x, y, width, height = boxes.T
    leaving = (np.minimum(x, y) < -1) | (x + width > sizes[:, 1] + 1) | (y + height > sizes[:, 0] + 1)
    return (width <= 0) | (height <= 0), leaving


def _iou(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Return the IoU of (N, 4) boxes xmin, ymin, xmax, ymax with others, one by one."""
    inner = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.prod(np.maximum(inner, 0), axis=1)
    areas = [np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(len(union)), where=union > 0))

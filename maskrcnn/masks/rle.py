"""Encode masks as COCO's compressed run lengths, from their changes, at a cost independent of the image's area.

A COCO mask is stored column by column: alternating counts of zeros and ones, zeros first, packed into ASCII.

Reference: `maskApi.c` of pycocotools, whose output is reproduced byte for byte.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

MAX_PIXELS = 2**32 - 1
"""The maximum number of pixels of an image that one mask can describe: a count is a uint32."""


class EncodedMasks(NamedTuple):
    """N encoded masks with their areas and boxes."""

    counts: tuple[bytes, ...]
    """The `counts` of `pycocotools.mask.encode`, byte for byte."""
    areas: NDArray[np.int64]
    """(N,) pixels."""
    boxes: NDArray[np.int32]
    """(N, 4) xmin, ymin, xmax, ymax, the last two exclusive; zeros for an empty mask."""


def encode_changes(
    instance: NDArray[np.int64],
    column: NDArray[np.int64],
    row: NDArray[np.int64],
    n: int,
    height: int,
    width: int,
) -> EncodedMasks:
    """Encode masks of one image, given by the changes along their columns.

    Args:
        instance: (C,) the mask of each change, ascending.
        column: (C,) the column of each change, ascending within an instance.
        row: (C,) the row of each change, ascending within a column: the first pixel that differs from the one above
            it, at most `height`. The rows above the first and below the last count as zeros, so each column has an
            even number of changes.
        n: the number of masks.
        height: the height of the image, pixels.
        width: the width of the image, pixels.

    Raises:
        ValueError: the image has 2^32 pixels or more.
    """
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels do not fit a COCO mask")
    position = column * height + row
    n_spans = np.bincount(instance[::2], minlength=n)
    areas = _sums(position[1::2] - position[::2], n_spans)
    boxes = _tight_boxes(column, row, n_spans)

    # A span that continues at the top of the next column is one run: its end and the next start cancel out.
    apart = np.ones(len(position), np.bool_)
    if len(position):
        continues = (position[1:] == position[:-1]) & (instance[1:] == instance[:-1])
        apart[1:] &= ~continues
        apart[:-1] &= ~continues
    return EncodedMasks(_compressed(position[apart], instance[apart], n, height * width), areas, boxes)


def crop_to_rle(crop: NDArray[np.bool_], left: int, top: int, height: int, width: int) -> bytes:
    """Encode a mask that is zero outside a crop.

    >>> crop_to_rle(np.array([[True, True]]), left=1, top=0, height=2, width=4)
    b'21102'

    Args:
        crop: (h, w) bool, the mask inside the crop; may be empty.
        left: the first column of the crop in the image, pixels.
        top: the first row of the crop in the image, pixels.
        height: the height of the image, pixels.
        width: the width of the image, pixels.

    Returns:
        The `counts` of `pycocotools.mask.encode` for the whole (height, width) mask, byte for byte.

    Raises:
        ValueError: the crop extends beyond the image, or the image has 2^32 pixels or more.
    """
    h, w = crop.shape
    if not (0 <= left <= width - w and 0 <= top <= height - h):
        raise ValueError(
            f"a crop of {h} x {w} at row {top}, column {left} extends beyond {height} x {width} pixels"
        )
    column, row = crop_changes(crop, left, top)
    return encode_changes(np.zeros(len(row), np.int64), column, row, 1, height, width).counts[0]


def crop_changes(crop: NDArray[np.bool_], left: int, top: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the changes of a mask that is zero outside a crop: column and row, as arguments of `encode_changes`."""
    h, w = crop.shape
    padded = np.zeros((w, h + 2), np.bool_)
    padded[:, 1:-1] = crop.T
    column, row = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), h + 1)
    return column + left, row + top


def rle_areas(rles: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """Return the number of pixels of each mask, (N,) int64; `rles` as from `Detections.rles`."""
    # pycocotools 2.0.11 with numpy 2 overflows at 256 masks (its count becomes a uint8) in `area`, but not in `toBbox`.
    chunks = [coco_mask.area(list(rles[start : start + 255])) for start in range(0, len(rles), 255)]
    return np.concatenate([np.empty(0, np.int64), *chunks]).astype(np.int64)


def rle_boxes_xywh(rles: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Return the tight box of each mask, (N, 4) xmin, ymin, width, height in pixels; zeros for an empty mask."""
    return np.array(coco_mask.toBbox(list(rles)), dtype=np.float64).reshape(-1, 4)


def rle_boxes_xyxy(rles: Sequence[dict[str, Any]]) -> NDArray[np.int32]:
    """Return the tight box of each mask, (N, 4) xmin, ymin, xmax, ymax in pixels, the last two exclusive."""
    boxes = rle_boxes_xywh(rles)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.int32)


def _sums(values: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums of consecutive segments of the given lengths, which may be zero."""
    ends = np.cumsum(lengths)
    totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return np.asarray(totals[ends] - totals[ends - lengths])


def _tight_boxes(
    column: NDArray[np.int64], row: NDArray[np.int64], n_spans: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return the tight boxes of masks with the given numbers of spans, each within a column."""
    boxes = np.zeros((len(n_spans), 4), np.int32)
    some = n_spans > 0
    first = (np.cumsum(n_spans) - n_spans)[some]
    if len(first):
        starts, ends = row[::2], row[1::2]
        boxes[some, 0] = column[::2][first]
        boxes[some, 1] = np.minimum.reduceat(starts, first)
        boxes[some, 2] = column[::2][first + n_spans[some] - 1] + 1
        boxes[some, 3] = np.maximum.reduceat(ends, first)
    return boxes


def _compressed(
    position: NDArray[np.int64], instance: NDArray[np.int64], n: int, n_pixels: int
) -> tuple[bytes, ...]:
    """Return the compressed counts of masks whose value changes at positions in column-major order.

    Reference: `rleToString` in `maskApi.c`: each count from the fourth on is written as its difference to the count
    two before it, in groups of five bits, lowest first; a sixth bit indicates that another group follows.
    """
    # The changes of each mask between 0 and the end of the image; their differences are the counts.
    n_changes = np.bincount(instance, minlength=n)
    lengths = n_changes + 2
    starts = np.cumsum(lengths) - lengths
    bounds = np.full(len(position) + 2 * n, n_pixels, np.int64)
    bounds[starts] = 0
    bounds[np.arange(len(position)) + 2 * instance + 1] = position
    absolute = np.diff(bounds, append=0)
    # The difference from the end of a mask to the start of the next is not a count; nor is a final count of 0.
    kept = np.ones(len(absolute), np.bool_)
    kept[starts + lengths - 1] = False
    kept[starts + lengths - 2] = (absolute[starts + lengths - 2] > 0) | (n_changes == 0)
    counts = absolute.copy()
    nth = np.arange(len(absolute)) - np.repeat(starts, lengths)
    counts[3:] -= np.where(nth[3:] > 2, absolute[1:-2], 0)
    values = counts[kept]
    sizes = _sums(kept.astype(np.int64), lengths)

    n_groups = np.ones(len(values), np.int64)
    magnitude = values ^ (values >> 63)
    for bits in range(4, int(magnitude.max(initial=0)).bit_length(), 5):
        n_groups += magnitude >= 1 << bits
    ends = np.cumsum(n_groups)
    text = np.empty(int(ends[-1]) if n else 0, np.uint8)
    at, rest, groups = ends - n_groups, values, n_groups
    while len(at):
        continues = groups > 1
        text[at] = (rest & 31) + 48 + 32 * continues
        at, rest, groups = at[continues] + 1, rest[continues] >> 5, groups[continues] - 1
    whole = text.tobytes()
    cuts = [0, *ends[np.cumsum(sizes) - 1].tolist()] if n else [0]
    return tuple(whole[start:stop] for start, stop in itertools.pairwise(cuts))

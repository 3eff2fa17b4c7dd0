"""Decode COCO's compressed run lengths: areas, boxes and spans of many masks, and which of them are invalid.

The inverse of `rle`, safe for damaged input: `maskApi.c` of pycocotools reads beyond the end of a truncated text, and
divides by a height of zero. All masks of a table column are decoded at once, at the speed of numpy.

Reference: `rleFrString`, `rleArea` and `rleToBbox` in `maskApi.c`.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .rle import MAX_PIXELS
from .spans import Spans, ranges

_MAX_GROUPS: Final = 7
"""The maximum number of 5-bit groups of a count, or a difference of two, in an image below 2^32 pixels."""


class ReadMasks(NamedTuple):
    """The validity, areas and boxes of N masks."""

    intact: NDArray[np.bool_]
    """(N,) whether the text is a valid mask of exactly the image's pixels; if not, area and box are zeros."""
    areas: NDArray[np.int64]
    """(N,) pixels."""
    boxes: NDArray[np.int32]
    """(N, 4) xmin, ymin, xmax, ymax of the mask's pixels, the last two exclusive; zeros for an empty mask."""


def read_masks(
    text: NDArray[np.uint8], offsets: NDArray[Any], heights: NDArray[Any], widths: NDArray[Any]
) -> ReadMasks:
    """Validate and measure masks given by their compressed run lengths.

    Args:
        text: all texts, concatenated.
        offsets: (N + 1,) the start of each text in `text`, and the end of the last.
        heights: (N,) heights of the images, pixels.
        widths: (N,) widths of the images, pixels.
    """
    heights = heights.astype(np.int64)
    valid, of, start, length = _runs_of_ones(text, offsets, heights, widths.astype(np.int64))
    areas = np.bincount(of, length, minlength=len(valid)).astype(np.int64)  # exact: sums below 2^53
    return ReadMasks(valid, areas, _boxes(of, start, start + length - 1, heights))


def read_spans(masks: Sequence[bytes], height: int, width: int) -> Spans:
    """Return the spans of masks in one frame.

    Args:
        masks: N COCO compressed RLE strings.
        height: the height of the frame, pixels.
        width: the width of the frame, pixels.

    Raises:
        ValueError: a string is not a valid mask of this frame.
    """
    text = np.frombuffer(b"".join(masks), np.uint8)
    offsets = np.cumsum([0, *map(len, masks)])
    sizes = (np.full(len(masks), side, np.int64) for side in (height, width))
    valid, of, start, length = _runs_of_ones(text, offsets, *sizes)
    if not valid.all():
        raise ValueError(f"mask {int(np.argmin(valid))} is not a valid mask of {height} x {width} pixels")
    # Merge runs that no zero separates.
    stop = start + length
    apart = (start[1:] > stop[:-1]) | (of[1:] > of[:-1])
    first, last = np.append(True, apart)[: len(of)], np.append(apart, True)[: len(of)]
    of, start, stop = of[first], start[first], stop[last]
    # A run that continues in the next column becomes a span in each.
    left, right = start // height, (stop - 1) // height
    counts = right - left + 1
    column = ranges(left, counts)
    of, start, stop = (np.repeat(values, counts) for values in (of, start, stop))
    top = column * height
    return Spans(of, column, np.maximum(start - top, 0), np.minimum(stop - top, height), len(masks))


def _runs_of_ones(
    text: NDArray[np.uint8], offsets: NDArray[Any], heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """Return which masks are valid, and the mask, the first pixel and the length of each of their runs of ones."""
    n = len(offsets) - 1
    text = text[offsets[0] : offsets[-1]]
    bounds = (offsets - offsets[0]).astype(np.int64)
    pixels = heights * widths
    valid = (heights > 0) & (widths > 0) & (pixels <= MAX_PIXELS) & (bounds[1:] > bounds[:-1])

    numbers, first, invalid = _numbers(text, bounds)
    lengths = np.diff(first)
    owner = np.repeat(np.arange(n), lengths)
    odd = (np.arange(len(numbers)) - np.repeat(first[:-1], lengths)) & 1
    counts = _counts(numbers, first, odd)
    invalid |= (counts < 0) | (counts > MAX_PIXELS)
    valid[owner[invalid]] = False
    counts[np.repeat(~valid, lengths)] = 0  # avoid overflow below
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    valid &= before[first[1:]] - before[first[:-1]] == pixels

    runs = np.flatnonzero((odd > 0) & (counts > 0))
    runs = runs[valid[owner[runs]]]
    of, length = owner[runs], counts[runs]
    return valid, of, before[runs] - before[first[:-1]][of], length


def _numbers(
    text: NDArray[np.uint8], bounds: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the numbers of all texts, the index of each text's first (and of the end), and which are invalid."""
    digits = text - np.uint8(48)
    last = digits & 32 == 0
    cut = bounds[1:][bounds[1:] > bounds[:-1]] - 1
    cut = cut[~last[cut]]
    last[cut] = True  # a text truncated within a number must not continue in the next
    end = np.flatnonzero(last)
    start = np.empty_like(end)
    start[:1] = 0
    start[1:] = end[:-1] + 1
    groups = end - start + 1
    invalid = groups > _MAX_GROUPS
    invalid[np.searchsorted(end, cut)] = True
    invalid[np.searchsorted(end, np.flatnonzero(digits > 63))] = True

    numbers = (digits[start] & 31).astype(np.int64)
    for group in range(1, _MAX_GROUPS):
        longer = np.flatnonzero(groups > group)
        numbers[longer] |= (digits[start[longer] + group] & 31).astype(np.int64) << 5 * group
    numbers -= (digits[end] & 16).astype(np.int64) << 5 * np.minimum(groups, _MAX_GROUPS) - 4
    return numbers, np.searchsorted(end, bounds), invalid


def _counts(
    numbers: NDArray[np.int64], first: NDArray[np.int64], odd: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the counts; from the fourth on, each is stored as its difference to the count two before it.

    Args:
        numbers: the numbers of all texts.
        first: the index of each text's first number, and of the end.
        odd: 1 for the second number of a text, the fourth, …; otherwise 0.
    """
    sums = np.empty(len(numbers) + 2, np.int64)  # cumulative sums of every second number, after two zeros
    sums[:2] = 0
    np.cumsum(numbers[0::2], out=sums[2::2])
    np.cumsum(numbers[1::2], out=sums[3::2])
    # The part of a sum from before the first number of the chain, which is the text's second or third number.
    base = np.repeat(first[:-1] + 2, np.diff(first)) - odd
    begin = first[:-1][first[1:] > first[:-1]]
    base[begin] = begin
    return np.asarray(sums[2:] - sums[base])


def _boxes(
    of: NDArray[np.intp], start: NDArray[np.int64], last: NDArray[np.int64], heights: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return the tight boxes of masks, from the first and last pixel of each run in column-major order."""
    boxes = np.zeros((len(heights), 4), np.int32)
    if len(of):
        height = heights[of]
        (left, top), (right, bottom) = np.divmod(start, height), np.divmod(last, height)
        several = right > left  # runs over several columns
        top[several], bottom[several] = 0, height[several] - 1
        head = np.flatnonzero(np.diff(of, prepend=-1))
        tail = np.append(head[1:], len(of)) - 1
        ends = (
            left[head],
            np.minimum.reduceat(top, head),
            right[tail] + 1,
            np.maximum.reduceat(bottom, head) + 1,
        )
        boxes[of[head]] = np.stack(ends, axis=1)
    return boxes

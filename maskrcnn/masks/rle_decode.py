"""Decode COCO's compressed run lengths: areas, boxes and spans of many masks at once, and which of them are invalid.

The inverse of `rle`, for texts that may be damaged: `maskApi.c` of pycocotools reads beyond the end of a text that
is cut off, and divides by a height of zero. All masks are decoded at once, at the speed of numpy.

Reference: `rleFrString`, `rleArea` and `rleToBbox` in `maskApi.c`.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .rle import MAX_PIXELS
from .spans import Spans, ranges

_MAX_GROUPS: Final = 7
"""Maximum number of groups of five bits in a count of an image below 2^32 pixels, or in the difference of two."""


class ReadMasks(NamedTuple):
    """The measurements of N masks."""

    intact: NDArray[np.bool_]
    """(N,) whether the text is a mask of exactly the image's pixels; if not, area and box are zeros."""
    areas: NDArray[np.int64]
    """(N,) pixels."""
    boxes: NDArray[np.int32]
    """(N, 4) xmin, ymin, xmax, ymax of the mask's pixels, the last two exclusive; zeros where it is empty."""


def read_masks(
    text: NDArray[np.uint8], offsets: NDArray[Any], heights: NDArray[Any], widths: NDArray[Any]
) -> ReadMasks:
    """Measure masks, given as compressed run lengths.

    Args:
        text: all texts, one after the other.
        offsets: (N + 1,) where each begins in `text`, and where the last ends.
        heights: (N,) of the images, pixels.
        widths: (N,) of the images, pixels.
    """
    heights = heights.astype(np.int64)
    sound, of, start, length = _stretches(text, offsets, heights, widths.astype(np.int64))
    areas = np.bincount(of, length, minlength=len(sound)).astype(np.int64)  # exact: sums below 2^53
    return ReadMasks(sound, areas, _boxes(of, start, start + length - 1, heights))


def read_spans(masks: Sequence[bytes], height: int, width: int) -> Spans:
    """Decode masks of one frame to spans.

    Args:
        masks: N COCO compressed RLE strings.
        height: of the frame, pixels.
        width: of the frame, pixels.

    Raises:
        ValueError: one of them is not a mask of this frame.
    """
    text = np.frombuffer(b"".join(masks), np.uint8)
    offsets = np.cumsum([0, *map(len, masks)])
    sizes = (np.full(len(masks), side, np.int64) for side in (height, width))
    sound, of, start, length = _stretches(text, offsets, *sizes)
    if not sound.all():
        raise ValueError(f"mask {int(np.argmin(sound))} does not have {height} x {width} pixels")
    # Stretches without a zero between them are one.
    stop = start + length
    apart = (start[1:] > stop[:-1]) | (of[1:] > of[:-1])
    first, last = np.append(True, apart)[: len(of)], np.append(apart, True)[: len(of)]
    of, start, stop = of[first], start[first], stop[last]
    # A stretch that continues in the next column is a span in each.
    left, right = start // height, (stop - 1) // height
    counts = right - left + 1
    column = ranges(left, counts)
    of, start, stop = (np.repeat(values, counts) for values in (of, start, stop))
    top = column * height
    return Spans(of, column, np.maximum(start - top, 0), np.minimum(stop - top, height), len(masks))


def _stretches(
    text: NDArray[np.uint8], offsets: NDArray[Any], heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """Return which masks are intact, and for their stretches of ones the mask, first pixel and length."""
    n = len(offsets) - 1
    text = text[offsets[0] : offsets[-1]]
    bounds = (offsets - offsets[0]).astype(np.int64)
    pixels = heights * widths
    sound = (heights > 0) & (widths > 0) & (pixels <= MAX_PIXELS) & (bounds[1:] > bounds[:-1])

    numbers, first, faulty = _numbers(text, bounds)
    lengths = np.diff(first)
    owner = np.repeat(np.arange(n), lengths)
    odd = (np.arange(len(numbers)) - np.repeat(first[:-1], lengths)) & 1
    counts = _undone(numbers, first, odd)
    faulty |= (counts < 0) | (counts > MAX_PIXELS)
    sound[owner[faulty]] = False
    counts[np.repeat(~sound, lengths)] = 0  # they could overflow what follows
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    sound &= before[first[1:]] - before[first[:-1]] == pixels

    runs = np.flatnonzero((odd > 0) & (counts > 0))
    runs = runs[sound[owner[runs]]]
    of, length = owner[runs], counts[runs]
    return sound, of, before[runs] - before[first[:-1]][of], length


def _numbers(
    text: NDArray[np.uint8], bounds: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the numbers of all texts, where each text's begin (and the last's end), and which are malformed."""
    digits = text - np.uint8(48)
    last = digits & 32 == 0
    cut = bounds[1:][bounds[1:] > bounds[:-1]] - 1
    cut = cut[~last[cut]]
    last[cut] = True  # a text that ends within a number does not continue in the next text
    end = np.flatnonzero(last)
    start = np.empty_like(end)
    start[:1] = 0
    start[1:] = end[:-1] + 1
    groups = end - start + 1
    faulty = groups > _MAX_GROUPS
    faulty[np.searchsorted(end, cut)] = True
    faulty[np.searchsorted(end, np.flatnonzero(digits > 63))] = True

    numbers = (digits[start] & 31).astype(np.int64)
    for group in range(1, _MAX_GROUPS):
        longer = np.flatnonzero(groups > group)
        numbers[longer] |= (digits[start[longer] + group] & 31).astype(np.int64) << 5 * group
    numbers -= (digits[end] & 16).astype(np.int64) << 5 * np.minimum(groups, _MAX_GROUPS) - 4
    return numbers, np.searchsorted(end, bounds), faulty


def _undone(
    numbers: NDArray[np.int64], first: NDArray[np.int64], odd: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the counts, of which each from the fourth on is written as its difference from the one two places before.

    Args:
        numbers: of all texts.
        first: where each text's begin, and where the last's end.
        odd: 1 for the second, the fourth, … number of a text; otherwise 0.
    """
    sums = np.empty(len(numbers) + 2, np.int64)  # of every second number, after two zeros
    sums[:2] = 0
    np.cumsum(numbers[0::2], out=sums[2::2])
    np.cumsum(numbers[1::2], out=sums[3::2])
    # The part of a sum that precedes the chain's first number, which is the text's second or third.
    base = np.repeat(first[:-1] + 2, np.diff(first)) - odd
    begin = first[:-1][first[1:] > first[:-1]]
    base[begin] = begin
    return np.asarray(sums[2:] - sums[base])


def _boxes(
    of: NDArray[np.intp], start: NDArray[np.int64], last: NDArray[np.int64], heights: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return the tight boxes of masks, given the first and the last pixel of each of their runs, column by column."""
    boxes = np.zeros((len(heights), 4), np.int32)
    if len(of):
        height = heights[of]
        (left, top), (right, bottom) = np.divmod(start, height), np.divmod(last, height)
        spans = right > left
        top[spans], bottom[spans] = 0, height[spans] - 1
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

"""Stitch the detections of one image, made in overlapping windows, into whole objects.

Where two windows overlap, both contain the same pixels. Detections of one object therefore agree there, whatever they
look like elsewhere, and are matched by the pixels they share inside the overlap; matched detections are united across
windows. Two windows' masks of one object may differ by up to `TOLERANCE_PX`, which matters if only a small part of
the object is in the overlap:

- **Match**: two detections share most of their pixels in the overlap. Each detection has at most one partner per
  window; the best pairs are chosen first. The remainder of an object at the border of an overlap can be smaller than
  the tolerance, and then lie where the other window has a neighbouring object. Such a fragment is not evidence by
  itself: it is matched only if the two share pixels deep inside both.
- **Part**: an unmatched detection that is cut by the border of its window lies inside a detection of the other
  window: one window detected in two parts what the other detected as one object. They must also share pixels deep
  inside both.
- **Fragment**: the remainder of an object at the border of a window lies completely in the overlap, close to a
  detection of the other window. At a pointed end that is cut off, masks can differ by more than the tolerance, so a
  thin fragment may be twice as far. A fragment is assigned to the object of that detection, but adds no pixels to it
  and links it to no other object, so that a fragment assigned to a touching neighbour instead changes no mask.

Unmatched detections are kept. Detections of one window are different objects: a match that would unite two of them
is dropped, starting with the weakest of a chain; only two that are both cut may be parts of one object.

If a window contains an object with a margin, the object is that window's detection. Any other object is composed of
several detections, each of which determines the pixels in the core of its window.

The result does not depend on the position of the grid, provided that every object is completely inside some window,
which holds if it is no larger than the overlap minus twice the tolerance, and that the segmenter gives an object the
same mask in every window. Larger objects are then also complete, composed of equal masks.

The time depends on the number of detections and the lengths of their contours; the memory beyond the result, on the
detections of one pair of windows. No mask is filled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..masks.rle import MAX_PIXELS, EncodedMasks, encode_changes
from ..masks.spans import Ints, Spans
from ..types import Detections, detection_order
from .grid import Grid
from .overlap_matching import TOLERANCE_PX, PlacedDetections, box_of, clusters_of

_AT_ONCE: Final = 4096  # the number of masks encoded at once


@dataclass(frozen=True, slots=True)
class WindowDetections:
    """The raw detections in the windows of one image, as columns of equal length N."""

    window_id: NDArray[np.int32]
    """(N,) the window of each detection; those of one window keep the order of its results."""
    labels: NDArray[np.int32]
    """(N,) category ids."""
    scores: NDArray[np.float32]
    """(N,) in [0, 1]."""
    boxes: NDArray[np.float32]
    """(N, 4) xmin, ymin, xmax, ymax in pixels of the window."""
    masks: Sequence[bytes]
    """N COCO compressed RLE strings over the window."""
    mask_boxes: NDArray[np.int32]
    """(N, 4) xmin, ymin, xmax, ymax of the mask's pixels in the window, the last two exclusive; zeros if empty."""


@dataclass(frozen=True, slots=True)
class StitchedDetections(Detections):
    """The stitched objects of one image, and the assignment of the window detections to them.

    If there are `frames`, they are the tight boxes of the masks; one pixel for an empty mask.
    """

    object_of: NDArray[np.int32] = field(kw_only=True)
    """(N,) the index of the object of each of the N given window detections."""


def stitch(grid: Grid, detections: WindowDetections, *, capped: bool) -> StitchedDetections:
    """Stitch the window detections of an image into whole objects.

    Args:
        grid: the image's windows.
        detections: the detections in the windows, in any order of windows, which does not affect the result.
        capped: whether a window reached the limit on detections.

    Raises:
        ValueError: a mask is not a valid mask of its window's size, or the box of an object has 2^32 pixels or more.
    """
    order = np.argsort(detections.window_id, kind="stable")
    placed = _placed(grid, detections, order)
    clusters = clusters_of(placed)
    first, owner = np.unique(clusters.label, return_index=True, return_inverse=True)[1:]
    composing = np.flatnonzero(clusters.composes)
    members = composing[np.argsort(owner[composing], kind="stable")]
    sources = _sources(placed, members, owner[members], len(first))
    masks, frames = _encoded(placed, sources)
    boxes, labels, scores = _combined_columns(placed, sources)
    # If all visible columns are equal, the order of the windows decides.
    tie = np.lexsort((first, *masks.boxes.T))
    final = tie[detection_order(boxes[tie], labels[tie], scores[tie])]
    place = np.empty(len(final), np.int32)
    place[final] = np.arange(len(final))
    object_of = np.empty(len(order), np.int32)
    object_of[order] = place[owner]
    return StitchedDetections(
        height=grid.height,
        width=grid.width,
        boxes=boxes[final],
        labels=labels[final],
        scores=scores[final],
        masks=tuple(masks.counts[i] for i in final),
        areas=masks.areas[final],
        mask_boxes=masks.boxes[final],
        frames=None if frames is None else frames[final],
        capped=capped,
        object_of=object_of,
    )


def _placed(grid: Grid, detections: WindowDetections, order: NDArray[np.intp]) -> PlacedDetections:
    """Return the window detections in the frame of the image."""
    window = detections.window_id[order].astype(np.int64)
    row, column = np.divmod(window, len(grid.lefts))
    origin = np.stack([grid.lefts[column], grid.tops[row]] * 2, axis=1)
    frames = origin + np.array([0, 0, min(grid.window, grid.width), min(grid.window, grid.height)])
    local = detections.mask_boxes[order].astype(np.int64)
    some = local[:, 2:3] > 0
    mask_boxes = np.where(some, local + origin, 0)
    image = np.array([0, 0, grid.width, grid.height])
    gap = np.abs(mask_boxes - frames)
    return PlacedDetections(
        grid=grid,
        masks=[detections.masks[i] for i in order],
        window=window,
        labels=detections.labels[order],
        scores=detections.scores[order],
        boxes=detections.boxes[order].astype(np.float64) + origin,
        mask_boxes=mask_boxes,
        frames=frames,
        whole=((gap > TOLERANCE_PX) | (frames == image)).all(axis=1) & some[:, 0],
    )


# --- masks and boxes of objects --------------------------------------------------------------------------------------


class _Sources(NamedTuple):
    """The detections that determine an object: one that contains it completely, or all that compose it."""

    ids: Ints
    """(S,) detections, grouped by object."""
    first: Ints
    """(M + 1,) the start of each object's detections in `ids`, and the end of the last."""


def _sources(placed: PlacedDetections, members: Ints, owner: Ints, n: int) -> _Sources:
    whole = placed.whole[members]
    complete, of = members[whole], owner[whole]
    cores = _cores(placed, complete)
    middle = placed.mask_boxes[complete, :2] + placed.mask_boxes[complete, 2:]
    owns = ((2 * cores[:, :2] <= middle) & (middle < 2 * cores[:, 2:])).all(axis=1)
    order = np.lexsort((complete, -placed.scores[complete], ~owns, of))
    objects, first = np.unique(of[order], return_index=True)
    others = ~np.isin(owner, objects)
    ids = np.concatenate([complete[order][first], members[others]])
    of = np.concatenate([objects, owner[others]])
    together = np.argsort(of, kind="stable")
    return _Sources(ids[together], np.searchsorted(of[together], np.arange(n + 1)))


def _cores(placed: PlacedDetections, ids: Ints) -> Ints:
    """Return the cores of the windows of detections as boxes, (N, 4)."""
    windows, which = np.unique(placed.window[ids], return_inverse=True)
    return np.array([box_of(placed.grid.core(int(w))) for w in windows], np.int64).reshape(-1, 4)[which]


def _combined_columns(
    placed: PlacedDetections, sources: _Sources
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Return boxes, labels and scores of the objects."""
    first = sources.first[:-1]
    boxes, scores = placed.boxes[sources.ids], placed.scores[sources.ids]
    if not len(first):
        return boxes.astype(np.float32), placed.labels[sources.ids], scores
    hulls = [np.minimum.reduceat(boxes[:, :2], first), np.maximum.reduceat(boxes[:, 2:], first)]
    labels = placed.labels[sources.ids[first]]
    return np.concatenate(hulls, axis=1).astype(np.float32), labels, np.maximum.reduceat(scores, first)


def _encoded(placed: PlacedDetections, sources: _Sources) -> tuple[EncodedMasks, NDArray[np.int32] | None]:
    """Return the masks of the objects, and their frames if they are not encoded over the whole image."""
    height, width = placed.grid.height, placed.grid.width
    framed = height * width > MAX_PIXELS
    done = [EncodedMasks((), np.empty(0, np.int64), np.empty((0, 4), np.int32))]
    start = 0
    while start < len(sources.first) - 1:
        stop = int(np.searchsorted(sources.first, sources.first[start] + _AT_ONCE, side="right")) - 1
        stop = max(stop, start + 1)
        spans = _composed(placed, sources, start, stop)
        done.append(
            _encoded_in_frames(spans)
            if framed
            else encode_changes(*spans.changes, stop - start, height, width)
        )
        start = stop
    counts, areas, boxes = zip(*done, strict=True)
    masks = EncodedMasks(
        tuple(one for many in counts for one in many), np.concatenate(areas), np.concatenate(boxes)
    )
    return masks, _frames(masks.boxes) if framed else None


def _composed(placed: PlacedDetections, sources: _Sources, start: int, stop: int) -> Spans:
    """Return the masks of the objects from `start` to `stop`, in the frame of the image."""
    cuts = sources.first[start : stop + 1] - sources.first[start]
    ids = sources.ids[sources.first[start] : sources.first[stop]]
    of = np.repeat(np.arange(stop - start), np.diff(cuts))
    spans = placed.spans(ids)
    detection, cores = _foreign_cores(placed, ids, cuts)
    rank = np.arange(len(detection)) - np.searchsorted(detection, detection)
    for turn in range(int(rank.max(initial=-1)) + 1):
        boxes = np.zeros((len(ids), 4), np.int64)
        boxes[detection[rank == turn]] = cores[rank == turn]
        spans = spans.outside(boxes)
    # Use coordinates relative to each object, which stay small in an image of any size.
    origin = np.minimum.reduceat(placed.frames[ids, :2], cuts[:-1])
    left, top = origin.T
    return spans.shifted(-left[of], -top[of]).merged(of, stop - start).shifted(left, top)


def _foreign_cores(placed: PlacedDetections, ids: Ints, cuts: Ints) -> tuple[Ints, Ints]:
    """Return the cores of other windows that take precedence over a detection: its index, ascending, and the core."""
    detections, cores = [np.empty(0, np.int64)], [np.empty((0, 4), np.int64)]
    for index in np.flatnonzero(np.diff(cuts) > 1):
        here = np.arange(cuts[index], cuts[index + 1])
        windows, which = np.unique(placed.window[ids[here]], return_index=True)
        owned, boxes = _cores(placed, ids[here[which]]), placed.mask_boxes[ids[here]]
        meet = (boxes[:, None, :2] < owned[:, 2:]).all(axis=2) & (owned[:, :2] < boxes[:, None, 2:]).all(
            axis=2
        )
        detection, window = np.nonzero(meet & (placed.window[ids[here], None] != windows))
        detections.append(here[detection])
        cores.append(owned[window])
    return np.concatenate(detections), np.concatenate(cores)


def _frames(boxes: NDArray[np.int32]) -> NDArray[np.int32]:
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    return np.concatenate([boxes[:, :2], sizes], axis=1)


def _encoded_in_frames(spans: Spans) -> EncodedMasks:
    """Encode each mask in its own frame."""
    boxes = spans.boxes.astype(np.int32)
    frames = _frames(boxes)
    of, column, row = spans.changes
    cuts = np.searchsorted(of, np.arange(spans.n + 1))
    counts: list[bytes] = []
    for frame, start, stop in zip(frames.tolist(), cuts, cuts[1:], strict=False):
        left, top, width, height = frame
        here = slice(start, stop)
        one = encode_changes(
            np.zeros(stop - start, np.int64), column[here] - left, row[here] - top, 1, height, width
        )
        counts.extend(one.counts)
    return EncodedMasks(tuple(counts), spans.areas, boxes)

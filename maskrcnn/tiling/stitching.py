"""Stitch the detections of one image's overlapping windows into whole objects.

Where two windows overlap, both see the same pixels. So the detections of one object look the same there, whatever they
look like elsewhere: they are matched by what they share within that overlap, and matched detections are united across
windows. Two windows' masks of one object may differ by up to `TOLERANCE_PX`, which matters where little of it is in
the overlap:

- **Match**: two detections share most of what they have in the overlap. Each detection has at most one partner per
  window, the best first. What an overlap's border leaves of an object can be smaller than the tolerance, and then lie
  where the other window has a neighbour of it. That is no evidence: it counts only if the two share pixels that lie
  deep inside both.
- **Part**: a detection that its window's border cuts, unmatched, lies in the other window's detection: one window saw
  as two parts what the other saw as one. It too must share pixels that lie deep inside both.
- **Fragment**: what a window's border left of an object lies entirely in the overlap, near the other window's
  detection. At a pointed end that is cut off, masks can differ by more than the tolerance, so a thin fragment may be
  twice as far away. It is assigned to that detection's object, adds nothing to it, and connects it with nothing, so
  that a fragment assigned to a touching neighbour instead changes no mask.

What matches nothing is kept. Detections of one window are different objects: a match that would unite two of them is
ignored, the weakest of a chain first; only two that are both cut may be parts of one object.

An object that some window saw with a margin is that window's detection. Any other is a patchwork, in which each window
decides about its core.

The result does not depend on the position of the grid if some window sees every object whole, which holds for objects
no larger than the overlap less twice the tolerance, and if the segmenter gives an object one mask, the same wherever
its window lies. Larger objects are then whole too, as patchworks of equal masks.

Time grows with the number of detections and the lengths of their outlines; so does memory beyond the result, for those
of a pair of windows. Nothing is rasterized.
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

_AT_ONCE: Final = 4096  # masks encoded


@dataclass(frozen=True, slots=True)
class WindowDetections:
    """The raw detections in the windows of one image, as columns of equal length N."""

    window_id: NDArray[np.int32]
    """(N,) the window of each; those of one window are in its own order."""
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
    """The whole objects of one image, and the detections that they were stitched from.

    `frames`, if there are any, are the masks' tight boxes; one pixel where a mask is empty.
    """

    object_of: NDArray[np.int32] = field(kw_only=True)
    """(N,) the object that each of the windows' detections became part of."""


def stitch(grid: Grid, detections: WindowDetections, *, capped: bool) -> StitchedDetections:
    """Return the whole objects of an image.

    Args:
        grid: the image's windows.
        detections: of all windows, which may be in any order.
        capped: whether a window reached the limit on detections.

    Raises:
        ValueError: a mask does not have its window's size, or an object's own box has 2^32 pixels or more.
    """
    order = np.argsort(detections.window_id, kind="stable")
    placed = _placed(grid, detections, order)
    clusters = clusters_of(placed)
    first, owner = np.unique(clusters.label, return_index=True, return_inverse=True)[1:]
    composing = np.flatnonzero(clusters.composes)
    members = composing[np.argsort(owner[composing], kind="stable")]
    sources = _sources(placed, members, owner[members], len(first))
    masks, frames = _drawn(placed, sources)
    boxes, labels, scores = _summed(placed, sources)
    # Of objects that are equal in all that users see, the first detected comes first.
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
    """Return the detections in the image's frame."""
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


# --- the mask, box and score of an object ---------------------------------------------------------------------


class _Sources(NamedTuple):
    """The detections that an object is drawn from: one that saw it whole, or all that compose it."""

    ids: Ints
    """(S,) detections, those of one object together."""
    first: Ints
    """(M + 1,) where each object's detections begin in `ids`, and where the last's end."""


def _sources(placed: PlacedDetections, members: Ints, owner: Ints, n: int) -> _Sources:
    whole = placed.whole[members]
    witnesses, of = members[whole], owner[whole]
    cores = _cores(placed, witnesses)
    middle = placed.mask_boxes[witnesses, :2] + placed.mask_boxes[witnesses, 2:]
    owns = ((2 * cores[:, :2] <= middle) & (middle < 2 * cores[:, 2:])).all(axis=1)
    order = np.lexsort((witnesses, -placed.scores[witnesses], ~owns, of))
    seen, first = np.unique(of[order], return_index=True)
    others = ~np.isin(owner, seen)
    ids = np.concatenate([witnesses[order][first], members[others]])
    of = np.concatenate([seen, owner[others]])
    together = np.argsort(of, kind="stable")
    return _Sources(ids[together], np.searchsorted(of[together], np.arange(n + 1)))


def _cores(placed: PlacedDetections, ids: Ints) -> Ints:
    """Return the cores of detections' windows, (N, 4)."""
    windows, which = np.unique(placed.window[ids], return_inverse=True)
    return np.array([box_of(placed.grid.core(int(w))) for w in windows], np.int64).reshape(-1, 4)[which]


def _summed(
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


def _drawn(placed: PlacedDetections, sources: _Sources) -> tuple[EncodedMasks, NDArray[np.int32] | None]:
    """Return the masks of the objects, and their frames unless they are drawn in the whole image."""
    height, width = placed.grid.height, placed.grid.width
    framed = height * width > MAX_PIXELS
    done = [EncodedMasks((), np.empty(0, np.int64), np.empty((0, 4), np.int32))]
    start = 0
    while start < len(sources.first) - 1:
        stop = int(np.searchsorted(sources.first, sources.first[start] + _AT_ONCE, side="right")) - 1
        stop = max(stop, start + 1)
        spans = _patched(placed, sources, start, stop)
        done.append(_framed(spans) if framed else encode_changes(*spans.changes, stop - start, height, width))
        start = stop
    counts, areas, boxes = zip(*done, strict=True)
    masks = EncodedMasks(
        tuple(one for many in counts for one in many), np.concatenate(areas), np.concatenate(boxes)
    )
    return masks, _frames(masks.boxes) if framed else None


def _patched(placed: PlacedDetections, sources: _Sources, start: int, stop: int) -> Spans:
    """Return the masks of objects `start` to `stop`, in the image's frame."""
    cuts = sources.first[start : stop + 1] - sources.first[start]
    ids = sources.ids[sources.first[start] : sources.first[stop]]
    of = np.repeat(np.arange(stop - start), np.diff(cuts))
    spans = placed.spans(ids)
    detection, cores = _foreign(placed, ids, cuts)
    rank = np.arange(len(detection)) - np.searchsorted(detection, detection)
    for turn in range(int(rank.max(initial=-1)) + 1):
        boxes = np.zeros((len(ids), 4), np.int64)
        boxes[detection[rank == turn]] = cores[rank == turn]
        spans = spans.outside(boxes)
    # Relative to the objects' own origins, so that numbers stay small in an image of any size.
    origin = np.minimum.reduceat(placed.frames[ids, :2], cuts[:-1])
    left, top = origin.T
    return spans.shifted(-left[of], -top[of]).as_one(of, stop - start).shifted(left, top)


def _foreign(placed: PlacedDetections, ids: Ints, cuts: Ints) -> tuple[Ints, Ints]:
    """Return where other windows of an object decide about a detection: its index, ascending, and their cores."""
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


def _framed(spans: Spans) -> EncodedMasks:
    """Encode masks in their own frames."""
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

"""Pieces of one image, found in windows that overlap, become whole objects.

Where two windows overlap both see the same pixels. So pieces of one object look alike there, whatever they look like
elsewhere, and are matched by what they share inside of that strip; matched pieces are united across windows. Two
windows' masks of one thing may differ by up to `TOLERANCE_PX`, which matters where little of it is in the strip:

- **Alike**: most of what two pieces have in the strip is shared. Each piece has one partner in a window at most, the
  best first. What a strip's border leaves of an object can be smaller than the tolerance, and then lie where the other
  window has its neighbour. Such a scrap proves nothing: it counts only if pixels are shared that lie deep in both.
- **Part**: a piece that its window's border cuts, unmatched, lies in the other window's piece: a window saw in two
  parts what another saw as one. It too must share what is deep in both.
- **Scrap**: what a window's border left of an object lies in the strip as a whole, near to the other window's piece.
  Of a pointed end that is cut off, masks can differ by more than the tolerance, so a thin one may be twice as far.
  It is counted to that piece's object, adds nothing to it, and connects it with nothing, so that a scrap that is
  counted to a touching neighbour instead changes no mask.

What matches nothing is kept. Pieces of one window are different objects: a match that would unite two of them is
left out, the weakest of a chain first; only two that are both cut may be parts of one.

An object that some window saw with a margin is that window's piece. Any other is a patchwork, in which each window
decides about its core.

The result does not depend on where the grid lies, if every object is seen whole by some window, which holds where it
is no larger than the overlap less twice the tolerance, and if the segmenter gives an object one mask, the same
wherever its window lies. Larger objects too are whole then, as patchworks of equal masks.

Time follows the number of pieces and the lengths of their outlines; memory beyond the result, those of a pair of
windows. Nothing is painted.
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
from .overlap_matching import TOLERANCE_PX, Found, box_of, clusters_of

_AT_ONCE: Final = 4096  # masks encoded


@dataclass(frozen=True, slots=True)
class Pieces:
    """The raw detections in the windows of one image, as columns of equal length N."""

    window_id: NDArray[np.int32]
    """(N,) the window of each; those of one window follow the order in which it gave them."""
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
class Objects(Detections):
    """The whole objects of one image, and what they were made of.

    Where there are `frames`, they are the masks' tight boxes; one pixel where a mask is empty.
    """

    object_of: NDArray[np.int32] = field(kw_only=True)
    """(N,) the object that each of the given pieces became part of."""


def merge(grid: Grid, pieces: Pieces, *, capped: bool) -> Objects:
    """Return the whole objects of an image.

    Args:
        grid: the image's windows.
        pieces: what was found in them; the windows in any order, which changes nothing.
        capped: whether a window reached the limit on detections.

    Raises:
        ValueError: a mask is none of its window's size, or an object's own box has 2^32 pixels or more.
    """
    order = np.argsort(pieces.window_id, kind="stable")
    found = _found(grid, pieces, order)
    clusters = clusters_of(found)
    first, owner = np.unique(clusters.label, return_index=True, return_inverse=True)[1:]
    composing = np.flatnonzero(clusters.composes)
    members = composing[np.argsort(owner[composing], kind="stable")]
    sources = _sources(found, members, owner[members], len(first))
    masks, frames = _drawn(found, sources)
    boxes, labels, scores = _summed(found, sources)
    # Where all that users see is equal, what was found first comes first.
    tie = np.lexsort((first, *masks.boxes.T))
    final = tie[detection_order(boxes[tie], labels[tie], scores[tie])]
    place = np.empty(len(final), np.int32)
    place[final] = np.arange(len(final))
    object_of = np.empty(len(order), np.int32)
    object_of[order] = place[owner]
    return Objects(
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


def _found(grid: Grid, pieces: Pieces, order: NDArray[np.intp]) -> Found:
    """Return the pieces in the image's frame."""
    window = pieces.window_id[order].astype(np.int64)
    row, column = np.divmod(window, len(grid.lefts))
    origin = np.stack([grid.lefts[column], grid.tops[row]] * 2, axis=1)
    frames = origin + np.array([0, 0, min(grid.window, grid.width), min(grid.window, grid.height)])
    local = pieces.mask_boxes[order].astype(np.int64)
    some = local[:, 2:3] > 0
    mask_boxes = np.where(some, local + origin, 0)
    image = np.array([0, 0, grid.width, grid.height])
    gap = np.abs(mask_boxes - frames)
    return Found(
        grid=grid,
        masks=[pieces.masks[i] for i in order],
        window=window,
        labels=pieces.labels[order],
        scores=pieces.scores[order],
        boxes=pieces.boxes[order].astype(np.float64) + origin,
        mask_boxes=mask_boxes,
        frames=frames,
        whole=((gap > TOLERANCE_PX) | (frames == image)).all(axis=1) & some[:, 0],
    )


# --- how an object looks --------------------------------------------------------------------------------------


class _Sources(NamedTuple):
    """The pieces that an object is drawn from: one that saw it whole, or all that compose it."""

    ids: Ints
    """(S,) pieces, those of one object together."""
    first: Ints
    """(M + 1,) where each object's begin in `ids`, and where the last's end."""


def _sources(found: Found, members: Ints, owner: Ints, n: int) -> _Sources:
    whole = found.whole[members]
    witnesses, of = members[whole], owner[whole]
    cores = _cores(found, witnesses)
    middle = found.mask_boxes[witnesses, :2] + found.mask_boxes[witnesses, 2:]
    owns = ((2 * cores[:, :2] <= middle) & (middle < 2 * cores[:, 2:])).all(axis=1)
    order = np.lexsort((witnesses, -found.scores[witnesses], ~owns, of))
    seen, first = np.unique(of[order], return_index=True)
    others = ~np.isin(owner, seen)
    ids = np.concatenate([witnesses[order][first], members[others]])
    of = np.concatenate([seen, owner[others]])
    together = np.argsort(of, kind="stable")
    return _Sources(ids[together], np.searchsorted(of[together], np.arange(n + 1)))


def _cores(found: Found, ids: Ints) -> Ints:
    """Return the cores of pieces' windows, (N, 4)."""
    windows, which = np.unique(found.window[ids], return_inverse=True)
    return np.array([box_of(found.grid.core(int(w))) for w in windows], np.int64).reshape(-1, 4)[which]


def _summed(
    found: Found, sources: _Sources
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Return boxes, labels and scores of the objects."""
    first = sources.first[:-1]
    boxes, scores = found.boxes[sources.ids], found.scores[sources.ids]
    if not len(first):
        return boxes.astype(np.float32), found.labels[sources.ids], scores
    hulls = [np.minimum.reduceat(boxes[:, :2], first), np.maximum.reduceat(boxes[:, 2:], first)]
    labels = found.labels[sources.ids[first]]
    return np.concatenate(hulls, axis=1).astype(np.float32), labels, np.maximum.reduceat(scores, first)


def _drawn(found: Found, sources: _Sources) -> tuple[EncodedMasks, NDArray[np.int32] | None]:
    """Return the masks of the objects, and their frames where they are not drawn in the whole image."""
    height, width = found.grid.height, found.grid.width
    framed = height * width > MAX_PIXELS
    done = [EncodedMasks((), np.empty(0, np.int64), np.empty((0, 4), np.int32))]
    start = 0
    while start < len(sources.first) - 1:
        stop = int(np.searchsorted(sources.first, sources.first[start] + _AT_ONCE, side="right")) - 1
        stop = max(stop, start + 1)
        runs = _patched(found, sources, start, stop)
        done.append(_framed(runs) if framed else encode_changes(*runs.changes, stop - start, height, width))
        start = stop
    counts, areas, boxes = zip(*done, strict=True)
    masks = EncodedMasks(
        tuple(one for many in counts for one in many), np.concatenate(areas), np.concatenate(boxes)
    )
    return masks, _frames(masks.boxes) if framed else None


def _patched(found: Found, sources: _Sources, start: int, stop: int) -> Spans:
    """Return the masks of some of the objects, in the image's frame."""
    cuts = sources.first[start : stop + 1] - sources.first[start]
    ids = sources.ids[sources.first[start] : sources.first[stop]]
    of = np.repeat(np.arange(stop - start), np.diff(cuts))
    runs = found.runs(ids)
    piece, cores = _foreign(found, ids, cuts)
    rank = np.arange(len(piece)) - np.searchsorted(piece, piece)
    for turn in range(int(rank.max(initial=-1)) + 1):
        boxes = np.zeros((len(ids), 4), np.int64)
        boxes[piece[rank == turn]] = cores[rank == turn]
        runs = runs.outside(boxes)
    # About the objects' own origins, so that numbers stay small in an image of any size.
    origin = np.minimum.reduceat(found.frames[ids, :2], cuts[:-1])
    left, top = origin.T
    return runs.shifted(-left[of], -top[of]).merged(of, stop - start).shifted(left, top)


def _foreign(found: Found, ids: Ints, cuts: Ints) -> tuple[Ints, Ints]:
    """Return where other windows of an object decide about a piece: which one, ascending, and their cores."""
    pieces, cores = [np.empty(0, np.int64)], [np.empty((0, 4), np.int64)]
    for index in np.flatnonzero(np.diff(cuts) > 1):
        here = np.arange(cuts[index], cuts[index + 1])
        windows, which = np.unique(found.window[ids[here]], return_index=True)
        owned, boxes = _cores(found, ids[here[which]]), found.mask_boxes[ids[here]]
        meet = (boxes[:, None, :2] < owned[:, 2:]).all(axis=2) & (owned[:, :2] < boxes[:, None, 2:]).all(
            axis=2
        )
        piece, window = np.nonzero(meet & (found.window[ids[here], None] != windows))
        pieces.append(here[piece])
        cores.append(owned[window])
    return np.concatenate(pieces), np.concatenate(cores)


def _frames(boxes: NDArray[np.int32]) -> NDArray[np.int32]:
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    return np.concatenate([boxes[:, :2], sizes], axis=1)


def _framed(runs: Spans) -> EncodedMasks:
    """Encode masks in their own frames."""
    boxes = runs.boxes.astype(np.int32)
    frames = _frames(boxes)
    of, column, row = runs.changes
    cuts = np.searchsorted(of, np.arange(runs.n + 1))
    counts: list[bytes] = []
    for frame, start, stop in zip(frames.tolist(), cuts, cuts[1:], strict=False):
        left, top, width, height = frame
        here = slice(start, stop)
        one = encode_changes(
            np.zeros(stop - start, np.int64), column[here] - left, row[here] - top, 1, height, width
        )
        counts.extend(one.counts)
    return EncodedMasks(tuple(counts), runs.areas, boxes)

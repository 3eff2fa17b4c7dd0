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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .rle import MAX_PIXELS, EncodedMasks, encode_changes
from .runs import Ints, Runs, ranges
from .types import Detections, detection_order
from .unrle import read_runs
from .windows import Grid, Rect

TOLERANCE_PX: Final = 4
"""By so much may two windows' masks of one object differ, each by half of it from the truth."""
MIN_IOU: Final = 0.5
"""Of two pieces inside of a strip, to be alike."""
MIN_SHARE: Final = 0.8
"""Of a piece inside of a strip that lies within the tolerance of the other, to be a part or a scrap of it."""

_REACH_PX: Final = 2 * TOLERANCE_PX  # how far a thin scrap may be
_SCRAP_PX: Final = 4 * TOLERANCE_PX  # what is no longer than this in a strip can be a neighbour's, or thin
_OUTWARDS: Final = np.array([-1, -1, 1, 1])
_CELL_PX: Final = 64  # of the mesh in which pieces that are close are found
_AT_ONCE: Final = 4096  # masks encoded

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


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
class Objects:
    """The whole objects of one image, as columns of equal length M, in `types.detection_order`."""

    height: int
    """Of the image, pixels."""
    width: int
    boxes: NDArray[np.float32]
    """(M, 4) xmin, ymin, xmax, ymax in pixels of the image."""
    labels: NDArray[np.int32]
    """(M,) category ids."""
    scores: NDArray[np.float32]
    """(M,) in [0, 1]."""
    masks: tuple[bytes, ...]
    """M COCO compressed RLE strings, over the image or over `frames`."""
    areas: NDArray[np.int64]
    """(M,) mask pixels."""
    mask_boxes: NDArray[np.int32]
    """(M, 4) of the mask's pixels in the image, the last two exclusive; zeros where it is empty."""
    frames: NDArray[np.int32] | None
    """(M, 4) col_off, row_off, width, height of the rectangle that a mask is drawn in, its tight box (one pixel where
    it is empty); None where the image has less than 2^32 pixels, and masks are drawn in all of it."""
    capped: bool
    """Whether a window reached the limit on detections, so that weaker objects may be missing."""
    object_of: NDArray[np.int32]
    """(N,) the object that each of the given pieces became part of."""

    def detections(self) -> Detections:
        """Return the same as any image's.

        Raises:
            ValueError: the masks are not drawn in the whole image.
        """
        if self.frames is not None:
            raise ValueError(f"{self.height} x {self.width} pixels do not fit a COCO mask")
        columns = (self.boxes, self.labels, self.scores, self.masks, self.areas, self.mask_boxes)
        return Detections(self.height, self.width, *columns, self.capped)


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
    found = _Found.of(grid, pieces, order)
    clusters = _clusters(_links(found), found)
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


@dataclass(frozen=True, slots=True)
class _Found:
    """The pieces in the order of their windows, and where they lie in the image; box columns as everywhere."""

    grid: Grid
    masks: list[bytes]
    window: Ints
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]
    boxes: Floats
    mask_boxes: Ints
    """Zeros where a mask is empty."""
    frames: Ints
    """(N, 4) of the windows."""
    whole: Bools
    """(N,) whether the mask keeps away from all borders of its window that are not the image's."""

    @classmethod
    def of(cls, grid: Grid, pieces: Pieces, order: NDArray[np.intp]) -> "_Found":
        window = pieces.window_id[order].astype(np.int64)
        row, column = np.divmod(window, len(grid.lefts))
        origin = np.stack([grid.lefts[column], grid.tops[row]] * 2, axis=1)
        frames = origin + np.array([0, 0, min(grid.window, grid.width), min(grid.window, grid.height)])
        local = pieces.mask_boxes[order].astype(np.int64)
        some = local[:, 2:3] > 0
        mask_boxes = np.where(some, local + origin, 0)
        image = np.array([0, 0, grid.width, grid.height])
        gap = np.abs(mask_boxes - frames)
        return cls(
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

    def runs(self, ids: Ints) -> Runs:
        """Return masks in the image's frame."""
        size = min(self.grid.window, self.grid.height), min(self.grid.window, self.grid.width)
        runs = read_runs([self.masks[i] for i in ids], *size)
        return runs.shifted(self.frames[ids, 0], self.frames[ids, 1])


# --- what two windows share -----------------------------------------------------------------------------------


class _Links(NamedTuple):
    """What the windows' strips say of the pieces: IoU in the strip, and two pieces."""

    alike: list[tuple[float, int, int]]
    parts: list[tuple[float, int, int]]
    """The first is part of the second."""
    scraps: dict[int, list[tuple[float, int, int]]]
    """By their first piece, a scrap of the second."""


def _links(found: _Found) -> _Links:
    links = _Links([], [], {})
    grid = found.grid
    windows, first = np.unique(found.window, return_index=True)
    slices = dict(zip(windows.tolist(), zip(first, np.append(first[1:], len(found.window)), strict=True), strict=True))
    for a, ours in slices.items():
        for b in grid.later_neighbours(a):
            if b in slices:
                shared = grid[a].shared(grid[b])
                pairs = _close(found, np.arange(*ours), np.arange(*slices[b]), _box(shared))
                if len(pairs[0]):
                    _compare(_side(found, pairs[0], shared, grid[a], grid[b]),
                             _side(found, pairs[1], shared, grid[b], grid[a]), _box(shared), links)  # fmt: skip
    return links


class _Side(NamedTuple):
    """One window's pieces of the pairs that are compared, (P,)."""

    ids: Ints
    near: Runs
    """In the strip, and around it by `_REACH_PX`."""
    here: Runs
    """In the strip."""
    area: Ints
    """Of what is here."""
    box: Ints
    """(P, 4) of what is here."""
    cut: Bools
    """Whether it comes near to the border of its window, inside of the other."""
    thin: Bools
    """Whether it does, and goes no further from there than `_SCRAP_PX`."""
    inside: Bools
    """Whether all of the mask is here."""

    def take(self, pairs: NDArray[np.intp]) -> "_Side":
        """Return some of the pairs."""
        runs = self.near.take(pairs), self.here.take(pairs)
        return _Side(self.ids[pairs], *runs, *(values[pairs] for values in self[3:]))

    def deep(self, strip: Ints) -> Runs:
        """Return what must belong to the object, by however much the mask is off."""
        return self.near.shrunk(TOLERANCE_PX // 2).within(strip)


def _side(found: _Found, ids: Ints, shared: Rect, own: Rect, other: Rect) -> _Side:
    pieces, pair = np.unique(ids, return_inverse=True)
    runs, strip = found.runs(pieces), _box(shared)
    near = runs.within(strip + _REACH_PX * _OUTWARDS)
    here = near.within(strip)
    area, box = here.areas, here.boxes
    borders = (_OUTWARDS * (_box(other) - _box(own)) > 0) & (area > 0)[:, None]
    cut = ((np.abs(box - strip) <= TOLERANCE_PX) & borders).any(axis=1)
    thin = ((np.abs(box[:, [2, 3, 0, 1]] - strip) <= _SCRAP_PX) & borders).any(axis=1)
    values = (area, box, cut, cut & thin, area == runs.areas)
    return _Side(ids, near.take(pair), here.take(pair), *(value[pair] for value in values))


def _compare(ours: _Side, theirs: _Side, strip: Ints, links: _Links) -> None:
    """Add what a strip says of pairs of pieces that are close in it."""
    iou = _iou(ours, theirs)
    common = np.minimum(ours.box, theirs.box)[:, 2:] - np.maximum(ours.box, theirs.box)[:, :2]
    scrap = (common.max(axis=1) <= _SCRAP_PX) & (ours.cut | theirs.cut)
    taken: set[int] = set()
    links.alike.extend(_partners(iou, ours.ids, theirs.ids, (iou >= MIN_IOU) & ~scrap, taken))

    rest = np.flatnonzero(~(np.isin(ours.ids, list(taken)) & np.isin(theirs.ids, list(taken))))
    if not len(rest):
        return
    ours, theirs, iou = ours.take(rest), theirs.take(rest), iou[rest]
    deep = ours.deep(strip).overlaps(theirs.deep(strip)) > 0
    shares = (_share(ours, theirs, TOLERANCE_PX), _share(theirs, ours, TOLERANCE_PX))
    alike = deep & ((iou >= MIN_IOU) | (np.minimum(*shares) >= MIN_SHARE))
    links.alike.extend(_partners(iou, ours.ids, theirs.ids, alike, taken))

    for one, other, share in ((ours, theirs, shares[0]), (theirs, ours, shares[1])):
        free = one.cut & ~np.isin(one.ids, list(taken))
        held = share >= MIN_SHARE
        scraps = free & one.inside & (held | (one.thin & (_share(one, other, _REACH_PX) >= MIN_SHARE)))
        for pair in np.flatnonzero(scraps):
            link = (float(iou[pair] + share[pair]), int(one.ids[pair]), int(other.ids[pair]))
            links.scraps.setdefault(link[1], []).append(link)
        for pair in np.flatnonzero(free & ~one.inside & held & deep):
            links.parts.append((float(iou[pair]), int(one.ids[pair]), int(other.ids[pair])))


def _iou(ours: _Side, theirs: _Side) -> Floats:
    common = ours.here.overlaps(theirs.here)
    return np.asarray(common / np.maximum(ours.area + theirs.area - common, 1))


def _share(one: _Side, other: _Side, pixels: int) -> Floats:
    """Return which share of the one's pixels in the strip is so near to the other."""
    return np.asarray(one.here.overlaps(other.near.grown(pixels)) / np.maximum(one.area, 1))


def _partners(iou: Floats, p: Ints, q: Ints, able: Bools, taken: set[int]) -> Iterator[tuple[float, int, int]]:
    """Yield the best pairs, in which each piece that is not yet taken is at most once."""
    order = np.lexsort((q, p, -iou))
    for pair in order[able[order]]:
        ours, theirs = int(p[pair]), int(q[pair])
        if ours not in taken and theirs not in taken:
            taken.update((ours, theirs))
            yield float(iou[pair]), ours, theirs


def _box(rect: Rect) -> Ints:
    return np.array([rect.col_off, rect.row_off, rect.right, rect.bottom])


def _close(found: _Found, a: Ints, b: Ints, strip: Ints) -> tuple[Ints, Ints]:
    """Return the pairs of pieces of one label whose boxes come close in or at a strip."""
    strip = strip + _REACH_PX * _OUTWARDS
    sides = []
    for ids in (a, b):
        boxes = found.mask_boxes[ids]
        boxes = np.concatenate([np.maximum(boxes[:, :2], strip[:2]), np.minimum(boxes[:, 2:], strip[2:])], axis=1)
        some = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        sides.append((ids[some], boxes[some] - np.tile(strip[:2], 2)))
    (a, ours), (b, theirs) = sides
    ours = ours + _REACH_PX * np.array([0, 0, 2, 2])  # grown, and moved so that nothing is negative
    theirs = theirs + _REACH_PX
    i, cells = _cells(ours, found.labels[a])
    j, other_cells = _cells(theirs, found.labels[b])
    order = np.argsort(other_cells, kind="stable")
    low, high = (np.searchsorted(other_cells[order], cells, side=side) for side in ("left", "right"))
    i, j = np.repeat(i, high - low), j[order[ranges(low, high - low)]]
    i, j = np.divmod(np.unique(i * len(b) + j), max(len(b), 1))
    meet = (ours[i, :2] < theirs[j, 2:]).all(axis=1) & (theirs[j, :2] < ours[i, 2:]).all(axis=1)
    return a[i[meet]], b[j[meet]]


def _cells(boxes: Ints, labels: NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Return the cells of a mesh that boxes cover: which box, and a number of label and cell."""
    first, last = boxes[:, :2] // _CELL_PX, (boxes[:, 2:] - 1) // _CELL_PX
    across, down = (last - first + 1).T
    owner = np.repeat(np.arange(len(boxes)), across * down)
    row, column = np.divmod(ranges(np.zeros_like(across), across * down), across[owner])
    column, row = column + first[owner, 0], row + first[owner, 1]
    return owner, (labels[owner].astype(np.int64) << 32) + (row << 16) + column


# --- which pieces are one object ------------------------------------------------------------------------------


class _Clusters(NamedTuple):
    """What becomes of each piece, (N,)."""

    label: Ints
    """Equal for pieces of one object."""
    composes: Bools
    """Whether the piece makes the object, or is a scrap of it."""


class _Forest:
    """Sets of pieces that are united unless two of one window must be different objects."""

    def __init__(self, found: _Found) -> None:
        self._parent: dict[int, int] = {}
        self._found = found
        self.members: dict[int, dict[int, list[int]]] = {}
        """Of each root with more than one piece: its pieces by window."""

    def root(self, piece: int) -> int:
        """Return the piece that stands for the set."""
        path = []
        while (parent := self._parent.get(piece, piece)) != piece:
            path.append(piece)
            piece = parent
        self._parent.update(dict.fromkeys(path, piece))
        return piece

    def pieces(self, root: int) -> dict[int, list[int]]:
        """Return a set's pieces by window."""
        return self.members.get(root) or {int(self._found.window[root]): [root]}

    def unite(self, p: int, q: int, *, parts: bool) -> None:
        """Unite two sets, if they have no window in common; parts also where both were cut in it."""
        large, small = self.root(p), self.root(q)
        if large == small:
            return
        into, other = self.pieces(large), self.pieces(small)
        if len(into) < len(other):
            large, small, into, other = small, large, other, into
        for window in other.keys() & into.keys():
            if not parts or self._found.whole[other[window] + into[window]].any():
                return
        for window, pieces in other.items():
            into.setdefault(window, []).extend(pieces)
        self._parent[small] = large
        self.members[large] = into
        self.members.pop(small, None)


def _clusters(links: _Links, found: _Found) -> _Clusters:
    forest = _Forest(found)
    for together, parts in ((links.alike, False), (links.parts, True)):
        for _, p, q in sorted(together, key=_best):
            forest.unite(p, q, parts=parts)
    host = _hosts(links.scraps, forest)
    label, composes = np.arange(len(found.window)), np.ones(len(found.window), np.bool_)
    for root in forest.members.keys() | host.keys():
        last, own = _last_host(root, host)
        for several in forest.pieces(root).values():
            label[several] = last
            composes[several] = own
    return _Clusters(label, composes)


def _hosts(scraps: dict[int, list[tuple[float, int, int]]], forest: _Forest) -> dict[int, int]:
    """Return for each set of nothing but scraps the one that it goes to: if it can, one that is more than scraps."""
    held: dict[int, list[tuple[float, int, int]]] = {}
    for root in {forest.root(scrap) for scrap in scraps}:
        pieces = [piece for several in forest.pieces(root).values() for piece in several]
        links = [link for piece in pieces for link in scraps.get(piece, ()) if forest.root(link[2]) != root]
        if links and all(piece in scraps for piece in pieces):
            held[root] = links
    return {
        root: forest.root(min(links, key=lambda link: (forest.root(link[2]) in held, _best(link)))[2])
        for root, links in held.items()
    }


def _best(link: tuple[float, int, int]) -> tuple[float, int, int]:
    return (-link[0], *link[1:])


def _last_host(root: int, host: dict[int, int]) -> tuple[int, bool]:
    """Return to which set one goes at last, and whether it is a scrap of none.

    Sets may be scraps of each other, where nothing but scraps was found: together they are the object.
    """
    path = [root]
    while (following := host.get(path[-1], path[-1])) not in path:
        path.append(following)
    ring = path[path.index(following) :]
    return min(ring), root in ring


# --- how an object looks --------------------------------------------------------------------------------------


class _Sources(NamedTuple):
    """The pieces that an object is drawn from: one that saw it whole, or all that compose it."""

    ids: Ints
    """(S,) pieces, those of one object together."""
    first: Ints
    """(M + 1,) where each object's begin in `ids`, and where the last's end."""


def _sources(found: _Found, members: Ints, owner: Ints, n: int) -> _Sources:
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


def _cores(found: _Found, ids: Ints) -> Ints:
    """Return the cores of pieces' windows, (N, 4)."""
    windows, which = np.unique(found.window[ids], return_inverse=True)
    return np.array([_box(found.grid.core(int(w))) for w in windows], np.int64).reshape(-1, 4)[which]


def _summed(
    found: _Found, sources: _Sources
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Return boxes, labels and scores of the objects."""
    first = sources.first[:-1]
    boxes, scores = found.boxes[sources.ids], found.scores[sources.ids]
    if not len(first):
        return boxes.astype(np.float32), found.labels[sources.ids], scores
    hulls = [np.minimum.reduceat(boxes[:, :2], first), np.maximum.reduceat(boxes[:, 2:], first)]
    labels = found.labels[sources.ids[first]]
    return np.concatenate(hulls, axis=1).astype(np.float32), labels, np.maximum.reduceat(scores, first)


def _drawn(found: _Found, sources: _Sources) -> tuple[EncodedMasks, NDArray[np.int32] | None]:
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
    masks = EncodedMasks(tuple(one for many in counts for one in many), np.concatenate(areas), np.concatenate(boxes))
    return masks, _frames(masks.boxes) if framed else None


def _patched(found: _Found, sources: _Sources, start: int, stop: int) -> Runs:
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
    return runs.shifted(-left[of], -top[of]).as_one(of, stop - start).shifted(left, top)


def _foreign(found: _Found, ids: Ints, cuts: Ints) -> tuple[Ints, Ints]:
    """Return where other windows of an object decide about a piece: which one, ascending, and their cores."""
    pieces, cores = [np.empty(0, np.int64)], [np.empty((0, 4), np.int64)]
    for index in np.flatnonzero(np.diff(cuts) > 1):
        here = np.arange(cuts[index], cuts[index + 1])
        windows, which = np.unique(found.window[ids[here]], return_index=True)
        owned, boxes = _cores(found, ids[here[which]]), found.mask_boxes[ids[here]]
        meet = (boxes[:, None, :2] < owned[:, 2:]).all(axis=2) & (owned[:, :2] < boxes[:, None, 2:]).all(axis=2)
        piece, window = np.nonzero(meet & (found.window[ids[here], None] != windows))
        pieces.append(here[piece])
        cores.append(owned[window])
    return np.concatenate(pieces), np.concatenate(cores)


def _frames(boxes: NDArray[np.int32]) -> NDArray[np.int32]:
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    return np.concatenate([boxes[:, :2], sizes], axis=1)


def _framed(runs: Runs) -> EncodedMasks:
    """Encode masks in their own frames."""
    boxes = runs.boxes.astype(np.int32)
    frames = _frames(boxes)
    of, column, row = runs.changes
    cuts = np.searchsorted(of, np.arange(runs.n + 1))
    counts = []
    for frame, start, stop in zip(frames.tolist(), cuts, cuts[1:], strict=False):
        left, top, width, height = frame
        here = slice(start, stop)
        one = encode_changes(np.zeros(stop - start, np.int64), column[here] - left, row[here] - top, 1, height, width)
        counts.extend(one.counts)
    return EncodedMasks(tuple(counts), runs.areas, boxes)

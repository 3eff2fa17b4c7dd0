"""Which detections of which windows are one object: matched in the overlaps that windows share.

The rules are those of `stitching`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..imaging.geometry import Rect
from ..masks.rle_decode import read_spans
from ..masks.spans import Ints, Spans, ranges
from .grid import Grid

TOLERANCE_PX: Final = 4
"""How far two windows' masks of one object may differ, each by half of it from the object."""
MIN_IOU: Final = 0.5
"""Least IoU of two detections within an overlap that match."""
MIN_SHARE: Final = 0.8
"""Least share of a detection within an overlap that lies within the tolerance of another, for it to be a part or a
fragment of that."""

_REACH_PX: Final = 2 * TOLERANCE_PX  # how far away a thin fragment may be
_FRAGMENT_PX: Final = (
    4 * TOLERANCE_PX
)  # what is no longer than this in an overlap can be a neighbour's, or thin
_OUTWARDS: Final = np.array([-1, -1, 1, 1])
_CELL_PX: Final = 64  # of the mesh in which close detections are found

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PlacedDetections:
    """The detections in the order of their windows, and their places in the image.

    Boxes are xmin, ymin, xmax, ymax in pixels of the image.
    """

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
    """(N,) whether the mask stays away from all borders of its window that are not the image's."""

    def spans(self, ids: Ints) -> Spans:
        """Return masks in the image's frame."""
        size = min(self.grid.window, self.grid.height), min(self.grid.window, self.grid.width)
        spans = read_spans([self.masks[i] for i in ids], *size)
        return spans.shifted(self.frames[ids, 0], self.frames[ids, 1])


# --- what two windows share -----------------------------------------------------------------------------------


class _Links(NamedTuple):
    """What the overlaps say of the detections: IoU within the overlap, and two detections."""

    matched: list[tuple[float, int, int]]
    parts: list[tuple[float, int, int]]
    """The first is part of the second."""
    fragments: dict[int, list[tuple[float, int, int]]]
    """By their first detection, which is a fragment of the second."""


def _links(placed: PlacedDetections) -> _Links:
    links = _Links([], [], {})
    grid = placed.grid
    windows, first, count = np.unique(placed.window, return_index=True, return_counts=True)
    slices = dict(zip(windows.tolist(), zip(first, first + count, strict=True), strict=True))
    # What crosses from one window into the next is not a fragment, however little they share.
    fragment_px = min(_FRAGMENT_PX, grid.overlap - _REACH_PX)
    for a, ours in slices.items():
        for b in grid.later_neighbours(a):
            if b not in slices:
                continue
            shared = grid[a].shared(grid[b])
            pairs = _close(placed, np.arange(*ours), np.arange(*slices[b]), box_of(shared))
            if len(pairs[0]):
                one = _side(placed, pairs[0], shared, grid[a], grid[b])
                other = _side(placed, pairs[1], shared, grid[b], grid[a])
                _compare(one, other, box_of(shared), fragment_px, links)
    return links


class _Side(NamedTuple):
    """One window's detections of the pairs that are compared, (P,)."""

    ids: Ints
    near: Spans
    """The masks within the overlap, and around it by `_REACH_PX`."""
    here: Spans
    """The masks within the overlap."""
    area: Ints
    """Of `here`, pixels."""
    box: Ints
    """(P, 4) of `here`."""
    cut: Bools
    """Whether the mask comes near the border of its window, inside the other window."""
    thin: Bools
    """Whether it does, and extends no further from there than `_FRAGMENT_PX`."""
    inside: Bools
    """Whether all of the mask is within the overlap."""

    def take(self, pairs: NDArray[np.intp]) -> "_Side":
        """Return some of the pairs."""
        return _Side(
            ids=self.ids[pairs],
            near=self.near.take(pairs),
            here=self.here.take(pairs),
            area=self.area[pairs],
            box=self.box[pairs],
            cut=self.cut[pairs],
            thin=self.thin[pairs],
            inside=self.inside[pairs],
        )

    def deep(self, overlap: Ints) -> Spans:
        """Return the pixels that belong to the object even if the mask is off by the tolerance."""
        return self.near.shrunk(TOLERANCE_PX // 2).within(overlap)


def _side(placed: PlacedDetections, ids: Ints, shared: Rect, own: Rect, other: Rect) -> _Side:
    detections, pair = np.unique(ids, return_inverse=True)
    spans, overlap = placed.spans(detections), box_of(shared)
    near = spans.within(overlap + _REACH_PX * _OUTWARDS)
    here = near.within(overlap)
    area, box = here.areas, here.boxes
    borders = (_OUTWARDS * (box_of(other) - box_of(own)) > 0) & (area > 0)[:, None]
    cut = ((np.abs(box - overlap) <= TOLERANCE_PX) & borders).any(axis=1)
    thin = ((np.abs(box[:, [2, 3, 0, 1]] - overlap) <= _FRAGMENT_PX) & borders).any(axis=1)
    return _Side(detections, near, here, area, box, cut, cut & thin, area == spans.areas).take(pair)


def _compare(ours: _Side, theirs: _Side, overlap: Ints, fragment_px: int, links: _Links) -> None:
    """Add to the links what an overlap says of pairs of detections that are close in it."""
    iou = _iou(ours, theirs)
    common = np.minimum(ours.box, theirs.box)[:, 2:] - np.maximum(ours.box, theirs.box)[:, :2]
    fragment = (common.max(axis=1) <= fragment_px) & (ours.cut | theirs.cut)
    taken: set[int] = set()
    links.matched.extend(_partners(iou, ours.ids, theirs.ids, (iou >= MIN_IOU) & ~fragment, taken))

    rest = np.flatnonzero(~(np.isin(ours.ids, list(taken)) & np.isin(theirs.ids, list(taken))))
    if not len(rest):
        return
    ours, theirs, iou = ours.take(rest), theirs.take(rest), iou[rest]
    deep = ours.deep(overlap).overlaps(theirs.deep(overlap)) > 0
    shares = (_share(ours, theirs, TOLERANCE_PX), _share(theirs, ours, TOLERANCE_PX))
    matched = deep & ((iou >= MIN_IOU) | (np.minimum(*shares) >= MIN_SHARE))
    links.matched.extend(_partners(iou, ours.ids, theirs.ids, matched, taken))

    for one, other, share in ((ours, theirs, shares[0]), (theirs, ours, shares[1])):
        free = one.cut & ~np.isin(one.ids, list(taken))
        held = share >= MIN_SHARE
        fragments = free & one.inside & (held | (one.thin & (_share(one, other, _REACH_PX) >= MIN_SHARE)))
        for pair in np.flatnonzero(fragments):
            link = (float(iou[pair] + share[pair]), int(one.ids[pair]), int(other.ids[pair]))
            links.fragments.setdefault(link[1], []).append(link)
        for pair in np.flatnonzero(free & ~one.inside & held & deep):
            links.parts.append((float(iou[pair]), int(one.ids[pair]), int(other.ids[pair])))


def _iou(ours: _Side, theirs: _Side) -> Floats:
    common = ours.here.overlaps(theirs.here)
    return np.asarray(common / np.maximum(ours.area + theirs.area - common, 1))


def _share(one: _Side, other: _Side, pixels: int) -> Floats:
    """Return the share of the one's pixels in the overlap that are at most so many pixels away from the other."""
    return np.asarray(one.here.overlaps(other.near.grown(pixels)) / np.maximum(one.area, 1))


def _partners(
    iou: Floats, p: Ints, q: Ints, able: Bools, taken: set[int]
) -> Iterator[tuple[float, int, int]]:
    """Yield the best of the pairs that are `able`; each detection that is not yet taken is in at most one."""
    order = np.lexsort((q, p, -iou))
    for pair in order[able[order]]:
        ours, theirs = int(p[pair]), int(q[pair])
        if ours not in taken and theirs not in taken:
            taken.update((ours, theirs))
            yield float(iou[pair]), ours, theirs


def box_of(rect: Rect) -> Ints:
    """Return a rectangle as a box: left, top, right, bottom."""
    return np.array([rect.col_off, rect.row_off, rect.right, rect.bottom])


def _close(placed: PlacedDetections, a: Ints, b: Ints, overlap: Ints) -> tuple[Ints, Ints]:
    """Return the pairs of detections of one label whose boxes come close in or at an overlap."""
    overlap = overlap + _REACH_PX * _OUTWARDS
    sides = []
    for ids in (a, b):
        boxes = placed.mask_boxes[ids]
        boxes = np.concatenate(
            [np.maximum(boxes[:, :2], overlap[:2]), np.minimum(boxes[:, 2:], overlap[2:])], axis=1
        )
        some = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        sides.append((ids[some], boxes[some] - np.tile(overlap[:2], 2)))
    (a, ours), (b, theirs) = sides
    ours = ours + _REACH_PX * np.array([0, 0, 2, 2])  # grown, and moved so that nothing is negative
    theirs = theirs + _REACH_PX
    i, cells = _cells(ours, placed.labels[a])
    j, other_cells = _cells(theirs, placed.labels[b])
    order = np.argsort(other_cells, kind="stable")
    low, high = (np.searchsorted(other_cells[order], cells, side=side) for side in ("left", "right"))
    i, j = np.repeat(i, high - low), j[order[ranges(low, high - low)]]
    i, j = np.divmod(np.unique(i * len(b) + j), max(len(b), 1))
    meet = (ours[i, :2] < theirs[j, 2:]).all(axis=1) & (theirs[j, :2] < ours[i, 2:]).all(axis=1)
    return a[i[meet]], b[j[meet]]


def _cells(boxes: Ints, labels: NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Return the cells of a mesh that boxes cover: the index of the box, and a number for label and cell."""
    first, last = boxes[:, :2] // _CELL_PX, (boxes[:, 2:] - 1) // _CELL_PX
    across, down = (last - first + 1).T
    owner = np.repeat(np.arange(len(boxes)), across * down)
    row, column = np.divmod(ranges(np.zeros_like(across), across * down), across[owner])
    column, row = column + first[owner, 0], row + first[owner, 1]
    return owner, (labels[owner].astype(np.int64) << 32) + (row << 16) + column


# --- which detections are one object --------------------------------------------------------------------------


class Clusters(NamedTuple):
    """The object of each detection, (N,)."""

    label: Ints
    """Equal for the detections of one object."""
    composes: Bools
    """Whether the detection composes the object; otherwise it is a fragment of it."""


class _Forest:
    """Sets of detections, united unless two of one window must be different objects."""

    def __init__(self, placed: PlacedDetections) -> None:
        self._parent: dict[int, int] = {}
        self._placed = placed
        self.members: dict[int, dict[int, list[int]]] = {}
        """For each root of more than one detection: its detections by window."""

    def root(self, detection: int) -> int:
        """Return the detection that represents the set."""
        path = []
        while (parent := self._parent.get(detection, detection)) != detection:
            path.append(detection)
            detection = parent
        self._parent.update(dict.fromkeys(path, detection))
        return detection

    def detections(self, root: int) -> dict[int, list[int]]:
        """Return a set's detections by window."""
        return self.members.get(root) or {int(self._placed.window[root]): [root]}

    def unite(self, p: int, q: int, *, parts: bool) -> None:
        """Unite two sets if they have no window in common; as parts, also where both were cut in it."""
        large, small = self.root(p), self.root(q)
        if large == small:
            return
        into, other = self.detections(large), self.detections(small)
        if len(into) < len(other):
            large, small, into, other = small, large, other, into
        for window in other.keys() & into.keys():
            if not parts or self._placed.whole[other[window] + into[window]].any():
                return
        for window, detections in other.items():
            into.setdefault(window, []).extend(detections)
        self._parent[small] = large
        self.members[large] = into
        self.members.pop(small, None)


def clusters_of(placed: PlacedDetections) -> Clusters:
    """Return which detections are one object."""
    links = _links(placed)
    forest = _Forest(placed)
    for together, parts in ((links.matched, False), (links.parts, True)):
        for _, p, q in sorted(together, key=_best):
            forest.unite(p, q, parts=parts)
    host = _hosts(links.fragments, forest)
    label, composes = np.arange(len(placed.window)), np.ones(len(placed.window), np.bool_)
    for root in forest.members.keys() | host.keys():
        last, own = _last_host(root, host)
        for several in forest.detections(root).values():
            label[several] = last
            composes[several] = own
    return Clusters(label, composes)


def _hosts(fragments: dict[int, list[tuple[float, int, int]]], forest: _Forest) -> dict[int, int]:
    """Return the set that each set of fragments alone belongs to: among the best, one that has more than fragments."""
    held: dict[int, list[tuple[float, int, int]]] = {}
    for root in {forest.root(fragment) for fragment in fragments}:
        detections = [detection for several in forest.detections(root).values() for detection in several]
        links = [
            link
            for detection in detections
            for link in fragments.get(detection, ())
            if forest.root(link[2]) != root
        ]
        if links and all(detection in fragments for detection in detections):
            held[root] = links
    host = {}
    for root, links in held.items():
        near = max(link[0] for link in links) - MIN_IOU
        good = [(forest.root(link[2]) in held, *_best(link)) for link in links if link[0] >= near]
        host[root] = forest.root(min(good)[3])
    return host


def _best(link: tuple[float, int, int]) -> tuple[float, int, int]:
    return (-link[0], *link[1:])


def _last_host(root: int, host: dict[int, int]) -> tuple[int, bool]:
    """Return the set that one belongs to in the end, and whether it is itself (part of) the object.

    Sets may be fragments of each other, where only fragments were found: together they are the object.
    """
    path = [root]
    while (following := host.get(path[-1], path[-1])) not in path:
        path.append(following)
    ring = path[path.index(following) :]
    return min(ring), root in ring

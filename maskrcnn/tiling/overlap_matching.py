"""Determine which window detections belong to one object, by matching them inside the overlaps of windows.

The rules are described in `stitching`.
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
"""The maximum difference of two windows' masks of one object; each differs from the ground truth by up to half."""
MIN_IOU: Final = 0.5
"""The minimum IoU of two matched detections inside an overlap."""
MIN_SHARE: Final = 0.8
"""The minimum share of a part or fragment, inside an overlap, within the tolerance of the other detection."""

_REACH_PX: Final = 2 * TOLERANCE_PX  # the maximum distance of a thin fragment
_FRAGMENT_PX: Final = (
    4 * TOLERANCE_PX
)  # anything up to this length in an overlap may belong to a neighbour, or be thin
_OUTWARDS: Final = np.array([-1, -1, 1, 1])
_CELL_PX: Final = 64  # the cell size of the mesh used to find detections that are close

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PlacedDetections:
    """The window detections in the order of their windows, as columns of length N, in pixels of the image.

    Boxes are (N, 4) xmin, ymin, xmax, ymax.
    """

    grid: Grid
    masks: list[bytes]
    window: Ints
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]
    boxes: Floats
    mask_boxes: Ints
    """(N, 4) tight boxes of the masks, the last two exclusive; zeros for an empty mask."""
    frames: Ints
    """(N, 4) boxes of the windows."""
    whole: Bools
    """(N,) whether the mask is further than the tolerance from all borders of its window inside the image."""

    def spans(self, ids: Ints) -> Spans:
        """Return the masks of detections in the frame of the image."""
        size = min(self.grid.window, self.grid.height), min(self.grid.window, self.grid.width)
        spans = read_spans([self.masks[i] for i in ids], *size)
        return spans.shifted(self.frames[ids, 0], self.frames[ids, 1])


# --- the overlap of two windows -----------------------------------------------------------------------------------


class _Links(NamedTuple):
    """The links between detections in the overlaps of windows: IoU in the overlap, and two detections."""

    matched: list[tuple[float, int, int]]
    parts: list[tuple[float, int, int]]
    """The first detection is part of the second."""
    fragments: dict[int, list[tuple[float, int, int]]]
    """By their first detection, which is a fragment of the second."""


def _links(placed: PlacedDetections) -> _Links:
    links = _Links([], [], {})
    grid = placed.grid
    windows, first, count = np.unique(placed.window, return_index=True, return_counts=True)
    slices = dict(zip(windows.tolist(), zip(first, first + count, strict=True), strict=True))
    # A detection that crosses the whole overlap is not a fragment, however small the overlap.
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
    """The detections of one window in P pairs to compare, (P,) each."""

    ids: Ints
    near: Spans
    """The masks in the overlap extended by `_REACH_PX`."""
    here: Spans
    """The masks in the overlap."""
    area: Ints
    """The area of each mask in the overlap."""
    box: Ints
    """(P, 4) the box of each mask in the overlap."""
    cut: Bools
    """Whether the mask comes close to a border of its window that lies inside the other window."""
    thin: Bools
    """Whether it is cut, and extends no further than `_FRAGMENT_PX` from that border."""
    inside: Bools
    """Whether the whole mask is in the overlap."""

    def take(self, pairs: NDArray[np.intp]) -> "_Side":
        """Return the pairs with the given indices."""
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
        """Return the pixels that belong to the object whatever the error of the mask within the tolerance."""
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
    """Add the links of pairs of detections that are close in an overlap."""
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
    """Return the share of the pixels of `one` in the overlap that are within `pixels` of `other`."""
    return np.asarray(one.here.overlaps(other.near.grown(pixels)) / np.maximum(one.area, 1))


def _partners(
    iou: Floats, p: Ints, q: Ints, able: Bools, taken: set[int]
) -> Iterator[tuple[float, int, int]]:
    """Yield the best pairs; each detection is in at most one pair, and those in `taken` in none."""
    order = np.lexsort((q, p, -iou))
    for pair in order[able[order]]:
        ours, theirs = int(p[pair]), int(q[pair])
        if ours not in taken and theirs not in taken:
            taken.update((ours, theirs))
            yield float(iou[pair]), ours, theirs


def box_of(rect: Rect) -> Ints:
    """Return a rectangle as a box: left, top, right, bottom; the last two exclusive."""
    return np.array([rect.col_off, rect.row_off, rect.right, rect.bottom])


def _close(placed: PlacedDetections, a: Ints, b: Ints, overlap: Ints) -> tuple[Ints, Ints]:
    """Return the pairs of detections with the same label whose boxes are close in or near an overlap."""
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
    ours = ours + _REACH_PX * np.array(
        [0, 0, 2, 2]
    )  # extended, and shifted so that no coordinate is negative
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
    """Return the cells of a mesh that boxes cover: the index of the box, and a key of label and cell."""
    first, last = boxes[:, :2] // _CELL_PX, (boxes[:, 2:] - 1) // _CELL_PX
    across, down = (last - first + 1).T
    owner = np.repeat(np.arange(len(boxes)), across * down)
    row, column = np.divmod(ranges(np.zeros_like(across), across * down), across[owner])
    column, row = column + first[owner, 0], row + first[owner, 1]
    return owner, (labels[owner].astype(np.int64) << 32) + (row << 16) + column


# --- clusters of detections ------------------------------------------------------------------------------


class Clusters(NamedTuple):
    """The assignment of detections to objects, (N,) each."""

    label: Ints
    """Equal for the detections of one object."""
    composes: Bools
    """Whether the detection contributes to the object; otherwise it is a fragment of it."""


class _Forest:
    """Disjoint sets of detections, not united if two detections of one window must be different objects."""

    def __init__(self, placed: PlacedDetections) -> None:
        self._parent: dict[int, int] = {}
        self._placed = placed
        self.members: dict[int, dict[int, list[int]]] = {}
        """The detections of each set with more than one, by root and by window."""

    def root(self, detection: int) -> int:
        """Return the representative of the set of a detection."""
        path = []
        while (parent := self._parent.get(detection, detection)) != detection:
            path.append(detection)
            detection = parent
        self._parent.update(dict.fromkeys(path, detection))
        return detection

    def detections(self, root: int) -> dict[int, list[int]]:
        """Return the detections of a set by window."""
        return self.members.get(root) or {int(self._placed.window[root]): [root]}

    def unite(self, p: int, q: int, *, parts: bool) -> None:
        """Unite two sets if they have no window in common; with `parts`, also if both are cut in the common ones."""
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
    """Return the assignment of window detections to objects."""
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
    """Return the host of each set that consists of fragments only: the best one, preferably not only of fragments."""
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
    """Return the final host of a set, and whether the set contributes to the object.

    Sets may be fragments of each other if only fragments were detected: together they form the object.
    """
    path = [root]
    while (next_root := host.get(path[-1], path[-1])) not in path:
        path.append(next_root)
    cycle = path[path.index(next_root) :]
    return min(cycle), root in cycle

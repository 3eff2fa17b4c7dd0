"""COCO's matching of detections with objects of the ground truth, for all images of a batch at once.

The rule is that of `COCOeval.evaluateImg`: within an image and a category the detections are matched in order of score,
each with the free object of the highest IoU, separately at each IoU threshold and in each range of sizes; an object
that does not count is matched only where no other is left, and a crowd may be matched by many detections. pycocotools
does it in Python, object by object. Here the first detections of all images are matched at once, then the second, ….

Reference: https://github.com/cocodataset/cocoapi, `PythonAPI/pycocotools/cocoeval.py`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

IOUS: Final = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds, as pycocotools computes them."""
AREAS: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
)
"""COCO's ranges of sizes in square pixels; both ends belong to a range."""
_PAIRS: Final = 2**21
"""The number of pairs of a detection and an object whose IoU is held at once."""


class Edges(NamedTuple):
    """Pairs of a detection and an object that overlap enough for the lowest threshold, in any order."""

    detections: NDArray[np.int64]
    """(E,) the place of the detection."""
    objects: NDArray[np.int64]
    """(E,) the place of the object."""
    iou: NDArray[np.float64]
    """(E,)"""

    def taken(self, rows: NDArray[Any]) -> "Edges":
        """Return some of them, by a mask or by places."""
        return Edges(self.detections[rows], self.objects[rows], self.iou[rows])


class Matches(NamedTuple):
    """The matches of D detections at T thresholds and in A ranges of sizes."""

    matched: NDArray[np.bool_]
    """(D, T, A)"""
    ignored: NDArray[np.bool_]
    """(D, T, A) neither true nor false positive: matched with an object that does not count, or unmatched and of
    another size."""
    partner: NDArray[np.int64]
    """(D,) the object matched at the first threshold in the first range; -1: none."""
    iou: NDArray[np.float64]
    """(D,) with that object, else 0."""

    def taken(self, rows: NDArray[Any]) -> "Matches":
        """Return the matches of some detections."""
        return Matches(self.matched[rows], self.ignored[rows], self.partner[rows], self.iou[rows])


def outside(areas: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (N, 4) which of N areas lie outside of each range of `AREAS`."""
    low, high = np.array(list(AREAS.values())).T
    return np.asarray((areas[:, None] < low) | (areas[:, None] > high))


def overlaps(
    detections: Sequence[Any] | NDArray[np.float64],
    objects: Sequence[Any] | NDArray[np.float64],
    crowd: NDArray[np.bool_],
) -> Edges:
    """Return the pairs of one image whose IoU reaches the lowest threshold.

    The IoU with a crowd is the share of the detection that it covers.

    Args:
        detections: D masks as `pycocotools.mask` takes them, or (D, 4) boxes x, y, width, height.
        objects: G of the same, of the ground truth.
        crowd: (G,) which objects are crowds.
    """
    kept = []
    rows = max(1, _PAIRS // max(1, len(objects)))
    for start in range(0, len(detections) if len(objects) else 0, rows):
        ious = np.asarray(coco_mask.iou(detections[start : start + rows], objects, crowd.astype(np.uint8)))
        d, g = np.nonzero(ious >= IOUS[0])
        kept.append(Edges(d + start, g, ious[d, g]))
    return joined(kept)


def joined(edges: Sequence[Edges]) -> Edges:
    """Return the edges of several images as one; all places must refer to the same detections and objects."""
    return Edges(
        np.concatenate([np.empty(0, np.int64), *(one.detections for one in edges)]),
        np.concatenate([np.empty(0, np.int64), *(one.objects for one in edges)]),
        np.concatenate([np.empty(0), *(one.iou for one in edges)]),
    )


def match(
    edges: Edges,
    group: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    thresholds: NDArray[np.float64] = IOUS,
) -> Matches:
    """Match detections with objects, as COCO does.

    Args:
        edges: between detections and objects of the same group only.
        group: (D,) the image and category of each detection, ascending; within a group they are in order of score,
            descending, and those with equal scores in the order in which they are matched.
        crowd: (G,) which objects are crowds. The objects of a group are in the order of the ground truth.
        ignored: (G, A) which objects do not count in each range of sizes.
        outside: (D, A) which detections are outside of each range of sizes.
        thresholds: (T,) of IoU, ascending, none below the least IoU of an edge.
    """
    n, shape = len(group), (len(thresholds), ignored.shape[1])
    matches = Matches(
        np.zeros((n, *shape), np.bool_),
        np.zeros((n, *shape), np.bool_),
        np.full(n, -1, np.int64),
        np.zeros(n),
    )
    free = np.ones((len(crowd), *shape), np.bool_)
    # By preference: of equal IoUs COCO takes the object that comes last.
    edges = edges.taken(np.lexsort((-edges.objects, -edges.iou, edges.detections)))
    choosing, first, counts = np.unique(edges.detections, return_index=True, return_counts=True)
    groups = group[choosing]
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    turn = np.arange(len(choosing)) - np.repeat(begins, np.diff(begins, append=len(choosing)))
    by_turn = np.argsort(turn, kind="stable")
    for now in np.split(by_turn, np.flatnonzero(np.diff(turn[by_turn])) + 1):
        if len(now):
            _choose(choosing[now], first[now], counts[now], edges, free, crowd, ignored, thresholds, matches)
    matches.ignored[...] |= ~matches.matched & outside[:, None, :]
    return matches


def _choose(
    choosing: NDArray[np.int64],
    first: NDArray[np.int64],
    counts: NDArray[np.int64],
    edges: Edges,
    free: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
    matches: Matches,
) -> None:
    """Match one detection of each group, and mark the objects as no longer free."""
    each = np.arange(counts.max())
    there = each < counts[:, None]
    at = np.where(there, first[:, None] + each, 0)
    objects, iou = edges.objects[at], np.where(there, edges.iou[at], -1.0)  # (n, k), the preferred first
    may = free[objects] & (iou[:, :, None, None] >= thresholds[:, None])  # (n, k, T, A)
    counted = may & ~ignored[objects][:, :, None, :]
    any_counted, hit = np.asarray(counted.any(axis=1)), np.asarray(may.any(axis=1))  # (n, T, A)
    pick = np.where(any_counted, counted.argmax(axis=1), may.argmax(axis=1))
    matches.matched[choosing] = hit
    matches.ignored[choosing] = hit & ~any_counted

    d, t, a = np.nonzero(hit)
    taken = objects[d, pick[d, t, a]]
    alone = ~crowd[taken]
    free[taken[alone], t[alone], a[alone]] = False
    strict = np.flatnonzero(hit[:, 0, 0])
    best = pick[strict, 0, 0]
    matches.partner[choosing[strict]] = objects[strict, best]
    matches.iou[choosing[strict]] = iou[strict, best]

"""COCO's matching of what was found with what is there, for all images of a batch at once.

The rule is `COCOeval.evaluateImg`'s: within an image and a category the detections choose in order of score, each the
free object of the highest IoU, at each IoU threshold and in each range of sizes anew; an object that does not count
is taken only where no other is left, and one that is a crowd may be taken by many. pycocotools does it in Python,
object by object. Here the first detections of all images choose at once, then the second ones, and so on.

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
"""Of a detection and an object, whose IoU is held at once."""


class Edges(NamedTuple):
    """Pairs of a detection and an object that overlap enough for some threshold, in any order."""

    found: NDArray[np.int64]
    """(E,) which detection."""
    truth: NDArray[np.int64]
    """(E,) which object."""
    iou: NDArray[np.float64]
    """(E,)"""

    def taken(self, rows: NDArray[Any]) -> "Edges":
        """Return some of them: a mask, or numbers."""
        return Edges(self.found[rows], self.truth[rows], self.iou[rows])


class Matches(NamedTuple):
    """What became of D detections at T thresholds and in A ranges of sizes."""

    matched: NDArray[np.bool_]
    """(D, T, A)"""
    ignored: NDArray[np.bool_]
    """(D, T, A) neither right nor wrong: matched with what does not count, or unmatched and of another size."""
    partner: NDArray[np.int64]
    """(D,) the object matched at the first threshold in the first range; -1: none."""
    iou: NDArray[np.float64]
    """(D,) with that object, else 0."""

    def taken(self, rows: NDArray[Any]) -> "Matches":
        """Return those of some detections."""
        return Matches(self.matched[rows], self.ignored[rows], self.partner[rows], self.iou[rows])


def outside(areas: NDArray[Any]) -> NDArray[np.bool_]:
    """Return of N areas which lie outside of each range of `AREAS`, (N, 4)."""
    low, high = np.array(list(AREAS.values())).T
    return np.asarray((areas[:, None] < low) | (areas[:, None] > high))


def overlaps(
    found: Sequence[Any] | NDArray[np.float64],
    truth: Sequence[Any] | NDArray[np.float64],
    crowd: NDArray[np.bool_],
) -> Edges:
    """Return the pairs of one image whose IoU reaches the lowest threshold; of a crowd, the share of the detection.

    Args:
        found: D masks as `pycocotools.mask` takes them, or (D, 4) boxes x, y, width, height.
        truth: G of the same.
        crowd: (G,) which of them are crowds.
    """
    kept = []
    rows = max(1, _PAIRS // max(1, len(truth)))
    for start in range(0, len(found) if len(truth) else 0, rows):
        ious = np.asarray(coco_mask.iou(found[start : start + rows], truth, crowd.astype(np.uint8)))
        d, g = np.nonzero(ious >= IOUS[0])
        kept.append(Edges(d + start, g, ious[d, g]))
    return joined(kept)


def joined(edges: Sequence[Edges]) -> Edges:
    """Return the edges of several images as one; their numbers are to be of the same detections and objects."""
    return Edges(
        np.concatenate([np.empty(0, np.int64), *(one.found for one in edges)]),
        np.concatenate([np.empty(0, np.int64), *(one.truth for one in edges)]),
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
        group: (D,) the image and category of each detection, ascending; in a group they stand by score descending,
            and those of one score in the order in which they choose.
        crowd: (G,) which objects are crowds. Objects of a group are numbered in the order of the ground truth.
        ignored: (G, A) which objects do not count in which range of sizes.
        outside: (D, A) which detections are not of that size.
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
    edges = edges.taken(np.lexsort((-edges.truth, -edges.iou, edges.found)))
    choosing, first, counts = np.unique(edges.found, return_index=True, return_counts=True)
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
    """Let one detection of each group choose, and mark what they take as no longer free."""
    each = np.arange(counts.max())
    there = each < counts[:, None]
    at = np.where(there, first[:, None] + each, 0)
    truth, iou = edges.truth[at], np.where(there, edges.iou[at], -1.0)  # (n, k), the preferred first
    may = free[truth] & (iou[:, :, None, None] >= thresholds[:, None])  # (n, k, T, A)
    counted = may & ~ignored[truth][:, :, None, :]
    any_counted, hit = np.asarray(counted.any(axis=1)), np.asarray(may.any(axis=1))  # (n, T, A)
    pick = np.where(any_counted, counted.argmax(axis=1), may.argmax(axis=1))
    matches.matched[choosing] = hit
    matches.ignored[choosing] = hit & ~any_counted

    d, t, a = np.nonzero(hit)
    taken = truth[d, pick[d, t, a]]
    alone = ~crowd[taken]
    free[taken[alone], t[alone], a[alone]] = False
    strict = np.flatnonzero(hit[:, 0, 0])
    best = pick[strict, 0, 0]
    matches.partner[choosing[strict]] = truth[strict, best]
    matches.iou[choosing[strict]] = iou[strict, best]

"""Evaluate a batch of whole images: matches for average precision, counts of each image, and the confusion matrix.

Detections and objects come as columns and leave as tallies, so that batches may be evaluated anywhere, in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .average_precision import Tally
from .matching import IOUS, Edges, Matches, joined, match, outside, overlaps

Kind = Literal["segm", "bbox"]
KINDS: Final[tuple[Kind, ...]] = ("bbox", "segm")
COUNTED_SCORE: Final = 0.5
"""The score from which a detection is in an image's counts and in the confusion matrix, at an IoU of at least 0.5."""

COUNTS: Final[Mapping[str, type[np.generic]]] = {
    "n_ground_truth": np.int32,
    "n_detections": np.int32,
    "true_positives": np.int32,
    "false_negatives": np.int32,
    "false_positives": np.int32,
    "pq": np.float32,
}
"""The columns of `Counts`, and their types."""


@dataclass(frozen=True, slots=True)
class Objects:
    """N objects of a batch, detections or ground truth, in ascending order of their image."""

    image: NDArray[np.int64]
    """(N,) place of the image in the batch, from 0."""
    category: NDArray[np.int32]
    """(N,) from 0."""
    boxes: NDArray[np.float64]
    """(N, 4) x, y, width, height."""
    masks: Sequence[dict[str, Any]] | None
    """N masks as `pycocotools.mask` takes them; None: only boxes are evaluated."""

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, slots=True)
class Detected:
    """Detections: of equal scores the earlier one is matched first."""

    objects: Objects
    score: NDArray[Any]
    """(N,)"""
    mask_area: NDArray[np.int64]
    """(N,) pixels."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The objects of the ground truth, in its order."""

    objects: Objects
    area: NDArray[np.float64]
    """(N,) as the ground truth states it."""
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of I images, of detections with a score of at least `COUNTED_SCORE`, at an IoU of at least 0.5."""

    objects: NDArray[np.int32]
    """(I,) objects of the ground truth, crowds left out."""
    detections: NDArray[np.int32]
    true_positives: NDArray[np.int32]
    false_positives: NDArray[np.int32]
    """(I,) detections that are neither matched nor in a crowd."""
    pq: NDArray[np.float32]
    """(I,) panoptic quality, all categories together: the sum of matched IoUs / (true positives + half of the false
    negatives and false positives); 1 where there are neither objects nor detections."""

    @property
    def false_negatives(self) -> NDArray[np.int32]:
        """(I,) objects that no detection matches."""
        return self.objects - self.true_positives

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of `COUNTS`."""
        own = {"n_ground_truth": self.objects, "n_detections": self.detections}
        return {name: own[name] if name in own else getattr(self, name) for name in COUNTS}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Which detections and objects of a batch were matched, at a score of `COUNTED_SCORE` and an IoU of 0.5."""

    detections: NDArray[np.int64]
    """(D,) places in `Detected` of the detections with that score, ascending."""
    detections_matched: NDArray[np.bool_]
    """(D,) false: the detection is a false positive; true also if it was matched with a crowd."""
    objects_matched: NDArray[np.bool_]
    """(G,) of `Expected`; false: the object is a false negative; true also for crowds."""


@dataclass(frozen=True, slots=True)
class ScoredImages:
    """The result of a batch."""

    tallies: Mapping[Kind, Tally]
    counts: Counts
    confusion: NDArray[np.int64]
    """(K + 1, K + 1) category in the ground truth by category of the detection; the last row and column are the
    background."""
    truncated: NDArray[np.bool_]
    """(I,) images with more detections of a category than count."""
    outcomes: Outcomes


def worst_first(pq: NDArray[Any], faults: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Return the places of at most `count` images with faults: the lowest panoptic quality first, then the most faults.

    Args:
        pq: (I,) of `Counts`.
        faults: (I,) false positives and false negatives.
        count: maximum number of images.
    """
    order = np.lexsort((-faults, pq))[:count]
    return order[faults[order] > 0]


def score_images(
    detected: Detected, expected: Expected, order: NDArray[np.int64], categories: int, max_dets: int
) -> ScoredImages:
    """Evaluate a batch of images.

    Args:
        detected: the detections in them.
        expected: the objects of the ground truth.
        order: (I,) rank of each image among all, by which equal scores of two images are ordered.
        categories: their number, K.
        max_dets: the maximum number of detections of a category in an image that count for average precision.
    """
    detected, group, rank, place = _ranked(detected, categories)
    detections, objects = detected.objects, expected.objects
    n_images = len(order)
    over = np.bincount(detections.image[rank >= max_dets], minlength=n_images) > 0
    kept = (rank < max_dets) | (detected.score >= COUNTED_SCORE)
    detected, group, rank, place = _taken(detected, kept), group[kept], rank[kept], place[kept]
    detections = detected.objects

    size = outside(expected.area)
    uncounted = size | expected.crowd[:, None]
    positives = np.zeros((categories, size.shape[1]), np.int64)
    np.add.at(positives, objects.category, ~uncounted)
    kinds: tuple[Kind, ...] = (
        KINDS if detections.masks is not None and objects.masks is not None else ("bbox",)
    )
    tallies: dict[Kind, Tally] = {}
    scored = rank < max_dets
    for kind in kinds:
        edges = _edges(kind, detections, objects, expected.crowd)
        same = detections.category[edges.detections] == objects.category[edges.objects]
        areas = detected.mask_area if kind == "segm" else detections.boxes[:, 2] * detections.boxes[:, 3]
        matches = match(edges.taken(same), group, expected.crowd, uncounted, outside(areas))
        tallies[kind] = Tally.of(
            matches.taken(scored),
            detections.category[scored],
            detected.score[scored],
            order[detections.image[scored]],
            rank[scored],
            positives,
        )
    # By masks where there are masks: the last of the kinds.
    counts, free = _counts(detected, expected, matches, n_images)
    confusion = _confusion(detected, expected, matches, edges.taken(~same), free, categories)
    return ScoredImages(
        tallies, counts, confusion, over, _outcomes(place, detected.score >= COUNTED_SCORE, *free)
    )


def _outcomes(
    place: NDArray[np.intp],
    counted: NDArray[np.bool_],
    false_positive: NDArray[np.bool_],
    false_negative: NDArray[np.bool_],
) -> Outcomes:
    order = np.flatnonzero(counted)[np.argsort(place[counted])]
    return Outcomes(place[order].astype(np.int64), ~false_positive[order], ~false_negative)


def _ranked(
    detected: Detected, categories: int
) -> tuple[Detected, NDArray[np.int64], NDArray[np.int32], NDArray[np.intp]]:
    """Return detections by image, category and score; for each its group, its rank in that, and its former place."""
    detections = detected.objects
    order = np.lexsort((-detected.score, detections.category, detections.image))  # stable
    detected = _taken(detected, order)
    group = detected.objects.image * categories + detected.objects.category
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    rank = np.arange(len(group)) - np.repeat(begins, np.diff(begins, append=len(group)))
    return detected, group, rank.astype(np.int32), order


def _taken(detected: Detected, rows: NDArray[Any]) -> Detected:
    rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    detections = detected.objects
    masks = None if detections.masks is None else [detections.masks[row] for row in rows.tolist()]
    objects = Objects(detections.image[rows], detections.category[rows], detections.boxes[rows], masks)
    return Detected(objects, detected.score[rows], detected.mask_area[rows])


def _edges(kind: Kind, detections: Objects, objects: Objects, crowd: NDArray[np.bool_]) -> Edges:
    """Return the edges within each image, whatever the categories."""
    columns = [o.masks if kind == "segm" and o.masks is not None else o.boxes for o in (detections, objects)]
    images = np.intersect1d(detections.image, objects.image)
    bounds = [np.searchsorted(o.image, [images, images + 1]).T.tolist() for o in (detections, objects)]
    kept = []
    for (d, d_stop), (g, g_stop) in zip(*bounds, strict=True):
        edges = overlaps(columns[0][d:d_stop], columns[1][g:g_stop], crowd[g:g_stop])
        if len(edges.iou):
            kept.append(Edges(edges.detections + d, edges.objects + g, edges.iou))
    return joined(kept)


def _counts(
    detected: Detected, expected: Expected, matches: Matches, n_images: int
) -> tuple[Counts, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Return the counts of images, and which detections are false positives and which objects false negatives."""
    detections, objects = detected.objects, expected.objects
    counted = detected.score >= COUNTED_SCORE
    ignored = matches.ignored[:, 0, 0] & (matches.partner >= 0)
    true_positive = counted & (matches.partner >= 0) & ~ignored
    false_positive = counted & (matches.partner < 0)
    false_negative = ~expected.crowd
    false_negative[matches.partner[true_positive]] = False

    def per_image(counted: Objects, which: NDArray[np.bool_], weights: Any = None) -> NDArray[Any]:
        weights = None if weights is None else weights[which]
        return np.bincount(counted.image[which], weights, minlength=n_images)

    n_objects, n_detections = per_image(objects, ~expected.crowd), per_image(detections, counted)
    true, false = per_image(detections, true_positive), per_image(detections, false_positive)
    below = true + (n_objects - true + false) / 2
    pq = np.divide(
        per_image(detections, true_positive, matches.iou), below, out=np.ones(n_images), where=below > 0
    )
    counts = Counts(
        n_objects.astype(np.int32),
        n_detections.astype(np.int32),
        true.astype(np.int32),
        false.astype(np.int32),
        pq.astype(np.float32),
    )
    return counts, (false_positive, false_negative)


def _confusion(
    detected: Detected,
    expected: Expected,
    matches: Matches,
    other_category: Edges,
    free: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    categories: int,
) -> NDArray[np.int64]:
    """Return the confusion matrix: matches within categories first, then the unmatched, by score, across categories."""
    detections, objects = detected.objects, expected.objects
    false_positive, false_negative = (which.copy() for which in free)
    table = np.zeros((categories + 1, categories + 1), np.int64)
    true_positive = (detected.score >= COUNTED_SCORE) & (matches.partner >= 0) & ~matches.ignored[:, 0, 0]
    np.add.at(
        table, (objects.category[matches.partner[true_positive]], detections.category[true_positive]), 1
    )

    by_score = np.lexsort((-detected.score, detections.image))
    place = np.empty_like(by_score)
    place[by_score] = np.arange(len(by_score))
    left = false_positive[other_category.detections] & false_negative[other_category.objects]
    edges = Edges(
        place[other_category.detections[left]], other_category.objects[left], other_category.iou[left]
    )
    nobody = np.zeros((len(objects), 1), np.bool_)
    crossed = match(
        edges,
        detections.image[by_score],
        expected.crowd,
        nobody,
        np.zeros((len(detections), 1), np.bool_),
        IOUS[:1],
    )
    wrong = np.flatnonzero(crossed.partner >= 0)
    partner, taker = crossed.partner[wrong], by_score[wrong]
    np.add.at(table, (objects.category[partner], detections.category[taker]), 1)
    false_negative[partner], false_positive[taker] = False, False
    table[:-1, -1] = np.bincount(objects.category[false_negative], minlength=categories)
    table[-1, :-1] = np.bincount(detections.category[false_positive], minlength=categories)
    return table

"""A batch of whole images weighed: matches for average precision, counts of each image, and what is taken for what.

Detections and objects come as columns and leave as tallies, so that batches may be weighed anywhere and in any order.
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
SURE: Final = 0.5
"""Score from which an instance counts in an image's counts and in the matrix, at an IoU of 0.5 and more."""


@dataclass(frozen=True, slots=True)
class Objects:
    """N objects of a batch, found or true, in ascending order of their image."""

    image: NDArray[np.int64]
    """(N,) place of the image in the batch, from 0."""
    category: NDArray[np.int32]
    """(N,) from 0."""
    boxes: NDArray[np.float64]
    """(N, 4) x, y, width, height."""
    masks: Sequence[dict[str, Any]] | None
    """N masks as `pycocotools.mask` takes them; None: only boxes are weighed."""

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found: in the order in which it chooses among equal scores."""

    objects: Objects
    score: NDArray[Any]
    """(N,)"""
    mask_area: NDArray[np.int64]
    """(N,) pixels."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What is there: in the order of the ground truth."""

    objects: Objects
    area: NDArray[np.float64]
    """(N,) as the ground truth states it."""
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of each of I images, of instances with a score of `SURE` and more, at an IoU of 0.5 and more."""

    n_truth: NDArray[np.int32]
    """(I,) objects, crowds left out."""
    n_found: NDArray[np.int32]
    matched: NDArray[np.int32]
    spurious: NDArray[np.int32]
    """(I,) instances that are neither matched nor in a crowd."""
    quality: NDArray[np.float32]
    """(I,) panoptic quality, all categories together: the sum of matched IoUs / (matched + half of missed and
    spurious); 1 where nothing is and nothing was found."""

    @property
    def missed(self) -> NDArray[np.int32]:
        """(I,) objects that no instance matches."""
        return self.n_truth - self.matched


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Which detections and objects of a batch were matched, at a score of `SURE` and an IoU of 0.5."""

    detections: NDArray[np.int64]
    """(D,) places in `Found` of the detections with that score, ascending."""
    detections_matched: NDArray[np.bool_]
    """(D,) false: the detection is a false positive; true also if it was matched with a crowd."""
    objects_matched: NDArray[np.bool_]
    """(G,) of `Expected`; false: the object is a false negative; true also for crowds."""


@dataclass(frozen=True, slots=True)
class ScoredImages:
    """What is known of a batch."""

    tallies: Mapping[Kind, Tally]
    counts: Counts
    confusion: NDArray[np.int64]
    """(K + 1, K + 1) true category by found category; the last row and column are "nothing"."""
    truncated: NDArray[np.bool_]
    """(I,) images with more detections of a category than were weighed."""
    outcomes: Outcomes


def worst_first(quality: NDArray[Any], faults: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Return the places of at most `count` images with faults: the lowest quality first, then the most faults.

    Args:
        quality: (I,) of `Counts`.
        faults: (I,) false positives and false negatives.
        count: maximum number of images.
    """
    order = np.lexsort((-faults, quality))[:count]
    return order[faults[order] > 0]


def score_images(
    found: Found, expected: Expected, order: NDArray[np.int64], categories: int, max_dets: int
) -> ScoredImages:
    """Weigh a batch of images.

    Args:
        found: what was found in them.
        expected: what is there.
        order: (I,) place of each image among all, by which equal scores of two images are ordered.
        categories: how many there are, K.
        max_dets: the most detections of a category in an image that count for average precision.
    """
    found, group, rank, place = _ranked(found, categories)
    things, truths = found.objects, expected.objects
    n_images = len(order)
    over = np.bincount(things.image[rank >= max_dets], minlength=n_images) > 0
    kept = (rank < max_dets) | (found.score >= SURE)
    found, group, rank, place = _taken(found, kept), group[kept], rank[kept], place[kept]
    things = found.objects

    size = outside(expected.area)
    uncounted = size | expected.crowd[:, None]
    positives = np.zeros((categories, size.shape[1]), np.int64)
    np.add.at(positives, truths.category, ~uncounted)
    kinds: tuple[Kind, ...] = KINDS if things.masks is not None and truths.masks is not None else ("bbox",)
    tallies: dict[Kind, Tally] = {}
    scored = rank < max_dets
    for kind in kinds:
        edges = _edges(kind, things, truths, expected.crowd)
        same = things.category[edges.found] == truths.category[edges.truth]
        areas = found.mask_area if kind == "segm" else things.boxes[:, 2] * things.boxes[:, 3]
        matches = match(edges.taken(same), group, expected.crowd, uncounted, outside(areas))
        tallies[kind] = Tally.of(
            matches.taken(scored),
            things.category[scored],
            found.score[scored],
            order[things.image[scored]],
            rank[scored],
            positives,
        )
    # By masks where there are masks: the last of the kinds.
    counts, free = _counts(found, expected, matches, n_images)
    confusion = _confusion(found, expected, matches, edges.taken(~same), free, categories)
    return ScoredImages(tallies, counts, confusion, over, _outcomes(place, found.score >= SURE, *free))


def _outcomes(
    place: NDArray[np.intp], sure: NDArray[np.bool_], lonely: NDArray[np.bool_], unmet: NDArray[np.bool_]
) -> Outcomes:
    order = np.flatnonzero(sure)[np.argsort(place[sure])]
    return Outcomes(place[order].astype(np.int64), ~lonely[order], ~unmet)


def _ranked(
    found: Found, categories: int
) -> tuple[Found, NDArray[np.int64], NDArray[np.int32], NDArray[np.intp]]:
    """Return detections by image, category and score; for each its group, its rank in that, and its former place."""
    things = found.objects
    order = np.lexsort((-found.score, things.category, things.image))  # stable
    found = _taken(found, order)
    group = found.objects.image * categories + found.objects.category
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    rank = np.arange(len(group)) - np.repeat(begins, np.diff(begins, append=len(group)))
    return found, group, rank.astype(np.int32), order


def _taken(found: Found, rows: NDArray[Any]) -> Found:
    rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    things = found.objects
    masks = None if things.masks is None else [things.masks[row] for row in rows.tolist()]
    objects = Objects(things.image[rows], things.category[rows], things.boxes[rows], masks)
    return Found(objects, found.score[rows], found.mask_area[rows])


def _edges(kind: Kind, found: Objects, truth: Objects, crowd: NDArray[np.bool_]) -> Edges:
    """Return the edges within each image, of whatever categories."""
    columns = [o.masks if kind == "segm" and o.masks is not None else o.boxes for o in (found, truth)]
    images = np.intersect1d(found.image, truth.image)
    bounds = [np.searchsorted(o.image, [images, images + 1]).T.tolist() for o in (found, truth)]
    kept = []
    for (d, d_stop), (g, g_stop) in zip(*bounds, strict=True):
        edges = overlaps(columns[0][d:d_stop], columns[1][g:g_stop], crowd[g:g_stop])
        if len(edges.iou):
            kept.append(Edges(edges.found + d, edges.truth + g, edges.iou))
    return joined(kept)


def _counts(
    found: Found, expected: Expected, matches: Matches, n_images: int
) -> tuple[Counts, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Return the counts of images; and which sure detections, and which objects that count, are left over."""
    things, truths = found.objects, expected.objects
    sure = found.score >= SURE
    ignored = matches.ignored[:, 0, 0] & (matches.partner >= 0)
    hit = sure & (matches.partner >= 0) & ~ignored
    lonely = sure & (matches.partner < 0)
    unmet = ~expected.crowd
    unmet[matches.partner[hit]] = False

    def per_image(objects: Objects, which: NDArray[np.bool_], weights: Any = None) -> NDArray[Any]:
        weights = None if weights is None else weights[which]
        return np.bincount(objects.image[which], weights, minlength=n_images)

    n_truth, n_found = per_image(truths, ~expected.crowd), per_image(things, sure)
    matched, spurious = per_image(things, hit), per_image(things, lonely)
    below = matched + (n_truth - matched + spurious) / 2
    quality = np.divide(per_image(things, hit, matches.iou), below, out=np.ones(n_images), where=below > 0)
    counts = Counts(
        n_truth.astype(np.int32),
        n_found.astype(np.int32),
        matched.astype(np.int32),
        spurious.astype(np.int32),
        quality.astype(np.float32),
    )
    return counts, (lonely, unmet)


def _confusion(
    found: Found,
    expected: Expected,
    matches: Matches,
    strangers: Edges,
    free: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    categories: int,
) -> NDArray[np.int64]:
    """Return what was taken for what: first within categories, then what is left over, by score, across them."""
    things, truths = found.objects, expected.objects
    lonely, unmet = (which.copy() for which in free)
    table = np.zeros((categories + 1, categories + 1), np.int64)
    hit = (found.score >= SURE) & (matches.partner >= 0) & ~matches.ignored[:, 0, 0]
    np.add.at(table, (truths.category[matches.partner[hit]], things.category[hit]), 1)

    by_score = np.lexsort((-found.score, things.image))
    place = np.empty_like(by_score)
    place[by_score] = np.arange(len(by_score))
    left = lonely[strangers.found] & unmet[strangers.truth]
    edges = Edges(place[strangers.found[left]], strangers.truth[left], strangers.iou[left])
    nobody = np.zeros((len(truths), 1), np.bool_)
    crossed = match(
        edges, things.image[by_score], expected.crowd, nobody, np.zeros((len(things), 1), np.bool_), IOUS[:1]
    )
    wrong = np.flatnonzero(crossed.partner >= 0)
    partner, taker = crossed.partner[wrong], by_score[wrong]
    np.add.at(table, (truths.category[partner], things.category[taker]), 1)
    unmet[partner], lonely[taker] = False, False
    table[:-1, -1] = np.bincount(truths.category[unmet], minlength=categories)
    table[-1, :-1] = np.bincount(things.category[lonely], minlength=categories)
    return table

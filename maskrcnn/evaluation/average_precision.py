"""COCO's average precision and recall, from matches that are computed part by part.

A `Tally` is the compact form of matches: for each detection its score, its place, and two bits for each threshold and
range of sizes. Tallies of disjoint images, joined in any order, give the same numbers, each equal to `COCOeval`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .matching import AREAS, IOUS, Matches

RECALLS: Final = np.linspace(0.0, 1.0, 101)
_CELLS: Final = len(IOUS) * len(AREAS)
STATS: Final = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR1", "AR10", "AR", "AR small", "AR medium",
                "AR large")  # fmt: skip
"""The twelve metrics of `COCOeval.summarize`, in its order."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What average precision needs of N detections, and of the objects of their images."""

    category: NDArray[np.int32]
    """(N,) from 0, ascending."""
    score: NDArray[Any]
    """(N,) floats."""
    image: NDArray[np.int64]
    """(N,) rank of the image by id; the detections of an image are in one tally, those of a category in descending
    order of score."""
    rank: NDArray[np.int32]
    """(N,) rank within image and category, from 0."""
    bits: NDArray[np.uint8]
    """(N, 10) matched, then ignored, each by threshold and range of sizes, packed."""
    positives: NDArray[np.int64]
    """(K, 4) number of objects that count, by category and range of sizes."""

    @classmethod
    def of(
        cls,
        matches: Matches,
        category: NDArray[np.int32],
        score: NDArray[Any],
        image: NDArray[np.int64],
        rank: NDArray[np.int32],
        positives: NDArray[np.int64],
    ) -> "Tally":
        """Return the tally of matches at `IOUS` and in the ranges of `AREAS`."""
        both = np.concatenate([matches.matched.reshape(-1, _CELLS), matches.ignored.reshape(-1, _CELLS)], 1)
        tally = cls(category, score, image, rank, np.packbits(both, axis=1), positives)
        return tally.taken(np.argsort(category, kind="stable"))

    def taken(self, rows: Any) -> "Tally":
        """Return the tally of some detections, by a slice or by places."""
        return Tally(
            self.category[rows],
            self.score[rows],
            self.image[rows],
            self.rank[rows],
            self.bits[rows],
            self.positives,
        )

    def cell(self, threshold: int, area: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which detections are matched, and which ignored, at a threshold and in a range of sizes."""
        at = threshold * len(AREAS) + area
        places = (at, _CELLS + at)
        matched, ignored = (self.bits[:, p // 8] & (128 >> p % 8) != 0 for p in places)
        return matched, ignored


def join(tallies: Sequence[Tally], category: int) -> Tally:
    """Return one tally of a category's detections in several, by descending score, as `COCOeval` sorts them."""
    chosen = [
        tally.taken(slice(*np.searchsorted(tally.category, [category, category + 1]))) for tally in tallies
    ]
    joined = Tally(
        np.concatenate([tally.category for tally in chosen]),
        np.concatenate([tally.score for tally in chosen]),
        np.concatenate([tally.image for tally in chosen]),
        np.concatenate([tally.rank for tally in chosen]),
        np.concatenate([tally.bits for tally in chosen]),
        tallies[0].positives,
    )
    return joined.taken(np.lexsort((joined.image, -joined.score)))  # stable


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision and recall of K categories at T thresholds, in A ranges of sizes; -1 where no object counts."""

    precision: NDArray[np.float64]
    """(T, 101, K, A) at `RECALLS`, with the maximum number of detections."""
    recall: NDArray[np.float64]
    """(T, K, A, 3) with 1, 10 and the maximum number of detections of a category in an image."""

    def stats(self) -> list[float]:
        """Return the twelve metrics of `COCOeval.summarize`, named by `STATS`."""
        sizes = range(1, len(AREAS))
        return [
            _mean(self.precision[..., 0]),
            _mean(self.precision[0, ..., 0]),
            _mean(self.precision[5, ..., 0]),
            *(_mean(self.precision[..., area]) for area in sizes),
            *(_mean(self.recall[:, :, 0, most]) for most in range(3)),
            *(_mean(self.recall[:, :, area, -1]) for area in sizes),
        ]

    def of_category(self, k: int) -> list[float]:
        """Return the twelve metrics of one category."""
        return Curves(self.precision[:, :, k : k + 1], self.recall[:, k : k + 1]).stats()


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(np.mean(known)) if known.size else -1.0


def average(tallies: Sequence[Tally], max_dets: int) -> Curves:
    """Return the curves of tallies, as `COCOeval.accumulate` computes them.

    Args:
        tallies: at least one, of disjoint images.
        max_dets: the maximum number of detections of a category in an image; all ranks in the tallies are below it.
    """
    positives = np.sum([tally.positives for tally in tallies], axis=0)
    k_all = len(positives)
    curves = Curves(
        -np.ones((len(IOUS), len(RECALLS), k_all, len(AREAS))), -np.ones((len(IOUS), k_all, len(AREAS), 3))
    )
    for k in np.flatnonzero(positives.any(axis=1)).tolist():
        part = join(tallies, k)  # one category at a time, so that what is held is held once
        for area in np.flatnonzero(positives[k]).tolist():
            for t in range(len(IOUS)):
                matched, ignored = part.cell(t, area)
                for m, most in enumerate((1, 10, max_dets)):
                    counts = ~ignored & (part.rank < most)
                    hits = matched[counts]
                    curves.recall[t, k, area, m] = np.count_nonzero(hits) / positives[k, area]
                curves.precision[t, :, k, area] = _precision(hits, int(positives[k, area]))
    return curves


def _precision(hits: NDArray[np.bool_], positives: int) -> NDArray[np.float64]:
    """Return the precision at `RECALLS` of detections in descending order of score, given which are true positives.

    Ignored detections change neither count: `COCOeval` repeats a point for them, which has no effect.
    """
    right = np.cumsum(hits).astype(np.float64)
    recall = right / positives
    precision = right / (np.arange(1.0, len(hits) + 1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return np.append(precision, 0.0)[np.minimum(at, len(hits))]

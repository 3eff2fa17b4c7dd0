"""Match the instances of one image in two runs, and classify the differences.

Instances are matched one to one: first equal ones, then by descending mask IoU, with pairs of the same category before
those of different categories. Matching is greedy, not optimal in total, which would separate two equal masks in favor
of two mediocre pairs and report changes that did not happen. All ties are broken in a fixed order, so that the same
instances give the same result.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..masks.rle_decode import read_spans
from ..masks.spans import Spans
from ..types import Detections

KINDS: Final = ("same", "rescored", "moved", "relabelled", "appeared", "vanished")
"""The kind of difference of an instance, exactly one; of matched instances the last that applies."""
SAME, RESCORED, MOVED, RELABELLED, APPEARED, VANISHED = range(6)
_BLOCK: Final = 256
_PAIRS: Final = 20_000
"""Number of pairs of masks compared at once."""
_BELOW_ONE: Final = float(np.nextafter(1.0, 0.0))

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rules:
    """When instances are the same.

    Raises:
        UsageError: a limit is out of range.
    """

    match_iou: float = 0.5
    """Minimum mask IoU of two instances that are matched as one object."""
    iou: float = 1.0
    """Matched instances count as moved if the IoU of masks or boxes is lower."""
    score: float = 0.0
    """Matched instances count as rescored if scores differ by more."""
    min_score: float = 0.0
    """Instances with lower scores are left out of both runs."""

    def __post_init__(self) -> None:
        if not 0.0 < self.match_iou <= 1.0 or not 0.0 < self.iou <= 1.0:
            raise UsageError("--match-iou and --iou must be above 0 and at most 1")
        if not 0.0 <= self.score <= 1.0 or not 0.0 <= self.min_score <= 1.0:
            raise UsageError("--score and --min-score must be in [0, 1]")


class Pairs(NamedTuple):
    """Instances of A with their partners in B, (P,) each."""

    a: Ints
    b: Ints
    iou: Floats
    """Mask IoU; exactly 1 if and only if the masks are equal."""


def match_instances(a: Detections, b: Detections, match_iou: float = 0.5) -> Pairs:
    """Return the pairs of instances of one image that are the same object in two runs.

    Args:
        a: detections of one run.
        b: detections of the other run, of the same size and with the same labels.
        match_iou: masks with a lower IoU are not matched.
    """
    pairs: list[tuple[int, int, float]] = []
    free_a, free_b = np.ones(len(a), np.bool_), np.ones(len(b), np.bool_)

    def take(found: Iterable[tuple[int, int, float]]) -> None:
        for i, j, iou in found:
            if free_a[i] and free_b[j]:
                free_a[i] = free_b[j] = False
                pairs.append((i, j, iou))

    for whole in (True, False):
        take(_equal(_keys(a, free_a, whole=whole), _keys(b, free_b, whole=whole)))
    left_a, left_b = np.flatnonzero(free_a), np.flatnonzero(free_b)
    if len(left_a) and len(left_b):
        i, j, iou = _overlapping(a, b, left_a, left_b, match_iou)
        other = a.labels[i] != b.labels[j]
        apart = np.abs(a.scores[i].astype(np.float64) - b.scores[j])
        order = np.lexsort((j, i, apart, -iou, other))
        take(zip(i[order].tolist(), j[order].tolist(), iou[order].tolist(), strict=True))
    pairs.sort()
    columns = list(zip(*pairs, strict=True)) or [(), (), ()]
    return Pairs(
        np.array(columns[0], np.int64), np.array(columns[1], np.int64), np.array(columns[2], np.float64)
    )


def _keys(found: Detections, free: NDArray[np.bool_], *, whole: bool) -> list[tuple[int, Any]]:
    """Return keys that are the same for equal instances: of all columns, or of category and non-empty mask."""
    labels, scores, areas = found.labels.tolist(), found.scores.tolist(), found.areas.tolist()
    frames = None if found.frames is None else found.frames.tolist()
    keys: list[tuple[int, Any]] = []
    for i in np.flatnonzero(free).tolist():
        key = (labels[i], found.counts[i], None if frames is None else tuple(frames[i]))
        if whole:
            keys.append((i, (*key, scores[i], found.boxes[i].tobytes())))
        elif areas[i]:
            keys.append((i, key))
    return keys


def _equal(ours: list[tuple[int, Any]], theirs: list[tuple[int, Any]]) -> Iterator[tuple[int, int, float]]:
    """Yield pairs with equal keys, in order."""
    waiting: dict[Any, list[int]] = {}
    for j, key in reversed(theirs):
        waiting.setdefault(key, []).append(j)
    for i, key in ours:
        if waiting.get(key):
            yield i, waiting[key].pop(), 1.0


def _overlapping(
    a: Detections, b: Detections, left_a: NDArray[np.intp], left_b: NDArray[np.intp], least: float
) -> tuple[Ints, Ints, Floats]:
    """Return the pairs with a mask IoU of at least `least`, and the IoU."""
    candidates = [_meeting(a, b, block, left_b) for block in _blocks(a, left_a)]
    i, j = (np.concatenate([block[side] for block in candidates]) for side in (0, 1))
    found = [np.zeros(0)]
    for start in range(0, len(i), _PAIRS):
        ours, theirs = i[start : start + _PAIRS], j[start : start + _PAIRS]
        one, other = _runs(a, ours), _runs(b, theirs)
        common = one.overlaps(other)
        union = np.maximum(one.areas + other.areas - common, 1)
        found.append(np.where(common == union, 1.0, np.minimum(common / union, _BELOW_ONE)))
    iou = np.concatenate(found)
    enough = iou >= least
    return i[enough], j[enough], iou[enough]


def _blocks(found: Detections, chosen: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return instances in blocks, ordered from top to bottom."""
    ordered = chosen[np.argsort(found.mask_boxes[chosen, 1], kind="stable")]
    return [ordered[start : start + _BLOCK] for start in range(0, len(ordered), _BLOCK)]


def _meeting(
    a: Detections, b: Detections, ours: NDArray[np.intp], theirs: NDArray[np.intp]
) -> tuple[Ints, Ints]:
    """Return the pairs whose mask boxes share pixels."""
    one, other = a.mask_boxes[ours], b.mask_boxes[theirs]
    near = (other[:, 1] < one[:, 3].max()) & (other[:, 3] > one[:, 1].min())
    other, theirs = other[near], theirs[near]
    meet = (one[:, None, :2] < other[None, :, 2:]).all(axis=2)
    meet &= (other[None, :, :2] < one[:, None, 2:]).all(axis=2)
    i, j = np.nonzero(meet)
    return ours[i], theirs[j]


def _runs(found: Detections, chosen: Ints) -> Spans:
    """Return masks in the image's frame; `chosen` may contain an instance several times."""
    some, again = np.unique(chosen, return_inverse=True)
    sizes = found.mask_sizes[some]
    columns: list[tuple[Ints, Ints, Ints, Ints]] = []
    order = np.zeros(len(some), np.int64)
    done = 0
    for height, width in np.unique(sizes, axis=0).tolist():
        members = np.flatnonzero((sizes == (height, width)).all(axis=1))
        runs = read_spans([found.counts[some[member]] for member in members.tolist()], height, width)
        if found.frames is not None:
            frames = found.frames[some[members]].astype(np.int64)
            runs = runs.shifted(frames[:, 0], frames[:, 1])
        columns.append((runs.of + done, runs.column, runs.start, runs.stop))
        order[members] = done + np.arange(len(members))
        done += len(members)
    of, column, start, stop = (np.concatenate([piece[side] for piece in columns]) for side in range(4))
    return Spans(of, column, start, stop, done).take(order[again])


def box_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> Floats:
    """Return the IoU of pairs of boxes, (P, 4) each; exactly 1 if and only if they are equal."""
    one, other = a.astype(np.float64), b.astype(np.float64)
    inner = np.minimum(one, other)[:, 2:] - np.maximum(one, other)[:, :2]
    common = np.prod(np.maximum(inner, 0), axis=1)
    areas = [np.prod(np.maximum(box[:, 2:] - box[:, :2], 0), axis=1) for box in (one, other)]
    iou = common / np.maximum(areas[0] + areas[1] - common, 1e-12)
    return np.where((a == b).all(axis=1), 1.0, np.minimum(iou, _BELOW_ONE))


def _identical(a: Detections, b: Detections) -> bool:
    """Return whether two runs have the same instances of an image in the same order, as most images of most runs."""
    frames = (None if found.frames is None else found.frames.tobytes() for found in (a, b))
    return (
        a.counts == b.counts
        and a.boxes.tobytes() == b.boxes.tobytes()
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.scores, b.scores)
        and len(set(frames)) == 1
    )


def compare_instances(a: Detections, b: Detections, rules: Rules) -> tuple[Pairs, NDArray[np.int8]]:
    """Match an image's instances, and return the pairs and the kind of difference of each.

    Args:
        a: detections of one run.
        b: detections of the other run, of the same size and with the same labels.
        rules: when instances are the same.
    """
    if _identical(a, b):
        every = np.arange(len(a))
        return Pairs(every, every, np.ones(len(a))), np.full(len(a), SAME, np.int8)
    pairs = match_instances(a, b, rules.match_iou)
    kinds = np.full(len(pairs.a), SAME, np.int8)
    apart = np.abs(a.scores[pairs.a].astype(np.float64) - b.scores[pairs.b])
    kinds[apart > rules.score] = RESCORED
    kinds[np.minimum(pairs.iou, box_iou(a.boxes[pairs.a], b.boxes[pairs.b])) < rules.iou] = MOVED
    kinds[a.labels[pairs.a] != b.labels[pairs.b]] = RELABELLED
    return pairs, kinds

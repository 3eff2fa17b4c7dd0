"""Set operations on many masks as spans, at a cost that depends on the contours and not on the areas.

A span is a range of rows in one column. No pixels are filled: intersections, unions, dilations and erosions follow
from the starts and ends of the spans, for many masks at once in a few calls of numpy.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Spans(NamedTuple):
    """R spans of N masks in one frame, which they may extend beyond: rows and columns may be negative.

    Ordered by mask, then column, then row; the spans of a column of a mask neither overlap nor touch.
    """

    of: Ints
    """(R,) the mask of each span, from 0 to N - 1."""
    column: Ints
    """(R,) the column of each span."""
    start: Ints
    """(R,) the first row of each span."""
    stop: Ints
    """(R,) the row after the last of each span."""
    n: int
    """The number of masks, some of which may be empty."""

    @property
    def areas(self) -> Ints:
        """(N,) the number of pixels of each mask."""
        return np.bincount(self.of, self.stop - self.start, minlength=self.n).astype(
            np.int64
        )  # exact below 2^53

    @property
    def boxes(self) -> Ints:
        """(N, 4) xmin, ymin, xmax, ymax of the pixels, the last two exclusive; zeros for an empty mask."""
        boxes = np.zeros((self.n, 4), np.int64)
        first = np.flatnonzero(np.diff(self.of, prepend=-1))
        if len(first):
            last = np.append(first[1:], len(self.of)) - 1
            ends = (np.minimum.reduceat(self.start, first), np.maximum.reduceat(self.stop, first))
            boxes[self.of[first]] = np.stack(
                [self.column[first], ends[0], self.column[last] + 1, ends[1]], axis=1
            )
        return boxes

    def take(self, masks: NDArray[np.intp]) -> "Spans":
        """Return the masks with the given indices, which may repeat, in that order."""
        cuts = np.searchsorted(self.of, np.arange(self.n + 1))
        counts = cuts[masks + 1] - cuts[masks]
        spans = ranges(cuts[masks], counts)
        of = np.repeat(np.arange(len(masks)), counts)
        return Spans(of, self.column[spans], self.start[spans], self.stop[spans], len(masks))

    def shifted(self, columns: Ints, rows: Ints) -> "Spans":
        """Return each mask shifted by a number of columns and rows, (N,) each."""
        down = rows[self.of]
        return self._replace(
            column=self.column + columns[self.of], start=self.start + down, stop=self.stop + down
        )

    def within(self, boxes: Ints) -> "Spans":
        """Return the part of each mask inside a box: (4,) xmin, ymin, xmax, ymax, or one per mask, (N, 4)."""
        left, top, right, bottom = np.broadcast_to(boxes, (self.n, 4))[self.of].T
        start, stop = np.maximum(self.start, top), np.minimum(self.stop, bottom)
        return self._kept((self.column >= left) & (self.column < right) & (start < stop), start, stop)

    def outside(self, boxes: Ints) -> "Spans":
        """Return the part of each mask outside a box, as in `within`; an empty box removes nothing."""
        left, top, right, bottom = np.broadcast_to(boxes, (self.n, 4))[self.of].T
        beside = (self.column < left) | (self.column >= right) | (top >= bottom)
        above = np.where(beside, self.stop, np.minimum(self.stop, top))
        below = np.where(beside, self.stop, np.maximum(self.start, bottom))
        start = np.stack([self.start, below], axis=1).ravel()
        stop = np.stack([above, self.stop], axis=1).ravel()
        twice = Spans(np.repeat(self.of, 2), np.repeat(self.column, 2), start, stop, self.n)
        return twice._kept(start < stop, start, stop)

    def merged(self, of: Ints, n: int) -> "Spans":
        """Return n masks, each the union of the masks that `of`, (N,), assigns to it."""
        return _covered(of[self.of], self.column, self.start, self.stop, n, times=1)

    def grown(self, pixels: int) -> "Spans":
        """Return each mask dilated by a square of `2 * pixels + 1` pixels per side."""
        return _covered_by_copies(
            self._replace(start=self.start - pixels, stop=self.stop + pixels), pixels, times=1
        )

    def shrunk(self, pixels: int) -> "Spans":
        """Return each mask eroded by a square of `2 * pixels + 1` pixels per side."""
        start, stop = self.start + pixels, self.stop - pixels
        return _covered_by_copies(self._kept(start < stop, start, stop), pixels, times=2 * pixels + 1)

    def overlaps(self, other: "Spans") -> Ints:
        """Return the number of pixels that each mask shares with the mask of the same index in `other`, (N,)."""
        if not len(self.of) or not len(other.of):
            return np.zeros(self.n, np.int64)
        keys = _Keys.of(self, other)
        start, stop = keys(self.of, self.column, self.start), keys(self.of, self.column, self.stop)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(stop - start)])

        def covered(at: Ints) -> Ints:
            """Return the number of pixels of the masks before a key."""
            begun = np.searchsorted(start, at, side="right")
            return np.asarray(before[begun] - np.where(begun, np.maximum(stop[begun - 1] - at, 0), 0))

        theirs = (keys(other.of, other.column, other.start), keys(other.of, other.column, other.stop))
        shared = covered(theirs[1]) - covered(theirs[0])
        return np.bincount(other.of, shared, minlength=self.n).astype(np.int64)

    @property
    def changes(self) -> tuple[Ints, Ints, Ints]:
        """Mask, column and row of each change, as arguments of `rle.encode_changes`."""
        return (
            np.repeat(self.of, 2),
            np.repeat(self.column, 2),
            np.stack([self.start, self.stop], axis=1).ravel(),
        )

    def _kept(self, keep: NDArray[np.bool_], start: Ints, stop: Ints) -> "Spans":
        return Spans(self.of[keep], self.column[keep], start[keep], stop[keep], self.n)


class _Keys(NamedTuple):
    """Map pixels of masks to integers in the order of spans; the ends of adjacent columns have distinct keys."""

    first_column: int
    columns: int
    first_row: int
    rows: int

    @classmethod
    def of(cls, *many: Spans) -> "_Keys":
        some = [spans for spans in many if len(spans.of)]
        left, right = min(int(r.column.min()) for r in some), max(int(r.column.max()) for r in some)
        top, bottom = min(int(r.start.min()) for r in some), max(int(r.stop.max()) for r in some)
        return cls(left, right - left + 1, top, bottom - top + 1)

    def __call__(self, of: Ints, column: Ints, row: Ints) -> Ints:
        return (of * self.columns + (column - self.first_column)) * self.rows + (row - self.first_row)


def _covered_by_copies(spans: Spans, pixels: int, times: int) -> Spans:
    """Return the pixels covered at least `times` times by copies shifted by up to `pixels` columns."""
    moves = np.arange(-pixels, pixels + 1)
    columns = (spans.column + moves[:, None]).ravel()
    of, start, stop = (np.tile(values, len(moves)) for values in (spans.of, spans.start, spans.stop))
    return _covered(of, columns, start, stop, spans.n, times)


def _covered(of: Ints, column: Ints, start: Ints, stop: Ints, n: int, times: int) -> Spans:
    """Return the pixels in at least `times` of the given spans, which may be in any order and overlap."""
    if not len(of):
        return Spans(of, column, start, stop, n)
    keys = _Keys.of(Spans(of, column, start, stop, n))
    # Starts are sorted before ends at the same position, so that touching spans are merged.
    ends = np.concatenate([keys(of, column, start), keys(of, column, stop)])
    order = np.argsort(ends, kind="stable")
    enough = np.cumsum(np.where(order < len(of), 1, -1)) >= times
    change = np.flatnonzero(np.diff(enough, prepend=False))
    first, last = ends[order[change[0::2]]], ends[order[change[1::2]]]
    first, last = first[first < last], last[first < last]
    line, row = np.divmod(first, keys.rows)
    mask, beside = np.divmod(line, keys.columns)
    return Spans(
        mask, beside + keys.first_column, row + keys.first_row, row + keys.first_row + (last - first), n
    )


def ranges(starts: Ints, counts: Ints) -> Ints:
    """Return the concatenated ranges of `counts` consecutive integers from each of `starts`.

    >>> ranges(np.array([5, 0]), np.array([3, 2])).tolist()
    [5, 6, 7, 0, 1]
    """
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)

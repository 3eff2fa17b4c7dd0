"""Contours of masks, from their spans: rings along the borders of pixels, at a cost that does not depend on areas.

A span of a column begins and ends with a horizontal border one pixel wide; borders of neighbouring columns join to
*edges*, and what lies between an edge's end and the next edge's start is a vertical border. So all rings of all masks
are one permutation of their edges, which numpy follows by doubling its steps.

Pixels belong to one polygon where they share a side. Where only corners touch, a ring could continue in two ways; rings
are cut there so that none passes a point twice, as the OGC's simple features require.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .spans import Ints, Spans


class Rings(NamedTuple):
    """R rings of P polygons of some masks; a polygon's first ring is its shell, the others are holes.

    With rows downwards, shells run clockwise, holes counterclockwise. The first corner is not repeated as the last.
    """

    columns: Ints
    """(C,) corners, ring by ring: the border to the left of this column of pixels."""
    rows: Ints
    """(C,) the border above this row of pixels."""
    ring: Ints
    """(C,) the ring of each corner, ascending."""
    polygon: Ints
    """(R,) the polygon of each ring, ascending."""
    mask: Ints
    """(P,) the mask of each polygon, ascending; an empty mask has none."""


class _Edges(NamedTuple):
    """Horizontal borders, each as long as possible; ordered by mask, row and column."""

    mask: Ints
    row: Ints
    left: Ints
    right: Ints
    below: NDArray[np.bool_]
    """Whether the mask is below, not above."""


def trace(spans: Spans) -> Rings:
    """Return the contours of masks."""
    # Along a column, changes are alternately the start and the end of a span.
    mask, column = np.repeat(spans.of, 2), np.repeat(spans.column, 2)
    row = np.stack([spans.start, spans.stop], axis=1).reshape(-1)
    edges, edge_of, first = _edges(mask, column, row)
    following = _following(edges)
    leader, rank = _ranked(following)

    # A ring is numbered by its topmost edge, its leader. Above a hole's leader a span of its polygon begins: at the
    # shell's border, or at that of a hole further up.
    leaders, ring_of = np.unique(leader, return_inverse=True)
    hole = ~edges.below[leaders]
    shell = np.arange(len(leaders))
    shell[hole] = ring_of[edge_of[first[leaders[hole]] - 1]]
    while hole[shell].any():
        shell = shell[shell]

    # Shell by shell, each with its holes, each ring's edges one after the other.
    places = np.lexsort((rank, leader, hole[ring_of], shell[ring_of]))
    ring = _numbered(ring_of[places])
    below, left, right = edges.below[places], edges.left[places], edges.right[places]
    ends = np.stack([np.where(below, left, right), np.where(below, right, left)], axis=1)
    shells = np.flatnonzero(~hole)
    return Rings(
        columns=ends.reshape(-1),
        rows=np.repeat(edges.row[places], 2),
        ring=np.repeat(ring, 2),
        polygon=np.searchsorted(shells, np.sort(shell)),
        mask=edges.mask[leaders[shells]],
    )


def _edges(mask: Ints, column: Ints, row: Ints) -> tuple[_Edges, Ints, Ints]:
    """Return the edges, the edge of each change, and the leftmost change of each edge."""
    order = np.lexsort((column, row, mask))
    mask, column, row, below = mask[order], column[order], row[order], order % 2 == 0
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (
        (mask[1:] != mask[:-1])
        | (row[1:] != row[:-1])
        | (column[1:] != column[:-1] + 1)
        | (below[1:] != below[:-1])
    )
    edge_of = np.empty(len(order), np.int64)
    edge_of[order] = np.cumsum(begins) - 1
    head = np.flatnonzero(begins)
    tail = np.append(head[1:], len(order))[: len(head)] - 1
    return _Edges(mask[head], row[head], column[head], column[tail] + 1, below[head]), edge_of, order[head]


def _following(edges: _Edges) -> Ints:
    """Return the edge that follows each, with the mask on the right hand."""
    n = len(edges.row)
    # Vertex 2e is the left end of edge e, 2e + 1 the right end. Along a column of corners every second pair of
    # neighbours is the two ends of a vertical border. Of two ends in one corner, the one from which the border leads
    # up along the same pixel comes first: this separates pixels that only touch at a corner.
    column = np.stack([edges.left, edges.right], axis=1).reshape(-1)
    order_in_corner = np.stack([np.ones(n, np.int64), np.where(edges.below, 2, 0)], axis=1)
    row = (3 * edges.row[:, np.newaxis] + order_in_corner).reshape(-1)
    vertices = np.lexsort((row, column, np.repeat(edges.mask, 2)))
    following = _joined(vertices, edges.below)

    # Where a ring meets itself, it is cut in two by joining the ends the other way. All such places lie outside of the
    # mask, so that none separates what another joins.
    same = (edges.mask[1:] == edges.mask[:-1]) & (edges.row[1:] == edges.row[:-1])
    pinched = np.flatnonzero(same & (edges.right[:-1] == edges.left[1:]))
    if len(pinched):
        leader = _leaders(following)
        pinched = pinched[leader[pinched] == leader[pinched + 1]]
        place = np.empty(2 * n, np.int64)
        place[vertices] = np.arange(2 * n)
        ends = np.stack([2 * pinched + 1, 2 * pinched + 2])
        vertices[place[ends]] = ends[::-1]
        following = _joined(vertices, edges.below)
    return following


def _joined(vertices: Ints, below: NDArray[np.bool_]) -> Ints:
    """Return the edge that follows each, given vertices in which the two ends of vertical borders are neighbours."""
    partner = np.empty(len(vertices), np.int64)
    partner[vertices[0::2]] = vertices[1::2]
    partner[vertices[1::2]] = vertices[0::2]
    return np.asarray(partner[2 * np.arange(len(below)) + below] // 2)


def _leaders(following: Ints) -> Ints:
    """Return the smallest member of the cycle of each member of a permutation."""
    leader, ahead = np.arange(len(following)), following
    while True:
        leader = np.minimum(leader, leader[ahead])
        if np.array_equal(leader, leader[following]):
            return leader
        ahead = ahead[ahead]


def _ranked(following: Ints) -> tuple[Ints, Ints]:
    """Return the smallest member of each member's cycle, and the number of steps from there to the member."""
    leader = _leaders(following)
    itself = np.arange(len(following))
    back = np.empty_like(itself)
    back[following] = itself
    back = np.where(leader == itself, itself, back)
    steps = (leader != itself).astype(np.int64)
    while not np.array_equal(back, leader):
        steps = steps + steps[back]
        back = back[back]
    return leader, steps


def _numbered(values: Ints) -> Ints:
    """Return 0, 1, … for groups of equal neighbours."""
    return np.cumsum(np.append(False, values[1:] != values[:-1])[: len(values)])

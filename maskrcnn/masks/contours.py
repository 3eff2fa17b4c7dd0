"""Trace the contours of masks from their spans: rings along pixel borders, at a cost independent of the area.

A span of a column begins and ends at a horizontal pixel border; borders of neighbouring columns join to *edges*, and
the end of an edge is connected to the start of the next one by a vertical border. All rings of all masks therefore
form one permutation of their edges, whose cycles numpy follows by pointer doubling.

Pixels that share a side belong to one polygon. Where pixels touch only at a corner, the contour could continue in two
ways; rings are split there so that none passes a point twice, as required by the OGC's simple features.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .spans import Ints, Spans


class Rings(NamedTuple):
    """R rings of P polygons of a number of masks; a polygon's first ring is its shell, the others are holes.

    With rows pointing down, shells run clockwise and holes counterclockwise. The first corner is not repeated at the
    end.
    """

    columns: Ints
    """(C,) columns of the corners, ring by ring: the border to the left of this pixel column."""
    rows: Ints
    """(C,) rows of the corners: the border above this pixel row."""
    ring: Ints
    """(C,) the ring of each corner, ascending."""
    polygon: Ints
    """(R,) the polygon of each ring, ascending."""
    mask: Ints
    """(P,) the mask of each polygon, ascending; an empty mask has none."""


class _Edges(NamedTuple):
    """Horizontal borders of maximum length, ordered by mask, row and column."""

    mask: Ints
    row: Ints
    left: Ints
    right: Ints
    below: NDArray[np.bool_]
    """Whether the mask is below the edge; otherwise it is above."""


def trace(spans: Spans) -> Rings:
    """Return the contours of masks."""
    # Along a column, changes are alternately the start and the end of a span.
    mask, column = np.repeat(spans.of, 2), np.repeat(spans.column, 2)
    row = np.stack([spans.start, spans.stop], axis=1).reshape(-1)
    edges, edge_of, first = _edges(mask, column, row)
    successor = _successors(edges)
    leader, rank = _leaders_and_steps(successor)

    # A ring is numbered by its topmost edge, its leader. The span above the leader of a hole belongs to the same
    # polygon, and starts at the border of the shell or of a hole further up.
    leaders, ring_of = np.unique(leader, return_inverse=True)
    hole = ~edges.below[leaders]
    shell = np.arange(len(leaders))
    shell[hole] = ring_of[edge_of[first[leaders[hole]] - 1]]
    while hole[shell].any():
        shell = shell[shell]

    # Order by shell, each followed by its holes, with the edges of each ring in sequence.
    order = np.lexsort((rank, leader, hole[ring_of], shell[ring_of]))
    ring = _group_numbers(ring_of[order])
    below, left, right = edges.below[order], edges.left[order], edges.right[order]
    ends = np.stack([np.where(below, left, right), np.where(below, right, left)], axis=1)
    shells = np.flatnonzero(~hole)
    return Rings(
        columns=ends.reshape(-1),
        rows=np.repeat(edges.row[order], 2),
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


def _successors(edges: _Edges) -> Ints:
    """Return the successor of each edge, with the mask on the right-hand side."""
    n = len(edges.row)
    # Vertex 2e is the left end of edge e, 2e + 1 the right end. Along a column of corners, every second pair of
    # neighbours forms the two ends of a vertical border. Of two ends in one corner, the one whose border leads up
    # along the same pixel comes first, so that pixels touching at a corner are separated.
    column = np.stack([edges.left, edges.right], axis=1).reshape(-1)
    order_in_corner = np.stack([np.ones(n, np.int64), np.where(edges.below, 2, 0)], axis=1)
    row = (3 * edges.row[:, np.newaxis] + order_in_corner).reshape(-1)
    vertices = np.lexsort((row, column, np.repeat(edges.mask, 2)))
    successor = _connected(vertices, edges.below)

    # Where a ring touches itself, it is split in two by connecting the ends the other way. The space between them is
    # always outside the mask, so no split undoes the effect of another.
    same = (edges.mask[1:] == edges.mask[:-1]) & (edges.row[1:] == edges.row[:-1])
    touching = np.flatnonzero(same & (edges.right[:-1] == edges.left[1:]))
    if len(touching):
        leader = _leaders(successor)
        touching = touching[leader[touching] == leader[touching + 1]]
        place = np.empty(2 * n, np.int64)
        place[vertices] = np.arange(2 * n)
        ends = np.stack([2 * touching + 1, 2 * touching + 2])
        vertices[place[ends]] = ends[::-1]
        successor = _connected(vertices, edges.below)
    return successor


def _connected(vertices: Ints, below: NDArray[np.bool_]) -> Ints:
    """Return the successor of each edge, given an order of vertices in which vertical borders are adjacent pairs."""
    partner = np.empty(len(vertices), np.int64)
    partner[vertices[0::2]] = vertices[1::2]
    partner[vertices[1::2]] = vertices[0::2]
    return np.asarray(partner[2 * np.arange(len(below)) + below] // 2)


def _leaders(successor: Ints) -> Ints:
    """Return for each element of a permutation the smallest element of its cycle."""
    leader, ahead = np.arange(len(successor)), successor
    while True:
        leader = np.minimum(leader, leader[ahead])
        if np.array_equal(leader, leader[successor]):
            return leader
        ahead = ahead[ahead]


def _leaders_and_steps(successor: Ints) -> tuple[Ints, Ints]:
    """Return for each element the smallest element of its cycle, and the number of steps from there."""
    leader = _leaders(successor)
    itself = np.arange(len(successor))
    back = np.empty_like(itself)
    back[successor] = itself
    back = np.where(leader == itself, itself, back)
    steps = (leader != itself).astype(np.int64)
    while not np.array_equal(back, leader):
        steps = steps + steps[back]
        back = back[back]
    return leader, steps


def _group_numbers(values: Ints) -> Ints:
    """Return for each value the index of its group of equal neighbours."""
    return np.cumsum(np.append(False, values[1:] != values[:-1])[: len(values)])

"""Compute the charts of the report as coordinates and texts: histograms, heat maps and the co-occurrence matrix.

Coordinates are fractions of a plot, from 0 to 1, with y downwards; the template turns them into SVG.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import plural
from ..stats import AREA_EDGES, COCO_EDGES, COUNT_EDGES, RELATIVE_EDGES, SCORE_BINS, SIZE_EDGES, Stats

MATRIX_CATEGORIES: Final = 20

Edges = Sequence[float | None]


# Charts, as coordinates for the template


@dataclass(frozen=True, slots=True)
class Mark:
    """A text at a position along an axis, from 0 to 1."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A bar or a cell of a heat map, in fractions of the plot; `title` is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    strength: float
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars or colored cells on axes."""

    title: str
    note: str
    cells: list[Cell]
    x_marks: list[Mark]
    y_marks: list[Mark]
    lines: list[Mark]
    """Vertical lines, each with a text."""
    x_label: str = ""
    y_label: str = ""


def _occupied(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return the range of bins from the first to the last with a count, and one more on each side."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return 0, min(1, len(counts))
    return max(0, int(filled[0]) - 1), min(len(counts), int(filled[-1]) + 2)


def _histogram(
    title: str,
    note: str,
    counts: NDArray[np.int64],
    edges: Edges,
    text: Callable[[float | None], str],
    *,
    unit: str,
    nice: Callable[[float], bool],
    lines: Mapping[float, str] | None = None,
    numbers: bool = False,
) -> Chart:
    """Return a chart with bars of equal width, whatever the widths of the bins.

    Args:
        title: of the chart.
        note: a line below the title.
        counts: of the bins.
        edges: of the bins, one more than `counts`.
        text: formats an edge.
        unit: of the edges, for axis label and tooltips.
        nice: whether an edge may be labelled on the axis.
        lines: texts of vertical lines, by the value at which they stand.
        numbers: bins are single integers, labelled below the middle of their bar.
    """
    low, high = _occupied(counts)
    n = high - low
    top = _nice_ceiling(int(counts.max(initial=0)))
    cells = []
    for k in range(low, high):
        share = int(counts[k]) / top
        start, stop = edges[k], edges[k + 1]
        single = numbers and start is not None and stop == start + 1
        bin_text = text(start) if single else f"{text(start)} to {text(stop)}"
        cells.append(
            Cell((k - low) / n, 1 - share, 1 / n, share, 1.0, f"{bin_text} {unit}: {int(counts[k]):,}")
        )
    marks = [
        Mark((k - low + (0.5 if numbers else 0.0)) / n, text(edge))
        for k, edge in enumerate(edges)
        if edge is not None and low <= k <= high - numbers and nice(edge)
    ]
    return Chart(
        title=title,
        note=note,
        cells=[cell for cell in cells if cell.height],
        x_marks=_thinned(marks, 9),
        y_marks=[Mark(0.0, f"{top:,}"), *([Mark(0.5, f"{top // 2:,}")] if top % 2 == 0 else [])],
        lines=[
            Mark(at, name)
            for edge, name in (lines or {}).items()
            if (at := _place(edge, edges, low, n)) is not None
        ],
        x_label=unit,
    )


def _place(value: float, edges: Edges, low: int, n: int) -> float | None:
    """Return the position of a value among logarithmic bins drawn with equal width; None outside of them."""
    for k in range(low, low + n):
        start, stop = edges[k], edges[k + 1]
        if start and stop and start <= value < stop:
            return (k - low + math.log(value / start) / math.log(stop / start)) / n
    return None


def _map(
    title: str,
    note: str,
    counts: NDArray[np.int64],
    strengths: NDArray[np.float64],
    titles: Callable[[int, int], str],
) -> Chart:
    """Return a chart of colored cells, row by row from the top."""
    rows, columns = counts.shape
    cells = [
        Cell(x / columns, y / rows, 1 / columns, 1 / rows, float(strengths[y, x]), titles(y, x))
        for y, x in np.argwhere(counts).tolist()
    ]
    return Chart(title, note, cells, [], [], [])


def _thinned(marks: list[Mark], most: int) -> list[Mark]:
    return marks[:: max(1, -(-len(marks) // most))]


def _nice_ceiling(value: int) -> int:
    """Return the smallest integer of 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, … that is at least `value`.

    >>> [_nice_ceiling(value) for value in (0, 3, 17, 1000, 45_001)]
    [1, 3, 20, 1000, 50000]
    """
    power: int = 10 ** (len(str(value)) - 1)
    tenths = (10, 15, 20, 30, 40, 50, 60, 80, 100)
    return next(t * power // 10 for t in tenths if t * power // 10 >= max(value, 1))


# The charts of a run


def histograms(stats: Stats, figures: Mapping[str, Any]) -> list[Chart]:
    """Return the histograms of `stats`; `figures` is its `summary`."""
    per_image, area = figures["instances_per_image"], figures["area_px"]
    mean = "" if per_image["mean"] is None else f"Mean {per_image['mean']:.2f}. "
    mean_area = "" if area["mean"] is None else f"Mean {number_text(round(area['mean']))} px. "
    sizes: dict[float, str] = {COCO_EDGES[1]: "medium", COCO_EDGES[2]: "large"}
    return [
        _histogram(
            "Instances per image",
            mean + _median(per_image, number_text),
            stats.instances_per_image,
            COUNT_EDGES,
            number_text,
            unit="instances",
            nice=lambda _: True,
            numbers=True,
        ),
        _histogram(
            "Score",
            _median(figures["score"], decimal_text),
            stats.category_scores.sum(axis=0),
            [k / SCORE_BINS for k in range(SCORE_BINS + 1)],
            decimal_text,
            unit="score",
            nice=lambda edge: round(edge * SCORE_BINS) % 2 == 0,
        ),
        _histogram(
            "Instance area",
            f"{mean_area}{_median(area, number_text)} px",
            stats.area_px,
            AREA_EDGES,
            number_text,
            unit="pixels",
            nice=lambda edge: math.log2(max(edge, 1)) % 2 == 0,
            lines=sizes,
        ),
        _histogram(
            "Relative area",
            _median(figures["area_relative"], percent_text),
            stats.area_relative,
            RELATIVE_EDGES,
            percent_text,
            unit="of the image area",
            nice=lambda edge: f"{edge:e}"[:3] in ("1.0", "3.0"),
        ),
    ]


def _median(quantiles: Mapping[str, Any], text: Callable[[float | None], str]) -> str:
    found = quantiles["p50"]
    if found is None:
        return "No data"
    low, high = found
    single = isinstance(low, int) and high == low + 1
    return f"Median {text(low)}" if single else f"Median between {text(low)} and {text(high)}"


def position_map(stats: Stats) -> Chart:
    """Return the heat map of object positions in the images."""
    counts = stats.position
    most = max(int(counts.max()), 1)
    return _map(
        "Positions",
        f"Box centers in the image; at most {plural(most, 'instance')} in one of {counts.size:,} cells",
        counts,
        counts / most,
        lambda y, x: plural(int(counts[y, x]), "instance"),
    )


def size_map(stats: Stats) -> Chart:
    """Return the heat map of image sizes; larger heights are further up, larger widths further right."""
    by_height, by_width = stats.image_size.sum(axis=1), stats.image_size.sum(axis=0)
    (top, bottom), (left, right) = _occupied(by_height), _occupied(by_width)
    counts = stats.image_size[top:bottom, left:right][::-1]
    rows, columns = counts.shape
    total, most = int(counts.sum()), max(int(counts.max()), 1)

    def title(y: int, x: int) -> str:
        width, height = left + x, bottom - 1 - y
        sides = [f"{number_text(SIZE_EDGES[k])} to {number_text(SIZE_EDGES[k + 1])}" for k in (width, height)]
        return f"{sides[0]} px wide, {sides[1]} px high: {counts[y, x]:,}"

    at_most = title(*divmod(int(counts.argmax()), columns)) if total else "none"
    chart = _map(
        "Image sizes", f"Most frequent: {at_most} of {total:,}", counts, np.sqrt(counts / most), title
    )
    x_marks = [Mark((k - left) / columns, number_text(SIZE_EDGES[k])) for k in range(left, right + 1)]
    y_marks = [Mark(1 - (k - top) / rows, number_text(SIZE_EDGES[k])) for k in range(top, bottom + 1)]
    return Chart(
        chart.title,
        chart.note,
        chart.cells,
        _thinned(x_marks, 8),
        _thinned(y_marks, 8),
        [],
        "width, px",
        "height, px",
    )


def cooccurrence_matrix(stats: Stats) -> dict[str, Any]:
    """Return the co-occurrence matrix of the `MATRIX_CATEGORIES` categories with the highest numbers of instances."""
    order = np.argsort(-stats.category_instances, kind="stable")[:MATRIX_CATEGORIES]
    order = order[stats.category_instances[order] > 0]
    names = [stats.categories[k].name for k in order]
    matrix = stats.cooccurrence(order)
    rows = []
    for i, name in enumerate(names):
        images = int(matrix[i, i])
        cells = []
        for j, other in enumerate(names):
            both = int(matrix[i, j])
            text = "" if i == j or not both else f"{100 * both / images:.0f}"
            title = f"{other} is in {both:,} of {plural(images, 'image')} with {name}"
            cells.append({"own": i == j, "strength": both / images, "text": text, "title": title})
        rows.append({"name": name, "cells": cells})
    return {"names": names, "rows": rows}


# Numbers as text


def number_text(value: float | None) -> str:
    """Return a number with thousands separators; None is infinity."""
    return "∞" if value is None else f"{value:,}"


def decimal_text(value: float | None) -> str:
    """Return a number with two decimals; None is infinity."""
    return "∞" if value is None else f"{value:.2f}"


def percent_text(value: float | None) -> str:
    """Return a fraction as a percentage with at most three significant digits.

    >>> percent_text(0.015), percent_text(1e-6), percent_text(1.0), percent_text(0)
    ('1.5%', '0.0001%', '100%', '0%')
    """
    return "∞" if value is None else f"{float(f'{value * 100:.3g}'):f}".rstrip("0").rstrip(".") + "%"


def seconds_text(value: float | None) -> str:
    """Return a duration in its two largest units.

    >>> seconds_text(3.21), seconds_text(75), seconds_text(7322.0)
    ('3.2 s', '1 min 15 s', '2 h 2 min')
    """
    if value is None:
        return "not known"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"

"""Write `evaluation.html`: one file that shows how well a run agrees with its ground truth, and where it does not.

As in the report, everything is in the file: no scripts, no fonts; charts are inline SVG in the colors of the page.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import plural
from ..evaluation.average_precision import RECALLS, Curves
from ..evaluation.evaluate_run import FOLDER, Evaluation, EvaluationOptions, evaluate_run, write_evaluation
from ..evaluation.ground_truth_shares import Shares
from ..evaluation.image_scores import KINDS, Kind
from ..evaluation.matching import IOUS
from ..io.storage import Storage
from ..pipeline.success import RunAll, run_here
from ..results.reader import RunReader
from ..results.run import open_run
from .templates import render, score_text
from .worst_images import Worst, draw_worst

PAGE: Final = f"{FOLDER}/evaluation.html"
LISTED_CATEGORIES: Final = 25
MATRIX_CATEGORIES: Final = 20
MULTIPLES: Final = 12
_SHOWN_IOUS: Final = (0, 5, 8)
"""Indices in `IOUS`: 0.50, 0.75 and 0.90."""
_WORDS: Final = {"segm": "Masks", "bbox": "Boxes"}


@dataclass(frozen=True, slots=True)
class Line:
    """A curve in a plot of 100 x 100 units, y downwards."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of precision over recall."""

    title: str
    note: str
    lines: list[Line]


def evaluate(
    run: str | os.PathLike[str],
    ground_truth: str | os.PathLike[str],
    options: EvaluationOptions | None = None,
    *,
    run_all: RunAll = run_here,
    page: bool = True,
) -> Evaluation:
    """Evaluate a finished run against a COCO ground truth, and store the results below its `evaluation/`.

    Args:
        run: the run's directory, local or remote.
        ground_truth: path or URL of a COCO dataset.
        options: by default as COCO does.
        run_all: executes the parts; by default one after the other in this process.
        page: whether to draw the worst images and to write `evaluation.html`.

    Returns:
        `summary` has the content of `evaluation/summary.json`: COCO's twelve metrics for boxes and masks, counts, and
        the numbers of each category; `images` is a table with a row per image.

    Raises:
        UsageError: the run is not finished, the ground truth is not valid, or images or categories do not match.
        RunError: something cannot be read or stored.
    """
    storage = Storage(run)
    with evaluate_run(storage.url, os.fspath(ground_truth), options, run_all) as (evaluation, shares):
        write_evaluation(storage, evaluation)
        if page:
            write_page(storage, evaluation, shares)
    return evaluation


def write_page(storage: Storage, evaluation: Evaluation, shares: Shares) -> None:
    """Draw the worst images, and store the page beside the tables.

    Raises:
        RunError: a table of the run cannot be read, or the page not stored.
    """
    run = open_run(storage.url)
    with RunReader(run) as reader:
        worst = draw_worst(reader, evaluation, shares)
    storage.write(PAGE, render_page(evaluation, worst).encode())


def render_page(evaluation: Evaluation, worst: Sequence[Worst] = ()) -> str:
    """Return the page as one self-contained HTML file."""
    summary = evaluation.summary
    kinds = [kind for kind in KINDS[::-1] if kind in evaluation.curves]
    rows = sorted(
        ({"name": name} | row for name, row in summary["per_category"].items()),
        key=lambda row: -row[kinds[0]][0],
    )
    return render(
        "evaluation.html.j2",
        summary=summary,
        kinds=[(kind, _WORDS[kind]) for kind in kinds],
        main=kinds[0],
        categories=rows,
        listed=LISTED_CATEGORIES,
        plots=[_plot(_WORDS[kind], evaluation.curves[kind]) for kind in kinds],
        multiples=_multiples(evaluation, kinds[0]),
        matrix=confusion_rows(evaluation.categories, evaluation.confusion),
        worst=worst,
    )


# Curves


def _plot(title: str, curves: Curves) -> Plot:
    """Return the curves at some IoU thresholds, each the mean over categories."""
    overall = curves.precision[..., 0]  # (T, R, K)
    counted = overall[0, 0] > -1
    lines = [
        _line(overall[t][:, counted].mean(axis=1), f"IoU {IOUS[t]:.2f}") for t in _SHOWN_IOUS if counted.any()
    ]
    ap = curves.stats()[0]
    return Plot(title, f"AP {score_text(ap)}, mean over IoU 0.50 to 0.95 and categories", lines)


def _multiples(evaluation: Evaluation, kind: Kind) -> list[Plot]:
    """Return a plot for each of the categories with the most objects."""
    rows = evaluation.summary["per_category"]
    if len(rows) < 2:
        return []
    curves = evaluation.curves[kind].precision[..., 0]
    most = sorted(rows, key=lambda name: -rows[name]["objects"])[:MULTIPLES]
    return [
        Plot(
            name,
            f"AP {score_text(rows[name][kind][0])}, {plural(rows[name]['objects'], 'object')}",
            [
                _line(curves[t][:, evaluation.categories.index(name)], f"IoU {IOUS[t]:.2f}")
                for t in _SHOWN_IOUS
            ],
        )
        for name in most
    ]


def _line(precision: NDArray[np.float64], text: str) -> Line:
    points = (f"{100 * x:.1f} {100 * (1 - y):.1f}" for x, y in zip(RECALLS, precision, strict=True))
    return Line("M" + "L".join(points), f"{text}: AP {precision.mean():.3f}")


# Confusion matrix


def confusion_rows(names: Sequence[str], confusion: NDArray[np.int64]) -> dict[str, Any]:
    """Return the confusion matrix of the categories with the most objects, and of the background."""
    order = np.argsort(-(confusion[:-1].sum(axis=1) + confusion[:, :-1].sum(axis=0)), kind="stable")
    order = order[(confusion[order].sum(axis=1) + confusion[:, order].sum(axis=0)) > 0]
    shown = [*order[:MATRIX_CATEGORIES].tolist(), len(names)]
    titles = [*names, "background"]
    rows = []
    for i in shown:
        total = int(confusion[i].sum())
        cells = []
        for j in shown:
            count = int(confusion[i, j])
            share = count / total if total else 0.0
            what = f"{titles[i]} detected as {titles[j]}"
            cells.append(
                {
                    "own": i == j == len(names),
                    "right": i == j,
                    "strength": share,
                    "text": f"{count:,}" if count else "",
                    "title": f"{what}: {count:,} of {total:,}",
                }
            )
        rows.append({"name": titles[i], "cells": cells})
    return {
        "names": [titles[k] for k in shown],
        "rows": rows,
        "left_out": len(order) - min(len(order), MATRIX_CATEGORIES),
    }

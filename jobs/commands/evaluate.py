"""`maskrcnn evaluate`: where the parts of a run are weighed, and what is told of it."""

import logging
from typing import Any, Final

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import UsageError
from maskrcnn.evaluation.evaluate_run import Evaluation, EvaluationOptions, evaluate_run, write_evaluation
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.success import RunAll, read_success, run_here

from .segment import output_of

log = logging.getLogger("maskrcnn")

HERE_IMAGES: Final = 5_000
HERE_INSTANCES: Final = 100_000
"""Up to so many a run is weighed in this process: it takes less time than Ray does to start."""


def evaluate(
    output: str, truth: str, asked: EvaluationOptions, address: str | None, *, page: bool = True
) -> Evaluation:
    """Weigh a finished run, and store what is known below its `evaluation/`.

    Raises:
        UsageError: the run is not finished, the truth is none, or images or categories do not pair.
        RunError: something cannot be read or stored, or the cluster cannot be reached.
    """
    storage = output_of(output)
    success = read_success(storage)
    if success is None:
        raise UsageError(f"{output} is no finished run; see `maskrcnn status {output}`")
    counts = success["counts"]
    if address is None and counts["images"] <= HERE_IMAGES and counts["instances"] <= HERE_INSTANCES:
        return _evaluate(storage, truth, asked, run_here, page=page)
    from ..driver.cluster import connected, run_all

    with connected(address, ResourceConfig(device="cpu")):
        return _evaluate(storage, truth, asked, run_all, page=page)


def _evaluate(
    storage: Storage, truth: str, asked: EvaluationOptions, run_all: RunAll, *, page: bool
) -> Evaluation:
    from maskrcnn.visualization.evaluation_report import write_page

    with evaluate_run(storage.url, truth, asked, run_all) as (evaluation, shares):
        write_evaluation(storage, evaluation)
        if page:
            write_page(storage, evaluation, shares)
    return evaluation


def table_of(summary: dict[str, Any], output: str) -> str:
    """Return what a person reads in a terminal."""
    kinds = [kind for kind in ("segm", "bbox") if summary[kind] is not None]
    words = {"segm": "mask", "bbox": "box"}
    lines = [f"{'':12}" + "".join(f"{words[kind]:>9}" for kind in kinds)]
    for number, name in enumerate(summary["stats"]):
        shown = f"AR{summary['max_dets']}" if name == "AR" else name
        lines.append(f"{shown:12}" + "".join(f"{_number(summary[kind][number]):>9}" for kind in kinds))
    rows = summary["per_category"]
    if len(rows) > 1:
        width = min(max(map(len, rows)), 32)
        lines += [
            "",
            f"{'category':{width}}{'objects':>9}" + "".join(f"{words[k] + ' AP':>9}" for k in kinds),
        ]
        best = sorted(rows.items(), key=lambda item: -item[1][kinds[0]][0])
        for name, row in best:
            shown = name if len(name) <= width else f"{name[: width - 1]}…"
            numbers = "".join(f"{_number(row[kind][0]):>9}" for kind in kinds)
            lines.append(f"{shown:{width}}{row['objects']:>9,}{numbers}")
    return "\n".join([*lines, "", _sentence(summary), f"{output.rstrip('/')}/evaluation/evaluation.html"])


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _sentence(summary: dict[str, Any]) -> str:
    images, half = summary["images"], summary["at_half"]
    failed = f" ({images['failed']:,} failed, in which nothing was found)" if images["failed"] else ""
    return (
        f"{images['evaluated']:,} images{failed}, matched by {images['matched_by']}; {summary['objects']:,} objects, "
        f"{summary['detections']:,} detections. At score 0.5: {half['true_positives']:,} true positives, "
        f"{half['false_negatives']:,} false negatives, {half['false_positives']:,} false positives"
    )

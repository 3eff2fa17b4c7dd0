"""The command `maskrcnn evaluate`: a finished run scored against a COCO ground truth."""

import json
from typing import TYPE_CHECKING, Any, Final

import click

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import plural

from .plain_text import plain
from .shared_options import json_option, names_of

if TYPE_CHECKING:
    from maskrcnn.evaluation.evaluate_run import Evaluation, EvaluationOptions

LOCAL_IMAGES: Final = 5_000
LOCAL_INSTANCES: Final = 100_000
"""Runs of at most this size are evaluated in this process, which takes less time than Ray needs to start."""


def _renamed(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        old, equals, new = value.partition("=")
        if not (old.strip() and equals and new.strip()):
            raise click.BadParameter(f"{value!r} is not RUN=TRUTH")
        pairs[old.strip()] = new.strip()
    return pairs


@click.command()
@click.argument("output")
@click.option(
    "--truth",
    "ground_truth",
    required=True,
    metavar="COCO.json",
    help="The ground truth, a path or s3:// URL.",
)
@click.option(
    "--max-dets",
    type=click.IntRange(11),
    default=100,
    show_default=True,
    help="Maximum number of detections of a category per image that are evaluated; COCO's is 100.",
)
@click.option(
    "--map",
    "rename",
    multiple=True,
    metavar="RUN=TRUTH",
    callback=_renamed,
    help="Match the run's category RUN to this category of the ground truth; repeatable.",
)
@click.option("--categories", metavar="NAME,…", help="Evaluate only these categories of the ground truth.")
@click.option("--class-agnostic", is_flag=True, help="Treat all categories as one.")
@click.option(
    "--allow-missing",
    is_flag=True,
    help="If the run lacks images of the ground truth, evaluate the images that both have.",
)
@click.option(
    "--address",
    help="Address of a Ray cluster. Without it small runs (5,000 images) are evaluated in this process, and larger "
    "ones on the cluster at RAY_ADDRESS, or on a local Ray started for this command.",
)
@json_option
def evaluate(
    output: str,
    ground_truth: str,
    max_dets: int,
    rename: dict[str, str],
    categories: str | None,
    class_agnostic: bool,
    allow_missing: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Evaluate a finished OUTPUT against a COCO ground truth: AP and AR of boxes and masks, as COCO defines them.

    Where the run or the ground truth has boxes only, those of boxes alone.

    Images are matched by id if the run's ids were given, else by name; categories by name. OUTPUT/evaluation/ gets
    the results, tables of the images and of the categories, and a page with curves and the worst images.
    """
    from maskrcnn.evaluation.evaluate_run import EvaluationOptions

    only = names_of(categories, "--categories")
    options = EvaluationOptions(max_dets, rename, only, class_agnostic, allow_missing)
    summary = run_evaluate(output, ground_truth, options, address).summary
    lines = [json.dumps(summary)] if as_json else map(plain, _text(summary, output).split("\n"))
    click.echo("\n".join(lines))


def run_evaluate(
    output: str, ground_truth: str, options: "EvaluationOptions", address: str | None, *, page: bool = True
) -> "Evaluation":
    """Evaluate a finished run, and store the results in its folder `evaluation/`.

    Raises:
        UsageError: the run is not finished, the ground truth is invalid, or images or categories cannot be matched.
        RunError: something cannot be read or stored, or the cluster cannot be reached.
    """
    import maskrcnn
    from maskrcnn.io.manifests.sources import refuse_user

    from ..driver.planning import output_storage

    refuse_user(ground_truth, "--truth")
    storage = output_storage(output)
    counts = maskrcnn.open_run(storage.url).success["counts"]
    if address is None and counts["images"] <= LOCAL_IMAGES and counts["instances"] <= LOCAL_INSTANCES:
        return maskrcnn.evaluate(storage.url, ground_truth, options, page=page)
    from ..driver.cluster import connected, run_all

    with connected(address, ResourceConfig(device="cpu")):
        return maskrcnn.evaluate(storage.url, ground_truth, options, run_all=run_all, page=page)


def _text(summary: dict[str, Any], output: str) -> str:
    """Return what a terminal shows: AP and AR, the categories by AP, and the counts at score 0.5."""
    from maskrcnn.visualization.templates import score_text

    kinds = [kind for kind in ("segm", "bbox") if summary[kind] is not None]
    words = {"segm": "mask", "bbox": "box"}
    lines = [f"{'':12}" + "".join(f"{words[kind]:>9}" for kind in kinds)]
    for number, name in enumerate(summary["stats"]):
        shown = f"AR{summary['max_dets']}" if name == "AR" else name
        lines.append(f"{shown:12}" + "".join(f"{score_text(summary[kind][number]):>9}" for kind in kinds))
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
            numbers = "".join(f"{score_text(row[kind][0]):>9}" for kind in kinds)
            lines.append(f"{shown:{width}}{row['objects']:>9,}{numbers}")
    return "\n".join([*lines, "", _sentence(summary), f"{output.rstrip('/')}/evaluation/evaluation.html"])


def _sentence(summary: dict[str, Any]) -> str:
    images, half = summary["images"], summary["at_half"]
    failed = f" ({images['failed']:,} failed, counted as without detections)" if images["failed"] else ""
    return (
        f"{plural(images['evaluated'], 'image')}{failed}, matched by {images['matched_by']}; "
        f"{plural(summary['objects'], 'object')}, {plural(summary['detections'], 'detection')}. At score 0.5: "
        f"{plural(half['true_positives'], 'true positive')}, {plural(half['false_negatives'], 'false negative')}, "
        f"{plural(half['false_positives'], 'false positive')}"
    )

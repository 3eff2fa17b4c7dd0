"""The command `maskrcnn evaluate`."""

import json

import click

from .options import json_option
from .terminal import plain


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
@click.option("--truth", required=True, metavar="COCO.json", help="The ground truth, a path or s3:// url.")
@click.option(
    "--max-dets",
    type=click.IntRange(11),
    default=100,
    show_default=True,
    help="The most detections of a category in an image that count; COCO's is 100.",
)
@click.option(
    "--map",
    "rename",
    multiple=True,
    metavar="RUN=TRUTH",
    callback=_renamed,
    help="The run's category RUN is the truth's TRUTH. Repeatable.",
)
@click.option("--categories", metavar="NAME,…", help="Weigh only these categories of the truth.")
@click.option("--class-agnostic", is_flag=True, help="Take all categories as one.")
@click.option(
    "--allow-missing", is_flag=True, help="The run lacks images of the truth: weigh those that both have."
)
@click.option(
    "--address",
    help="Of a Ray cluster. Without it small runs (5,000 images) are weighed in this process, and others on a Ray "
    "at RAY_ADDRESS or started here.",
)
@json_option
def evaluate(
    output: str,
    truth: str,
    max_dets: int,
    rename: dict[str, str],
    categories: str | None,
    class_agnostic: bool,
    allow_missing: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Weigh a finished OUTPUT against a COCO ground truth: box and mask AP and AR, as COCO defines them.

    Images are matched by id where the run's ids were given, else by name; categories by name. OUTPUT/evaluation/ gets
    the numbers, a table of the images and of the categories, and a page with curves and the worst images.
    """
    from maskrcnn.errors import UsageError
    from maskrcnn.evaluation.evaluate_run import EvaluationOptions

    from .evaluate import evaluate as run_evaluate
    from .evaluate import table_of

    only = tuple(name.strip() for name in (categories or "").split(",") if name.strip())
    if categories is not None and not only:
        raise UsageError("--categories names no category")
    asked = EvaluationOptions(max_dets, rename, only, class_agnostic, allow_missing)
    summary = run_evaluate(output, truth, asked, address).summary
    lines = [json.dumps(summary)] if as_json else map(plain, table_of(summary, output).split("\n"))
    click.echo("\n".join(lines))

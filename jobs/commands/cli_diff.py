"""`maskrcnn diff`."""

import json
import sys

import click

from .options import json_option


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--iou",
    type=float,
    default=1.0,
    show_default=True,
    help="Matched instances are the same where masks and boxes have so much IoU.",
)
@click.option(
    "--score", type=float, default=0.0, show_default=True, help="And where scores differ by no more."
)
@click.option(
    "--match-iou",
    type=float,
    default=0.5,
    show_default=True,
    help="Masks of less IoU are of different objects.",
)
@click.option(
    "--min-score", type=float, default=0.0, show_default=True, help="Leave out weaker instances of both."
)
@click.option("--output", metavar="DIR", help="An empty directory for tables, JSON and a page with pictures.")
@click.option(
    "--pictures", type=click.IntRange(0, 200), default=12, show_default=True, help="The most, on the page."
)
@json_option
def diff(
    a: str,
    b: str,
    iou: float,
    score: float,
    match_iou: float,
    min_score: float,
    output: str | None,
    pictures: int,
    as_json: bool,
) -> None:
    """Compare two finished runs A and B over the same images, instance by instance.

    Images are matched by id where both runs were given ids, else by name. What is matched is the same, rescored, moved
    or relabelled; what is not has appeared in B or vanished from A. The exit code is 0 if the runs are equal within
    --iou and --score, 1 if they differ, and 2 or 3 where they cannot be compared.
    """
    from maskrcnn.results.diff_matching import Rules

    from .diff import diff as diff_runs
    from .diff import table_of
    from .terminal import plain

    facts = diff_runs(a, b, Rules(match_iou, iou, score, min_score), output, pictures)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for line in table_of(facts).split("\n"):
            click.echo(plain(line))
        if output is not None:
            click.echo(plain(f"{output.rstrip('/')}/diff.html"))
    sys.exit(0 if facts["equal"] else 1)

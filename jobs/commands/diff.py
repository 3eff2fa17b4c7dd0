"""The command `maskrcnn diff`: two finished runs over the same images, compared."""

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from maskrcnn.errors import plural

from .plain_text import plain
from .shared_options import json_option, tasks_option

_ROWS: Final = 20
"""Maximum number of categories in the terminal's table."""


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--iou",
    type=float,
    default=1.0,
    show_default=True,
    help="Matched instances are equal if their boxes, and masks where both have them, have at least this IoU,",
)
@click.option(
    "--score",
    type=float,
    default=0.0,
    show_default=True,
    help="and scores differ by at most this.",
)
@click.option(
    "--match-iou",
    type=float,
    default=0.5,
    show_default=True,
    help="Lowest IoU of two masks that are matched as one object; of two boxes where a run has no masks.",
)
@click.option(
    "--min-score",
    type=float,
    default=0.0,
    show_default=True,
    help="Ignore instances of both runs with lower scores.",
)
@click.option("--output", metavar="DIR", help="An empty directory for tables, JSON and a page with pictures.")
@click.option(
    "--pictures",
    type=click.IntRange(0, 200),
    default=12,
    show_default=True,
    help="Maximum number of pictures on the page.",
)
@tasks_option
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
    address: str | None,
    as_json: bool,
) -> None:
    """Compare two finished runs A and B over the same images, instance by instance.

    Images are matched by id if both runs were given ids, else by name. A matched instance is the same, rescored, moved
    or relabelled; an unmatched one appeared in B or vanished from A. The exit code is 0 if the runs are equal within
    --iou and --score, 1 if they differ, and 2 or 3 if they cannot be compared.
    """
    import maskrcnn

    from ..driver.workers import tasks_at

    rules = maskrcnn.DiffRules(match_iou, iou, score, min_score)
    with tasks_at(address) as run_all:
        facts = maskrcnn.diff(a, b, rules, output, pictures, run_all)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for line in _text(facts).split("\n"):
            click.echo(plain(line))
        if output is not None:
            click.echo(plain(f"{output.rstrip('/')}/diff.html"))
    sys.exit(0 if facts["equal"] else 1)


def _text(facts: Mapping[str, Any]) -> str:
    """Return the differences as a table for a terminal."""
    from maskrcnn.results.diff_matching import KINDS

    by_category = facts["by_category"]
    order = sorted(
        by_category, key=lambda name: (by_category[name]["same"] - sum(by_category[name].values()), name)
    )
    shown = {name: by_category[name] for name in order[:_ROWS]}
    rows = {"all": facts["instances"], **shown, **facts["by_size"]}
    width = max(len("instances"), *(len(name) for name in rows))
    lines = [_images_line(facts), f"{'instances':{width}}  " + "  ".join(f"{kind:>10}" for kind in KINDS)]
    for name, counts in rows.items():
        lines.append(f"{name:{width}}  " + "  ".join(f"{counts[kind]:>10,}" for kind in KINDS))
        if len(order) > _ROWS and name == order[_ROWS - 1]:
            lines.append(f"and {plural(len(order) - _ROWS, 'more category', 'more categories')}")
    lines += [f"{row['count']:,} {row['from']} → {row['to']}" for row in facts["relabelled"][:10]]
    lines += [f"settings: {line}" for line in facts["settings"]]
    return "\n".join([*lines, "equal" if facts["equal"] else "different"])


def _images_line(facts: Mapping[str, Any]) -> str:
    images = facts["images"]
    parts = {
        "changed": ("differs in its instances", "differ in their instances"),
        "only_a": ("is only in A", "are only in A"),
        "only_b": ("is only in B", "are only in B"),
        "status_changed": ("has another status", "have another status"),
        "renamed": ("has another name in B", "have another name in B"),
        "failed": (
            "was not compared because it failed in a run",
            "were not compared because they failed in a run",
        ),
        "resized": (
            "was not compared because its size differs",
            "were not compared because their sizes differ",
        ),
    }
    said = [f"{images[name]:,} {words[images[name] != 1]}" for name, words in parts.items() if images[name]]
    compared = f"{plural(images['compared'], 'image')} compared by {facts['matched_by']}"
    return "; ".join([compared, *said])

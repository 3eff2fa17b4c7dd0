"""The command `maskrcnn convert`."""

import json
import sys
from typing import Any

import click

from .options import json_option
from .terminal import plain


@click.command()
@click.argument("weights")
@click.argument("out")
@click.option(
    "--labels",
    metavar="FILE",
    help="Category names, one a line, from the first class; by default COCO's, where there are as many.",
)
@click.option(
    "--from",
    "source",
    type=click.Choice(["auto", "torchvision", "detectron2", "matterport"]),
    default="auto",
    show_default=True,
    help="Whose weights they are.",
)
@click.option("--min-size", type=int, help="Shorter side of a resized image; by default 800.")
@click.option("--max-size", type=int, help="Its longer side at most; by default 1333, of matterport's 1024.")
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="Of matterport's networks: what InferenceConfig says, as RPN_ANCHOR_SCALES=8,16,32,64,128; repeatable.",
)
@json_option
def convert(weights: str, out: str, as_json: bool, **options: Any) -> None:
    """Convert WEIGHTS of torchvision (.pth), detectron2 (.pkl, .pth) or matterport (.h5) to OUT.safetensors.

    Nothing in WEIGHTS is executed. A tensor that is missing, unknown or misshapen is refused by name. The network is
    compared stage by stage with what WEIGHTS would compute; what became of each tensor, and the comparison, stand in
    OUT.report.md and OUT.report.json. The exit code is 1 where a stage differs by more than rounding.
    """
    from maskrcnn.models.conversion.convert import convert as convert_weights

    report = convert_weights(weights, out, **options)
    click.echo(json.dumps(report.to_json()) if as_json else _summary(report, out))
    sys.exit(0 if report.sound else 1)


def _summary(report: Any, out: str) -> str:
    counts = ", ".join(f"{count} {action}" for action, count in report.counts().items())
    lines = [
        f"{report.source}, {report.architecture}, {len(report.categories)} categories",
        f"tensors: {counts}",
    ]
    lines += [
        f"{'ok  ' if row.sound else 'FAIL'} {row.stage}: {row.difference:.2g} {row.unit}, limit {row.limit:g}"
        for row in report.parity
    ]
    lines.append(f"{out}; {out}.report.md lists each tensor")
    return "\n".join(plain(line) for line in lines)

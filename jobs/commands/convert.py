"""The command `maskrcnn convert`: weights of other libraries as a .safetensors file."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from maskrcnn.errors import plural

from .plain_text import plain
from .shared_options import json_option

if TYPE_CHECKING:
    from maskrcnn.models.conversion.report import Converted


@click.command()
@click.argument("weights")
@click.argument("out")
@click.option(
    "--labels",
    metavar="FILE",
    help="Category names, one per line, from the first class; by default WEIGHTS' own, or COCO's if their number fits.",
)
@click.option(
    "--from",
    "source",
    type=click.Choice(["auto", "torchvision", "detectron2", "mmdetection", "matterport"]),
    default="auto",
    show_default=True,
    help="The library that WEIGHTS come from.",
)
@click.option(
    "--config",
    metavar="FILE",
    help="The config.yaml that detectron2's trainer wrote: pixel mean and deviation, anchors, thresholds, sizes, ….",
)
@click.option(
    "--min-size",
    type=int,
    help="Shorter side of a resized image, in pixels; by default that of the configuration or the network, mostly 800.",
)
@click.option(
    "--max-size",
    type=int,
    help="Maximum longer side of a resized image, in pixels; by default likewise, mostly 1333, for matterport 1024.",
)
@click.option(
    "--norm-eps",
    type=float,
    metavar="EPS",
    help="The epsilon of torchvision's frozen norms, where the file does not say: 0 if it was fine-tuned from "
    "torchvision's COCO weights of maskrcnn_, fasterrcnn_ or retinanet_resnet50_fpn, else 1e-5.",
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="A setting of a matterport network's InferenceConfig, as RPN_ANCHOR_SCALES=8,16,32,64,128; repeatable.",
)
@json_option
def convert(weights: str, out: str, as_json: bool, **options: Any) -> None:
    """Convert WEIGHTS of torchvision, detectron2, MMDetection or matterport to OUT.safetensors.

    WEIGHTS is a .pth, .pt, .ckpt, .bin or .safetensors file, a .pkl of detectron2, or an .h5 of matterport, as the
    training saved it. Nothing in it is executed. A tensor that is missing, unknown or of another shape is refused by
    name. The network is compared stage by stage with what WEIGHTS would compute; OUT.report.md and OUT.report.json list
    what became of each tensor, and the comparison. The exit code is 1 if a stage differs by more than rounding.
    """
    from maskrcnn.models.conversion.convert import convert as convert_weights

    report = convert_weights(weights, out, **options)
    click.echo(json.dumps(report.to_json()) if as_json else _text(report, out))
    sys.exit(0 if report.within_limit else 1)


def _text(report: "Converted", out: str) -> str:
    counts = ", ".join(f"{count} {action}" for action, count in report.counts().items())
    lines = [
        f"{report.source}, {report.architecture}, {plural(len(report.categories), 'category')}",
        f"tensors: {counts}",
        *([f"norms: epsilon {report.assumed['norm_eps']:g}"] if "norm_eps" in report.assumed else []),
    ]
    lines += [
        f"{'ok  ' if row.within_limit else 'FAIL'} {row.stage}: {row.difference:.2g} {row.unit}, limit {row.limit:g}"
        for row in report.parity
    ]
    lines.append(f"{out}; {out}.report.md lists each tensor")
    return "\n".join(plain(line) for line in lines)

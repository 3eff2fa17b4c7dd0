"""The command `maskrcnn check-model`: whether a model's results are sound, and what a batch costs."""

import json
import sys
from typing import TYPE_CHECKING, Final

import click

from .plain_text import plain
from .shared_options import json_option, labels_option, model_args_option

if TYPE_CHECKING:
    from maskrcnn.models.checks.report import ModelReport

_MARKS: Final = {"ok": "ok      ", "failed": "FAILED  ", "not_checked": "not checked: "}


@click.command("check-model")
@click.argument("model")
@model_args_option
@labels_option
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Device."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch on the CPU; by default all CPUs.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Data type of the network's convolutions; by default float32 on CPU, float16 on CUDA.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    help="How long building the model and computing each image may take; no larger batch is measured after this time.",
)
@json_option
def check_model_command(
    model: str,
    model_args: tuple[str, ...],
    labels: str | None,
    device: str,
    threads: int | None,
    dtype: str | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Check any MODEL on generated images: a name, a file, or package.module:factory.

    Says whether its results are well formed, finite, within the image, the same twice, alone and in a batch, which
    limits it obeys, and what a batch costs. The exit code is 1 if a check failed, and 2 if the model cannot be built or
    hangs.
    """
    from maskrcnn.models.checks.check_process import check_model
    from maskrcnn.models.own.own_arguments import parse_arguments

    arguments = parse_arguments(model_args)
    report = check_model(
        model, labels, arguments, device=device, threads=threads, dtype=dtype, seconds=seconds
    )
    click.echo(json.dumps(report.to_json()) if as_json else _text(report))
    sys.exit(0 if report.sound else 1)


def _text(report: "ModelReport") -> str:
    wide = max((len(check.name) for check in report.checks), default=0)
    lines = [f"{check.name:{wide}}  {_MARKS[check.status]}{plain(check.line)}" for check in report.checks]
    if report.costs:
        lines += ["", "batch size  s/image  peak memory"]
    lines += [
        f"{cost.batch_size:10}  {cost.seconds_per_image:7.3f}  {cost.peak_bytes / 2**20:8,.0f} MiB"
        for cost in report.costs
    ]
    masks = "masks" if report.has_masks else "boxes only"
    names = ", ".join(category.name for category in report.categories[:10])
    more = f", … ({len(report.categories)})" if len(report.categories) > 10 else ""
    lines += ["", plain(f"{_conclusion(report)}: {report.model}, {masks}, {names}{more}")]
    return "\n".join(lines)


def _conclusion(report: "ModelReport") -> str:
    statuses = {check.status for check in report.checks}
    if "failed" in statuses:
        return "not sound"
    if "ok" not in statuses:
        return "not checked"
    return "sound as far as checked" if "not_checked" in statuses else "sound"

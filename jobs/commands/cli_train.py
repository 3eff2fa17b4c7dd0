"""The command `maskrcnn train`."""

import dataclasses
import json
from typing import Any

import click

from maskrcnn.errors import UsageError

from .options import json_option


@click.command()
@click.argument("dataset")
@click.argument("output", required=False)
@click.option(
    "--val", "validation", metavar="JSON", help="COCO JSON to validate on; by default a share of DATASET."
)
@click.option(
    "--val-share", "share", type=float, default=0.1, show_default=True, help="Of DATASET, without --val."
)
@click.option("--images-root", metavar="URL", help="Where the images of DATASET lie; by default beside it.")
@click.option("--val-images-root", "validation_root", metavar="URL", help="The same of --val.")
@click.option("--skip-invalid", is_flag=True, help="Leave out images and annotations that have errors.")
@click.option("--check", "check_only", is_flag=True, help="Only check the data, and list what is wrong.")
@click.option(
    "--model",
    default="coco",
    show_default=True,
    help="What to start from: coco, coco-v1, scenes, a weights file, imagenet:ARCHITECTURE or random:ARCHITECTURE.",
)
@click.option("--epochs", type=int, default=12, show_default=True)
@click.option("--batch-size", type=int, default=4, show_default=True, help="Images a step, over all workers.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--learning-rate", type=float, default=5e-4, show_default=True, help="At its peak.")
@click.option("--weight-decay", type=float, default=0.02, show_default=True)
@click.option("--schedule", type=click.Choice(["cosine", "step"]), default="cosine", show_default=True)
@click.option("--clip", type=float, default=5.0, show_default=True, help="The largest norm of a gradient.")
@click.option(
    "--freeze", type=int, default=2, show_default=True, help="Stages of the trunk that stay, 0 to 5."
)
@click.option(
    "--min-size", type=int, metavar="PX", help="Images' shorter side; by default as the model has it."
)
@click.option("--max-size", type=int, metavar="PX", help="Unless their longer side would exceed this.")
@click.option(
    "--crop", type=int, default=512, show_default=True, help="Side of what is learned from, pixels."
)
@click.option(
    "--jitter", default="0.6,1.4", show_default=True, metavar="LOW,HIGH", help="Factors of the scale."
)
@click.option(
    "--flips",
    type=click.Choice(["none", "horizontal", "both"]),
    default="horizontal",
    show_default=True,
    help="both: upside down too, as seen from above or through a microscope.",
)
@click.option(
    "--color", type=float, default=1.0, show_default=True, help="How strongly colours change, 0 to 2."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--max-detections", type=int, default=100, show_default=True, help="The most an image, validating."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
    help="bfloat16: mixed precision.",
)  # fmt: skip
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="The most workers; by default one a CPU or GPU. They share a batch.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPUs of a worker; by default 1, with CUDA a GPU's share of them.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto looks at this machine, where Ray is started here.",
)
@click.option("--address", help="Of a Ray cluster; by default RAY_ADDRESS, else Ray is started here.")
@json_option
def train(
    dataset: str,
    output: str | None,
    workers: int | None,
    threads: int | None,
    device: Any,
    address: str | None,
    check_only: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn the categories of DATASET, a COCO JSON with masks; continue OUTPUT if it is unfinished.

    The dataset is checked before the first step. OUTPUT gets model.safetensors, the epoch with the best mask AP, which
    `maskrcnn segment --model` takes, and training.html. Results do not depend on the number of workers but for the last
    digits.
    """
    from maskrcnn.config import ResourceConfig

    _check_installed()
    request = _request(dataset, output or "", options)
    speed = ResourceConfig(device=device, threads=threads, actors=workers)
    if check_only:
        _check(request, as_json)
        return
    if output is None:
        raise UsageError("name OUTPUT, where the model goes, or only --check the data")
    from .train import train as run

    result = run(request, speed, address)
    if as_json:
        click.echo(json.dumps(result))
        return
    best = result["best"]
    measured = f": mask AP {best['mask_ap']:.3f}, AP50 {best['mask_ap50']:.3f}" if "mask_ap" in best else ""
    click.echo(f"{result['epochs']} epochs; {result['model']} is epoch {best['epoch']}{measured}")


def _check_installed() -> None:
    try:
        import ray.train  # noqa: F401
    except ImportError as error:
        raise UsageError("`maskrcnn train` needs Ray Train: pip install 'maskrcnn-ray[train]'") from error


def _request(dataset: str, output: str, options: dict[str, Any]) -> Any:
    from maskrcnn.training.config import TrainingConfig

    from .train import Request

    low, _, high = options.pop("jitter").partition(",")
    try:
        options["jitter"] = (float(low), float(high or low))
    except ValueError as error:
        raise UsageError("--jitter takes two factors, as in 0.6,1.4") from error
    if not 0 < options["share"] < 1:
        raise UsageError(f"--val-share is between 0 and 1, not {options['share']}")
    recipe = TrainingConfig(
        **{
            field.name: options.pop(field.name)
            for field in dataclasses.fields(TrainingConfig)
            if field.name in options
        }
    )
    return Request(source=dataset, output=output, recipe=recipe, **options)


def _check(request: Any, as_json: bool) -> None:
    from .train import check

    dataset, images, apart = check(request)
    facts = {
        "images": images.num_rows,
        "validation_images": apart.num_rows,
        "objects": dataset.n_objects,
        "categories": [category.name for category in dataset.categories],
        "findings": [dataclasses.asdict(finding) for finding in dataset.findings],
    }
    click.echo(json.dumps(facts) if as_json else "nothing that stops a training")

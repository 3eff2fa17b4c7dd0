"""The command `maskrcnn train`: fine-tune a network on a COCO dataset."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final

import click

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import UsageError, plural

from .shared_options import address_option, json_option

if TYPE_CHECKING:
    from ..driver.training_set import TrainingRequest


@click.command()
@click.argument("dataset")
@click.argument("output", required=False)
@click.option(
    "--val", "validation", metavar="JSON", help="COCO JSON to validate on; by default a share of DATASET."
)
@click.option(
    "--val-share",
    "share",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of DATASET to validate on, without --val.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="JSON",
    help="A further dataset to train on, with DATASET as one; repeatable. Categories of one name are one.",
)
@click.option(
    "--images-root",
    "roots",
    multiple=True,
    metavar="URL",
    help="Folder of DATASET's images; by default its own folder. With --also: of all datasets, or repeated, of each.",
)
@click.option(
    "--val-images-root", "validation_root", metavar="URL", help="Folder of the images of --val, likewise."
)
@click.option("--skip-invalid", is_flag=True, help="Leave out images and annotations that have errors.")
@click.option("--check", "check_only", is_flag=True, help="Only check the data, and list its errors.")
@click.option(
    "--model",
    default="coco",
    show_default=True,
    help="Initial weights: coco, coco-v1, scenes, nuclei, a detector of torchvision such as retinanet_resnet50_fpn, a "
    "weights file, imagenet:ARCHITECTURE or random:ARCHITECTURE.",
)
@click.option("--epochs", type=int, default=12, show_default=True)
@click.option(
    "--batch-size", type=int, default=4, show_default=True, help="Images per step, over all workers."
)
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--learning-rate", type=float, default=5e-4, show_default=True, help="Peak learning rate.")
@click.option("--weight-decay", type=float, default=0.02, show_default=True)
@click.option("--schedule", type=click.Choice(["cosine", "step"]), default="cosine", show_default=True)
@click.option("--clip", type=float, default=5.0, show_default=True, help="Maximum norm of the gradient.")
@click.option(
    "--freeze", type=int, default=2, show_default=True, help="Number of frozen backbone stages, 0 to 5."
)
@click.option(
    "--min-size",
    type=int,
    metavar="PX",
    help="Shorter side of resized images; by default the model's own. An SSD has its own alone.",
)
@click.option("--max-size", type=int, metavar="PX", help="Maximum longer side of resized images.")
@click.option(
    "--crop", type=int, default=512, show_default=True,
    help="Side of the crops in a batch, in pixels; an SSD takes its own size instead.",
)  # fmt: skip
@click.option(
    "--jitter", default="0.6,1.4", show_default=True, metavar="LOW,HIGH", help="Range of scale factors."
)
@click.option(
    "--flips",
    type=click.Choice(["none", "horizontal", "both"]),
    default="horizontal",
    show_default=True,
    help="both: vertically too, for images from above or through a microscope.",
)
@click.option(
    "--color", type=float, default=1.0, show_default=True, help="Strength of color augmentation, 0 to 2."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--max-detections",
    type=int,
    default=100,
    show_default=True,
    help="Maximum number of detections per image in validation.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
    help="bfloat16: mixed precision.",
)  # fmt: skip
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Maximum number of workers, which divide a batch; by default one per CPU or GPU.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPUs per worker; by default 1 on CPU, an equal share per GPU on CUDA.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto chooses by this machine, if Ray is started here.",
)
@address_option
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
    """Train on the categories of DATASET, a COCO JSON; continue OUTPUT if it is unfinished.

    A Mask R-CNN needs a mask for each object; a model that detects boxes only needs a box or a mask. The dataset is
    checked before the first step. OUTPUT gets training.html and model.safetensors, the epoch with the best mask AP, or
    for a model without masks the best box AP, which `maskrcnn segment --model` takes. Results do not depend on the
    number of workers, except for the last digits.
    """
    _check_installed()
    for option, names in (
        ("DATASET", (dataset,)),
        ("OUTPUT", (output,)),
        ("--also", options["also"]),
        ("--val", (options["validation"],)),
    ):
        if any(name is not None and not name.strip() for name in names):
            what = (
                "the folder for the model, as in model/"
                if option == "OUTPUT"
                else "a COCO JSON, as in train.json"
            )
            raise UsageError(f"{option} is empty (a variable that is not set?): name {what}")
    request = _request(dataset, output or "", options)
    resources = ResourceConfig(device=device, threads=threads, actors=workers)
    if check_only:
        _check(request, as_json)
        return
    if output is None:
        raise UsageError("name OUTPUT, the folder for the model, or use --check to only check the data")
    from ..driver.training import run_training

    result = run_training(request, resources, address)
    if as_json:
        click.echo(json.dumps(result))
        return
    best = result["best"]
    shape = "mask" if "mask_ap" in best else "box"
    known = "box_ap" in best
    measured = f": {shape} AP {best[f'{shape}_ap']:.3f}, AP50 {best[f'{shape}_ap50']:.3f}" if known else ""
    click.echo(
        f"{plural(result['epochs'], 'epoch', 'epochs')}; {result['model']} is epoch {best['epoch']}{measured}"
    )


_NO_ERRORS: Final = "the data has no errors that prevent training"


def _check_installed() -> None:
    try:
        import ray.train  # noqa: F401
    except ImportError as error:
        raise UsageError("`maskrcnn train` needs Ray Train: pip install 'maskrcnn-ray[train]'") from error


def _request(dataset: str, output: str, options: dict[str, Any]) -> "TrainingRequest":
    from maskrcnn.training.config import TrainingConfig

    from ..driver.training_set import TrainingRequest

    roots = options.pop("roots")
    known = len(options["also"]) + 1
    if len(roots) not in (0, 1, known):
        raise UsageError(
            f"--images-root: give one folder for all datasets, or {known}, one for each, DATASET's first; "
            f"not {len(roots)}"
        )
    options["images_root"], *others = roots if len(roots) == known else (roots or (None,)) * known
    low, _, high = options.pop("jitter").partition(",")
    try:
        options["jitter"] = (float(low), float(high or low))
    except ValueError as error:
        raise UsageError("--jitter must be two factors, as in 0.6,1.4") from error
    if not 0 < options["share"] < 1:
        raise UsageError(f"--val-share must be between 0 and 1, not {options['share']}")
    config = TrainingConfig(
        **{
            field.name: options.pop(field.name)
            for field in dataclasses.fields(TrainingConfig)
            if field.name in options
        }
    )
    return TrainingRequest(source=dataset, output=output, config=config, also_roots=tuple(others), **options)


def _check(request: "TrainingRequest", as_json: bool) -> None:
    from ..driver.training_set import check_datasets

    data = check_datasets(request)
    parts = [*data.parts, *([data.validation] if data.validation else [])]
    facts = {
        "images": data.images.num_rows,
        "validation_images": data.validation_images.num_rows,
        "objects": data.training.n_objects,
        "categories": [category.name for category in data.training.categories],
        "findings": [dataclasses.asdict(finding) for part in data.parts for finding in part.findings],
        "datasets": [
            {
                "dataset": part.source,
                "images": part.images.num_rows,
                "objects": part.n_objects,
                "images_left_out": part.n_left_out[0],
                "annotations_left_out": part.n_left_out[1],
                "findings": [dataclasses.asdict(finding) for finding in part.findings],
            }
            for part in parts
        ],
    }
    left_out = any(part.errors for part in parts)
    text = "with --skip-invalid the rest of the data can be trained on" if left_out else _NO_ERRORS
    click.echo(json.dumps(facts) if as_json else text)

"""Options that several commands share, and the values that they become."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from maskrcnn.config import InferenceConfig
from maskrcnn.errors import UsageError

from .notification import NOTIFY, check_webhook

if TYPE_CHECKING:
    from ..driver.planning import Request

Command = TypeVar("Command", bound=Callable[..., Any])


address_option = click.option(
    "--address", help="Address of a Ray cluster; by default RAY_ADDRESS, else Ray is started here."
)
model_args_option = click.option(
    "--model-arg",
    "model_args",
    metavar="NAME=VALUE",
    multiple=True,
    help="An argument of the factory of a network of your own, JSON or text; repeatable.",
)
labels_option = click.option(
    "--labels",
    metavar="FILE",
    help="Text file with one category name per line, for weights that do not name their categories (.pth, .pt, …).",
)
coco_option = click.option(
    "--coco",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Write COCO JSON; auto splits it above 2,000,000 annotations.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


_INFERENCE = [
    click.option(
        "--model",
        default="coco",
        show_default=True,
        help="coco, coco-v1, scenes or nuclei (embedded: generated scenes, nuclei of cells), a detector of torchvision "
        "by name, the path or URL of a .safetensors file or a .pth state dict, or package.module:factory, a network of "
        "your own.",
    ),
    model_args_option,
    labels_option,
    click.option(
        "--min-score",
        type=float,
        default=0.05,
        show_default=True,
        help="Lowest score of a stored instance.",
    ),
    click.option(
        "--max-detections",
        type=int,
        default=100,
        show_default=True,
        help="Maximum number of instances per image.",
    ),
    click.option("--categories", metavar="NAME,…", help="Keep only these categories."),
    click.option(
        "--tta",
        metavar="flip,scales",
        help="Test-time augmentation: run the network on flipped copies and on copies of other sizes too, by default "
        "0.8, 1 and 1.25 times its own (scales=0.8/1/1.25), and combine what it finds.",
    ),
    click.option("--limit", type=int, metavar="N", help="Only the first N inputs, by name."),
    click.option(
        "--image-column",
        metavar="NAME",
        help="Column with the pictures of tables; needed where a table has several.",
    ),
    click.option(
        "--sidecars",
        metavar="SUFFIXES",
        help="Files in archives, such as json,cls,txt, that become columns of the pictures beside them.",
    ),
    click.option("--images-root", metavar="URL", help="Folder that relative names in a manifest refer to."),
    click.option(
        "--window",
        type=int,
        metavar="PX",
        help="Cut large images and rasters into square windows of this side, in pixels.",
    ),
    click.option(
        "--overlap",
        type=int,
        metavar="PX",
        help="Overlap of adjacent windows; by default an eighth of a window.",
    ),
    click.option(
        "--bands",
        metavar="R,G,B",
        help="Bands of a raster to use; by default chosen by their color interpretation.",
    ),
    click.option(
        "--scale",
        metavar="LOW,HIGH|p2,p98|dataset",
        help="How values of a raster are mapped to 0 to 255; by default bytes are used unchanged.",
    ),
    click.option(
        "--assume-crs",
        metavar="CRS",
        help="CRS of rasters that state none: EPSG:…, or `none` for plain pictures.",
    ),
    click.option(
        "--alpha",
        metavar="BAND|none",
        help="Band of a raster that is its alpha; by default the one that the file names.",
    ),
    click.option(
        "--max-windows",
        type=int,
        metavar="N",
        help="Refuse to plan more windows than this; by default 10,000,000.",
    ),
    click.option(
        "--allow-http",
        is_flag=True,
        help="Allow http(s) inputs in a manifest; only public addresses are read.",
    ),
    click.option(
        "--strict",
        is_flag=True,
        help="Refuse an INPUT in which files would be skipped, such as those without the suffix of an image.",
    ),
    click.option(
        "--shard-images",
        type=int,
        metavar="N",
        help="Images per shard; by default 16 to 1000, by the number of images.",
    ),
    click.option(
        "--reclaim-minutes",
        type=float,
        metavar="M",
        help="Machines are taken away, each after M minutes on average: plan shards that take 1/50 of that at most, by "
        "the time of an image that plan --measure finds, else by 2 s. A run that is planned keeps its shards.",
    ),
]
_COMPUTING = [
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="auto chooses by this machine, if Ray is started here.",
    ),
    click.option("--batch-size", type=int, help="Images per forward pass; by default 1 on CPU, 8 on CUDA."),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Data type of the network's convolutions; by default float32 on CPU, float16 on CUDA.",
    ),
    click.option(
        "--threads",
        type=int,
        help="CPUs per actor; by default 1 on CPU, an equal share per GPU on CUDA.",
    ),
]
_PRICE = click.option("--price", metavar="PRICE/h", help="What all machines together cost, as in 2.10/h.")
tasks_option = click.option(
    "--address", help="Address of a Ray cluster that does the work; by default this process does."
)
_WORKERS = [
    *_COMPUTING,
    click.option("--actors", type=int, help="Maximum number of actors; by default one per CPU or GPU."),
    click.option(
        "--timeout",
        "timeout_s",
        type=float,
        metavar="SECONDS",
        default=300.0,
        show_default=True,
        help="End an actor that makes no progress for this long.",
    ),
    address_option,
    click.option(
        "--ray/--no-ray",
        default=None,
        help="Run on Ray, or in this process; by default small runs on this machine need no Ray.",
    ),
    _PRICE,
]
_CLUSTER = [
    *_WORKERS,
    click.option(
        "--max-hours",
        type=float,
        metavar="HOURS",
        help="Stop, to be continued by the same command, after so many hours; shards that are running are finished.",
    ),
    click.option(
        "--max-cost",
        type=float,
        metavar="COST",
        help="Stop likewise once the machines have cost so much; needs --price.",
    ),
]


def inference_options(command: Command) -> Command:
    """Add the options of `InferenceConfig` and `ShardingConfig`."""
    return _with_options(command, _INFERENCE)


def computing_options(command: Command) -> Command:
    """Add the options of `ResourceConfig` that say how the network computes."""
    return _with_options(command, _COMPUTING)


def worker_options(command: Command) -> Command:
    """Add the options of `ResourceConfig` and the cluster's address, but for limits on time and cost."""
    return _with_options(command, _WORKERS)


def cluster_options(command: Command) -> Command:
    """Add the options of `ResourceConfig` and the cluster's address."""
    return _with_options(command, _CLUSTER)


def _with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def _checked_rate(_context: click.Context, _option: click.Parameter, rate: float) -> float:
    if not 0.0 <= rate <= 1.0:
        raise UsageError(f"--max-failure-rate must be in [0, 1], not {rate}")
    return rate


failure_option = click.option(
    "--max-failure-rate",
    type=float,
    default=0.01,
    show_default=True,
    callback=_checked_rate,
    help="Exit with code 1 if a larger share of the images or windows fails.",
)


def _checked_webhook(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    return None if url is None else check_webhook(url)


notify_option = click.option(
    "--notify",
    metavar="URL",
    envvar=NOTIFY,
    callback=_checked_webhook,
    help="Post a small JSON to this webhook when the command ends, and once more images fail than --max-failure-rate "
    f"allows. The URL is a secret: better give it as {NOTIFY}, which other users of the machine do not see.",
)


def _checked_lineage(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    from .openlineage import check_lineage_server

    return None if url is None else check_lineage_server(url)


openlineage_option = click.option(
    "--openlineage",
    metavar="URL",
    envvar="OPENLINEAGE_URL",
    callback=_checked_lineage,
    help="Post the begin and the end of the run, its inputs and its tables to this server as events of OpenLineage.",
)


def run_request(source: str, output: str, options: dict[str, Any], coco: str) -> "Request":
    """Take the options of `inference_options` out of a command's options; return the run that they request.

    Raises:
        UsageError: a value is out of its range.
    """
    from ..driver.planning import Request

    shard_images, images_root = options.pop("shard_images"), options.pop("images_root")
    reclaim_minutes = options.pop("reclaim_minutes")
    if reclaim_minutes is not None:
        if not 0 < reclaim_minutes < math.inf:
            raise UsageError(f"--reclaim-minutes must be above 0, not {reclaim_minutes:g}")
        if shard_images is not None:
            raise UsageError("--reclaim-minutes chooses the size of shards: leave out --shard-images")
    strict = options.pop("strict")
    inference = _inference_config(options)
    return Request(
        *(source, output, inference, shard_images, images_root, coco, strict), reclaim_minutes=reclaim_minutes
    )


def _inference_config(options: dict[str, Any]) -> InferenceConfig:
    from maskrcnn.io.archives.sidecars import check_suffixes
    from maskrcnn.models.own.own_arguments import parse_arguments

    from ..driver.planning import absolute

    for name in ("model", "labels"):
        options[name] = options[name] and absolute(options[name])
    options["model_args"] = parse_arguments(options["model_args"])
    categories = tuple(sorted(names_of(options.pop("categories"), "--categories")))
    names = (
        *("model", "labels", "min_score", "max_detections", "limit", "allow_http"),
        *("window", "overlap", "bands", "scale", "assume_crs", "alpha", "max_windows", "model_args", "tta"),
        "image_column",
    )
    sidecars = check_suffixes(names_of(options.pop("sidecars"), "--sidecars", "suffix"))
    return InferenceConfig(
        categories=categories, sidecars=sidecars, **{name: options.pop(name) for name in names}
    )


def names_of(value: str | None, option: str, kind: str = "category") -> tuple[str, ...]:
    """Return the distinct names of an option's value, separated by commas, in their order; empty if not given.

    Raises:
        UsageError: the option was given without any name.
    """
    if value is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{option} names no {kind}: give names separated by commas, or leave it out")
    return names

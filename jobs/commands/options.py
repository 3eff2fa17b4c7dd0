"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def inference_options(command: Command) -> Command:
    """Add the options that say what to compute and how to cut."""
    for option in reversed(
        [
            click.option(
                "--model",
                default="coco",
                show_default=True,
                help="coco, coco-v1, scenes (embedded; knows only generated scenes), or the path or URL of a "
                ".safetensors file or a .pth state dict.",
            ),
            click.option("--labels", metavar="FILE", help="Category names of a .pth file, one a line."),
            click.option(
                "--min-score", type=float, default=0.05, show_default=True, help="Weakest stored score."
            ),
            click.option(
                "--max-detections",
                type=int,
                default=100,
                show_default=True,
                help="The most instances an image.",
            ),
            click.option("--categories", metavar="NAME,…", help="Keep only these categories."),
            click.option("--limit", type=int, metavar="N", help="Only the first N inputs, by name."),
            click.option("--images-root", metavar="URL", help="Where relative names of a manifest lie."),
            click.option(
                "--window",
                type=int,
                metavar="PX",
                help="Cut large images and rasters into windows of so many pixels a side.",
            ),
            click.option(
                "--overlap", type=int, metavar="PX", help="Of neighbouring windows; by default an eighth."
            ),
            click.option(
                "--bands",
                metavar="R,G,B",
                help="Of rasters: which bands to see; by default by their colours.",
            ),
            click.option(
                "--scale",
                metavar="LOW,HIGH|p2,p98|dataset",
                help="Of rasters: how values become 0 to 255; by default bytes as they are.",
            ),
            click.option(
                "--assume-crs",
                metavar="CRS",
                help="Of rasters that state none: EPSG:…, or `none` for pictures.",
            ),
            click.option(
                "--allow-http",
                is_flag=True,
                help="Let a manifest name http(s) inputs; only public addresses are read.",
            ),
            click.option(
                "--shard-images", type=int, metavar="N", help="Images a shard; by default 16 to 1000."
            ),
        ]
    ):
        command = option(command)
    return command


def cluster_options(command: Command) -> Command:
    """Add the options that say where to run, and how fast."""
    for option in reversed(
        [
            click.option(
                "--device",
                type=click.Choice(["auto", "cpu", "cuda"]),
                default="auto",
                show_default=True,
                help="auto looks at this machine, where Ray is started here.",
            ),
            click.option(
                "--batch-size", type=int, help="Images a forward pass; by default 1 on CPU, 8 on CUDA."
            ),
            click.option(
                "--dtype",
                type=click.Choice(["float32", "bfloat16", "float16"]),
                help="Of the network's convolutions; by default float32 on CPU, float16 on CUDA.",
            ),
            click.option(
                "--threads", type=int, help="CPUs of an actor; by default 1, with CUDA a GPU's share of them."
            ),
            click.option("--actors", type=int, help="The most actors; by default one a CPU or GPU."),
            click.option(
                "--timeout",
                "timeout_s",
                type=float,
                metavar="SECONDS",
                default=300.0,
                show_default=True,
                help="End an actor that makes no progress for so long.",
            ),
            click.option(
                "--address", help="Of a Ray cluster; by default RAY_ADDRESS, else Ray is started here."
            ),
        ]
    ):
        command = option(command)
    return command


coco_option = click.option(
    "--coco",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Write COCO JSON; auto splits it above 2,000,000 annotations.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

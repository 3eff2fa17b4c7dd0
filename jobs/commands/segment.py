"""The command `maskrcnn segment`: plan or resume, process the shards on Ray, write the tables."""

import logging
from typing import TYPE_CHECKING, Any

import click

from maskrcnn.config import ResourceConfig

from .options import cluster_options, coco_option, failure_option, inference_options, json_option, run_request
from .summary import conclude

if TYPE_CHECKING:
    from ..driver.planning import Request

log = logging.getLogger("maskrcnn")


@click.command()
@click.argument("input")
@click.argument("output")
@inference_options
@cluster_options
@coco_option
@failure_option
@json_option
def segment(
    input: str,  # noqa: A002 (the argument's name in --help)
    output: str,
    coco: str,
    address: str | None,
    max_failure_rate: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Segment the images of INPUT into OUTPUT; continue OUTPUT if it is unfinished.

    INPUT is a folder, a glob, an s3:// prefix, a manifest (.txt, .csv or .parquet with a column `uri`) or a COCO
    JSON. OUTPUT is a directory or an s3:// prefix.
    """
    request = run_request(input, output, options, coco)
    success = run_segment(request, ResourceConfig(**options), address)
    conclude(success, output, as_json, max_failure_rate)


def run_segment(request: "Request", resources: ResourceConfig, address: str | None) -> dict[str, Any]:
    """Run the whole job, or what is left of it; return the content of `_SUCCESS`.

    Raises:
        UsageError: the command is wrong.
        RunError: the run stopped before its end; the same command continues it.
    """
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.success import finished

    from ..driver import planning, run
    from ..driver.cluster import check_device

    check_device(address, resources)
    plan = planning.prepare(request)
    success = finished(Storage(request.output), plan)
    if success is not None:
        log.info("%s is finished already; `maskrcnn reduce` writes its tables again", request.output)
        return success
    with planning.resumable():
        return run.run_plan(request, plan, resources, address)

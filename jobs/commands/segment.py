"""The command `maskrcnn segment`: plan or resume, process the shards, write the tables."""

import dataclasses
from typing import Any

import click

from maskrcnn.config import ResourceConfig

from .run_end import reported
from .shared_options import (
    cluster_options,
    coco_option,
    failure_option,
    inference_options,
    json_option,
    notify_option,
    openlineage_option,
    run_request,
)
from .summary import conclude, summary_line


@click.command()
@click.argument("input")
@click.argument("output")
@click.option(
    "--update",
    is_flag=True,
    help="If OUTPUT is finished, list INPUT again and process what was added or changed since; what vanished leaves "
    "the tables.",
)
@inference_options
@cluster_options
@coco_option
@failure_option
@notify_option
@openlineage_option
@json_option
def segment(
    input: str,  # noqa: A002 (the argument's name in --help)
    output: str,
    update: bool,
    coco: str,
    address: str | None,
    max_failure_rate: float,
    notify: str | None,
    openlineage: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Segment the images of INPUT into OUTPUT; continue OUTPUT if it is unfinished.

    A model that detects boxes only writes boxes in place of masks.
    INPUT is a folder, a glob or a prefix (s3://, gs://, az://, hf://), an archive (.tar, .zip, .tgz), a table that
    contains the pictures (.parquet, .arrow, .lance), a manifest (.txt; or .csv, .tsv, .jsonl or .parquet with a column
    `uri`), the manifest.json of an S3 Inventory, or a JSON of COCO, LVIS or MegaDetector. OUTPUT is a directory or a
    prefix of s3://, gs:// or az://.
    """
    from ..driver.run import run_segment

    request, resources = run_request(input, output, options, coco), ResourceConfig(**options)
    request = dataclasses.replace(request, update=update)
    with reported(output, resources, notify, openlineage, max_failure_rate) as end:
        success = run_segment(request, resources, address, [end])
        end.finished(summary_line(success["counts"], output), success)
        conclude(success, output, as_json, max_failure_rate)

"""The command `maskrcnn reduce`: write the tables of a run whose shards are done."""

import json

import click

from .shared_options import coco_option, json_option
from .summary import summary_line


@click.command()
@click.argument("output")
@coco_option
@json_option
def reduce(output: str, coco: str, as_json: bool) -> None:
    """Rewrite the tables, COCO JSON, statistics and report of a run whose shards are done, in this process.

    The exit code is 0 regardless of the share of failed images.
    """
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.plan import read_generation
    from maskrcnn.pipeline.reduce import reduce_run
    from maskrcnn.visualization.run_report import write_report

    from ..driver.planning import resumable

    read_generation(Storage(output), 1)  # a store that cannot be used stops no run
    with resumable():
        success = reduce_run(output, coco_mode=coco, write_report=write_report)
    click.echo(json.dumps(success["counts"]) if as_json else summary_line(success["counts"], output))

"""The command `maskrcnn replay`: compute a shard again, and compare it with what is stored."""

import json
import sys
from typing import Any, Final

import click

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import plural

from .shared_options import computing_options, json_option

_SHOWN: Final = 20
"""Maximum number of differences in the text."""


@click.command()
@click.argument("output")
@click.option("--shard", required=True, metavar="N", help="Number of the shard, from 0; of a retry's: 2-N.")
@computing_options
@json_option
def replay(output: str, shard: str, as_json: bool, **options: Any) -> None:
    """Compute a shard of OUTPUT again, and compare its rows with those that are stored, value by value.

    Inputs, settings, weights, data type and batch size are those of the run; nothing in OUTPUT changes. The exit code
    is 0 if all rows are equal, and 1 if some differ.
    """
    from ..driver.replay import replay_shard

    result = replay_shard(output, shard, ResourceConfig(ray=False, **options))
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        for line in result.environment:
            click.echo(line)
        for difference in result.differences[:_SHOWN]:
            click.echo(difference.line())
        more = len(result.differences) - _SHOWN
        if more > 0:
            click.echo(f"and {plural(more, 'more difference')}")
        tried = f", {plural(result.not_tried, 'image')} not tried again" if result.not_tried else ""
        if result.retired:
            tried += f", {plural(result.retired, 'row')} not compared since an update retired them"
        outcome = plural(len(result.differences), "difference") if result.differences else "equal"
        counts = f"{plural(result.images, 'row')}, {plural(result.instances, 'instance')}{tried}"
        click.echo(f"shard {result.shard}: {counts}: {outcome}")
    sys.exit(1 if result.differences else 0)

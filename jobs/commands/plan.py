"""The command `maskrcnn plan`: list the inputs and write the plan."""

import json
from typing import Any

import click

from maskrcnn.errors import plural

from .shared_options import inference_options, json_option, run_request


@click.command()
@click.argument("input")
@click.argument("output")
@inference_options
@json_option
def plan(input: str, output: str, as_json: bool, **options: Any) -> None:  # noqa: A002
    """List the inputs and write the plan, without running it."""
    from ..driver.planning import prepare

    planned = prepare(run_request(input, output, options, "auto"))
    facts = {
        f"{planned.unit}s": planned.rows,
        "shards": len(planned),
        "shard_images": planned.shard_images,
        "created": planned.created,
    }
    click.echo(
        json.dumps(facts)
        if as_json
        else f"{plural(planned.rows, planned.unit)} in {plural(len(planned), 'shard')}; planned {planned.created}"
    )

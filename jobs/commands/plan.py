"""The command `maskrcnn plan`: list the inputs, write the plan, and forecast what it will take."""

import json
from typing import TYPE_CHECKING, Any

import click

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import UsageError, plural

from .shared_options import inference_options, json_option, run_request, worker_options

if TYPE_CHECKING:
    from ..driver.measure import Forecast


@click.command()
@click.argument("input")
@click.argument("output")
@inference_options
@click.option(
    "--measure",
    type=click.IntRange(1),
    metavar="N",
    help="Compute a sample of N images or windows as the run would, and say how long the run will take.",
)
@worker_options
@json_option
def plan(
    input: str,  # noqa: A002 (the argument's name in --help)
    output: str,
    measure: int | None,
    address: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """List the inputs and write the plan, without running it.

    With --measure a sample is computed on the machines that are to process the run, with the same options, and
    discarded.
    """
    from ..driver.planning import prepare

    request = run_request(input, output, options, "auto")
    resources = ResourceConfig(**options)
    if measure is None and resources.price is not None:
        raise UsageError("--price needs a forecast: add --measure, as in --measure 200")
    planned = prepare(request)
    facts = {
        f"{planned.unit}s": planned.rows,
        "shards": len(planned),
        "shard_images": planned.shard_images,
        "created": planned.created,
    }
    lines = [
        f"{plural(planned.rows, planned.unit)} in {plural(len(planned), 'shard')}; planned {planned.created}"
    ]
    if measure is not None:
        from ..driver.measure import measure as measured

        forecast = measured(request, planned, resources, address, measure)
        facts["forecast"] = forecast.to_json(resources)
        lines += _text(forecast, resources)
    click.echo(json.dumps(facts) if as_json else "\n".join(lines))


def _text(forecast: "Forecast", resources: ResourceConfig) -> list[str]:
    """Return a forecast in lines for a person."""
    from ..driver.progress import duration, pace

    unit, rows = forecast.unit, forecast.rows
    stages = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in forecast.stages_s.items())
    workers = plural(forecast.actors, "process", "processes")
    lines = [
        f"measured {plural(forecast.sampled, unit)} in {duration(forecast.measured_s)}, {forecast.failed:,} failed: "
        f"{pace(forecast.rate, unit)} by {workers}, limited by the {forecast.bottleneck}",
        f"each {unit}: {stages}; the network waits for {forecast.waiting:.0%} of the time",
        f"to come: {plural(rows, unit)}, about {plural(round(forecast.instances * rows), 'instance')} and "
        f"{forecast.table_bytes * rows / 1e6:,.0f} MB of tables, COCO JSON apart",
        f"from the command to the end: {duration(forecast.seconds)}, of which {duration(forecast.start_s)} to start",
    ]
    cost = resources.cost_of(forecast.seconds)
    return lines if cost is None else [*lines, f"at {resources.price}: {cost:.2f}"]

"""The command `maskrcnn plan`: list the inputs, write the plan, and forecast what it will take."""

import json
from typing import TYPE_CHECKING, Any, Final

import click

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import UsageError, plural

from ..driver.progress import duration, pace
from .shared_options import inference_options, json_option, run_request, worker_options

if TYPE_CHECKING:
    from ..driver.measure import Forecast


_COMPARED: Final = ("actors", "batch-size", "threads")


def _compared(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the values to compare of each option, by the names of `ResourceConfig`."""
    values: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, given = text.removeprefix("--").partition("=")
        parts = [part.strip() for part in given.split(",")]
        if name not in _COMPARED or not all(part.isdecimal() and int(part) for part in parts):
            raise UsageError(
                f"--compare takes {', '.join(_COMPARED)} and numbers from 1, as in batch-size=1,4,8, not {text!r}"
            )
        values[name.replace("-", "_")] = tuple(dict.fromkeys(map(int, parts)))
    return values


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
@click.option(
    "--compare",
    multiple=True,
    metavar="OPTION=A,B,…",
    callback=_compared,
    help="With --measure: measure each of these values of --actors, --batch-size or --threads, and say which is the "
    "fastest; repeatable, for all combinations.",
)
@worker_options
@json_option
def plan(
    input: str,  # noqa: A002 (the argument's name in --help)
    output: str,
    measure: int | None,
    compare: dict[str, tuple[int, ...]],
    address: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """List the inputs and write the plan, without running it.

    With --measure a sample is computed on the machines that are to process the run, with the same options, and
    discarded.
    """
    from ..driver.planning import FORECAST, prepare

    request = run_request(input, output, options, "auto")
    resources = ResourceConfig(**options)
    for option, given in {"--price": resources.price, "--compare": compare}.items():
        if given and measure is None:
            raise UsageError(f"{option} needs a forecast: add --measure, as in --measure 200")
    planned = prepare(request)
    if measure is not None:
        from ..driver.measure import measure_each, sized

        forecasts = measure_each(request, planned, resources, address, measure, compare)
        settings, forecast = max(forecasts, key=lambda one: one[1].rate)
        if request.reclaim_minutes is not None:
            planned, forecast = sized(request, planned, forecast)
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
        from maskrcnn.io.storage import Storage

        facts["forecast"] = forecast.to_json(resources)
        Storage(output).write(FORECAST, f"{json.dumps(facts['forecast'], indent=2)}\n".encode())
        if compare:
            rate = f"{planned.unit}s_per_s"
            facts["compared"] = [tried | {rate: one.to_json(resources)[rate]} for tried, one in forecasts]
            lines += [f"{_options(tried)}: {pace(one.rate, planned.unit)}" for tried, one in forecasts]
            lines.append(f"the fastest: {_options(settings)}")
        lines += _text(forecast, resources)
    click.echo(json.dumps(facts) if as_json else "\n".join(lines))


def _options(settings: dict[str, int]) -> str:
    """Return settings as options of the command line."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def _use(forecast: "Forecast") -> str:
    """Return the use of the machines, and the requests to come, in one line."""
    shares = {"CPUs": forecast.cpu_use, "GPUs": forecast.gpu_use}
    uses = [f"{share:.0%} of the {name}" for name, share in shares.items() if share is not None]
    counts = [f"{count:,} {method}" for method, count in forecast.requests.items() if count]
    requests = f"about {', '.join(counts)}" if counts else "none"
    return f"used: {' and '.join(uses) or 'not known'}; requests to stores to come: {requests}"


def _text(forecast: "Forecast", resources: ResourceConfig) -> list[str]:
    """Return a forecast in lines for a person."""
    unit, rows = forecast.unit, forecast.rows
    stages = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in forecast.stages_s.items())
    workers = plural(forecast.actors, "process", "processes")
    megabytes = forecast.table_bytes * rows / 1e6
    lines = [
        f"measured {plural(forecast.sampled, unit)} in {duration(forecast.measured_s)}, {forecast.failed:,} failed: "
        f"{pace(forecast.rate, unit)} by {workers}, limited by the {forecast.bottleneck}",
        f"each {unit}: {stages}; the network waits for {forecast.waiting:.0%} of the time",
        f"to come: {plural(rows, unit)}, about {plural(round(forecast.instances * rows), 'instance')} and "
        f"{megabytes:,.{0 if megabytes >= 10 else 1}f} MB of tables, COCO JSON apart",
        _use(forecast),
        f"a shard takes {duration(forecast.shard_s)}, and is computed again if its machine is lost (--reclaim-minutes)",
        f"from the command to the end: {duration(forecast.seconds)}, of which {duration(forecast.start_s)} to start",
    ]
    cost = resources.cost_of(forecast.seconds)
    return lines if cost is None else [*lines, f"at {resources.price}: {cost:.2f}"]

"""The command line `maskrcnn`.

Exit codes: 0 done; 1 complete, with failures above the limit; 2 usage or configuration; 3 stopped before the end,
resumable.
"""

import json
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import RunError, UsageError

from .commands.cli_convert import convert
from .commands.cli_diff import diff
from .commands.cli_evaluate import evaluate
from .commands.cli_show import show
from .commands.cli_train import train
from .commands.options import cluster_options, coco_option, inference_options, json_option
from .commands.terminal import PlainFormatter, plain

log = logging.getLogger("maskrcnn")


class Group(click.Group):
    """Turns this project's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; no traceback for what is no fault of the program."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            _fail(f"error: {error}", 2)
        except RunError as error:
            _fail(f"stopped: {error}", 3)
        except KeyboardInterrupt:
            _fail("stopped: interrupted; if it was `segment` or `train`, the same command continues it", 3)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception:
            log.exception("this is a bug of maskrcnn-ray; please report it with the following")
            sys.exit(3)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Name the nearest command for an unknown one."""
        import difflib

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from error


def _fail(message: str, code: int) -> NoReturn:
    click.echo(plain(message), err=True)
    sys.exit(code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="maskrcnn-ray", prog_name="maskrcnn")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
def main(quiet: bool) -> None:
    """Find every object in millions of pictures: Mask R-CNN over image collections, on Ray."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    # A second one while workers are being ended would leave them behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


failure_option = click.option(
    "--max-failure-rate",
    type=float,
    default=0.01,
    show_default=True,
    callback=lambda _context, _parameter, rate: _checked_rate(rate),
    help="Above it the exit code is 1.",
)


def _compute(options: dict[str, Any]) -> InferenceConfig:
    listed = options.pop("categories")
    categories = tuple(sorted({name.strip() for name in (listed or "").split(",") if name.strip()}))
    if listed is not None and not categories:
        raise UsageError("--categories names no category")
    for name in ("model", "labels"):
        options[name] = _absolute(options[name])
    names = (
        *("model", "labels", "min_score", "max_detections", "limit", "allow_http"),
        *("window", "overlap", "bands", "scale", "assume_crs"),
    )
    return InferenceConfig(categories=categories, **{name: options.pop(name) for name in names})


def _absolute(name: str | None) -> str | None:
    """Return a local file's whole path: workers have another working directory, and so may who resumes."""
    from pathlib import Path

    return str(Path(name).absolute()) if name and "://" not in name and Path(name).is_file() else name


@main.command()
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
    from .commands.segment import segment as run_job

    request = _request(input, output, options, coco)
    success = run_job(request, ResourceConfig(**options), address)
    _tell(success, output, as_json, max_failure_rate)


def _checked_rate(rate: float) -> float:
    if not 0.0 <= rate <= 1.0:
        raise UsageError(f"--max-failure-rate must be in [0, 1], not {rate}")
    return rate


def _tell(success: dict[str, Any], output: str, as_json: bool, max_failure_rate: float) -> None:
    """Print what a run found; end with the exit code 1 where too much failed."""
    counts = success["counts"]
    windows = success.get("windows", {})
    if as_json:
        click.echo(json.dumps(counts | ({"windows": windows} if windows else {}) | {"output": output}))
    else:
        click.echo(_summary(counts, output))
        if windows:
            by_status = ", ".join(f"{count:,} {status}" for status, count in windows.items())
            click.echo(f"{sum(windows.values()):,} windows: {by_status}")
    shares = {"images": counts["failed"] / counts["images"]}
    if windows:
        shares["windows"] = windows.get("failed", 0) / sum(windows.values())
    for what, rate in shares.items():
        if rate > max_failure_rate:
            _fail(
                f"{rate:.1%} of the {what} failed, more than --max-failure-rate {max_failure_rate:.1%}; "
                f"the column `error` of {what}/ says why",
                1,
            )


def _request(source: str, output: str, options: dict[str, Any], coco: str) -> Any:
    from .commands.segment import Request

    shard_images, images_root = options.pop("shard_images"), options.pop("images_root")
    if images_root and "://" not in images_root:
        images_root = os.path.abspath(images_root)  # noqa: PTH100 (Path.absolute keeps `..`, which is another name)
    return Request(source, output, _compute(options), shard_images, images_root, coco)


def _summary(counts: dict[str, int], output: str) -> str:
    return (
        f"{counts['images']:,} images: {counts['ok']:,} ok, {counts['empty']:,} empty, "
        f"{counts['failed']:,} failed; {counts['instances']:,} instances in {output}"
    )


@main.command()
@click.argument("input")
@click.argument("output")
@inference_options
@json_option
def plan(input: str, output: str, as_json: bool, **options: Any) -> None:  # noqa: A002
    """List the inputs and freeze the plan, without running it."""
    from .commands.segment import prepare

    made = prepare(_request(input, output, options, "auto"))
    facts = {
        made.unit: made.rows,
        "shards": len(made),
        "shard_images": made.shard_images,
        "created": made.created,
    }
    click.echo(
        json.dumps(facts)
        if as_json
        else f"{made.rows:,} {made.unit} in {len(made):,} shards; planned {made.created}"
    )


@main.command()
@click.argument("output")
@json_option
def status(output: str, as_json: bool) -> None:
    """Say how far a run is; exit code 0 if it is finished, 3 if not."""
    from .commands.segment import status as status_of

    facts = status_of(output)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(
            f"{facts['state']}: {facts['images_done']:,} of {facts['images']:,} {facts['unit']}, "
            f"{facts['shards_done']:,} of {facts['shards']:,} shards; planned {facts['created']}"
            + (f"; generation {facts['generation']}" if facts["generation"] > 1 else "")
        )
        if again := facts["retry"]:
            click.echo(
                f"retry (generation {facts['generation']}): "
                f"{again['images_done']:,} of {again['images']:,} {again['unit']}, "
                f"{again['shards_done']:,} of {again['shards']:,} shards; planned {again['created']}"
            )
        if facts["counts"]:
            click.echo(_summary(facts["counts"], output))
    sys.exit(0 if facts["state"] == "finished" else 3)


@main.command()
@click.argument("output")
@click.option("--only", metavar="CODE,…", help="Only images that failed with these codes; by default all.")
@cluster_options
@coco_option
@failure_option
@json_option
def retry(
    output: str,
    only: str | None,
    coco: str,
    address: str | None,
    max_failure_rate: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Run the failed images of a finished OUTPUT again; continue a retry that is unfinished.

    Inputs that were replaced meanwhile are taken as they are now. Until the retry is finished, the tables stand as
    they are.
    """
    from .commands.retry import retry as run_retry

    codes = None if only is None else {code.strip() for code in only.split(",") if code.strip()}
    if only is not None and not codes:
        raise UsageError("--only names no code")
    success = run_retry(output, codes, coco, ResourceConfig(**options), address)
    if success is None:
        click.echo(json.dumps({"retried": 0, "output": output}) if as_json else "nothing to retry")
        return
    _tell(success, output, as_json, max_failure_rate)


@main.command()
@click.argument("output")
@json_option
def verify(output: str, as_json: bool) -> None:
    """Prove that a finished OUTPUT is whole: each input exactly once, each file the one that was written.

    It reads all of OUTPUT, and nothing else. The exit code is 0 if it is proven, 1 if not, and 3 if the run is not
    finished.
    """
    from maskrcnn.results.verify import verify_run

    from .commands.segment import output_of

    verdict = verify_run(output_of(output).url)
    click.echo(json.dumps(verdict.to_json()) if as_json else _verdict(verdict, output))
    sys.exit(3 if verdict.unfinished else 0 if verdict.proven else 1)


def _verdict(verdict: Any, output: str) -> str:
    if verdict.unfinished:
        return f"unfinished: {verdict.unfinished}"
    lines = [f"{outcome.check}: {outcome.line}" for outcome in verdict.outcomes]
    lines += [plain(f"  {finding.check}: {finding.where}: {finding.line}") for finding in verdict.findings]
    more = sum(outcome.findings for outcome in verdict.outcomes) - len(verdict.findings)
    lines += [f"  and {more:,} more"] if more else []
    return "\n".join([*lines, f"{'proven' if verdict.proven else 'not proven'}: {output}"])


@main.command()
@click.argument("output")
@coco_option
@json_option
def reduce(output: str, coco: str, as_json: bool) -> None:
    """Write tables, COCO JSON, statistics and report of a finished sweep (again), in this process.

    The exit code is 0 whatever share of the images failed.
    """
    from maskrcnn.pipeline.reduce import reduce_run
    from maskrcnn.visualization.run_report import write_report

    success = reduce_run(output, coco_mode=coco, write_report=write_report)
    click.echo(json.dumps(success["counts"]) if as_json else _summary(success["counts"], output))


@main.command()
@click.argument("output")
@click.argument("destination")
@click.option(
    "--format",
    "form",
    type=click.Choice(["coco", "csv", "png-masks", "geojson", "gpkg"]),
    default="coco",
    show_default=True,
)
def export(output: str, destination: str, form: Any) -> None:
    """Write a finished run in another format into an empty DESTINATION."""
    import maskrcnn
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.plan import read_plans
    from maskrcnn.pipeline.success import coco_info, parts_of
    from maskrcnn.results.export import export_coco, export_csv, export_png_masks

    run = maskrcnn.open_run(output)
    storage, parts = Storage(run.url), parts_of(run.success)
    if form == "coco":
        count = export_coco(
            storage, parts, run.categories, destination, coco_info(run.info, read_plans(storage)[0])
        )
        click.echo(f"{count:,} annotations in {destination}")
    elif form in ("geojson", "gpkg"):
        from maskrcnn.formats.vector import export_vector

        polygons = [part["path"] for part in run.success["parts"].get("geo", [])]
        click.echo(f"{export_vector(storage, polygons, destination, form):,} polygons in {destination}")
    elif form == "csv":
        click.echo(f"{export_csv(storage, parts, destination):,} rows in {destination}")
    else:
        click.echo(f"{export_png_masks(storage, parts, destination):,} label maps in {destination}")


@main.command()
@click.argument("output")
def gc(output: str) -> None:
    """Remove what only the sweep of a finished run needed: shards/, open uploads, leftovers of killed processes.

    Without shards/ nothing can be retried, and the tables cannot be written again.
    """
    from .commands.segment import collect_garbage

    removed = [f"{count:,} {what}" for what, count in collect_garbage(output).items() if count]
    click.echo(f"removed {', '.join(removed) or 'nothing'}")


@main.command()
@click.argument("directory", required=False, default="demo", metavar="[DIR]")
@click.option("--scenes", type=click.IntRange(1), default=60, show_default=True, help="How many to generate.")
def demo(directory: str, scenes: int) -> None:
    """Generate a collection, run the whole chain on it, and show what comes out."""
    from .commands.demo import run_demo

    run_demo(directory, scenes)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--address", required=True, help="Of the cluster's dashboard, http://HOST:8265.")
@click.option(
    "--working-dir", help="A folder to send along; the cluster's nodes need maskrcnn-ray installed."
)
@click.option("--no-wait", is_flag=True, help="Return once the job is submitted.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(address: str, working_dir: str | None, no_wait: bool, command: tuple[str, ...]) -> None:
    """Run a command on a cluster through Ray Jobs.

    For example: maskrcnn submit --address http://HOST:8265 -- segment s3://in s3://out --device cuda
    """
    from .commands.submit import submit_job

    sys.exit(submit_job(address, command, known=main.commands, working_dir=working_dir, wait=not no_wait))


main.add_command(convert)
main.add_command(evaluate)
main.add_command(show)
main.add_command(diff)
main.add_command(train)

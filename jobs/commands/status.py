"""The command `maskrcnn status`: how far a run is."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from maskrcnn.errors import plural

from .shared_options import json_option
from .summary import summary_line

if TYPE_CHECKING:
    from maskrcnn.pipeline.plan import Plan, Shard

    from ..driver.driver_records import Driver


@click.command()
@click.argument("output")
@json_option
def status(output: str, as_json: bool) -> None:
    """Print how far a run is; the exit code is 0 if it is finished, 3 if not."""
    facts = run_status(output)
    click.echo(json.dumps(facts) if as_json else "\n".join(_lines(facts, output)))
    sys.exit(0 if facts["state"] == "finished" else 3)


def _lines(facts: dict[str, Any], output: str) -> list[str]:
    from maskrcnn.pipeline.manifest_file import SKIPPED_NAME

    generation = f"; generation {facts['generation']}" if facts["generation"] > 1 else ""
    lines = [f"{facts['state']}: {_progress_line(facts)}{generation}"]
    if facts["retry"]:
        lines.append(f"{facts['kind']} (generation {facts['generation']}): {_progress_line(facts['retry'])}")
    if facts["waiting_for"]:
        lines.append(f"waiting for {facts['waiting_for']}")
    if facts["skipped"]:
        listed = f"{output.rstrip('/')}/{SKIPPED_NAME}"
        lines.append(f"{plural(facts['skipped'], 'file')} of the input skipped, listed in {listed}")
    if facts["counts"]:
        lines.append(summary_line(facts["counts"], output))
    return lines


def _progress_line(facts: dict[str, Any]) -> str:
    return (
        f"{facts['images_done']:,} of {plural(facts['images'], facts['unit'].removesuffix('s'))}, "
        f"{facts['shards_done']:,} of {plural(facts['shards'], 'shard')}; planned {facts['created']}"
    )


def run_status(output: str) -> dict[str, Any]:
    """Return how far a run is, from its plans and receipts alone.

    Returns:
        `state` (`finished`; `unfinished`; `unreduced`: all shards are done, and the tables are to be written), the
        progress of the first plan and, under `retry`, of a retry or an update that is not finished, the `kind` of the
        latest generation (`plan`, `retry`, `update`), what the run is waiting for
        (`waiting_for`, a phrase, or None), the number of files that the listing `skipped`, and the `counts` of
        `_SUCCESS`.

    Raises:
        UsageError: the output holds no run, or one of another schema version.
    """
    from maskrcnn.pipeline.plan import PLAN, no_run, read_plans, read_run
    from maskrcnn.pipeline.success import read_success

    from ..driver.driver_records import read_drivers
    from ..driver.planning import output_storage
    from ..driver.run import receipts_of

    storage = output_storage(output)
    plans = read_plans(storage)
    if not plans:
        raise no_run(output, PLAN)
    skipped = read_run(storage)["inputs"].get("skipped", {})
    success = read_success(storage)
    done = success is not None and success["generation"] == plans[-1].generation
    receipts = [] if done else receipts_of(storage, plans)
    pending = [[] if done else list(plan.pending(receipts)) for plan in plans]
    facts = [_progress_of(plan, shards) for plan, shards in zip(plans, pending, strict=True)]
    return {
        "state": "finished" if done else "unfinished" if any(pending) else "unreduced",
        "generation": plans[-1].generation,
        "kind": plans[-1].kind,
        **facts[0],
        "retry": None if done or len(plans) == 1 else facts[-1],
        "waiting_for": None if done else _waiting_for(plans[-1], pending, read_drivers(storage)),
        "skipped": sum(skipped.values()),
        "counts": success["counts"] if success else None,
    }


def _waiting_for(latest: "Plan", pending: "Sequence[Sequence[Shard]]", drivers: "Sequence[Driver]") -> str:
    """Return what a run that is not finished is waiting for, and what its user can do."""
    left = sum(map(len, pending))
    command = f"`maskrcnn {latest.command}`"
    what = plural(left, "shard") if left else "its tables"
    driver = max(
        drivers, key=lambda driver: ("ended", "unknown", "working").index(driver.state), default=None
    )
    if driver is None or driver.state == "ended":
        return f"{what}: no command is working on it; repeat its {command} to continue"
    if driver.state == "working":
        return f"{what}: a command is working on it, process {driver.process}"
    since = f" since {driver.begun}" if driver.begun else ""
    return (
        f"{what}: a command on {driver.host} is working on it{since}; if it was killed, repeat its {command}"
    )


def _progress_of(plan: "Plan", pending: "Sequence[Shard]") -> dict[str, Any]:
    return {
        "created": plan.created,
        "unit": f"{plan.unit}s",
        "images": plan.rows,
        "images_done": plan.rows - sum(len(shard) for shard in pending),
        "shards": len(plan),
        "shards_done": len(plan) - len(pending),
    }

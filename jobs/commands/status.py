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
    generation = f"; generation {facts['generation']}" if facts["generation"] > 1 else ""
    lines = [f"{facts['state']}: {_progress_line(facts)}{generation}"]
    if facts["retry"]:
        lines.append(f"{facts['kind']} (generation {facts['generation']}): {_progress_line(facts['retry'])}")
    if facts["waiting_for"]:
        lines.append(f"waiting for {facts['waiting_for']}")
    if facts["skipped"]:
        listed = f"{output.rstrip('/')}/{facts['skipped_file']}"
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
        progress of the first plan and all updates together and, under `retry`, of a retry or an update that is not
        finished, the `kind` of the latest generation (`plan`, `retry`, `update`), what the run is waiting for
        (`waiting_for`, a phrase, or None), the number of files that the last listing `skipped` and the file that names
        them, and the `counts` of `_SUCCESS`.

    Raises:
        UsageError: the output holds no run, or one of another schema version.
    """
    from maskrcnn.pipeline.manifest_file import skipped_file
    from maskrcnn.pipeline.plan import PLAN, no_run, read_plans, read_run
    from maskrcnn.pipeline.success import read_success

    from ..driver.driver_records import read_drivers
    from ..driver.planning import output_storage
    from ..driver.run import receipts_of

    storage = output_storage(output)
    plans = read_plans(storage)
    if not plans:
        raise no_run(output, PLAN)
    updates = [plan for plan in plans if plan.update is not None]
    listed = updates[-1].update if updates else None
    skipped = read_run(storage)["inputs"].get("skipped", {}) if listed is None else listed.skipped
    sha256 = "" if listed is None else listed.skipped_sha256 or ""
    success = read_success(storage)
    done = success is not None and success["generation"] == plans[-1].generation
    receipts = [] if done else receipts_of(storage, plans)
    pending = [[] if done else list(plan.pending(receipts)) for plan in plans]
    facts = [_progress_of(plan, shards) for plan, shards in zip(plans, pending, strict=True)]
    whole = _total([each for plan, each in zip(plans, facts, strict=True) if plan.first_row is not None])
    if done and success is not None and plans[0].unit == "image":  # of those planned, some may count no more
        whole["images"] = whole["images_done"] = success["counts"]["images"]
    return {
        "state": "finished" if done else "unfinished" if any(pending) else "unreduced",
        "generation": plans[-1].generation,
        "kind": plans[-1].kind,
        **whole,
        "retry": None if done or len(plans) == 1 else facts[-1],
        "waiting_for": None if done else _waiting_for(plans[-1], pending, read_drivers(storage)),
        "skipped": sum(skipped.values()),
        "skipped_file": skipped_file(updates[-1].generation if updates else 1, sha256) if skipped else None,
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


def _total(facts: "Sequence[dict[str, Any]]") -> dict[str, Any]:
    """Return the progress of several plans together, with the time of the last."""
    sums = {name: sum(each[name] for each in facts) for name in facts[0] if name not in ("created", "unit")}
    return facts[-1] | sums


def _progress_of(plan: "Plan", pending: "Sequence[Shard]") -> dict[str, Any]:
    return {
        "created": plan.created,
        "unit": f"{plan.unit}s",
        "images": plan.rows,
        "images_done": plan.rows - sum(len(shard) for shard in pending),
        "shards": len(plan),
        "shards_done": len(plan) - len(pending),
    }

"""The command `maskrcnn retry`: process the failed inputs of a finished run again."""

import json
import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

import click

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import plural

from ..driver.progress import Watcher
from .run_end import reported
from .shared_options import (
    cluster_options,
    coco_option,
    failure_option,
    json_option,
    names_of,
    notify_option,
    openlineage_option,
)
from .summary import conclude, summary_line

log = logging.getLogger("maskrcnn")


@click.command()
@click.argument("output")
@click.option(
    "--only", metavar="CODE,…", help="Only images that failed with these error codes; by default all."
)
@cluster_options
@coco_option
@failure_option
@notify_option
@openlineage_option
@json_option
def retry(
    output: str,
    only: str | None,
    coco: str,
    address: str | None,
    max_failure_rate: float,
    notify: str | None,
    openlineage: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Process the failed images of a finished OUTPUT again; continue a retry that is unfinished.

    Inputs that were replaced meanwhile are read as they are now. Until the retry is finished, the tables remain
    unchanged.
    """
    codes = names_of(only, "--only", "code") or None
    resources = ResourceConfig(**options)
    with reported(output, resources, notify, openlineage, max_failure_rate) as end:
        success = run_retry(output, codes, coco, resources, address, [end])
        if success is None:
            end.finished("nothing to retry")
            click.echo(json.dumps({"retried": 0, "output": output}) if as_json else "nothing to retry")
            return
        end.finished(summary_line(success["counts"], output), success)
        conclude(success, output, as_json, max_failure_rate)


def run_retry(
    output: str,
    only: Collection[str] | None,
    coco_mode: str,
    resources: ResourceConfig,
    address: str | None,
    watchers: Sequence[Watcher] = (),
) -> dict[str, Any] | None:
    """Process the failed inputs of a finished run again, or continue a retry that is not finished.

    Args:
        output: the run's directory.
        only: error codes of the inputs to retry; None: all. A retry that is continued keeps its own list.
        coco_mode: `auto`, `always` or `never`.
        resources: as requested.
        address: of a Ray cluster.
        watchers: are informed of its progress.

    Returns:
        The content of `_SUCCESS`; None if there is nothing to retry.

    Raises:
        UsageError: there is no finished run, `maskrcnn gc` removed what is needed, or the command is wrong.
        RunError: the retry stopped before its end; `maskrcnn retry` continues it.
    """
    from maskrcnn.pipeline.plan import PLAN, check_run, no_run, read_plans, read_run
    from maskrcnn.pipeline.plan_retry import check_codes, plan_retry
    from maskrcnn.pipeline.success import finished

    from ..driver import planning, run
    from ..driver.planned_request import check_weights, planned_request
    from ..driver.where_to_run import check_resources

    began = time.monotonic()
    check_resources(address, resources)
    check_codes(only)
    storage = planning.output_storage(output)
    plans = read_plans(storage)
    if not plans:
        raise no_run(output, PLAN)
    plan, info = plans[-1], read_run(storage)
    check_run(storage, info, plan)
    request = planned_request(output, info, coco_mode)
    check_weights(request, info)
    if plan.generation > 1 and finished(storage, plan) is None:
        log.info("continuing the %s of %s: %s", plan.kind, plan.created, plural(plan.rows, plan.unit))
        if only is not None:
            log.warning("it keeps the images that it was planned with; --only applies to the next retry")
    else:
        planned = plan_retry(storage, plans, only)
        if planned is None:
            return None
        plan = planned
        log.info("planned a retry of %s in %s", plural(plan.rows, plan.unit), plural(len(plan), "shard"))
    with planning.resumable():
        return run.run_plan(request, plan, resources, address, began, watchers)

"""Run what is left of a plan, on Ray or in this process: the map stage over shards, then the reduce."""

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import LimitReachedError, RunError, plural
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import ManifestReader, check_manifest
from maskrcnn.pipeline.plan import Plan, check_run, pending_of, planned_rows, read_plan, read_plans, read_run
from maskrcnn.pipeline.receipts import complete_receipts
from maskrcnn.pipeline.reduce import reduce_run, remove_superseded
from maskrcnn.pipeline.success import RunAll, finished
from maskrcnn.visualization.run_report import write_report

from .driver_records import PROBES, read_drivers, remove_ended
from .planning import FORECAST, Request, mark_begun, output_storage, prepare, prepare_update, resumable
from .progress import Progress, Watcher, duration
from .where_to_run import Left, check_resources
from .work import Work
from .worker_spec import worker_spec
from .workers import MapShards, Workers, workers_for

log = logging.getLogger("maskrcnn")


def run_segment(
    request: Request, resources: ResourceConfig, address: str | None, watchers: Sequence[Watcher] = ()
) -> dict[str, Any]:
    """Run the whole job, or what is left of it; return the content of `_SUCCESS`.

    Args:
        request: the run.
        resources: as requested.
        address: of a Ray cluster.
        watchers: are informed of its progress.

    Raises:
        UsageError: the request is wrong.
        RunError: the run stopped before its end; the same request continues it.
    """
    began = time.monotonic()
    check_resources(address, resources)
    storage = output_storage(request.output)
    is_listed_now = read_plan(storage) is None
    plan = prepare(request)
    success = finished(storage, plan)
    if success is None:
        with resumable():
            success = run_plan(request, plan, resources, address, began, watchers)
    else:
        remove_superseded(storage, success)
        if not request.update:
            log.info("%s is finished already; `maskrcnn reduce` writes its tables again", request.output)
    if not request.update or is_listed_now:
        return success
    update = prepare_update(request)
    if update is None:
        log.info("%s is up to date", request.output)
        return success
    with resumable():
        return run_plan(request, update, resources, address, began, watchers)


def run_plan(
    request: Request,
    plan: Plan,
    resources: ResourceConfig,
    address: str | None,
    began: float,
    watchers: Sequence[Watcher] = (),
) -> dict[str, Any]:
    """Do what is left of the latest generation: map stage and reduce; return the content of `_SUCCESS`.

    Args:
        request: the run.
        plan: of the latest generation.
        resources: as requested.
        address: of a Ray cluster.
        began: when the command began, monotonic seconds, from which `--max-hours` counts.
        watchers: are informed of its progress.

    Raises:
        RunError: the run stopped before its end, as when the time is up.
    """
    try:
        return _run_plan(request, plan, resources, address, began, watchers)
    finally:
        seconds = time.monotonic() - began
        if (cost := resources.cost_of(seconds)) is not None:
            log.info("%s at %s: %.2f", duration(seconds), resources.price, cost)


def _run_plan(
    request: Request,
    plan: Plan,
    resources: ResourceConfig,
    address: str | None,
    began: float,
    watchers: Sequence[Watcher],
) -> dict[str, Any]:
    storage = Storage(request.output)
    for watcher in watchers:
        watcher.begin(plan)
    drivers = read_drivers(storage)
    with workers_for(address, resources, left_of(storage, plan), drivers) as workers:
        with _exported(workers, storage.url, lambda: resources.cost_of(time.monotonic() - began)) as metrics:
            wall_s = run_shards(
                request,
                plan,
                workers.resources,
                workers.map_shards,
                workers.lanes,
                began=began,
                watchers=[*watchers, *metrics],
            )
        success = _reduce(request, wall_s, workers.run_all)
    remove_ended(storage, drivers)
    return success


@contextlib.contextmanager
def _exported(workers: Workers, url: str, cost: Callable[[], float | None]) -> Iterator[Sequence[Watcher]]:
    """Export metrics for the duration of a block, if the workers are Ray's."""
    if workers.lanes is not None:
        yield ()
        return
    from .metrics import run_metrics

    with run_metrics(url, cost) as metrics:
        yield (metrics,)


def left_of(storage: Storage, plan: Plan) -> Left:
    """Return what is left of a run whose latest plan is `plan`."""
    plans = read_plans(storage)
    rows = sum(len(shard) for shard in pending_of(plans, receipts_of(storage, plans)))
    what = plural(rows, plan.unit) if rows == plan.rows else f"{plural(rows, plan.unit)} left"
    return Left(what if rows else "only tables are left to write", rows, planned_rows(plans))


def _reduce(request: Request, wall_s: float | None, run_all: RunAll) -> dict[str, Any]:
    log.info("writing tables, COCO JSON, statistics and report")
    return reduce_run(
        Storage(request.output).url,
        coco_mode=request.coco_mode,
        run_all=run_all,
        wall_s=wall_s,
        keep_finished=True,
        write_report=write_report,
    )


def run_shards(
    request: Request,
    plan: Plan,
    resources: ResourceConfig,
    map_shards: MapShards,
    lanes: int | None = None,
    *,
    began: float | None = None,
    watchers: Sequence[Watcher] = (),
) -> float | None:
    """Run the shards that have no receipt.

    Args:
        request: the run.
        plan: of the latest generation; of earlier ones a shard is run only if its files are gone.
        resources: with `threads` resolved, and on Ray `device` and `actors`.
        map_shards: runs them.
        lanes: as of `WorkerSpec`.
        began: when the command began, monotonic seconds; None: now.
        watchers: are informed of the progress.

    Returns:
        Seconds it took; None if an earlier command had done a part of it, so that no throughput follows.

    Raises:
        RunError: the run stopped before its end.
    """
    storage = Storage(request.output)
    plans = [plan] if plan.generation == 1 else read_plans(storage)
    receipts = receipts_of(storage, plans)
    lost = sum(len(shard) for shard in pending_of(plans[:-1], receipts))
    sizes = [len(shard) for shard in pending_of(plans, receipts)]
    n_pending, done = len(sizes), plan.rows + lost - sum(sizes)
    if done:
        shards_done = len(plan) - sum(1 for _ in plan.pending(receipts))
        log.info("%s of %s done already", f"{shards_done:,}", plural(len(plan), "shard"))
    if lost:
        log.warning("files of earlier generations are gone; processing %s again", plural(lost, plan.unit))
    if n_pending == 0:
        return None
    run = read_run(storage)
    check_run(storage, run, plan)
    check_manifest(storage, plan)
    probes = f"{PROBES}/{uuid.uuid4().hex}"
    mark_begun(storage, plan, probes)
    spec = worker_spec(storage, request, run, resources, probes, lanes)
    with ManifestReader(storage, plan.manifest) as manifest:
        first_uri = manifest.rows(0, 1)["uri"][0].as_py()
    started = time.monotonic()
    until = (started if began is None else began) + resources.max_seconds()
    expected = forecast_rate(storage, plan.unit)
    progress = Progress(
        plan.rows + lost, done, unit=plan.unit, expected=expected, shards=n_pending, watchers=watchers
    )
    try:
        map_shards(spec, first_uri, progress, Work(pending_of(plans, receipts), n_pending, until))
    finally:
        progress.close()
        with contextlib.suppress(RunError):  # what ended the run is what counts
            storage.remove_tree(probes)
    if time.monotonic() >= until:
        _check_all_done(storage, plans, plan.unit, resources)
    return None if done else time.monotonic() - started


def forecast_rate(storage: Storage, unit: str) -> float | None:
    """Return the images or windows per second that were forecast; None if there is no forecast."""
    try:
        rate = json.loads(storage.read(FORECAST))[f"{unit}s_per_s"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a forecast is never needed
        return None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _check_all_done(storage: Storage, plans: Sequence[Plan], unit: str, resources: ResourceConfig) -> None:
    """Raise LimitReachedError if the time was up before the last shard was started."""
    left = sum(len(shard) for shard in pending_of(plans, receipts_of(storage, plans)))
    if left:
        caps = {"--max-hours": resources.max_hours, "--max-cost": resources.max_cost}
        reached = " or ".join(f"{option} {value:.12g}" for option, value in caps.items() if value is not None)
        raise LimitReachedError(
            f"{reached} is reached with {plural(left, unit)} left: the same command continues"
        )


def receipts_of(storage: Storage, plans: Sequence[Plan]) -> list[str]:
    """Return the receipts that decide which shards are still to be run.

    The files of each receipt are checked only if nothing would be left to run otherwise: the reduce would miss them.
    """
    receipts = complete_receipts(storage, check_files=False)
    return receipts if any(True for _ in pending_of(plans, receipts)) else complete_receipts(storage)

"""Run what is left of a plan on Ray: the map stage over shards, then the reduce."""

import contextlib
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import RunError, plural
from maskrcnn.imaging.radiometry import Radiometry
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest import ManifestReader, check_manifest
from maskrcnn.pipeline.plan import Plan, check_run, pending_of, read_plans, read_run
from maskrcnn.pipeline.receipts import complete_receipts
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.visualization.run_report import write_report

from .actor import WorkerSpec
from .cluster import connected, run_all
from .planning import PROBES, Request, mark_begun
from .progress import Progress
from .scheduler import Scheduler

log = logging.getLogger("maskrcnn")


def run_plan(request: Request, plan: Plan, resources: ResourceConfig, address: str | None) -> dict[str, Any]:
    """Do what is left of the latest generation: map stage and reduce; return the content of `_SUCCESS`.

    Raises:
        RunError: the run stopped before its end.
    """
    with connected(address, resources) as resolved:
        wall_s = run_shards(request, plan, resolved)
        log.info("writing tables, COCO JSON, statistics and report")
        return reduce_run(
            Storage(request.output).url,
            coco_mode=request.coco_mode,
            run_all=run_all,
            wall_s=wall_s,
            keep_finished=True,
            write_report=write_report,
        )


def run_shards(request: Request, plan: Plan, resources: ResourceConfig) -> float | None:
    """Run the shards that have no receipt, on the Ray that is connected.

    Args:
        request: the run.
        plan: of the latest generation; of earlier ones a shard is run only if its files are gone.
        resources: with `device` and `actors` resolved.

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
    radiometry = Radiometry.from_json(run["radiometry"]) if "radiometry" in run else Radiometry()
    spec = WorkerSpec(storage.url, run["model"]["sha256"], request.inference, resources, probes, radiometry)
    with ManifestReader(storage) as manifest:
        first_uri = manifest.rows(0, 1)["uri"][0].as_py()
    actors = plural(resources.actors or 1, f"{resources.device} actor")
    log.info("%s on up to %s", plural(n_pending, "shard"), actors)
    started = time.monotonic()
    progress = Progress(plan.rows + lost, done, unit=f"{plan.unit}s")
    try:
        Scheduler(spec, first_uri, resources.actors or 1, progress).run(
            pending_of(plans, receipts), n_pending
        )
    finally:
        progress.close()
        with contextlib.suppress(RunError):  # what ended the run is what counts
            storage.remove_tree(probes)
    return None if done else time.monotonic() - started


def receipts_of(storage: Storage, plans: Sequence[Plan]) -> list[str]:
    """Return the receipts that decide which shards are still to be run.

    The files of each receipt are checked only if nothing would be left to run otherwise: the reduce would miss them.
    """
    receipts = complete_receipts(storage, check_files=False)
    return receipts if any(True for _ in pending_of(plans, receipts)) else complete_receipts(storage)

"""The job: plan or resume, sweep, reduce."""

import datetime
import importlib.metadata
import logging
import platform
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn.config import InferenceConfig, ResourceConfig, ShardingConfig, default_shard_images, settings_of
from maskrcnn.errors import RunError, UsageError
from maskrcnn.imaging.radiometry import Radiometry
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url
from maskrcnn.models.registry import ModelCard, category_ids_named, describe_model
from maskrcnn.pipeline.inputs import FILE_NAME as MANIFEST
from maskrcnn.pipeline.inputs import Inputs, ManifestReader, read_inputs, source_of, write_manifest
from maskrcnn.pipeline.manifest import check_manifest
from maskrcnn.pipeline.plan import (
    GRID_PREFIX,
    PLAN,
    RUN,
    Plan,
    Shard,
    check_run,
    differences,
    pending_of,
    read_plan,
    read_plans,
    read_run,
    run_digest,
    write_run,
)
from maskrcnn.pipeline.plan_windows import plan_windows
from maskrcnn.pipeline.receipts import SHARDS, standing_receipts
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.success import finished, read_success
from maskrcnn.schema import SCHEMA_VERSION
from maskrcnn.visualization.run_report import write_report

from ..driver.actor import PROBES, WorkerSpec
from ..driver.progress import Progress

log = logging.getLogger("maskrcnn")


@dataclass(frozen=True, slots=True)
class Request:
    """A run as the user asked for it."""

    source: str
    """The inputs: a folder, glob, prefix, manifest or COCO JSON."""
    output: str
    compute: InferenceConfig
    shard_images: int | None = None
    """None: by the number of inputs, see `config.default_shard_images`."""
    images_root: str | None = None
    coco_mode: str = "auto"


def output_of(url: str) -> Storage:
    """Return the output's storage.

    Raises:
        UsageError: the name is none, or a file's.
    """
    if Url.parse(url).is_local and Path(url).is_file():
        raise UsageError(f"the output {url} is a file; name a directory")
    try:
        return Storage(url)
    except RunError as error:
        raise UsageError(f"the output: {error}") from error


def prepare(request: Request) -> Plan:
    """Plan the run, or take up the plan that the output holds; return that of the latest generation.

    Raises:
        UsageError: the inputs or the model are wrong, or the output holds another run or other files.
        RunError: the output cannot be read or written, or its files do not fit together.
    """
    storage = output_of(request.output)
    card = describe_model(request.compute.model, request.compute.labels)
    plan = read_plan(storage)
    if plan is None:
        plan, ours = _plan_anew(request, storage, card)
        if not ours:
            log.info("another command has planned this run meanwhile")
    else:
        ours = False
    if not ours:
        _check_same(request, storage, plan, card)
        what = "plan" if plan.generation == 1 else f"retry (generation {plan.generation})"
        rows = f"{plan.rows:,} {plan.unit}"
        log.info("keeping to the %s of %s: %s, not listed again", what, plan.created, rows)
    if card.notice:
        log.warning("%s", card.notice)
    return plan


def _plan_anew(request: Request, storage: Storage, card: ModelCard) -> tuple[Plan, bool]:
    """Return the plan that stands in the end, and whether it is this one, and not of a command at the same time."""
    # run.json or a manifest without a plan are what a planning that died left behind; they are written again.
    foreign = [
        path
        for path in storage.list()
        if path not in (RUN, MANIFEST) and not path.startswith((f"{PROBES}/", GRID_PREFIX))
    ]
    if foreign and (standing := read_plan(storage)) is not None:
        return standing, False
    if foreign:
        raise UsageError(
            f"{request.output} is not empty and holds no plan (it has {foreign[0]}); name an empty directory"
        )
    category_ids_named(card.categories, request.compute.categories)
    # What cannot be written is better known before a million inputs are listed.
    probe = f"{PROBES}/{uuid.uuid4().hex}"
    try:
        storage.write(probe, b"")
    except RunError as error:
        raise RunError(f"the output cannot be written: {error}") from error
    storage.remove(probe)
    inputs = read_inputs(
        request.source,
        images_root=request.images_root,
        limit=request.compute.limit,
        allow_http=request.compute.allow_http,
    )
    _tell_skipped(inputs)
    asked = request.shard_images
    cut = ShardingConfig(default_shard_images(len(inputs.table)) if asked is None else asked)
    settings = settings_of(request.compute, cut)
    if (standing := read_plan(storage)) is not None:  # listing took its time, and another's files must not go
        return standing, False
    manifest_sha256 = write_manifest(storage, inputs.table)
    created = _now()
    model = _model_entry(card)
    digest = run_digest(settings, model)
    plan = Plan(1, len(inputs.table), cut.shard_images, manifest_sha256, digest, created)
    run = {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "settings": settings,
        "digest": digest,
        "model": model,
        "inputs": _inputs_entry(request, inputs, manifest_sha256),
        "versions": versions(),
    }
    if request.compute.window is not None:
        plan, radiometry = plan_windows(storage, plan, inputs.table["uri"].to_pylist(), request.compute)
        run["radiometry"] = radiometry.to_json()
    standing = write_run(storage, run, plan)
    if standing == plan:
        windows = f" as {plan.rows:,} windows" if plan.grid_sha256 else ""
        log.info("planned %s images%s in %s shards", f"{len(inputs.table):,}", windows, f"{len(plan):,}")
    return standing, standing == plan


def _inputs_entry(request: Request, inputs: Inputs, manifest_sha256: str) -> dict[str, Any]:
    return {
        "source": inputs.source,
        "source_sha256": inputs.source_sha256,
        "images_root": request.images_root,
        "rows": len(inputs.table),
        "ids_given": inputs.ids_given,
        "skipped": inputs.skipped,
        "manifest_sha256": manifest_sha256,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_same(request: Request, storage: Storage, plan: Plan, card: ModelCard) -> None:
    """Refuse to continue a run with other settings, weights or inputs than it was planned with."""
    run = read_run(storage)
    check_run(storage, run, plan)
    planned_cut = run["settings"]["shard_images"]
    shard_images = planned_cut if request.shard_images is None else request.shard_images
    asked = settings_of(request.compute, ShardingConfig(shard_images))
    source, source_sha256 = source_of(request.source)
    planned = _facts(run["inputs"], run["model"])
    now = {"source": source, "source_sha256": source_sha256, "images_root": request.images_root}
    asked_now = _facts(now, _model_entry(card))
    changed = differences(run["settings"], asked) + differences(planned, asked_now)
    if changed:
        raise UsageError(
            f"{request.output} holds another run ({'; '.join(changed)}); "
            "repeat its command to continue it, or name another output"
        )


def _facts(inputs: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Return what a resume must repeat beside the settings, under the names that a user knows."""
    return {
        "input": inputs["source"],
        "images-root": inputs["images_root"],
        "manifest file (sha256)": inputs["source_sha256"],
        "weights (sha256)": model["sha256"],
        "categories": [category["name"] for category in model["categories"]],
    }


def _tell_skipped(inputs: Inputs) -> None:
    if inputs.skipped:
        counts = ", ".join(f"{count:,} {suffix or '(no suffix)'}" for suffix, count in inputs.skipped.items())
        log.info("passed over files that are no images: %s", counts)


def _model_entry(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "uri": card.uri,
        "sha256": card.sha256,
        "architecture": card.architecture,
        "categories": [{"id": category.id, "name": category.name} for category in card.categories],
        "min_size": card.min_size,
        "max_size": card.max_size,
    }


def versions() -> dict[str, str]:
    """Return the versions of what decides the rows, without importing any of it."""
    names = ("maskrcnn-ray", "torch", "torchvision", "pillow", "numpy", "pyarrow", "pycocotools", "ray")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def sweep(request: Request, plan: Plan, speed: ResourceConfig) -> float | None:
    """Run the shards that have no receipt, on the Ray that is connected.

    Args:
        plan: of the latest generation; of earlier ones a shard is run only if its files are gone.

    Returns:
        Seconds it took; None where an earlier start had done a part of it, so that no pace follows.

    Raises:
        RunError: the run stopped before its end.
    """
    from ..driver.scheduler import Scheduler

    storage = Storage(request.output)
    plans = [plan] if plan.generation == 1 else read_plans(storage)
    receipts = receipts_of(storage, plans)
    lost = sum(len(shard) for shard in pending_of(plans[:-1], receipts))
    sizes = [len(shard) for shard in pending_of(plans, receipts)]
    n_pending, done = len(sizes), plan.rows + lost - sum(sizes)
    if done:
        shards_done = len(plan) - sum(1 for _ in plan.pending(receipts))
        log.info("%s of %s shards are done already", f"{shards_done:,}", f"{len(plan):,}")
    if lost:
        log.warning(
            "files of earlier generations are gone; %s %s are processed again", f"{lost:,}", plan.unit
        )
    if n_pending == 0:
        return None
    run = read_run(storage)
    check_run(storage, run, plan)
    check_manifest(storage, plan)
    probes = f"{PROBES}/{uuid.uuid4().hex}"
    radiometry = Radiometry.from_json(run["radiometry"]) if "radiometry" in run else Radiometry()
    spec = WorkerSpec(storage.url, run["model"]["sha256"], request.compute, speed, probes, radiometry)
    with ManifestReader(storage) as manifest:
        first_uri = manifest.rows(0, 1)["uri"][0].as_py()
    log.info("%s shards on up to %s %s actors", f"{n_pending:,}", speed.actors, speed.device)
    started = time.monotonic()
    progress = Progress(plan.rows + lost, done, unit=plan.unit)
    try:
        Scheduler(spec, first_uri, speed.actors or 1, progress).run(pending_of(plans, receipts), n_pending)
    finally:
        progress.close()
    storage.remove_tree(probes)
    return None if done else time.monotonic() - started


def receipts_of(storage: Storage, plans: Sequence[Plan]) -> list[str]:
    """Return the receipts by which is decided what to run.

    Files are looked for one by one only where, else, nothing would be left to run: the reduce would miss them.
    """
    receipts = standing_receipts(storage, closely=False)
    return receipts if any(True for _ in pending_of(plans, receipts)) else standing_receipts(storage)


def segment(request: Request, speed: ResourceConfig, address: str | None) -> dict[str, Any]:
    """Run the whole job, or what is left of it; return the content of `_SUCCESS`.

    Raises:
        UsageError: the command is wrong.
        RunError: the run stopped before its end; the same command continues it.
    """
    from ..driver.cluster import check_device

    check_device(address, speed)
    plan = prepare(request)
    success = finished(Storage(request.output), plan)
    if success is not None:
        log.info("%s is finished already; `maskrcnn reduce` writes its tables again", request.output)
        return success
    return finish(request, plan, speed, address)


def finish(request: Request, plan: Plan, speed: ResourceConfig, address: str | None) -> dict[str, Any]:
    """Do what is left of the latest generation; return the content of `_SUCCESS`.

    Raises:
        RunError: the run stopped before its end.
    """
    from ..driver.cluster import connected, run_all

    with connected(address, speed) as resolved:
        wall_s = sweep(request, plan, resolved)
        log.info("writing tables, COCO JSON, statistics and report")
        return reduce_run(
            Storage(request.output).url,
            coco_mode=request.coco_mode,
            run_all=run_all,
            wall_s=wall_s,
            keep_standing=True,
            write_report=write_report,
        )


def status(output: str) -> dict[str, Any]:
    """Return how far a run is, from its plans and receipts alone.

    Raises:
        UsageError: the output holds no plan.
    """
    storage = output_of(output)
    plans = read_plans(storage)
    if not plans:
        raise UsageError(f"{output} holds no plan (no {PLAN})")
    success = read_success(storage)
    done = success is not None and success["generation"] == plans[-1].generation
    receipts = [] if done else receipts_of(storage, plans)
    pending = [[] if done else list(plan.pending(receipts)) for plan in plans]
    facts = [_progress_of(plan, shards) for plan, shards in zip(plans, pending, strict=True)]
    return {
        "state": "finished" if done else "unfinished" if any(pending) else "swept",
        "generation": plans[-1].generation,
        **facts[0],
        "retry": None if done or len(plans) == 1 else facts[-1],
        "counts": success["counts"] if success else None,
    }


def _progress_of(plan: Plan, pending: Sequence[Shard]) -> dict[str, Any]:
    return {
        "created": plan.created,
        "unit": plan.unit,
        "images": plan.rows,
        "images_done": plan.rows - sum(len(shard) for shard in pending),
        "shards": len(plan),
        "shards_done": len(plan) - len(pending),
    }


def collect_garbage(output: str) -> dict[str, int]:
    """Remove what only the sweep needed, of a finished run; return what went, by its name.

    Raises:
        UsageError: there is no run.
        RunError: the run, or a retry, is not finished, so that its shards are still needed.
    """
    storage = output_of(output)
    plan = read_plan(storage)
    if plan is None:
        raise UsageError(f"{output} holds no plan (no {PLAN})")
    if finished(storage, plan) is None:
        raise RunError(f"{output} is not finished; its shards are still needed")
    removed = {}
    for folder in (SHARDS, PROBES):
        removed[f"files in {folder}/"] = len(storage.list(folder))
        storage.remove_tree(folder)
    removed["open uploads"] = storage.abort_uploads()
    removed["unfinished files"] = storage.remove_leftovers()
    return removed

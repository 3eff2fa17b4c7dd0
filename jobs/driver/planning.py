"""Plan a run, or resume the plan that its output holds."""

import datetime
import importlib.metadata
import logging
import os
import platform
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from maskrcnn.config import InferenceConfig, ShardingConfig, default_shard_images, settings_of
from maskrcnn.errors import RunError, UsageError, plural
from maskrcnn.io.sources import source_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url
from maskrcnn.models.registry import ModelCard, category_ids_named, describe_model
from maskrcnn.pipeline.inputs import Inputs, read_inputs
from maskrcnn.pipeline.manifest import FILE_NAME as MANIFEST
from maskrcnn.pipeline.manifest import write_manifest
from maskrcnn.pipeline.plan import (
    GRID_PREFIX,
    RUN,
    Plan,
    check_run,
    differences,
    read_plan,
    read_run,
    run_digest,
    write_run,
)
from maskrcnn.pipeline.plan_windows import plan_windows
from maskrcnn.schema import SCHEMA_VERSION

log = logging.getLogger("maskrcnn")

PROBES: Final = "probes"
"""The folder of a run's directory that holds probes and traces while the run is processed."""


def absolute(name: str) -> str:
    """Return a local file's absolute path, and any other name of a model unchanged.

    Workers and later commands have other working directories.
    """
    return str(Path(name).absolute()) if "://" not in name and Path(name).is_file() else name


@dataclass(frozen=True, slots=True)
class Request:
    """A run as the user requested it."""

    source: str
    """The inputs: a folder, glob, prefix, manifest or COCO JSON."""
    output: str
    inference: InferenceConfig
    shard_images: int | None = None
    """None: chosen by the number of inputs, see `config.default_shard_images`."""
    images_root: str | None = None
    """Base of the relative uris of a manifest; made absolute, because a resume may have another working directory."""
    coco_mode: str = "auto"

    def __post_init__(self) -> None:
        if self.images_root and "://" not in self.images_root:
            # Path.absolute would keep `..`, which is another name.
            place = Url.parse(self.images_root).key  # of file:/a too
            object.__setattr__(self, "images_root", os.path.abspath(place))  # noqa: PTH100


def output_storage(url: str) -> Storage:
    """Return the output's storage.

    Raises:
        UsageError: the name is not a valid output, or is that of a file.
    """
    if (place := Url.parse(url)).is_local and place.local_path.is_file():
        raise UsageError(f"the output {url} is a file; name a directory")
    try:
        return Storage(url)
    except RunError as error:
        raise UsageError(f"the output: {error}") from error


def prepare(request: Request) -> Plan:
    """Plan the run, or resume the plan that the output holds; return the plan of the latest generation.

    Raises:
        UsageError: the inputs or the model are wrong, or the output holds another run, a run of another schema version,
            or other files.
        RunError: the output cannot be read or written, or its files contradict each other.
    """
    storage = output_storage(request.output)
    card = describe_model(request.inference.model, request.inference.labels)
    plan = read_plan(storage)
    if plan is None:
        plan, ours = _create_plan(request, storage, card)
        if not ours:
            log.info("another command has planned this run meanwhile")
    else:
        ours = False
    if not ours:
        _check_same(request, storage, plan, card)
        what = "plan" if plan.generation == 1 else f"retry (generation {plan.generation})"
        log.info(
            "resuming the %s of %s: %s, not listed again", what, plan.created, plural(plan.rows, plan.unit)
        )
    if card.notice:
        log.warning("%s", card.notice)
    return plan


def _create_plan(request: Request, storage: Storage, card: ModelCard) -> tuple[Plan, bool]:
    """Return the plan that is in effect, and whether this command wrote it, not one that ran at the same time."""
    if (existing := _check_empty(request, storage)) is not None:
        return existing, False
    category_ids_named(card.categories, request.inference.categories)
    _check_writable(storage)
    inputs = read_inputs(
        request.source,
        images_root=request.images_root,
        limit=request.inference.limit,
        allow_http=request.inference.allow_http,
    )
    _log_skipped(inputs)
    shard_images = request.shard_images
    sharding = ShardingConfig(
        default_shard_images(len(inputs.table)) if shard_images is None else shard_images
    )
    settings = settings_of(request.inference, sharding)
    if (existing := read_plan(storage)) is not None:  # listing takes time; another's files must be kept
        return existing, False
    manifest_sha256 = write_manifest(storage, inputs.table)
    created = _now()
    model = _model_entry(card)
    digest = run_digest(settings, model)
    plan = Plan(1, len(inputs.table), sharding.shard_images, manifest_sha256, digest, created)
    run = {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "settings": settings,
        "digest": digest,
        "model": model,
        "inputs": _inputs_entry(request, inputs, manifest_sha256),
        "versions": versions(),
    }
    if request.inference.window is not None:
        plan, radiometry = plan_windows(storage, plan, inputs.table["uri"].to_pylist(), request.inference)
        run["radiometry"] = radiometry.to_json()
    effective = write_run(storage, run, plan)
    if effective == plan:
        windows = f" as {plural(plan.rows, 'window')}" if plan.grid_sha256 else ""
        log.info(
            "planned %s%s in %s", plural(len(inputs.table), "image"), windows, plural(len(plan), "shard")
        )
    return effective, effective == plan


def _check_empty(request: Request, storage: Storage) -> Plan | None:
    """Refuse an output that holds other files; return a plan that another command wrote meanwhile."""
    # A planning that died leaves run.json or a manifest without a plan; they are written again.
    foreign = [
        path
        for path in storage.list()
        if path not in (RUN, MANIFEST) and not path.startswith((f"{PROBES}/", GRID_PREFIX))
    ]
    if not foreign:
        return None
    if (existing := read_plan(storage)) is not None:
        return existing
    raise UsageError(
        f"{request.output} is not empty and holds no plan (it has {foreign[0]}); name an empty directory"
    )


def _check_writable(storage: Storage) -> None:
    """Raise RunError for an output that cannot be written, before a million inputs are listed."""
    probe = f"{PROBES}/{uuid.uuid4().hex}"
    try:
        storage.write(probe, b"")
    except RunError as error:
        raise RunError(f"the output cannot be written: {error}") from error
    storage.remove(probe)


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
    planned_size = run["settings"]["shard_images"]
    shard_images = planned_size if request.shard_images is None else request.shard_images
    settings = settings_of(request.inference, ShardingConfig(shard_images))
    source, source_sha256 = source_of(request.source)
    planned = _facts(run["inputs"], run["model"])
    inputs = {"source": source, "source_sha256": source_sha256, "images_root": request.images_root}
    requested = _facts(inputs, _model_entry(card))
    changed = differences(run["settings"], settings) + differences(planned, requested)
    if changed:
        raise UsageError(
            f"{request.output} holds another run ({'; '.join(changed)}); "
            "repeat its command to continue it, or name another output"
        )


def _facts(inputs: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Return what a resume must repeat besides the settings, under the names that users know."""
    return {
        "input": inputs["source"],
        "images-root": inputs["images_root"],
        "manifest file (sha256)": inputs["source_sha256"],
        "weights (sha256)": model["sha256"],
        "categories": [category["name"] for category in model["categories"]],
    }


def _log_skipped(inputs: Inputs) -> None:
    if inputs.skipped:
        counts = ", ".join(f"{count:,} {suffix or '(no suffix)'}" for suffix, count in inputs.skipped.items())
        log.info("skipped non-image files: %s", counts)


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
    """Return the versions of the packages that decide the rows, without importing any of them."""
    names = ("maskrcnn-ray", "torch", "torchvision", "pillow", "numpy", "pyarrow", "pycocotools", "ray")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}

"""Plan a run, or resume the plan that its output holds."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import logging
import os
import platform
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc

from maskrcnn.config import InferenceConfig, ShardingConfig, default_shard_images, settings_of
from maskrcnn.errors import RunError, StoreSetupError, UsageError, plural
from maskrcnn.io.archives.member import split_member
from maskrcnn.io.manifests.skipped import counts_of
from maskrcnn.io.manifests.sources import check_source, source_of
from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url, is_file, redact
from maskrcnn.models.networks import check_tta
from maskrcnn.models.own.own_segmenter import Planned, check_planned
from maskrcnn.models.registry import ModelCard, category_ids_named, describe_model, needs_download
from maskrcnn.pipeline.list_inputs import Inputs, read_inputs
from maskrcnn.pipeline.manifest_file import SKIPPED_NAME, write_manifest, write_skipped
from maskrcnn.pipeline.plan import (
    GRID_PREFIX,
    MANIFEST,
    PLAN,
    RUN,
    Plan,
    check_run,
    create_plan,
    read_plan,
    read_plans,
    read_run,
    run_digest,
    write_run,
)
from maskrcnn.pipeline.plan_retry import check_reducible
from maskrcnn.pipeline.plan_update import plan_update
from maskrcnn.pipeline.plan_windows import check_options, plan_windows
from maskrcnn.pipeline.setting_differences import differences
from maskrcnn.pipeline.success import finished
from maskrcnn.schema import SCHEMA_VERSION

from .driver_records import PROBES, record_driver
from .skipped_files import log_skipped, refuse_planned_skips, refuse_skipped

log = logging.getLogger("maskrcnn")
FORECAST: Final = "forecast.json"
"""What `maskrcnn plan --measure` expected, in the run's directory."""


def absolute(name: str) -> str:
    """Return a local file's absolute path, and any other name of a model unchanged.

    Workers and later commands have other working directories.
    """
    return str(Path(name).absolute()) if "://" not in name and is_file(name) else name


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
    strict: bool = False
    """Whether it is an error that a listing finds files that are no inputs."""
    update: bool = False
    """Whether the inputs of a finished run are listed again, and what is new is processed."""
    reclaim_minutes: float | None = None
    """After which a machine is taken away, on average, by which the shard size is chosen; see likewise."""

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
    if (place := Url.parse(url)).is_local and is_file(place.local_path):
        raise UsageError(f"the output {url} is a file; name a directory")
    if split_member(f"{url}/"):
        raise UsageError(f"the output {url} is in an archive, which is read, not written: name another place")
    try:
        storage = Storage(url)
    except (RunError, UsageError) as error:
        raise UsageError(f"the output: {error}") from error
    if not store_of(place).is_writable:
        raise UsageError(f"the output {url}: {place.scheme}:// is read, not written: name another place")
    return storage


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Let a store that cannot be used any more stop a run that has begun: the same command continues it."""
    try:
        yield
    except StoreSetupError as error:
        raise RunError(str(error)) from error


def prepare(request: Request) -> Plan:
    """Plan the run, or resume the plan that the output holds; return the plan of the latest generation.

    Raises:
        UsageError: the inputs or the model are wrong, or the output holds another run, a run of another schema version,
            or other files.
        StoreSetupError: the output cannot be read or written as this process is set up.
        RunError: the output cannot be read or written now, or its files contradict each other.
    """
    storage = output_storage(request.output)
    plan = read_plan(storage)
    inputs = _inputs_before_download(request) if plan is None else None
    inference = request.inference
    card = describe_model(inference.model, inference.labels, inference.model_args)
    _check_options(request, card)
    if plan is not None and (changed := _changes(request, storage, plan, card)):
        if plan.generation > 1 or is_begun(storage):
            raise _another_run(request, changed)
        inputs = _list_inputs(request)  # if that fails, the plan stays
        _withdraw(request, storage, plan, changed)
        plan = None
    if plan is None:
        plan, ours = _create_plan(request, storage, card, inputs)
        if not ours:
            log.info("another command has planned this run meanwhile")
            if changed := _changes(request, storage, plan, card):
                raise _another_run(request, changed)
    else:
        ours = False
        if request.strict and not request.update:  # which lists again
            refuse_planned_skips(request.source, storage)
    if not ours and finished(storage, plan) is None:
        what = plan.kind if plan.generation == 1 else f"{plan.kind} (generation {plan.generation})"
        log.info(
            "resuming the %s of %s: %s, not listed again", what, plan.created, plural(plan.rows, plan.unit)
        )
    if card.notice:
        log.warning("%s", card.notice)
    return plan


def prepare_update(request: Request) -> Plan | None:
    """Plan what is new among the inputs of a finished run, as `prepare` found it; None if nothing is.

    Raises:
        UsageError: the inputs cannot be listed, or have other columns than those of the run; `maskrcnn gc` removed the
            shards.
        RunError: as `prepare`.
    """
    storage = output_storage(request.output)
    check_reducible(storage, read_plans(storage))  # before the inputs are listed, which may take long
    inputs = _list_inputs(request)
    if request.strict:
        refuse_skipped(request.source, inputs.skipped)
    log_skipped(inputs)
    plan = plan_update(storage, read_plans(storage), read_run(storage), inputs, request.inference)
    if plan is not None:
        log.info("planned an update of %s in %s", plural(plan.rows, plan.unit), plural(len(plan), "shard"))
    return plan


def _inputs_before_download(request: Request) -> Inputs | None:
    """Look for the inputs before weights are downloaded, which takes minutes; list those that are local."""
    if not needs_download(request.inference.model):
        return None
    if not Url.parse(request.source).is_local:
        check_source(request.source)
        return None
    return _list_inputs(request)


def _list_inputs(request: Request) -> Inputs:
    """Return the inputs; those of the output, if it lies among them, do not count as skipped."""
    log.info("listing %s", redact(request.source))
    inputs = read_inputs(
        request.source,
        images_root=request.images_root,
        limit=request.inference.limit,
        allow_http=request.inference.allow_http,
        image_column=request.inference.image_column,
        sidecars=request.inference.sidecars,
    )
    place = Url.parse(output_storage(request.output).url)
    output = Url.parse(os.path.normpath(place.local_path)) if place.is_local else place
    below_output = output.join("").text
    others = pc.invert(pc.starts_with(inputs.skipped["uri"], below_output))
    return dataclasses.replace(inputs, skipped=inputs.skipped.filter(others))


def _check_options(request: Request, card: ModelCard) -> None:
    """Raise UsageError for an option that is wrong whatever the output holds, which would hide it."""
    category_ids_named(card.categories, request.inference.categories)
    check_tta(request.inference.tta, card.name, card.architecture)
    if request.inference.window is not None:
        check_options(request.inference)


def _create_plan(
    request: Request, storage: Storage, card: ModelCard, inputs: Inputs | None
) -> tuple[Plan, bool]:
    """Return the plan that is in effect, and whether this command wrote it, not one that ran at the same time."""
    if (existing := _check_empty(request, storage)) is not None:
        return existing, False
    check_writable(storage)
    inputs = _list_inputs(request) if inputs is None else inputs
    if request.strict:
        refuse_skipped(request.source, inputs.skipped)
    log_skipped(inputs)
    shard_images = request.shard_images
    sharding = ShardingConfig(
        default_shard_images(len(inputs.table), request.reclaim_minutes)
        if shard_images is None
        else shard_images
    )
    settings = settings_of(request.inference, sharding)
    if (existing := read_plan(storage)) is not None:  # listing takes time; another's files must be kept
        return existing, False
    manifest_sha256 = write_manifest(storage, inputs.table)
    skipped_sha256 = write_skipped(storage, inputs.skipped)
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
        "inputs": _inputs_entry(request, inputs, manifest_sha256, skipped_sha256),
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
        if path not in (RUN, MANIFEST, SKIPPED_NAME, FORECAST)
        and not path.startswith((f"{PROBES}/", GRID_PREFIX))
    ]
    if not foreign:
        return None
    if (existing := read_plan(storage)) is not None:
        return existing
    raise UsageError(
        f"{request.output} is not empty and holds no plan (it has {foreign[0]}); name an empty directory"
    )


def check_writable(storage: Storage) -> None:
    """Look whether an output can be written, before a million inputs are listed.

    Raises:
        UsageError: it cannot, until the user changes something.
        RunError: it cannot now.
    """
    probe = f"{PROBES}/{uuid.uuid4().hex}"
    try:
        storage.write(probe, b"")
    except RunError as error:
        why = str(error).removeprefix(f"cannot write {storage.url}/{probe}: ")
        kind = UsageError if isinstance(error, StoreSetupError) else RunError
        raise kind(f"the output {storage.url} cannot be written: {why}") from error
    storage.remove(probe)


def _inputs_entry(
    request: Request, inputs: Inputs, manifest_sha256: str, skipped_sha256: str | None
) -> dict[str, Any]:
    return {
        "source": inputs.source,
        "source_sha256": inputs.source_sha256,
        "images_root": request.images_root,
        "rows": len(inputs.table),
        "ids_given": inputs.ids_given,
        "skipped": counts_of(inputs.skipped),
        "skipped_sha256": skipped_sha256,
        "manifest_sha256": manifest_sha256,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _changes(request: Request, storage: Storage, plan: Plan, card: ModelCard) -> list[str]:
    """Return the settings, weights and inputs in which a request differs from the plan, one phrase for each.

    Raises:
        OwnNetworkError: as `check_same_network`.
    """
    run = read_run(storage)
    check_run(storage, run, plan)
    check_same_network(run["model"], card)
    planned_size = run["settings"]["shard_images"]
    shard_images = planned_size if request.shard_images is None else request.shard_images
    settings = settings_of(request.inference, ShardingConfig(shard_images))
    source, source_sha256 = source_of(request.source, request.inference.image_column)
    listed = run["inputs"]
    if plan.manifest != MANIFEST:
        updates = [each.update for each in read_plans(storage) if each.update is not None]
        listed |= {"source_sha256": updates[-1].source_sha256}
    planned = _facts(listed, run["model"])
    if request.update:  # the source may have changed, for which it is listed again
        source_sha256 = listed["source_sha256"]
    inputs = {"source": source, "source_sha256": source_sha256, "images_root": request.images_root}
    requested = _facts(inputs, _model_entry(card))
    return differences(run["settings"], settings) + differences(planned, requested)


def check_same_network(model: dict[str, Any], card: ModelCard) -> None:
    """Compare a network of the user's own with the entry `model` of `run.json`, if its code is the same.

    Raises:
        OwnNetworkError: its categories or masks are others, so that no process could continue the run.
    """
    if card.own is not None and card.sha256 == model["sha256"]:
        check_planned(card.name, Planned.of_run(model), Planned(card.categories, card.has_masks))


def _another_run(request: Request, changed: list[str]) -> UsageError:
    files = any("(sha256): " in phrase or phrase.startswith("package: ") for phrase in changed)
    remedy = "restore what was changed" if files else "repeat its command"
    if all(phrase.startswith("manifest file (sha256): ") for phrase in changed):
        remedy = "process what is new with --update, restore what was changed"
    return UsageError(
        f"{request.output} holds another run ({'; '.join(changed)}); {remedy} to continue it, or name another output"
    )


def _withdraw(request: Request, storage: Storage, plan: Plan, changed: list[str]) -> None:
    """Remove a plan that no command began to carry out, so that the output can be planned anew.

    A command that begins writes its marker, and then looks for its plan (`mark_begun`); here the plan is removed, and
    then markers are looked for: of two at the same time, at least one notices the other.

    Raises:
        UsageError: it was begun.
    """
    storage.remove(PLAN)
    if is_begun(storage):
        create_plan(storage, plan)
        raise _another_run(request, changed)
    storage.remove(FORECAST)
    if plan.grid_file is not None:
        storage.remove(plan.grid_file)
    log.info(
        "planning %s anew: it was planned with %s, and nothing was done", request.output, "; ".join(changed)
    )


def is_begun(storage: Storage) -> bool:
    """Return whether a command began to carry out the plan of an output, so that it must stay."""
    planned = (PLAN, RUN, MANIFEST, SKIPPED_NAME, FORECAST)
    return not all(path in planned or path.startswith(GRID_PREFIX) for path in storage.list())


def mark_begun(storage: Storage, plan: Plan, probes: str) -> None:
    """Write into a driver's folder of probes that it carries out a plan, which from now on is not planned anew.

    Raises:
        RunError: another command planned anew meanwhile.
    """
    record_driver(storage, probes)
    if plan not in read_plans(storage):
        raise RunError(f"{storage.url} was planned anew by another command meanwhile; name another output")


def _facts(inputs: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Return what a resume must repeat besides the settings, under the names that users know."""
    return {
        "input": inputs["source"],
        "images-root": inputs["images_root"] and redact(inputs["images_root"]),
        "manifest file (sha256)": inputs["source_sha256"],
        "categories": [category["name"] for category in model["categories"]],
        **_weights_facts(model),
    }


def _weights_facts(model: dict[str, Any]) -> dict[str, Any]:
    """Return what a resume must repeat of weights, or of the code of a network of the user's own."""
    own = model.get("own")
    if own is None:
        return {"weights (sha256)": model["sha256"]}
    code = {"code (sha256)": own.get("code_sha256"), "package": own.get("package")}
    return code | {f"{name} (sha256)": digest for name, digest in own.get("files", {}).items()}


def _model_entry(card: ModelCard) -> dict[str, Any]:
    entry = {
        "name": card.name,
        "uri": card.uri,
        "sha256": card.sha256,
        "architecture": card.architecture,
        "categories": [{"id": category.id, "name": category.name} for category in card.categories],
        "min_size": card.min_size,
        "max_size": card.max_size,
        "masks": card.has_masks,
    }
    return entry if card.own is None else entry | {"own": dict(card.own)}


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide the rows, without importing any of them."""
    names = ("maskrcnn-ray", "torch", "torchvision", "pillow", "numpy", "pyarrow", "pycocotools", "ray")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}

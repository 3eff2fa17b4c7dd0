"""Compute a shard of a run again, and compare its rows with those that the run stored."""

import contextlib
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import COSTLY_CODES, ItemError, RunError, UsageError, plural
from maskrcnn.io.parquet import read_table
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import (
    ManifestReader,
    ShardReader,
    check_manifest,
    read_retired,
    read_window_index,
)
from maskrcnn.pipeline.plan import PLAN, Plan, Shard, check_run, no_run, read_plans, read_run
from maskrcnn.pipeline.receipts import SHARDS, Receipt, read_receipt, receipt_path
from maskrcnn.pipeline.success import read_success
from maskrcnn.results.table_differences import Difference, table_differences

from .driver_records import PROBES
from .node_worker import NodeWorker
from .one_process import resolved
from .planned_request import check_weights, planned_request
from .planning import output_storage, versions
from .worker_spec import worker_spec

log = logging.getLogger("maskrcnn")

_OF_RESULTS: Final = ("device", "dtype", "batch_size")
"""What a receipt records that may change the last digits of a network's results."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A shard that was computed again."""

    shard: str
    images: int
    instances: int
    not_tried: int
    """Images that ended or blocked a worker when the run processed them, and are not computed again."""
    retired: int
    """Images that an update found changed or vanished, whose rows are not compared."""
    differences: tuple[Difference, ...]
    """In which values the rows differ from those that are stored."""
    environment: tuple[str, ...]
    """In what this process differs from the one that computed the shard, one line for each."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        lines = [difference.line() for difference in self.differences]
        return {
            "shard": self.shard,
            "equal": not lines,
            "images": self.images,
            "instances": self.instances,
            "not_tried": self.not_tried,
            "retired": self.retired,
            "differences": lines,
            "environment": list(self.environment),
        }


def replay_shard(output: str, name: str, resources: ResourceConfig) -> Replay:
    """Compute a shard again, in this process, with the settings and weights of the run; nothing of the run changes.

    Args:
        output: the run's directory.
        name: of the shard: its number from 0, or `<generation>-<number>`.
        resources: as requested; what is not, is as the shard's receipt records it.

    Raises:
        UsageError: there is no such run or shard, its files were removed, or the weights are others.
        RunError: the shard was not processed yet, or inputs cannot be accessed.
    """
    storage = output_storage(output)
    plans = read_plans(storage)
    if not plans:
        raise no_run(output, PLAN)
    run = read_run(storage)
    for plan in plans:
        check_run(storage, run, plan)
    check_manifest(storage, plans[-1])
    full = name if "-" in name else f"1-{name}"
    found = ((plan, plan.index_of(full)) for plan in plans)
    shard = next((plan[index] for plan, index in found if index is not None), None)
    if shard is None:
        ranges = [f"{plan.generation}-0 to {plan.generation}-{len(plan) - 1}" for plan in plans if len(plan)]
        what = " and ".join(ranges if len(ranges) < 4 else [*ranges[:1], "further ones up to " + ranges[-1]])
        raise UsageError(f"{output} has no shard {name}: it has {what}")
    receipt = _receipt_of(storage, shard)
    request = planned_request(output, run)
    check_weights(request, run)
    execution = receipt.execution
    resources, lanes = resolved(
        replace(
            resources,
            batch_size=resources.batch_size or execution.get("batch_size"),
            dtype=resources.dtype or execution.get("dtype"),
        )
    )
    before = {
        name: read_table(storage, file.path)
        for name, file in (("images", receipt.images), ("instances", receipt.instances))
    }
    costly = _costly(storage, shard, before["images"])
    probes = f"{PROBES}/{uuid.uuid4().hex}"
    worker = NodeWorker(worker_spec(storage, request, run, resources, probes, lanes))
    with ManifestReader(storage, plans[-1].manifest) as manifest:
        first_uri = manifest.rows(0, 1)["uri"][0].as_py()
    log.info("computing shard %s again: %s", shard.name, plural(len(shard), plans[0].unit))
    try:
        worker.start(first_uri)
        images, instances, now = worker.compute(shard, costly)
    finally:
        with contextlib.suppress(RunError):  # what ended it is what counts
            storage.remove_tree(probes)
    retired = _retired(storage, plans, shard)
    after = {"images": images, "instances": instances}
    differences = _differences(before, after, ~retired, plans[0].unit)
    return Replay(
        shard.name,
        len(images),
        len(instances),
        len(costly),
        int(retired.sum()),
        tuple(differences),
        tuple(_environment(run["versions"], execution, now)),
    )


def _receipt_of(storage: Storage, shard: Shard) -> Receipt:
    """Return the receipt of a shard that counts: the first, as when the tables were written."""
    attempts = sorted(storage.folders(f"{SHARDS}/{shard.name}"))
    for attempt in attempts:
        path = receipt_path(shard.name, attempt)
        if storage.exists(path):
            return read_receipt(storage, path)
    if read_success(storage) is not None:
        raise UsageError(
            f"{storage.url} has no shards: `maskrcnn gc` removed what only the processing needed, and with it the rows "
            "to compare with"
        )
    raise RunError(f"shard {shard.name} is not processed yet: `maskrcnn segment` continues the run")


def _retired(storage: Storage, plans: Sequence[Plan], shard: Shard) -> NDArray[np.bool_]:
    """Return whether each row of a shard does not count any more, since an update, (N,) bool."""
    numbers, _ = ShardReader(storage).rows(shard)
    windows = read_window_index(storage, plans)
    rows = numbers if windows is None else windows.rows_of(numbers)
    return np.isin(rows, read_retired(storage, plans)["row"].to_numpy())


def _differences(
    before: dict[str, pa.Table], after: dict[str, pa.Table], kept: NDArray[np.bool_], unit: str
) -> list[Difference]:
    """Return in which values the tables of a shard differ, among the rows of `images` that are kept, (N,) bool."""
    images = [tables["images"].filter(pa.array(kept)) for tables in (before, after)]
    instances = [
        _of_images(tables["instances"], of) for tables, of in zip((before, after), images, strict=True)
    ]
    return [*table_differences(f"{unit}s", *images), *table_differences("instances", *instances)]


def _of_images(instances: pa.Table, images: pa.Table) -> pa.Table:
    return instances.filter(pc.is_in(instances["image_id"], images["image_id"].combine_chunks()))


def _costly(storage: Storage, shard: Shard, images: pa.Table) -> dict[int, ItemError]:
    """Return the stored failures of images that ended or blocked a worker, by row of the manifest."""
    numbers, _ = ShardReader(storage).rows(shard)
    rows = zip(numbers.tolist(), images.select(["error", "message"]).to_pylist(), strict=True)
    return {
        number: ItemError(row["error"], row["message"])
        for number, row in rows
        if row["error"] in COSTLY_CODES
    }


def _environment(planned: dict[str, str], before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    here = versions()
    lines = [
        f"{name} {planned[name]} then, {here[name]} now"
        for name in planned
        if name in here and here[name] != planned[name]
    ]
    return lines + [
        f"{name} {json.dumps(before.get(name))} then, {json.dumps(now.get(name))} now"
        for name in _OF_RESULTS
        if before.get(name) != now.get(name)
    ]

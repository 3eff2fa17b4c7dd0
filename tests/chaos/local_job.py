"""The whole job without Ray, some 0.2 s a run: plan or resume, sweep in any order, reduce; with planted images."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_jobs.segment import Request, prepare

from chaos.chance import chance
from maskrcnn.config import Compute
from maskrcnn.decode import Limits
from maskrcnn.parts import standing_receipts
from maskrcnn.plan import Plan
from maskrcnn.planted import PlantedSegmenter, write_planted
from maskrcnn.reduce import read_success, reduce_run
from maskrcnn.storage import Storage
from maskrcnn.worker import ShardWorker

N_SHARDS = 4


@dataclass(frozen=True)
class Job:
    """A command as a user gives it."""

    source: str
    output: str
    order: int = 0
    """Seed of the order in which shards are run, which nobody can foretell on a cluster; 0: that of the plan."""


def write_collection(folder: Path, seed: int) -> str:
    """Write six planted images and a page that is none, and a manifest that names an eighth that is missing.

    Returns:
        The manifest. Its eight rows make four shards.
    """
    write_planted(folder, 6, seed)
    (folder / "page.png").write_text("<html>not found</html>")
    names = [*(path.name for path in sorted(folder.glob("*.png"))), "late.png"]
    manifest = folder / "manifest.csv"
    manifest.write_text("uri\n" + "".join(f"{name}\n" for name in names))
    return str(manifest)


def run_job(job: Job) -> dict[str, Any]:
    """Do what `maskrcnn segment` does; return the content of `_SUCCESS`."""
    plan = prepare(Request(job.source, job.output, Compute("planted"), shard_images=2))
    storage = Storage(job.output)
    success = read_success(storage)
    if success is not None:
        return success
    sweep(storage, plan, job.order)
    return reduce_run(storage.url)


def sweep(storage: Storage, plan: Plan, order: int) -> None:
    """Run the shards that have no receipt."""
    shards = list(plan.pending(standing_receipts(storage)))
    if order:
        chance("order of shards", order).shuffle(shards)
    worker = ShardWorker(storage, PlantedSegmenter(), Limits(10**7, 10**7, 1333.0), {"node": "here"})
    for shard in shards:
        worker.run_shard(shard)


def elsewhere(job: Job, output: str, order: int = 0) -> Job:
    """Return the same command for another output."""
    return dataclasses.replace(job, output=output, order=order)


def names_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of rows."""
    return [row["name"] for row in rows]

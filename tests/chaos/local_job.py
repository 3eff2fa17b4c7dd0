"""The whole job without Ray, some 0.2 s a run: the commands' own code, but for the map stage, which is a loop here."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

import maskrcnn_jobs.driver.run
import numpy as np
from maskrcnn_jobs.commands.retry import run_retry as retry_failed
from maskrcnn_jobs.driver.planning import Request
from maskrcnn_jobs.driver.run import run_segment
from planted_images import random_instances, write_planted

import maskrcnn.pipeline.reduce
from chaos.chance import chance
from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import check_manifest
from maskrcnn.pipeline.merge_generations import group_shards
from maskrcnn.pipeline.plan import Plan, check_run, pending_of, read_plans, read_run
from maskrcnn.pipeline.receipts import complete_receipts
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PlantedSegmenter, plant, png
from maskrcnn.visualization.run_report import write_report

SHARD_IMAGES: Final = 2
N_SHARDS: Final = 4
PART_BYTES: Final = 10_000
LATE: Final = ("a-late.png", "z-late-1.png", "z-late-2.png")
_mine = threading.local()


@dataclass(frozen=True)
class Job:
    """A command as a user gives it."""

    source: str
    output: str
    order: int = 0
    """Seed of the order in which shards are run, which nobody can foretell on a cluster; 0: that of the plan."""

    def to(self, output: str, order: int = 0) -> "Job":
        """Return the same command for another output."""
        return dataclasses.replace(self, output=output, order=order)


def write_collection(folder: Path, seed: int) -> str:
    """Write three planted images, an empty one and a page that is not an image, and a manifest that names three others.

    Returns:
        The manifest. Its eight rows make four shards; those of `LATE` are missing.
    """
    write_planted(folder, 3, seed)
    (folder / "nothing.png").write_bytes(png(plant((64, 64), [])))
    (folder / "page.png").write_text("<html>not found</html>")
    names = [*(path.name for path in sorted(folder.glob("*.png"))), *LATE]
    manifest = folder / "manifest.csv"
    manifest.write_text("uri\n" + "".join(f"{name}\n" for name in names))
    return str(manifest)


def bring_what_is_late(manifest: str) -> None:
    """Write the images that were missing, so that a retry finds them: two in one shard and one in another."""
    rng = np.random.default_rng(5)
    for name in LATE:
        pixels = plant((64, 64), random_instances(rng, 64, 64, 3))
        (Path(manifest).parent / name).write_bytes(png(pixels))


def change_collection(manifest: str) -> None:
    """Bring what is late, name another image, and name the empty one no more: what an update finds."""
    bring_what_is_late(manifest)
    (Path(manifest).parent / "new.png").write_bytes(png(plant((64, 64), [])))
    names = Path(manifest).read_text().splitlines()
    Path(manifest).write_text("\n".join([*(name for name in names if name != "nothing.png"), "new.png"]))


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Run the map stage of `segment` and `retry` here within the block, in all threads; two shards make a part."""
    cut = functools.partial(group_shards, part_bytes=PART_BYTES)
    with (
        mock.patch.object(maskrcnn.pipeline.reduce, "group_shards", cut),
        mock.patch.object(maskrcnn_jobs.driver.run, "run_plan", _run_plan),
    ):
        yield


def run_job(job: Job) -> object:
    """Do what `maskrcnn segment` does."""
    _mine.order = job.order
    request = Request(job.source, job.output, InferenceConfig("planted"), SHARD_IMAGES)
    return run_segment(request, ResourceConfig(device="cpu"), None)


def run_update(job: Job) -> object:
    """Do what `maskrcnn segment --update` does."""
    _mine.order = job.order
    request = Request(job.source, job.output, InferenceConfig("planted"), SHARD_IMAGES, update=True)
    return run_segment(request, ResourceConfig(device="cpu"), None)


def run_retry(job: Job) -> object:
    """Do what `maskrcnn retry --only not_found` does: the page that is no image stays as it is."""
    _mine.order = job.order
    return retry_failed(job.output, ["not_found"], "auto", ResourceConfig(device="cpu"), None)


def continue_retry(job: Job) -> object:
    """Do what `status` advises after a retry that was struck down; once planned, the first command does it too."""
    planned = read_plans(Storage(job.output))[-1].generation > 1
    return run_job(job) if planned and job.order % 2 else run_retry(job)


def map_again(job: Job) -> None:
    """Do all shards of the first plan once more, as workers do who were believed dead."""
    storage = Storage(job.output)
    for shard in read_plans(storage)[0]:
        _worker(storage).run_shard(shard)


def _worker(storage: Storage) -> ShardWorker:
    return ShardWorker(storage, PlantedSegmenter(), Limits(10**7, 10**7, 1333.0), {"node": "here"})


def _run_plan(
    request: Request, plan: Plan, _resources: ResourceConfig, _address: str | None, *_: object
) -> dict[str, Any]:
    storage = Storage(request.output)
    check_run(storage, read_run(storage), plan)
    check_manifest(storage, plan)
    shards = list(pending_of(read_plans(storage), complete_receipts(storage)))
    if order := getattr(_mine, "order", 0):
        chance("order of shards", order).shuffle(shards)
    worker = _worker(storage)
    for shard in shards:
        worker.run_shard(shard)
    return reduce_run(storage.url, coco_mode=request.coco_mode, keep_finished=True, write_report=write_report)

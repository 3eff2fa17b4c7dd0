"""The worker of a process: builds the model, checks that inputs and output can be accessed, and runs shards.

Ray's actors hold one each (`actor`), and a run without Ray has one in its own process (`one_process`).
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import platform
import socket
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import ItemError, RunError
from maskrcnn.imaging.decode import Limits
from maskrcnn.imaging.decode_pool import (
    DECODE_TIMEOUT_S,
    EXECUTIONS,
    Decoders,
    RasterSource,
    keep_freed_memory,
)
from maskrcnn.imaging.geometry import Entry, RasterRegion, Rect
from maskrcnn.imaging.radiometry import Radiometry
from maskrcnn.io.inputs import stat_input
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url
from maskrcnn.models import factory
from maskrcnn.models.own.own_segmenter import OwnSegmenter, Planned, check_planned
from maskrcnn.pipeline.plan import Shard
from maskrcnn.pipeline.receipts import Receipt
from maskrcnn.pipeline.worker import Announcement, ShardWorker
from maskrcnn.types import Segmenter

from .driver_records import PROBES
from .poison_isolation import Task
from .usage import Meter, Usage


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to start on its node; values only, a few hundred bytes."""

    url: str
    """The run's directory."""
    model_sha256: str
    """Digest of the weights that the run was planned with; other weights are refused."""
    inference: InferenceConfig
    resources: ResourceConfig
    probes: str = PROBES
    """The folder of the run's directory where workers write probes; each driver has its own, and removes it."""
    radiometry: Radiometry = field(default_factory=Radiometry)
    """How values of rasters are scaled, with the range that was measured when the run was planned."""
    lanes: int | None = None
    """Images computed at once on the CPU, each on `threads` threads; None: one."""
    code_folder: str | None = None
    """The folder that holds the code of a network of the user's own; None: the working directory."""
    metered: bool = False
    """Whether it reports CPU time and requests with each task."""
    planned: Planned | None = None
    """What the run was planned with: a network of the user's own that is another here is refused; None: none is."""


def build_segmenter(spec: WorkerSpec) -> Segmenter:
    """Build the segmenter of a run; imports torch only if its model is a network.

    Raises:
        UsageError: the model cannot be loaded, or a network of the user's own is not as planned.
    """
    segmenter = factory.build_segmenter(
        spec.inference.model,
        spec.inference.labels,
        min_score=spec.inference.min_score,
        max_detections=spec.inference.max_detections,
        categories=spec.inference.categories,
        tta=spec.inference.tta,
        device=spec.resources.device,
        batch_size=spec.resources.batch_size,
        threads=spec.resources.threads,
        dtype=spec.resources.dtype,
        rescale=spec.inference.window is None,  # all windows at one scale, including those of small images
        expected_sha256=spec.model_sha256,
        lanes=spec.lanes,
        arguments=spec.inference.model_args,
        code_folder=spec.code_folder,
    )
    if isinstance(segmenter, OwnSegmenter) and spec.planned is not None:
        built = Planned(segmenter.categories, segmenter.has_masks)
        check_planned(spec.inference.model, spec.planned, built)
    return segmenter


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker reports of a task that ran to its end."""

    counts: dict[str, int]
    """`ok`, `empty`, `failed`, `instances`; empty for an image that was processed alone."""
    storage_failures: Mapping[str, int]
    """Images by storage error code."""
    example: str
    """Message of one of these failures, or ""."""
    withheld: Receipt | None = None
    """A receipt that is not stored yet, because inputs failed with a storage code: the driver decides."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Images or windows that failed, by error code."""
    input_bytes: int = 0
    """Sizes of the files of the images that did not fail; 0 in windows, which are parts of files."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    store_retries: int = 0
    """Number of repeated requests to the store."""
    usage: Usage | None = None
    """What the worker used since its last report, if it is metered."""


class NodeWorker:
    """Builds a `ShardWorker` on its node, checks that the node can access inputs and output, and runs shards."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._worker: ShardWorker | None = None
        self._cpus = (spec.resources.threads or 1) * (spec.lanes or 1)
        # A decoder that hangs must be detected before the scheduler ends its actor.
        timeout_s = min(DECODE_TIMEOUT_S, spec.resources.timeout_s / 4)
        self._decoders = Decoders(self._cpus, timeout_s)
        self.host: Final = socket.gethostname()
        self.on_gpu = False
        """Whether the model computes on a GPU; known once the worker is started."""
        self._stopping = False
        self._meter: Meter | None = None

    def stop(self) -> None:
        """Abandon the running shards, each before its next group; they raise HandedBackError."""
        self._stopping = True
        if self._worker is not None:
            self._worker.stop()

    @property
    def steps(self) -> int:
        """A number that grows as long as there is progress."""
        return 0 if self._worker is None else self._worker.steps

    @property
    def running(self) -> dict[str, int]:
        """What is done in the shards that are running; see `ShardWorker.running`."""
        return {} if self._worker is None else self._worker.running

    def start(self, first_uri: str) -> str:
        """Load the model, and try the accesses that every shard needs.

        Returns:
            The path, in the run's directory, of a file that the driver must be able to see.

        Raises:
            RunError: the node cannot read inputs or write the output; the message names node and cause.
            UsageError: the model cannot be loaded.
        """
        keep_freed_memory()
        pa.set_cpu_count(self._cpus)
        storage = Storage(self._spec.url)
        probe = f"{self._spec.probes}/{uuid.uuid4().hex}"
        # A web server is not tested: it says nothing about other servers, and its own failure becomes a row.
        with contextlib.suppress(ItemError):  # a failure of the input itself, which becomes a row
            try:
                if not Url.parse(first_uri).is_web:
                    stat_input(first_uri)
            except RunError as error:
                raise RunError(f"node {self.host} cannot read the inputs: {error}") from error
        try:
            storage.write(probe, self.host.encode())
        except RunError as error:
            raise RunError(f"node {self.host} cannot write the output: {error}") from error
        limits = Limits(self._spec.inference.max_pixels, self._spec.inference.max_bytes, math.inf)
        with ThreadPoolExecutor(1) as side:  # while the model is loaded, which takes seconds
            decoders = side.submit(self._decoders.start, limits) if not self._spec.inference.window else None
            segmenter = build_segmenter(self._spec)
        if decoders is not None:
            decoders.result()
        self.on_gpu = segmenter.execution.get("device", "cpu") != "cpu"
        max_aspect = math.inf if self._spec.inference.window else float(segmenter.max_side)
        self._worker = ShardWorker(
            storage,
            segmenter,
            dataclasses.replace(limits, max_aspect=max_aspect),
            {"node": self.host, "python": platform.python_version(), "pid": os.getpid()},
            self._cpus,
            self._decoders.decode,
            self._spec.resources.timeout_s / 2,
            self._read_region,
        )
        if self._stopping:
            self._worker.stop()
        self._meter = Meter(self._cpus) if self._spec.metered else None
        return probe

    def _read_region(self, entry: Entry, rect: Rect) -> RasterRegion:
        assume_crs = self._spec.inference.assume_crs
        source = RasterSource(entry["uri"], entry["etag"], self._spec.radiometry, assume_crs)
        return self._decoders.read_region(source, rect)

    def run(self, task: Task) -> Done:
        """Process a shard and commit it, or process one of its images alone.

        Raises:
            RunError, SegmenterError: as `ShardWorker.run_shard`.
        """
        if self._worker is None:
            raise RuntimeError("the worker is not started: call start() first")
        # A careful task follows a task that may have run the image that ends its decoder already.
        self._decoders.executions = 1 if task.careful else EXECUTIONS
        if task.alone is not None:
            self._worker.try_alone(task.shard, task.alone)
            return Done({}, {}, "")
        storage = Storage(self._spec.url)
        announce = functools.partial(_announce, storage, task.trace) if task.trace else None
        finished = self._worker.run_shard(
            task.shard, quarantined=task.quarantined, announce=announce, withhold=True
        )
        return Done(
            finished.receipt.counts,
            finished.storage_failures,
            finished.example,
            None if finished.committed else finished.receipt,
            finished.errors,
            finished.input_bytes,
            finished.receipt.timings,
            finished.receipt.storage_retries,
            None if self._meter is None else self._meter.take(),
        )

    def compute(
        self, shard: Shard, failures: Mapping[int, ItemError]
    ) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
        """Compute a shard and store nothing.

        Args:
            shard: the shard.
            failures: rows of the manifest to take as failed, without computing them.

        Returns:
            Its images, its instances, and how they were computed, as receipts record it.

        Raises:
            RunError, SegmenterError: as `ShardWorker.run_shard`.
        """
        if self._worker is None:
            raise RuntimeError("the worker is not started: call start() first")
        return self._worker.compute(shard, failures)


def _announce(storage: Storage, path: str, announcement: Announcement) -> None:
    failures = {row: [error.code, error.message] for row, error in announcement.failures.items()}
    groups = {"now": list(announcement.now), "before": list(announcement.before)}
    storage.write(path, json.dumps(groups | {"failures": failures}).encode())


def take_announcement(storage: Storage, task: Task) -> Announcement:
    """Return what a worker that failed was computing, as far as it announced it, and remove the announcement."""
    if task.trace is None:
        return Announcement(())
    try:
        announced = json.loads(storage.read(task.trace))
    except FileNotFoundError:
        return Announcement(())
    storage.remove(task.trace)
    failures = {int(row): ItemError(*error) for row, error in announced["failures"].items()}
    return Announcement(announced["now"], announced["before"], failures)

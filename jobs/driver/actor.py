"""The Ray actor: one process with one model; one shard is computed while the next is fetched."""

import contextlib
import json
import math
import os
import platform
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import ray

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
from maskrcnn.pipeline.receipts import Receipt
from maskrcnn.pipeline.worker import Announcement, ShardWorker
from maskrcnn.types import Segmenter

from .planning import PROBES
from .poison_isolation import Task

NOTICE_S: Final = 60.0
"""From the notice to stop to the end of the process, whatever it is doing then."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What an actor needs to start on its node; values only, a few hundred bytes."""

    url: str
    """The run's directory."""
    model_sha256: str
    """Digest of the weights that the run was planned with; other weights are refused."""
    inference: InferenceConfig
    resources: ResourceConfig
    probes: str = PROBES
    """The folder of the run's directory where actors write probes; each driver has its own, and removes it."""
    radiometry: Radiometry = field(default_factory=Radiometry)
    """How values of rasters are scaled, with the range that was measured when the run was planned."""


def build_segmenter(spec: WorkerSpec) -> Segmenter:
    """Build the segmenter of a run; imports torch only if its model is a network.

    Raises:
        UsageError: the model cannot be loaded.
    """
    return factory.build_segmenter(
        spec.inference.model,
        spec.inference.labels,
        min_score=spec.inference.min_score,
        max_detections=spec.inference.max_detections,
        categories=spec.inference.categories,
        device=spec.resources.device,
        batch_size=spec.resources.batch_size,
        threads=spec.resources.threads,
        dtype=spec.resources.dtype,
        rescale=spec.inference.window is None,  # all windows at one scale, including those of small images
        expected_sha256=spec.model_sha256,
    )


@dataclass(frozen=True, slots=True)
class ActorReady:
    """What an actor reports once it is ready."""

    host: str
    node_id: str
    """Ray's id of the node."""
    probe: str
    """A path in the run's directory that the driver must be able to see."""


@dataclass(frozen=True, slots=True)
class Done:
    """What an actor reports of a task that ran to its end."""

    counts: dict[str, int]
    """`ok`, `empty`, `failed`, `instances`; empty for an image that was processed alone."""
    storage_failures: Mapping[str, int]
    """Images by storage error code."""
    example: str
    """Message of one of these failures, or ""."""
    withheld: Receipt | None = None
    """A receipt that is not stored yet, because inputs failed with a storage code: the driver decides."""


class SegmentActor:
    """Builds a `ShardWorker` on its node, checks that the node can access inputs and output, and runs shards."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._worker: ShardWorker | None = None
        # A decoder that hangs must be detected before the scheduler ends its actor.
        timeout_s = min(DECODE_TIMEOUT_S, spec.resources.timeout_s / 4)
        self._decoders = Decoders(spec.resources.threads or 1, timeout_s)
        self._host = socket.gethostname()
        self._stopping = threading.Event()
        _on_sigterm(self._stop)

    def _stop(self) -> None:
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop()

    def start(self, first_uri: str) -> ActorReady:
        """Load the model, and try the accesses that every shard needs.

        Raises:
            RunError: the node cannot read inputs or write the output; the message names node and cause.
            UsageError: the model cannot be loaded.
        """
        keep_freed_memory()
        threads = self._spec.resources.threads or 1
        pa.set_cpu_count(threads)
        storage = Storage(self._spec.url)
        probe = f"{self._spec.probes}/{uuid.uuid4().hex}"
        # A web server is not tested: it says nothing about other servers, and its own failure becomes a row.
        with contextlib.suppress(ItemError):  # a failure of the input itself, which becomes a row
            try:
                if not Url.parse(first_uri).is_web:
                    stat_input(first_uri)
            except RunError as error:
                raise RunError(f"node {self._host} cannot read the inputs: {error}") from error
        try:
            storage.write(probe, self._host.encode())
        except RunError as error:
            raise RunError(f"node {self._host} cannot write the output: {error}") from error
        segmenter = build_segmenter(self._spec)
        max_aspect = math.inf if self._spec.inference.window else float(segmenter.max_side)
        self._worker = ShardWorker(
            storage,
            segmenter,
            Limits(self._spec.inference.max_pixels, self._spec.inference.max_bytes, max_aspect),
            {"node": self._host, "python": platform.python_version(), "pid": os.getpid()},
            threads,
            self._decoders.decode,
            self._spec.resources.timeout_s / 2,
            self._read_region,
        )
        if self._stopping.is_set():
            self._worker.stop()
        return ActorReady(self._host, ray.get_runtime_context().get_node_id(), probe)

    def _read_region(self, entry: Entry, rect: Rect) -> RasterRegion:
        assume_crs = self._spec.inference.assume_crs
        source = RasterSource(entry["uri"], entry["etag"], self._spec.radiometry, assume_crs)
        return self._decoders.read_region(source, rect)

    def pulse(self) -> tuple[int, bool]:
        """Return a number that grows as long as there is progress, and whether this actor was asked to stop."""
        return 0 if self._worker is None else self._worker.steps, self._stopping.is_set()

    def run(self, task: Task) -> Done:
        """Process a shard and commit it, or process one of its images alone.

        Raises:
            RunError, SegmenterError: as `ShardWorker.run_shard`.
        """
        if self._worker is None:
            raise RuntimeError("the actor is not started: call start() first")
        # A careful task follows a task that may have run the image that ends its decoder already.
        self._decoders.executions = 1 if task.careful else EXECUTIONS
        if task.alone is not None:
            self._worker.try_alone(task.shard, task.alone)
            return Done({}, {}, "")
        storage, trace = Storage(self._spec.url), task.trace

        def announce(announcement: Announcement) -> None:
            failures = {row: [error.code, error.message] for row, error in announcement.failures.items()}
            groups = {"now": list(announcement.now), "before": list(announcement.before)}
            storage.write(str(trace), json.dumps(groups | {"failures": failures}).encode())

        finished = self._worker.run_shard(
            task.shard, quarantined=task.quarantined, announce=announce if trace else None, withhold=True
        )
        return Done(
            finished.receipt.counts,
            finished.storage_failures,
            finished.example,
            None if finished.committed else finished.receipt,
        )


def _on_sigterm(callback: Callable[[], None]) -> None:
    """Call a function when the process receives SIGTERM, instead of ending at once.

    Python runs signal handlers in its main thread, which Ray keeps busy; so the signal's number is written to a pipe,
    and a thread reads it. Must be called in the main thread, where Ray constructs actors.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(read_end, 1) != bytes([signal.SIGTERM]):
            pass
        callback()
        time.sleep(NOTICE_S)
        os._exit(1)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()

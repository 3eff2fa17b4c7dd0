"""The Ray actor: one process, one model; one shard is computed while the next is fetched."""

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

from .poison_isolation import Task

PROBES: Final = "probes"
NOTICE_S: Final = 60.0
"""From the notice to go to the end of the process, whatever it is doing then."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What an actor needs to build itself on its node; values only, a few hundred bytes."""

    url: str
    """The run's directory."""
    model_sha256: str
    """Of the weights that the run was planned with; others are refused."""
    compute: InferenceConfig
    speed: ResourceConfig
    probes: str = PROBES
    """The folder of the run's directory where actors write probes; a driver has its own, and removes it."""
    radiometry: Radiometry = field(default_factory=Radiometry)
    """Of rasters, with the range that was found when the run was planned."""


def build_segmenter(spec: WorkerSpec) -> Segmenter:
    """Build the segmenter of a run; imports torch only if its model is a network.

    Raises:
        UsageError: the model cannot be loaded.
    """
    return factory.build_segmenter(
        spec.compute.model,
        spec.compute.labels,
        min_score=spec.compute.min_score,
        max_detections=spec.compute.max_detections,
        categories=spec.compute.categories,
        device=spec.speed.device,
        batch_size=spec.speed.batch_size,
        threads=spec.speed.threads,
        dtype=spec.speed.dtype,
        rescale=spec.compute.window is None,  # all windows at one scale, also those of small images
        expected_sha256=spec.model_sha256,
    )


@dataclass(frozen=True, slots=True)
class Welcome:
    """What an actor says of itself once it is ready."""

    host: str
    node_id: str
    """Ray's."""
    probe: str
    """A path in the run's directory that the driver must be able to see."""


@dataclass(frozen=True, slots=True)
class Done:
    """What an actor says of a task that ran to its end."""

    counts: dict[str, int]
    """`ok`, `empty`, `failed`, `instances`; empty for an image that was tried alone."""
    storage_failures: Mapping[str, int]
    example: str
    withheld: Receipt | None = None
    """A receipt that is not stored yet, for so many inputs failed that the driver decides."""


class SegmentActor:
    """Builds a `ShardWorker` on its node, proves that the node sees inputs and output, and runs shards."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._worker: ShardWorker | None = None
        # An image that hangs must be found out before its actor is ended.
        timeout_s = min(DECODE_TIMEOUT_S, spec.speed.timeout_s / 4)
        self._decoders = Decoders(spec.speed.threads or 1, timeout_s)
        self._host = socket.gethostname()
        self._told_to_go = threading.Event()
        _on_sigterm(self._go)

    def _go(self) -> None:
        self._told_to_go.set()
        if self._worker is not None:
            self._worker.go()

    def start(self, first_uri: str) -> Welcome:
        """Load the model, and try what every shard will need.

        Raises:
            RunError: the node cannot read inputs or write the output; the message names node and cause.
            UsageError: the model cannot be loaded.
        """
        keep_freed_memory()
        threads = self._spec.speed.threads or 1
        pa.set_cpu_count(threads)
        storage = Storage(self._spec.url)
        probe = f"{self._spec.probes}/{uuid.uuid4().hex}"
        # The web is not asked: it says nothing of the others, and of this one a row will.
        with contextlib.suppress(ItemError):  # the first input's own fault; it becomes a row
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
        max_aspect = math.inf if self._spec.compute.window else float(segmenter.max_side)
        self._worker = ShardWorker(
            storage,
            segmenter,
            Limits(self._spec.compute.max_pixels, self._spec.compute.max_bytes, max_aspect),
            {"node": self._host, "python": platform.python_version(), "pid": os.getpid()},
            threads,
            self._decoders.decode,
            self._spec.speed.timeout_s / 2,
            self._read_region,
        )
        if self._told_to_go.is_set():
            self._worker.go()
        return Welcome(self._host, ray.get_runtime_context().get_node_id(), probe)

    def _read_region(self, entry: Entry, rect: Rect) -> RasterRegion:
        assume_crs = self._spec.compute.assume_crs
        source = RasterSource(entry["uri"], entry["etag"], self._spec.radiometry, assume_crs)
        return self._decoders.read_region(source, rect)

    def pulse(self) -> tuple[int, bool]:
        """Return a number that grows as long as there is progress, and whether this actor was told to go."""
        return 0 if self._worker is None else self._worker.steps, self._told_to_go.is_set()

    def run(self, task: Task) -> Done:
        """Process a shard and commit it, or try one of its images alone.

        Raises:
            RunError, SegmenterError: as `ShardWorker.run_shard`.
        """
        if self._worker is None:
            raise RuntimeError("start() comes first")
        # A careful task comes after one in which an image that ends its decoder may have been tried already.
        self._decoders.executions = 1 if task.careful else EXECUTIONS
        if task.alone is not None:
            self._worker.try_alone(task.shard, task.alone)
            return Done({}, {}, "")
        storage, trace = Storage(self._spec.url), task.trace

        def announce(said: Announcement) -> None:
            verdicts = {row: [error.code, error.message] for row, error in said.verdicts.items()}
            words = {"now": list(said.now), "before": list(said.before), "verdicts": verdicts}
            storage.write(str(trace), json.dumps(words).encode())

        finished = self._worker.run_shard(
            task.shard, quarantined=task.quarantined, announce=announce if trace else None, withhold=True
        )
        return Done(
            finished.receipt.counts,
            finished.storage_failures,
            finished.example,
            None if finished.committed else finished.receipt,
        )


def _on_sigterm(do: Callable[[], None]) -> None:
    """Have something done when the process is told to end, instead of ending in mid-air.

    Python runs handlers in its main thread, which Ray keeps busy elsewhere; so the signal's number is written to a
    pipe, and a thread waits at its end. Must be called in the main thread, where Ray constructs actors.
    """
    out, into = os.pipe()
    os.set_blocking(into, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(into, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(out, 1) != bytes([signal.SIGTERM]):
            pass
        do()
        time.sleep(NOTICE_S)
        os._exit(1)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()

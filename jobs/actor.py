"""The Ray actor: one process, one model; one shard is computed while the next is fetched."""

import contextlib
import ctypes
import os
import platform
import socket
import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from maskrcnn.config import Compute, Speed
from maskrcnn.decode import Limits
from maskrcnn.errors import ItemError, RunError
from maskrcnn.plan import Shard
from maskrcnn.storage import Storage, stat_input
from maskrcnn.types import Segmenter
from maskrcnn.worker import ShardWorker

PROBES = "probes"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What an actor needs to build itself on its node; values only, a few hundred bytes."""

    url: str
    """The run's directory."""
    model_sha256: str
    """Of the weights that the run was planned with; others are refused."""
    compute: Compute
    speed: Speed


def build_segmenter(spec: WorkerSpec) -> Segmenter:
    """Build what finds the instances; imports torch only where a network is asked for.

    Raises:
        UsageError: the model cannot be loaded.
    """
    kind, _, sleep_s = spec.compute.model.partition(":")
    if kind == "planted":
        from maskrcnn.planted import PLANTED_CATEGORIES, PlantedSegmenter

        return PlantedSegmenter(
            PLANTED_CATEGORIES,
            float(sleep_s or 0),
            spec.compute.min_score,
            spec.compute.max_detections,
            spec.compute.categories,
        )
    from maskrcnn.model import load_model
    from maskrcnn.segmenter import MaskRCNNSegmenter

    model = load_model(spec.compute.model, spec.compute.labels, expected_sha256=spec.model_sha256)
    return MaskRCNNSegmenter(
        model,
        min_score=spec.compute.min_score,
        max_detections=spec.compute.max_detections,
        categories=spec.compute.categories,
        device=spec.speed.device,
        batch_size=spec.speed.batch_size,
        threads=spec.speed.threads,
        dtype=spec.speed.dtype,
    )


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, where it is glibc.

    By default it returns every decoded image's memory to the kernel, which then clears as many pages for the next
    one: half of the time of decoding a small photo. One arena instead of one a thread, so that what one thread
    frees another can use.

    Reference: mallopt(3).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**30), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


class SegmentActor:
    """Builds a `ShardWorker` on its node, proves that the node sees inputs and output, and runs shards."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._worker: ShardWorker | None = None
        self._node = socket.gethostname()

    def start(self, first_uri: str) -> tuple[str, str]:
        """Load the model; return this node's name, and the path of a probe that the driver must be able to see.

        Raises:
            RunError: the node cannot read inputs or write the output; the message names node and cause.
            UsageError: the model cannot be loaded.
        """
        keep_freed_memory()
        threads = self._spec.speed.threads or 1
        pa.set_cpu_count(threads)
        storage = Storage(self._spec.url)
        probe = f"{PROBES}/{uuid.uuid4().hex}"
        with contextlib.suppress(ItemError):  # the first input's own fault; it becomes a row
            try:
                stat_input(first_uri)
            except RunError as error:
                raise RunError(f"node {self._node} cannot read the inputs: {error}") from error
        try:
            storage.write(probe, self._node.encode())
        except RunError as error:
            raise RunError(f"node {self._node} cannot write the output: {error}") from error
        segmenter = build_segmenter(self._spec)
        self._worker = ShardWorker(
            storage,
            segmenter,
            Limits(self._spec.compute.max_pixels, self._spec.compute.max_bytes, float(segmenter.max_side)),
            {"node": self._node, "python": platform.python_version(), "pid": os.getpid()},
            threads,
        )
        return self._node, probe

    def run_shard(self, shard: Shard) -> dict[str, Any]:
        """Process a shard and commit it; return its counts.

        Raises:
            RunError: the output cannot be written.
        """
        if self._worker is None:
            raise RuntimeError("start() comes first")
        return self._worker.run_shard(shard).counts

"""What the workers of a sample used: CPU time and requests to stores; and the requests that the whole run will make."""

import contextlib
import math
import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from maskrcnn.io.stores.request_count import LIST, take_requests
from maskrcnn.pipeline.merge_retries import PART_BYTES
from maskrcnn.visualization.run_report import GALLERY_IMAGES

GET, PUT = "GET", "PUT"
PER_SHARD: Final = {GET: 3, PUT: 3}
"""Its images, its instances and its receipt are written, and read when the tables are."""
PER_PART: Final = {PUT: 2}
"""Its images and its instances."""
PER_RUN: Final = {GET: 54, PUT: 10, LIST: 18}
"""Of plan, metadata, probes, statistics, report and COCO JSON: what a run in S3 of 48 images in 1 to 48 shards did
besides."""
LISTED: Final = 1000
"""Files on a page of a listing."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker used since its last report."""

    worker: str
    """The worker's host and process."""
    cpus: int
    """CPUs that it may use."""
    cpu_s: float
    """CPU seconds of its process and of those that it started."""
    requests: Mapping[str, int]
    """Requests to stores by method; a page of a listing is a `LIST`."""


class Meter:
    """Measures what this process uses, from its construction on.

    Args:
        cpus: CPUs that it may use.
    """

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()
        self._before = _cpu_seconds()
        take_requests()

    def take(self) -> Usage:
        """Return what was used since the last call, by whichever thread."""
        with self._lock:
            now, before = _cpu_seconds(), self._before
            self._before = now
            return Usage(self._worker, self._cpus, max(now - before, 0.0), take_requests())


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children, those that have ended too."""
    process = psutil.Process()
    total = float(sum(process.cpu_times()[:4]))  # user, system, and those of children that have ended
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            total += sum(child.cpu_times()[:4])
    return total


def cpu_use(usages: Sequence[Usage], wall_s: float) -> float | None:
    """Return the share of the workers' CPUs that was used in some seconds; None if nothing was reported.

    >>> cpu_use([Usage("a:1", 2, 3.0, {}), Usage("b:1", 2, 1.0, {}), Usage("a:1", 2, 2.0, {})], 3.0)
    0.5
    """
    cpus = sum({usage.worker: usage.cpus for usage in usages}.values())
    return min(sum(usage.cpu_s for usage in usages) / (cpus * wall_s), 1.0) if cpus and wall_s else None


def requests_to_come(
    usages: Sequence[Usage],
    sampled: int,
    rows: int,
    shards: int,
    table_bytes: float,
    to_start: int,
    *,
    in_store: bool,
) -> dict[str, int]:
    """Return the requests of a run by method: GET of inputs as in the sample, the others by what is written.

    Args:
        usages: of the sample.
        sampled: images or windows of the sample.
        rows: images or windows to come.
        shards: shards to come.
        table_bytes: size of the tables to come.
        to_start: requests by GET of each worker of the sample for other things than inputs.
        in_store: whether the output is in an object store.
    """
    reads: Counter[str] = Counter()
    for usage in usages:
        reads.update(usage.requests)
    of_inputs = max(reads[GET] - to_start * len({usage.worker for usage in usages}), 0)
    to_come = Counter({GET: round(of_inputs * rows / max(sampled, 1)), LIST: 0, PUT: 0})
    if of_inputs:
        to_come[GET] += min(GALLERY_IMAGES, rows)
    if in_store:
        parts = math.ceil(table_bytes / PART_BYTES)
        for count, each in ((shards, PER_SHARD), (parts, PER_PART), (1, PER_RUN)):
            to_come.update({method: count * number for method, number in each.items()})
        to_come[LIST] += math.ceil(shards / LISTED) + math.ceil(2 * shards / LISTED)
    return dict(to_come)

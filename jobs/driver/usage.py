"""What the workers of a sample use: CPU time, and requests to stores."""

import contextlib
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from maskrcnn.io.stores.request_count import take_requests


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

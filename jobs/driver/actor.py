"""The Ray actor: one process with one model; one shard is computed while the next is fetched."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import ray

from maskrcnn.errors import MaskrcnnError, UsageError
from maskrcnn.models.own.own_code import unpack

from .node_worker import Done, NodeWorker, WorkerSpec
from .nodes import NodeProblem, package_version, threads_on_this_node, version_problem
from .poison_isolation import Task

NOTICE_S: Final = 60.0
"""From the notice to stop to the end of the process, whatever it is doing then."""


@dataclass(frozen=True, slots=True)
class ActorReady:
    """What an actor reports once it is ready."""

    host: str
    node_id: str
    """Ray's id of the node."""
    probe: str
    """A path in the run's directory that the driver must be able to see."""


class SegmentActor:
    """A `NodeWorker` in a process of Ray; hands its shards back when it is asked to stop.

    Args:
        spec: the specification of the worker.
        code: of a network of the user's own, as `OwnCode.pack` returned it; None: there is none, or it is installed.
    """

    def __init__(self, spec: WorkerSpec, code: bytes | None = None) -> None:
        threads = spec.resources.threads or threads_on_this_node()
        self._code = None if code is None else tempfile.TemporaryDirectory(prefix="maskrcnn-code-")
        if self._code is not None and code is not None:
            unpack(code, Path(self._code.name))
            spec = replace(spec, code_folder=self._code.name)
        self._worker = NodeWorker(replace(spec, resources=replace(spec.resources, threads=threads)))
        self._stopping = threading.Event()
        _on_sigterm(self._stop)

    def _stop(self) -> None:
        self._stopping.set()
        self._worker.stop()

    def start(self, first_uri: str, version: str) -> ActorReady | NodeProblem:
        """Load the model, and try the accesses that every shard needs; report what is wrong with this node.

        Args:
            first_uri: an input whose metadata must be readable.
            version: of the driver's maskrcnn-ray, which this node must have too.
        """
        node_id = ray.get_runtime_context().get_node_id()
        try:
            problem = version_problem(package_version(), version)
            if problem is not None:
                return NodeProblem(node_id, self._worker.host, UsageError(problem))
            return ActorReady(self._worker.host, node_id, self._worker.start(first_uri))
        except MaskrcnnError as error:
            return NodeProblem(node_id, self._worker.host, error)

    def pulse(self) -> tuple[int, bool, dict[str, int]]:
        """Return a number that grows with progress, whether this actor was asked to stop, and what its shards did."""
        return self._worker.steps, self._stopping.is_set(), self._worker.running

    def remove_code(self) -> None:
        """Remove the files of the user's code, before the process is ended."""
        if self._code is not None:
            self._code.cleanup()

    def run(self, task: Task) -> Done:
        """Process a shard and commit it, or process one of its images alone.

        Raises:
            RunError, SegmenterError: as `NodeWorker.run`.
        """
        return self._worker.run(task)


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

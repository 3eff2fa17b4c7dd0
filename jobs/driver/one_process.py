"""Run the map stage in the process of the command, without Ray.

The worker is that of Ray's actors, and so are its receipts and tables. Several images are computed at once on the CPU,
each on one thread, so that the rows are those of any number of actors. What Ray adds is isolation: an image that ends
the process ends the run. The same command continues it on Ray (see `where_to_run`), where the image fails alone.
"""

import contextlib
import logging
import sys
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Final

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import HandedBackError, RunError, SegmenterError, StoreFailingError, UsageError, plural
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.circuit_breaker import Batch, CircuitBreaker
from maskrcnn.pipeline.receipts import Receipt, commit

from .driver_records import record_driver
from .node_worker import Done, NodeWorker, WorkerSpec, take_announcement
from .poison_isolation import Failure, PoisonIsolation, Task
from .progress import REDRAW_EVERY_S, Progress
from .where_to_run import usable_cpus
from .work import Work

log = logging.getLogger("maskrcnn")

SHARDS_AT_ONCE: Final = 2
"""One is computed while the other is fetched or written."""
MAX_LANES: Final = 8
"""Images computed at once: more share the interpreter's lock, and each takes up to a gigabyte of memory."""


def resolved(resources: ResourceConfig) -> tuple[ResourceConfig, int]:
    """Return the resources with the number of threads, and the number of images to compute at once on the CPU.

    Raises:
        UsageError: there is no GPU for `--device cuda`.
    """
    cpus, threads = usable_cpus(), resources.threads or 1
    if resources.device == "cuda":
        import torch  # takes seconds: only where a GPU is asked for

        if not torch.cuda.is_available():
            raise UsageError("this machine has no GPU that torch sees; use --device cpu")
    return replace(resources, threads=threads), min(max(cpus // threads, 1), MAX_LANES)


class OneProcess:
    """The map stage of a run, in this process.

    Args:
        spec: the specification of the worker.
        first_uri: an input whose metadata must be readable.
        progress: is updated after each finished shard.
    """

    def __init__(self, spec: WorkerSpec, first_uri: str, progress: Progress) -> None:
        self._spec = spec
        self._first_uri = first_uri
        self._progress = progress
        self._storage = Storage(spec.url)
        self._isolations: dict[str, PoisonIsolation] = {}
        self._retries: deque[PoisonIsolation] = deque()
        self._circuit_breaker = CircuitBreaker()

    def run(self, work: Work) -> None:
        """Run all shards, or those that are started before the time is up.

        Raises:
            RunError: inputs or output cannot be accessed, the store fails, or a shard failed too often.
            UsageError: the model cannot be loaded.
        """
        log.info("loading the model %s", self._spec.inference.model)
        worker = NodeWorker(self._spec)
        self._storage.remove(worker.start(self._first_uri))
        record_driver(self._storage, self._spec.probes, computing=True)
        with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="shard") as threads:
            try:
                self._run(worker, threads, work)
            except BaseException as error:  # also Ctrl-C: the threads must end
                worker.stop()  # the threads end before the next image
                if isinstance(error, KeyboardInterrupt):  # no image is to blame, however this ends
                    record_driver(self._storage, self._spec.probes)
                raise
        self._commit(self._circuit_breaker.drain())

    def _run(self, worker: NodeWorker, threads: ThreadPoolExecutor, work: Work) -> None:
        running: dict[Future[Done], Task] = {}
        began = time.monotonic()
        while True:
            at_once = SHARDS_AT_ONCE if work.may_queue else 1
            while len(running) < at_once and not any(task.careful for task in running.values()):
                task = self._next_task(work, idle=not running)
                if task is None:
                    break
                if not running:
                    began = time.monotonic()
                running[threads.submit(worker.run, task)] = task
            if not running and (work.is_over or not self._retries):
                return
            if not running:
                time.sleep(0.1)
                continue
            done, _ = wait(running, timeout=REDRAW_EVERY_S, return_when=FIRST_COMPLETED)
            for future in done:
                self._take(worker, running.pop(future), future)
                work.took(time.monotonic() - began)
                began = time.monotonic()
            self._progress.show(running=worker.running)

    def _next_task(self, work: Work, *, idle: bool) -> Task | None:
        """Return the next task; a shard whose execution failed comes first, and runs by itself."""
        if work.is_over:
            return None
        if self._retries:
            if not idle or not self._retries[0].due:
                return None
            return self._retries.popleft().next_task()
        shard = work.next_shard()
        return None if shard is None else Task(shard)

    def _take(self, worker: NodeWorker, task: Task, future: Future[Done]) -> None:
        isolation = self._isolations.setdefault(
            task.shard.name, PoisonIsolation(task.shard, self._spec.probes)
        )
        try:
            done = future.result()
        except (UsageError, StoreFailingError, HandedBackError):
            raise
        except RunError as error:
            log.warning("shard %s: %s", task.shard.name, error)
            isolation.store_failed(error)
        except (SegmenterError, MemoryError) as error:
            self._failed(worker, task, isolation, error)
        else:
            if task.alone is None:
                self._finished(task, done)
                return
            isolation.survived(task)
        self._retries.append(isolation)

    def _failed(
        self, worker: NodeWorker, task: Task, isolation: PoisonIsolation, error: BaseException
    ) -> None:
        """Record an exception of the network. Raises RunError where it may have damaged the process."""
        failure = Failure.of(error)
        log.warning("the network failed on shard %s: %s", task.shard.name, failure.message)
        if worker.on_gpu:
            raise RunError(
                f"shard {task.shard.name}: {failure.message}; the GPU may be in an unusable state: "
                "run the same command with --ray, which isolates the image"
            ) from error
        quarantined = isolation.execution_failed(task, failure, take_announcement(self._storage, task))
        if quarantined is not None:
            log.warning("shard %s: row %s fails with %s", task.shard.name, task.alone, quarantined)

    def _finished(self, task: Task, done: Done) -> None:
        self._isolations.pop(task.shard.name, None)
        if task.trace is not None:
            self._storage.remove(task.trace)
        self._commit(
            self._circuit_breaker.add(
                Batch(len(task.shard), done.storage_failures, done.example, done.withheld)
            )
        )
        self._progress.add(done)

    def _commit(self, batches: list[Batch]) -> None:
        """Store the receipts that were withheld until it was clear that the store itself works."""
        for batch in batches:
            if isinstance(batch.held, Receipt):
                commit(self._storage, batch.held)


def map_shards(spec: WorkerSpec, first_uri: str, progress: Progress, work: Work) -> None:
    """Run shards in this process.

    Raises:
        RunError, UsageError: as `OneProcess.run`.
    """
    log.info("%s, up to %s at once", plural(work.n_shards, "shard"), plural(spec.lanes or 1, "image"))
    # What a network of the user's own prints goes to stderr: stdout is reserved for a command's result.
    with contextlib.redirect_stdout(sys.stderr):
        OneProcess(spec, first_uri, progress).run(work)

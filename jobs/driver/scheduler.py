"""The driver's loop: hand shards to actors until each has a receipt.

Thin on purpose. It holds a few values an actor and nothing a shard, but for those that ended badly; the plan gives
the next shard when an actor can take one, and receipts say what is done. Actors are created up to the maximum at
once, so that an autoscaler sees the demand; each gets work when it is ready, and one that dies is replaced. What
follows from a death for the images concerned is decided in `inquest`.
"""

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import ray

from maskrcnn.errors import (
    HandedBackError,
    ItemError,
    MaskrcnnError,
    RunError,
    SegmenterError,
    StoreFailingError,
    UsageError,
)
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.circuit_breaker import Batch, CircuitBreaker
from maskrcnn.pipeline.plan import Shard
from maskrcnn.pipeline.receipts import Receipt, commit
from maskrcnn.pipeline.worker import Announcement

from .actor import Done, SegmentActor, Welcome, WorkerSpec
from .cluster import cause_of, node_answers
from .poison_isolation import BadEnd, PoisonIsolation, Task
from .progress import Progress

log = logging.getLogger("maskrcnn")

SHARDS_AT_ONCE: Final = 2
"""That an actor holds: one is computed, while the other is fetched or written."""
MAX_FAILED_STARTS: Final = 5
"""Actors in a row that die before they are ready, before the run stops."""


@dataclass
class Slot:
    """An actor and what it was given."""

    handle: Any
    start_ref: Any
    ready: bool = False
    node_id: str = ""
    fresh: bool = True
    """Whether it has computed nothing yet but images alone."""
    queue: deque[tuple[Any, Task]] = field(default_factory=deque)
    """(reference, task), the first is ahead."""
    pulse: Any = None
    """The reference of the question how many steps it has made."""
    steps: int = -1
    leaving: bool = False
    """Whether it was told to go, so that its end is nobody's fault."""
    moved: float = 0.0
    """When it was last known to make progress, monotonic seconds."""


class Scheduler:
    """Runs shards on up to `max_actors` actors.

    Args:
        spec: what the actors are built from.
        first_uri: an input whose metadata each actor must be able to read.
        max_actors: how many actors at the most.
        progress: is told of each finished shard.
    """

    def __init__(self, spec: WorkerSpec, first_uri: str, max_actors: int, progress: Progress) -> None:
        self._spec = spec
        self._first_uri = first_uri
        self._max_actors = max_actors
        self._progress = progress
        self._storage = Storage(spec.url)
        self._slots: list[Slot] = []
        self._inquests: dict[str, PoisonIsolation] = {}
        self._again: deque[PoisonIsolation] = deque()
        self._breaker = CircuitBreaker()
        self._failed_starts = 0
        self._asked = 0.0
        gpus = 1 if spec.speed.device == "cuda" else 0
        # num_cpus also decides how many threads Ray allows OpenMP; actors are replaced here, not by Ray.
        self._actor_class = ray.remote(
            num_cpus=spec.speed.threads or 1,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
        )(SegmentActor)

    def run(self, shards: Iterator[Shard], n_shards: int) -> None:
        """Run all shards.

        Raises:
            RunError: a node cannot see inputs or output, the store fails, or a shard failed too often.
            UsageError: the model cannot be loaded.
        """
        remaining = n_shards
        try:
            while remaining:
                self._create_actors(min(self._max_actors, remaining))
                self._hand_out(shards, remaining)
                remaining -= self._await_one()
                self._end_stalled()
                self._progress.show(actors=sum(slot.ready for slot in self._slots))
            self._commit(self._breaker.drain())
        finally:
            for slot in self._slots:
                ray.kill(slot.handle)
            self._slots.clear()

    # Giving

    def _create_actors(self, wanted: int) -> None:
        while len(self._slots) < wanted:
            # One more than the shards, for the question whether it makes progress.
            handle: Any = self._actor_class.options(max_concurrency=SHARDS_AT_ONCE + 1).remote(self._spec)
            self._slots.append(Slot(handle, handle.start.remote(self._first_uri)))

    def _hand_out(self, shards: Iterator[Shard], remaining: int) -> None:
        """Give each ready actor a task, and while there are plenty another one.

        The second is fetched while the first is computed; near the end it would wait behind a busy actor while others
        idle. A task that must be watched has its actor for itself: of two, nobody knows which one ended it.
        """
        given = sum(len(slot.queue) for slot in self._slots)
        plenty = remaining - given > 2 * len(self._slots)
        for depth in range(1, SHARDS_AT_ONCE + 1 if plenty else 2):
            for slot in self._slots:
                if not slot.ready or len(slot.queue) >= depth:
                    continue
                if slot.queue and (self._again or slot.queue[0][1].careful):
                    continue
                task = self._next_task(slot, shards)
                if task is None:
                    continue
                if not slot.queue:
                    slot.moved = time.monotonic()
                slot.fresh = slot.fresh and task.alone is not None
                slot.queue.append((slot.handle.run.remote(task), task))
        self._make_fresh()

    def _next_task(self, slot: Slot, shards: Iterator[Shard]) -> Task | None:
        """Return what an actor can do next: what ended badly comes first."""
        for isolation in self._again:
            if isolation.due and (slot.fresh or not isolation.needs_fresh_process):
                self._again.remove(isolation)
                return isolation.next_task()
        shard = next(shards, None)
        return None if shard is None else Task(shard)

    def _make_fresh(self) -> None:
        """End an idle actor, if an image waits for a fresh process and none will come of itself."""
        waiting = any(isolation.needs_fresh_process for isolation in self._again)
        if not waiting or any(not slot.ready or slot.fresh for slot in self._slots):
            return
        idle = next((slot for slot in self._slots if not slot.queue), None)
        if idle is not None:
            self._remove(idle)

    def _remove(self, slot: Slot) -> None:
        self._slots.remove(slot)
        ray.kill(slot.handle)  # it may be out of reach, and not dead

    # Taking

    def _await_one(self) -> int:
        """Wait for something to happen for at most a second; return how many shards were finished."""
        heads = {slot.queue[0][0] if slot.queue else slot.start_ref: slot for slot in self._slots}
        waiting = [ref for ref, slot in heads.items() if slot.queue or not slot.ready]
        if not waiting:
            time.sleep(0.01)
            return 0
        done, _ = ray.wait(waiting, num_returns=1, timeout=1.0)
        return sum(self._take(heads[ref], ref) for ref in done)

    def _take(self, slot: Slot, ref: Any) -> int:
        """Take what became of an actor's start or of its first task; return how many shards were finished."""
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            self._raised(slot, cause_of(error))
            return 0
        except ray.exceptions.RayError as error:
            self._died(slot, self._end_of(slot, error))
            return 0
        if not slot.ready:
            self._welcome(slot, result)
            return 0
        _, task = slot.queue.popleft()
        slot.moved = time.monotonic()
        return self._finished(task, result)

    def _finished(self, task: Task, done: Done) -> int:
        if task.alone is not None:
            isolation = self._inquests[task.shard.name]
            isolation.survived(task)
            self._again.append(isolation)
            return 0
        self._inquests.pop(task.shard.name, None)
        if task.trace is not None:
            self._storage.remove(task.trace)
        batch = Batch(len(task.shard), done.storage_failures, done.example, done.withheld)
        self._commit(self._breaker.add(batch))
        self._progress.add(done.counts)
        return 1

    def _commit(self, batches: list[Batch]) -> None:
        """Store the receipts that were withheld until it was clear that the store itself does not fail."""
        for batch in batches:
            if isinstance(batch.held, Receipt):
                commit(self._storage, batch.held)

    def _welcome(self, slot: Slot, actor: Welcome) -> None:
        if not self._storage.exists(actor.probe):
            raise RunError(
                f"node {actor.host} wrote to {self._spec.url}, but the driver does not see it there: "
                "the nodes do not share this directory; use an s3:// output or a shared file system"
            )
        self._storage.remove(actor.probe)
        slot.ready, slot.node_id = True, actor.node_id
        self._failed_starts = 0

    # Bad ends

    def _raised(self, slot: Slot, cause: BaseException) -> None:
        """Raise what no other attempt can mend; else let the task be tried again."""
        if isinstance(cause, HandedBackError):
            self._died(slot, BadEnd("worker_crash", str(cause), blameless=True))
            return
        if isinstance(cause, UsageError | StoreFailingError) or (
            isinstance(cause, MaskrcnnError) and not slot.ready
        ):
            raise cause
        if not slot.ready:
            raise RunError(f"an actor could not start: {_words(cause)}") from cause
        if isinstance(cause, RunError):
            _, task = slot.queue.popleft()
            slot.moved = time.monotonic()
            log.warning("shard %s: %s", task.shard.name, cause)
            self._isolation_of(task).store_failed(cause)
            self._again.append(self._isolation_of(task))
            return
        # What a network did when it raised may have spoilt the process, as an illegal access on a GPU does.
        code = cause.code if isinstance(cause, SegmenterError) else "worker_crash"
        code = "out_of_memory" if isinstance(cause, MemoryError) else code
        self._died(slot, BadEnd(code, cause.message if isinstance(cause, SegmenterError) else _words(cause)))

    def _end_of(self, slot: Slot, error: ray.exceptions.RayError) -> BadEnd:
        """Return how an actor ended of which Ray says that it is dead or out of reach."""
        said = " ".join(str(error).split())
        if isinstance(error, ray.exceptions.ActorUnavailableError):
            return BadEnd("worker_crash", "it is out of reach", blameless=True)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        if getattr(error, "preempted", False) or (slot.node_id and slot.node_id not in alive):
            return BadEnd("worker_crash", "its node is gone", blameless=True)
        if slot.leaving:
            return BadEnd("worker_crash", "it was told to go", blameless=True)
        # A verdict may follow: Ray takes its time to notice that a node is gone, whose workers go first.
        if slot.queue and slot.queue[0][1].alone is not None and not node_answers(slot.node_id):
            return BadEnd("worker_crash", "its node does not answer", blameless=True)
        if isinstance(error, ray.exceptions.OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in said:
            return BadEnd("out_of_memory", "Ray ended it, for its node ran low on memory")
        return BadEnd("worker_crash", "its process died" if slot.ready else said[:300])

    def _died(self, slot: Slot, end: BadEnd) -> None:
        """Let the actor be replaced, and what it held be tried again."""
        self._remove(slot)
        if not slot.ready and not end.blameless:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise RunError(
                    f"{self._failed_starts} actors died before they were ready, the last: {end.message}"
                )
        held = [task.shard.name for _, task in slot.queue]
        where = f" on shard {' and '.join(held)}" if held else ""
        log.warning("an actor ended%s: %s", where, end.message)
        for _, task in slot.queue:
            isolation = self._isolation_of(task)
            verdict = isolation.ended_badly(task, end, self._last_words(task))
            if verdict is not None:
                log.warning("shard %s: row %s fails with %s", task.shard.name, task.alone, verdict)
            self._again.append(isolation)

    def _isolation_of(self, task: Task) -> PoisonIsolation:
        return self._inquests.setdefault(task.shard.name, PoisonIsolation(task.shard, self._spec.probes))

    def _last_words(self, task: Task) -> Announcement:
        """Return what a dead actor was computing, as far as it said."""
        if task.trace is None:
            return Announcement(())
        try:
            said = json.loads(self._storage.read(task.trace))
        except FileNotFoundError:
            return Announcement(())
        self._storage.remove(task.trace)
        verdicts = {int(row): ItemError(*error) for row, error in said["verdicts"].items()}
        return Announcement(said["now"], said["before"], verdicts)

    def _end_stalled(self) -> None:
        """End actors that have made no step for too long."""
        timeout_s = self._spec.speed.timeout_s
        now = time.monotonic()
        if now - self._asked < min(5.0, timeout_s / 4):
            return
        self._asked = now
        for slot in list(self._slots):
            if not slot.queue:
                continue
            if slot.pulse is not None and ray.wait([slot.pulse], timeout=0)[0]:
                self._feel(slot, now)
            if slot.pulse is None:
                slot.pulse = slot.handle.pulse.remote()
            if now - slot.moved > timeout_s:
                self._died(slot, BadEnd("timeout", f"no progress for {now - slot.moved:.0f} s"))

    def _feel(self, slot: Slot, now: float) -> None:
        steps = slot.steps
        with contextlib.suppress(ray.exceptions.RayError):  # it is dead, which its task will say
            steps, slot.leaving = ray.get(slot.pulse)
        if steps != slot.steps:
            slot.steps, slot.moved = steps, now
        slot.pulse = None


def _words(cause: BaseException) -> str:
    """Return what happened: our own errors speak for themselves, others are named."""
    return str(cause) if isinstance(cause, MaskrcnnError) else f"{type(cause).__name__}: {cause}"

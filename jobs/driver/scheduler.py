"""The scheduler of the map stage: assign shards to actors until each shard has a receipt.

Thin on purpose. It holds a few values per actor and nothing per shard, except for shards whose execution failed; the
plan gives the next shard when an actor can take one, and receipts record what is done. All actors are created at once,
so that an autoscaler sees the demand; each gets tasks when it is ready, and an actor that dies is replaced.
`poison_isolation` decides what the death of an actor means for its images.
"""

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Final

import ray

from maskrcnn.errors import (
    HandedBackError,
    MaskrcnnError,
    OwnNetworkError,
    RunError,
    StoreFailingError,
    UsageError,
    plural,
)
from maskrcnn.io.storage import Storage
from maskrcnn.models.own.own_code import code_to_send
from maskrcnn.pipeline.circuit_breaker import Batch, CircuitBreaker
from maskrcnn.pipeline.receipts import Receipt, commit

from .actor import ActorReady, SegmentActor
from .cluster import cause_of, node_answers
from .draining import Drains
from .node_worker import Done, WorkerSpec, take_announcement
from .nodes import CLUSTER, Demand, NodeProblem, alive_nodes, missing_node, package_version
from .poison_isolation import Failure, PoisonIsolation, Task, describe
from .progress import Progress
from .ray_errors import condense
from .slot import Slot, to_end
from .work import Work

log = logging.getLogger("maskrcnn")

SHARDS_AT_ONCE: Final = 2
"""Shards that an actor holds: one is computed while the other is fetched or written."""
PULSE_S: Final = 2.0
"""How often actors are asked for their progress."""
REMOVE_S: Final = 5.0
"""How long actors may take to remove the user's code from their disks."""
MAX_FAILED_STARTS: Final = 5
"""Consecutive actors that die before they are ready, before the run stops."""


class Scheduler:
    """Runs shards on up to `max_actors` actors.

    Args:
        spec: the specification of the actors.
        first_uri: an input whose metadata each actor must be able to read.
        max_actors: maximum number of actors.
        progress: is updated after each finished shard.
    """

    def __init__(self, spec: WorkerSpec, first_uri: str, max_actors: int, progress: Progress) -> None:
        self._spec = spec
        self._first_uri = first_uri
        self._max_actors = max_actors
        self._progress = progress
        self._storage = Storage(spec.url)
        self._slots: list[Slot] = []
        self._isolations: dict[str, PoisonIsolation] = {}
        self._retries: deque[PoisonIsolation] = deque()
        self._circuit_breaker = CircuitBreaker()
        self._drains = Drains()
        self._failed_starts = 0
        self._pulse_asked = 0.0
        self._nodes_asked = 0.0
        self._missing: str | None = None
        gpus = 1 if spec.resources.device == "cuda" else 0
        self._demand = Demand(spec.resources.threads or 1, gpus)
        # num_cpus also determines the number of OpenMP threads that Ray allows; actors are replaced here, not by Ray.
        self._actor_class = ray.remote(
            num_cpus=spec.resources.threads or 1,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
        )(SegmentActor)
        # Sent here once: Ray's own way, `py_modules`, needs an agent, which a Ray on this machine lacks.
        code = code_to_send(spec.inference.model)
        self._code: Any = None if code is None else ray.put(code)

    def run(self, work: Work) -> None:
        """Run all shards, or those that are started before the time is up.

        Raises:
            RunError: a node cannot access inputs or output, the store fails, or a shard failed too often.
            UsageError: the model cannot be loaded.
        """
        remaining = work.n_shards
        try:
            while remaining and (not work.is_over or any(slot.queue for slot in self._slots)):
                self._leave_draining_nodes()
                self._create_actors(min(self._max_actors, remaining))
                self._assign_tasks(work, remaining)
                remaining -= self._collect(work)
                self._end_stalled()
                running = sum((slot.running for slot in self._slots), Counter())
                ready = sum(slot.ready for slot in self._slots)
                waiting = None if ready else self._missing_node()
                self._progress.show(running=running, actors=(ready, len(self._slots)), waiting_for=waiting)
            self._commit(self._circuit_breaker.drain())
        finally:
            self._remove_code()
            for slot in self._slots:
                ray.kill(slot.handle)
            self._slots.clear()

    def _remove_code(self) -> None:
        """Let actors remove the user's code from their disks; one that does not answer leaves it behind."""
        if self._code is not None:
            removed = [slot.handle.remove_code.remote() for slot in self._slots if slot.ready]
            ray.wait(removed, num_returns=len(removed), timeout=REMOVE_S) if removed else None

    def _missing_node(self) -> str | None:
        """Return which node the run waits for while no actor is ready; None if there is one, which is starting them."""
        now = time.monotonic()
        if now - self._nodes_asked > PULSE_S:
            self._nodes_asked = now
            self._missing = missing_node(self._demand)
        return self._missing

    # Assigning tasks

    def _create_actors(self, wanted: int) -> None:
        while sum(not slot.draining for slot in self._slots) < wanted:
            # One more than the shards, for the call that asks for its progress.
            options = {"max_concurrency": SHARDS_AT_ONCE + 1, "scheduling_strategy": CLUSTER.strategy}
            handle: Any = self._actor_class.options(**options).remote(self._spec, self._code)
            start = handle.start.remote(self._first_uri, package_version())
            self._slots.append(Slot(handle, start, nodes_left_out=len(CLUSTER.left_out)))

    def _assign_tasks(self, work: Work, remaining: int) -> None:
        """Give each ready actor a task, and a second one while there are many left.

        The second is fetched while the first is computed; near the end it would wait behind a busy actor while others
        are idle. A traced task or one with a single image has its actor to itself: if an actor dies with two tasks, it
        is unknown which one ended it.
        """
        assigned = sum(len(slot.queue) for slot in self._slots)
        plenty = remaining - assigned > 2 * len(self._slots) and work.may_queue
        for depth in range(1, SHARDS_AT_ONCE + 1 if plenty else 2):
            for slot in self._slots:
                if not slot.ready or slot.draining or len(slot.queue) >= depth:
                    continue
                if slot.queue and (self._retries or slot.queue[0][1].careful):
                    continue
                task = self._next_task(slot, work)
                if task is None:
                    continue
                if not slot.queue:
                    slot.moved = slot.began = time.monotonic()
                slot.fresh = slot.fresh and task.alone is not None
                slot.queue.append((slot.handle.run.remote(task), task))
        self._make_fresh()

    def _next_task(self, slot: Slot, work: Work) -> Task | None:
        """Return the next task for an actor: shards whose execution failed come first."""
        if work.is_over:
            return None
        for isolation in self._retries:
            if isolation.due and (slot.fresh or not isolation.needs_fresh_process):
                self._retries.remove(isolation)
                return isolation.next_task()
        shard = work.next_shard()
        return None if shard is None else Task(shard)

    def _make_fresh(self) -> None:
        """End an idle actor if an image waits for a fresh process and no actor is fresh or starting."""
        if any(isolation.needs_fresh_process for isolation in self._retries):
            idle = to_end(self._slots, time.monotonic())
            if idle is not None:
                self._remove(idle)

    def _remove(self, slot: Slot) -> None:
        self._slots.remove(slot)
        ray.kill(slot.handle)  # it may be unreachable, and not dead

    def _leave_draining_nodes(self) -> None:
        """Hand back what actors will not finish before their node is taken away; remove those without a task."""
        self._drains.refresh()
        for slot in list(self._slots):
            left_s = self._drains.left_s(slot.node_id)
            if left_s is None:
                continue
            in_time = slot.tasks_in_time(left_s)
            back = [slot.queue.pop()[1] for _ in range(len(slot.queue) - in_time)]
            if back or not slot.draining:
                log.info("node %s is draining%s", slot.host, slot.fate(back, left_s))
            slot.draining = True
            self._hand_back(back)
            if not slot.queue:
                self._remove(slot)

    def _hand_back(self, tasks: Iterable[Task]) -> None:
        """Let tasks be repeated whose execution did not fail."""
        for task in tasks:
            if task.trace is not None:
                self._storage.remove(task.trace)
            self._retries.append(self._isolation_of(task))

    # Collecting results

    def _collect(self, work: Work) -> int:
        """Wait for a result for at most a second; return the number of finished shards."""
        heads = {slot.queue[0][0] if slot.queue else slot.start_ref: slot for slot in self._slots}
        waiting = [ref for ref, slot in heads.items() if slot.queue or not slot.ready]
        if not waiting:
            time.sleep(0.01)
            return 0
        done, _ = ray.wait(waiting, num_returns=1, timeout=1.0)
        began = {ref: heads[ref].began for ref in done}
        finished = sum(self._take(heads[ref], ref) for ref in done)
        if finished:
            work.took(max(time.monotonic() - at for at in began.values()))
        return finished

    def _take(self, slot: Slot, ref: Any) -> int:
        """Handle the result of an actor's start or of its first task; return the number of finished shards."""
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            self._raised(slot, cause_of(error))
            return 0
        except ray.exceptions.RayError as error:
            self._died(slot, self._failure_of(slot, error))
            return 0
        if isinstance(result, NodeProblem):
            self._node_failed(slot, result)
            return 0
        if not slot.ready:
            self._confirm_ready(slot, result)
            return 0
        _, task = slot.queue.popleft()
        now = time.monotonic()
        if task.alone is None:
            slot.image_s = (now - slot.began) / len(task.shard)
        slot.moved = slot.began = now
        slot.running -= Counter(result.counts)
        slot.pulse = None  # it may have been answered before the task ended
        return self._finished(task, result)

    def _finished(self, task: Task, done: Done) -> int:
        if task.alone is not None:
            isolation = self._isolations[task.shard.name]
            isolation.survived(task)
            self._retries.append(isolation)
            return 0
        self._isolations.pop(task.shard.name, None)
        if task.trace is not None:
            self._storage.remove(task.trace)
        batch = Batch(len(task.shard), done.storage_failures, done.example, done.withheld)
        self._commit(self._circuit_breaker.add(batch))
        self._progress.add(done)
        return 1

    def _commit(self, batches: list[Batch]) -> None:
        """Store the receipts that were withheld until it was clear that the store itself works."""
        for batch in batches:
            if isinstance(batch.held, Receipt):
                commit(self._storage, batch.held)

    def _confirm_ready(self, slot: Slot, actor: ActorReady) -> None:
        if not self._storage.exists(actor.probe):
            raise RunError(
                f"node {actor.host} wrote to {self._spec.url}, but the driver does not find the file there: "
                "the nodes do not share this directory; use an s3:// output or a shared file system"
            )
        self._storage.remove(actor.probe)
        slot.ready, slot.node_id, slot.host = True, actor.node_id, actor.host
        self._failed_starts = 0

    # Failures

    def _raised(self, slot: Slot, cause: BaseException) -> None:
        """Raise an error that no other attempt can fix; else let the task be repeated."""
        if isinstance(cause, HandedBackError):
            self._died(slot, Failure("worker_crash", str(cause), external=True))
            return
        if isinstance(cause, StoreFailingError | OwnNetworkError):
            raise cause
        if isinstance(cause, UsageError) and slot.ready:
            self._node_failed(slot, NodeProblem(slot.node_id, slot.host, cause))
            return
        if not slot.ready:
            if not self._explained(slot):
                raise RunError(f"an actor could not start: {describe(cause)}") from cause
            self._repeat(slot, Failure("worker_crash", "its node is left out", external=True))
            return
        if isinstance(cause, RunError):
            _, task = slot.queue.popleft()
            slot.moved = time.monotonic()
            log.warning("shard %s: %s", task.shard.name, cause)
            self._isolation_of(task).store_failed(cause)
            self._retries.append(self._isolation_of(task))
            return
        # The error may have damaged the process, as an illegal memory access on a GPU does.
        self._died(slot, Failure.of(cause))

    def _failure_of(self, slot: Slot, error: ray.exceptions.RayError) -> Failure:
        """Return how an actor failed that is dead or unreachable according to Ray."""
        if isinstance(error, ray.exceptions.ActorUnavailableError):
            return Failure("worker_crash", "it is unreachable", external=True)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        # The node of an actor that is not ready is known only to Ray.
        gone = slot.node_id not in alive if slot.node_id else "its node has died" in str(error)
        if getattr(error, "preempted", False) or gone:
            return Failure("worker_crash", "its node is gone", external=True)
        if slot.leaving:
            return Failure("worker_crash", "it was asked to stop", external=True)
        # The image may be quarantined: Ray notices a lost node later than the death of its workers.
        if slot.queue and slot.queue[0][1].alone is not None and not node_answers(slot.node_id):
            return Failure("worker_crash", "its node does not answer", external=True)
        if isinstance(error, ray.exceptions.OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in str(error):
            return Failure("out_of_memory", "Ray ended it because its node ran low on memory")
        return Failure("worker_crash", "its process died" if slot.ready else condense(error))

    def _node_failed(self, slot: Slot, problem: NodeProblem) -> None:
        """Leave a node out on which an actor cannot work, while there are others; else raise the error."""
        if len(alive_nodes()) == 1 or isinstance(problem.error, OwnNetworkError):
            raise problem.error
        CLUSTER.leave_out(problem.node_id, problem.host, str(problem.error))
        self._need_others(UsageError if isinstance(problem.error, UsageError) else RunError)
        self._repeat(slot, Failure("worker_crash", "its node is left out", external=True))

    def _explained(self, slot: Slot) -> bool:
        """Return whether an actor that did not start was on a node that lacks what it needs, as far as is known."""
        if not CLUSTER.check() and slot.nodes_left_out == len(CLUSTER.left_out):
            return False
        self._need_others(RunError)
        return True

    def _need_others(self, error: type[MaskrcnnError]) -> None:
        if not CLUSTER.others(self._demand):
            raise error(f"no node is left that can run actors: {CLUSTER.reasons()}")

    def _died(self, slot: Slot, failure: Failure) -> None:
        """Remove the actor, so that it is replaced, and repeat its tasks."""
        if not slot.ready and not failure.external:
            if self._explained(slot):
                self._repeat(slot, failure)
                return
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise RunError(
                    f"{self._failed_starts} actors died before they were ready, the last: {failure.message}"
                )
        held = [task.shard.name for _, task in slot.queue]
        where = f" on shard {' and '.join(held)}" if held else ""
        log.warning("an actor ended%s: %s", where, failure.message)
        self._repeat(slot, failure)

    def _repeat(self, slot: Slot, failure: Failure) -> None:
        """Remove the actor, and repeat its tasks."""
        self._remove(slot)
        if slot.draining:  # its node has ended it, or was about to
            self._hand_back(task for _, task in slot.queue)
            return
        for _, task in slot.queue:
            isolation = self._isolation_of(task)
            quarantined = isolation.execution_failed(task, failure, take_announcement(self._storage, task))
            if quarantined is not None:
                log.warning("shard %s: row %s fails with %s", task.shard.name, task.alone, quarantined)
            self._retries.append(isolation)

    def _isolation_of(self, task: Task) -> PoisonIsolation:
        return self._isolations.setdefault(task.shard.name, PoisonIsolation(task.shard, self._spec.probes))

    def _end_stalled(self) -> None:
        """End actors that have made no progress for too long."""
        timeout_s = self._spec.resources.timeout_s
        now = time.monotonic()
        if now - self._pulse_asked < min(PULSE_S, timeout_s / 4):
            return
        self._pulse_asked = now
        for slot in list(self._slots):
            if not slot.queue:
                continue
            if slot.pulse is not None and ray.wait([slot.pulse], timeout=0)[0]:
                self._take_pulse(slot, now)
            if slot.pulse is None:
                slot.pulse = slot.handle.pulse.remote()
            if now - slot.moved > timeout_s:
                self._died(slot, Failure("timeout", f"no progress for {now - slot.moved:.0f} s"))

    def _take_pulse(self, slot: Slot, now: float) -> None:
        steps = slot.steps
        with contextlib.suppress(ray.exceptions.RayError):  # it is dead, as the result of its task will show
            steps, slot.leaving, running = ray.get(slot.pulse)
            slot.running = Counter(running)
        if steps != slot.steps:
            slot.steps, slot.moved = steps, now
        slot.pulse = None


def map_shards(spec: WorkerSpec, first_uri: str, progress: Progress, work: Work) -> None:
    """Run shards on the Ray that is connected.

    Raises:
        RunError, UsageError: as `Scheduler.run`.
    """
    actors = spec.resources.actors or 1
    log.info(
        "%s on up to %s", plural(work.n_shards, "shard"), plural(actors, f"{spec.resources.device} actor")
    )
    Scheduler(spec, first_uri, actors, progress).run(work)

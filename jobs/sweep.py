"""The driver's loop: hand shards to actors until each has a receipt.

Thin on purpose. It holds a few values an actor and nothing a shard; the plan gives the next shard when an actor can
take one, and receipts say what is done. Actors are created up to the maximum at once, so that an autoscaler sees
the demand; each gets work when it is ready, and one that dies is replaced.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import ray

from maskrcnn.errors import MaskrcnnError, RunError, UsageError
from maskrcnn.plan import Shard
from maskrcnn.storage import Storage

from .actor import SegmentActor, WorkerSpec
from .cluster import cause_of
from .progress import Progress

log = logging.getLogger("maskrcnn")

MAX_ATTEMPTS: Final = 3
"""Executions of a shard before the run stops."""
SHARDS_AT_ONCE: Final = 2
"""That an actor holds: one is computed, while the other is fetched or written."""
MAX_FAILED_STARTS: Final = 3
"""Actors in a row that die before they are ready, before the run stops."""
SHARD_DEADLINE_S: Final = 600.0
IMAGE_DEADLINE_S: Final = 60.0
"""A shard of n images may take `SHARD_DEADLINE_S + n * IMAGE_DEADLINE_S` from the moment an actor begins it."""


@dataclass
class Slot:
    """An actor and what it was given."""

    handle: Any
    start_ref: Any
    ready: bool = False
    queue: deque[tuple[Any, Shard]] = field(default_factory=deque)
    """(reference, shard), the first is ahead."""
    since: float = 0.0
    """When the first of the queue began, monotonic seconds."""


class Sweep:
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
        self._again: deque[Shard] = deque()
        self._attempts: Counter[str] = Counter()
        self._failed_starts = 0
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
            RunError: a node cannot see inputs or output, or a shard failed `MAX_ATTEMPTS` times.
            UsageError: the model cannot be loaded.
        """
        remaining = n_shards
        try:
            while remaining:
                self._create_actors(min(self._max_actors, remaining))
                self._hand_out(shards, remaining)
                remaining -= self._await_one()
                self._end_overdue()
                self._progress.show(actors=sum(slot.ready for slot in self._slots))
        finally:
            for slot in self._slots:
                ray.kill(slot.handle)
            self._slots.clear()

    def _create_actors(self, wanted: int) -> None:
        while len(self._slots) < wanted:
            handle: Any = self._actor_class.options(max_concurrency=SHARDS_AT_ONCE).remote(self._spec)
            self._slots.append(Slot(handle, handle.start.remote(self._first_uri)))

    def _hand_out(self, shards: Iterator[Shard], remaining: int) -> None:
        """Give each ready actor a shard, and while there are plenty another one.

        The second is fetched while the first is computed; near the end it would wait behind a busy actor while others
        idle. A shard that has failed before runs alone: of two, nobody knows which one killed their actor.
        """
        given = sum(len(slot.queue) for slot in self._slots)
        plenty = remaining - given > 2 * len(self._slots)
        for depth in range(1, SHARDS_AT_ONCE + 1 if plenty else 2):
            for slot in self._slots:
                if not slot.ready or len(slot.queue) >= depth:
                    continue
                if slot.queue and (self._again or self._attempts[slot.queue[0][1].name]):
                    continue
                shard = self._again.popleft() if self._again else next(shards, None)
                if shard is None:
                    return
                if not slot.queue:
                    slot.since = time.monotonic()
                slot.queue.append((slot.handle.run_shard.remote(shard), shard))

    def _await_one(self) -> int:
        """Wait for something to happen for at most a second; return how many shards were finished."""
        heads = {slot.queue[0][0] if slot.queue else slot.start_ref: slot for slot in self._slots}
        waiting = [ref for ref, slot in heads.items() if slot.queue or not slot.ready]
        if not waiting:
            time.sleep(0.01)
            return 0
        done, _ = ray.wait(waiting, num_returns=1, timeout=1.0)
        return sum(self._finish(heads[ref], ref) for ref in done)

    def _finish(self, slot: Slot, ref: Any) -> int:
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            self._task_failed(slot, cause_of(error))
            return 0
        except ray.exceptions.RayError as error:
            self._actor_died(slot, str(error).splitlines()[0])
            return 0
        if not slot.ready:
            self._welcome(slot, *result)
            return 0
        slot.queue.popleft()
        slot.since = time.monotonic()
        self._progress.add(result)
        return 1

    def _welcome(self, slot: Slot, node: str, probe: str) -> None:
        if not self._storage.exists(probe):
            raise RunError(
                f"node {node} wrote to {self._spec.url}, but the driver does not see it there: "
                "the nodes do not share this directory; use an s3:// output or a shared file system"
            )
        self._storage.remove(probe)
        slot.ready = True
        self._failed_starts = 0

    def _task_failed(self, slot: Slot, cause: BaseException) -> None:
        """Raise what no other attempt can mend; else count the attempt, and let the shard be tried again."""
        if isinstance(cause, UsageError) or (isinstance(cause, MaskrcnnError) and not slot.ready):
            raise cause
        if not slot.ready:
            raise RunError(f"an actor could not start: {type(cause).__name__}: {cause}") from cause
        _, shard = slot.queue.popleft()
        slot.since = time.monotonic()
        log.warning("shard %s failed: %s", shard.name, _words(cause))
        self._try_again(shard, cause)

    def _actor_died(self, slot: Slot, reason: str) -> None:
        """Let the actor be replaced, and what it held be tried again."""
        self._slots.remove(slot)
        ray.kill(slot.handle)  # it may be out of reach, and not dead
        if not slot.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise RunError(
                    f"{self._failed_starts} actors died before they were ready, the last: {reason}"
                )
        held = [shard for _, shard in slot.queue]
        where = f" on shard {' and '.join(shard.name for shard in held)}" if held else ""
        log.warning("an actor died%s: %s", where, reason)
        for shard in held:
            self._try_again(shard, None)

    def _try_again(self, shard: Shard, cause: BaseException | None) -> None:
        self._attempts[shard.name] += 1
        if self._attempts[shard.name] >= MAX_ATTEMPTS:
            why = f": {_words(cause)}" if cause else ": its worker died"
            raise RunError(
                f"shard {shard.name} (manifest rows {shard.start} to {shard.stop - 1}) failed "
                f"{MAX_ATTEMPTS} times{why}"
            ) from cause
        self._again.append(shard)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for slot in list(self._slots):
            if not slot.queue:
                continue
            shard = slot.queue[0][1]
            if now - slot.since > SHARD_DEADLINE_S + len(shard) * IMAGE_DEADLINE_S:
                self._actor_died(slot, f"no end after {now - slot.since:.0f} s")


def _words(cause: BaseException) -> str:
    """Return what happened: our own errors speak for themselves, others are named."""
    return str(cause) if isinstance(cause, MaskrcnnError) else f"{type(cause).__name__}: {cause}"

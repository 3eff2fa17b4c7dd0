"""Which image kills its worker: what is known of a shard whose execution ended badly, and what to run next.

Pure bookkeeping, no Ray. An image is convicted only when it ended a process in which nothing else was being
computed, and after at most three executions: one in the crowd, one *traced* (the groups are announced before they
are computed, so that the dead worker's last words name the suspects), one *alone* in a fresh process. A node that
is lost and a worker that is told to go are nobody's fault, and count for nothing but a bound. Nothing is tried for
ever: every death either convicts an image, or brings the shard nearer to `MAX_UNEXPLAINED`.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from maskrcnn.errors import ItemError, RunError
from maskrcnn.pipeline.plan import Shard
from maskrcnn.pipeline.worker import Announcement

MAX_UNEXPLAINED: Final = 5
"""Executions of a shard in a row that end badly and convict nobody, before the run stops."""
MAX_BLAMELESS: Final = 100
"""Executions of a shard that end with a node or a notice, before the run stops."""
MAX_STORE_FAILURES: Final = 4
"""Executions of a shard that end with a failing store or disk, before the run stops."""
STORE_PAUSE_S: Final = 5.0
"""Before the first repetition after such a failure; then twice as long, and again."""


_SILENCE: Final = Announcement(())


@dataclass(frozen=True, slots=True)
class Task:
    """What an actor is asked to do with a shard."""

    shard: Shard
    trace: str | None = None
    """Where to announce groups before they are computed: a path in the run's directory."""
    alone: int | None = None
    """The only row of the manifest to compute; what comes out is dropped."""
    quarantined: Mapping[int, ItemError] = field(default_factory=dict)
    """Rows of the manifest that are failed without another look."""

    @property
    def careful(self) -> bool:
        """Whether the actor must have nothing else to do meanwhile."""
        return self.trace is not None or self.alone is not None


@dataclass(frozen=True, slots=True)
class BadEnd:
    """How an execution ended that did not reach its end."""

    code: str
    """What an image will be failed with that ended it: `worker_crash`, `timeout`, `out_of_memory`."""
    message: str
    blameless: bool = False
    """Whether the node or a notice ended it, so that nothing follows for the images."""


class PoisonIsolation:
    """Into one shard.

    Args:
        shard: the shard.
        folder: of the run's directory, where traced executions announce.
        clock: monotonic seconds.
    """

    def __init__(self, shard: Shard, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.shard: Final = shard
        self._folder = folder
        self._clock = clock
        self._suspects: deque[int] = deque()
        self._bystanders: frozenset[int] = frozenset()
        self._convicted: dict[int, ItemError] = {}
        self._unexplained = self._blameless = self._store_failures = 0
        self._not_before = 0.0

    @property
    def due(self) -> bool:
        """Whether the next task may be given out already."""
        return self._clock() >= self._not_before

    @property
    def needs_fresh_process(self) -> bool:
        """Whether the next task is an image to be tried alone."""
        return bool(self._suspects)

    def next_task(self) -> Task:
        """Return what to run next."""
        if self._suspects:
            return Task(self.shard, alone=self._suspects[0])
        trace = f"{self._folder}/{self.shard.name}.{uuid.uuid4().hex}.json" if self._unexplained else None
        return Task(self.shard, trace, quarantined=dict(self._convicted))

    def ended_badly(self, task: Task, end: BadEnd, said: Announcement = _SILENCE) -> ItemError | None:
        """Take note of an execution's bad end; return the verdict, if it convicts an image.

        Args:
            task: what was executed.
            end: how it ended.
            said: what was being computed, as far as a traced execution said.

        Raises:
            RunError: this shard has been tried often enough.
        """
        if end.blameless:
            self._blameless += 1
            self._give_up(self._blameless > MAX_BLAMELESS, self._blameless, end)
            return None
        if task.alone is not None:
            self._suspects.remove(task.alone)
            verdict = ItemError(end.code, f"alone in its process: {end.message}")
            self._convicted[task.alone] = verdict
            # With a culprit found, those of the group before are suspects no more.
            self._suspects = deque(row for row in self._suspects if row not in self._bystanders)
            self._unexplained = 1  # where there was one, there may be another: keep tracing
            return verdict
        self._unexplained += 1
        self._give_up(self._unexplained >= MAX_UNEXPLAINED, self._unexplained, end)
        self._convicted |= said.verdicts
        self._bystanders = frozenset(said.before)
        self._suspects = deque(row for row in (*said.now, *said.before) if row not in self._convicted)
        return None

    def survived(self, task: Task) -> None:
        """Take note that an image that was tried alone did no harm."""
        if task.alone is not None and task.alone in self._suspects:
            self._suspects.remove(task.alone)

    def store_failed(self, cause: RunError) -> None:
        """Take note of an execution that the store or the disk ended; the next one waits.

        Raises:
            RunError: the cause, if this has happened often enough.
        """
        self._store_failures += 1
        if self._store_failures >= MAX_STORE_FAILURES:
            raise RunError(f"{self._name()} failed {self._store_failures} times: {cause}") from cause
        self._not_before = self._clock() + STORE_PAUSE_S * 2 ** (self._store_failures - 1)

    def _give_up(self, enough: bool, times: int, end: BadEnd) -> None:
        if enough:
            raise RunError(
                f"{self._name()} ended its worker {times} times, and no single image was found to be at fault; "
                f"the last time: {end.message}"
            )

    def _name(self) -> str:
        return f"shard {self.shard.name} (rows {self.shard.start} to {self.shard.stop - 1})"

"""Find the image that kills its worker: the state of a shard whose execution failed, and what to run next.

Pure bookkeeping, no Ray. An image is quarantined only if it ended a process that was computing nothing else, after at
most three executions: one as usual, one *traced* (the groups are announced before they are computed, so that the last
announcement of the dead worker names the suspects), one *alone* in a fresh process. The loss of a node and a worker
that was asked to stop say nothing about the images, and count only towards a limit. Nothing is repeated forever:
every death of a worker either quarantines an image, or counts towards `MAX_UNEXPLAINED`.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from maskrcnn.errors import ItemError, MaskrcnnError, RunError, SegmenterError
from maskrcnn.pipeline.plan import Shard
from maskrcnn.pipeline.worker import Announcement

MAX_UNEXPLAINED: Final = 5
"""Consecutive failed executions of a shard that quarantine no image, before the run stops."""
MAX_EXTERNAL: Final = 100
"""Executions of a shard that end with the loss of a node or a notice to stop, before the run stops."""
MAX_STORE_FAILURES: Final = 4
"""Executions of a shard that end with a failure of the store or the disk, before the run stops."""
STORE_PAUSE_S: Final = 5.0
"""Pause before the first repetition after such a failure; it doubles with each further one."""

_NOTHING_ANNOUNCED: Final = Announcement(())


@dataclass(frozen=True, slots=True)
class Task:
    """What an actor is to do with a shard."""

    shard: Shard
    trace: str | None = None
    """Where to announce groups before they are computed: a path in the run's directory."""
    alone: int | None = None
    """The only row of the manifest to compute; its result is discarded."""
    quarantined: Mapping[int, ItemError] = field(default_factory=dict)
    """Rows of the manifest to record as failed without computing them."""

    @property
    def careful(self) -> bool:
        """Whether the actor must run nothing else at the same time."""
        return self.trace is not None or self.alone is not None


@dataclass(frozen=True, slots=True)
class Failure:
    """How an execution failed."""

    code: str
    """Error code of the image that caused it: `worker_crash`, `timeout`, `out_of_memory`."""
    message: str
    external: bool = False
    """Whether a lost node or a notice to stop ended the execution, so that no image is to blame."""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Return the failure that an exception of a worker stands for; the network may have raised anything."""
        if isinstance(error, SegmenterError):
            return cls(error.code, error.message)
        code = "out_of_memory" if isinstance(error, MemoryError) else "worker_crash"
        return cls(code, describe(error))


def describe(error: BaseException) -> str:
    """Return the message of an error of this project, or the type and message of another one."""
    return str(error) if isinstance(error, MaskrcnnError) else f"{type(error).__name__}: {error}"


class PoisonIsolation:
    """The search for the images of one shard that end their process.

    Args:
        shard: the shard.
        folder: of the run's directory, where traced executions write their announcements.
        clock: monotonic seconds.
    """

    def __init__(self, shard: Shard, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.shard: Final = shard
        self._folder = folder
        self._clock = clock
        self._suspects: deque[int] = deque()
        self._previous_group: frozenset[int] = frozenset()
        self._quarantined: dict[int, ItemError] = {}
        self._unexplained = self._external = self._store_failures = 0
        self._not_before = 0.0

    @property
    def due(self) -> bool:
        """Whether the next task may start already."""
        return self._clock() >= self._not_before

    @property
    def needs_fresh_process(self) -> bool:
        """Whether the next task is an image to be processed alone."""
        return bool(self._suspects)

    def next_task(self) -> Task:
        """Return what to run next."""
        if self._suspects:
            return Task(self.shard, alone=self._suspects[0])
        trace = f"{self._folder}/{self.shard.name}.{uuid.uuid4().hex}.json" if self._unexplained else None
        return Task(self.shard, trace, quarantined=dict(self._quarantined))

    def execution_failed(
        self, task: Task, failure: Failure, announced: Announcement = _NOTHING_ANNOUNCED
    ) -> ItemError | None:
        """Record a failed execution; return the error of an image that is quarantined by it.

        Args:
            task: what was executed.
            failure: how it failed.
            announced: what was being computed, as far as a traced execution announced it.

        Raises:
            RunError: this shard has been executed too often.
        """
        if failure.external:
            self._external += 1
            self._give_up(self._external > MAX_EXTERNAL, self._external, failure)
            return None
        if task.alone is not None:
            self._suspects.remove(task.alone)
            error = ItemError(failure.code, f"alone in its process: {failure.message}")
            self._quarantined[task.alone] = error
            # With the cause found, the rows of the previous group are no longer suspects.
            self._suspects = deque(row for row in self._suspects if row not in self._previous_group)
            self._unexplained = 1  # the shard may contain another one: keep tracing
            return error
        self._unexplained += 1
        self._give_up(self._unexplained >= MAX_UNEXPLAINED, self._unexplained, failure)
        self._quarantined |= announced.failures
        self._previous_group = frozenset(announced.before)
        rows = (*announced.now, *announced.before)
        self._suspects = deque(row for row in rows if row not in self._quarantined)
        return None

    def survived(self, task: Task) -> None:
        """Record that an image that was processed alone did not end its process."""
        if task.alone is not None and task.alone in self._suspects:
            self._suspects.remove(task.alone)

    def store_failed(self, cause: RunError) -> None:
        """Record an execution that the store or the disk ended; the next one waits.

        Raises:
            RunError: with this cause, if it has happened too often.
        """
        self._store_failures += 1
        if self._store_failures >= MAX_STORE_FAILURES:
            raise RunError(f"{self._name()} failed {self._store_failures} times: {cause}") from cause
        self._not_before = self._clock() + STORE_PAUSE_S * 2 ** (self._store_failures - 1)

    def _give_up(self, too_often: bool, times: int, failure: Failure) -> None:
        if too_often:
            raise RunError(
                f"{self._name()} ended its worker {times} times, and no single image was found to be the cause; "
                f"the last time: {failure.message}"
            )

    def _name(self) -> str:
        return f"shard {self.shard.name} (rows {self.shard.start} to {self.shard.stop - 1})"

"""An actor as the scheduler sees it: its tasks, its progress, and whether its node will be taken away."""

import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .draining import tasks_in_time
from .poison_isolation import Task
from .progress import duration

START_S: Final = 60.0
"""An actor that takes longer to start has no place on the nodes that are there, or a very large model."""


@dataclass
class Slot:
    """An actor and its tasks."""

    handle: Any
    start_ref: Any
    nodes_left_out: int
    """The number of nodes that were left out when it was created: it may yet start on one that was left out later."""
    ready: bool = False
    node_id: str = ""
    host: str = ""
    fresh: bool = True
    """Whether it has computed nothing yet except images that were processed alone."""
    queue: deque[tuple[Any, Task]] = field(default_factory=deque)
    """(reference, task) in the order of execution."""
    pulse: Any = None
    """The reference of the pending call that asks for the number of its steps."""
    steps: int = -1
    running: Counter[str] = field(default_factory=Counter)
    """What is done in its shards, as of the latest such call."""
    leaving: bool = False
    """Whether it was asked to stop, so that no image is to blame for its end."""
    moved: float = 0.0
    """Time of its last known progress, monotonic seconds."""
    began: float = 0.0
    """When it began the first of its tasks, or was free to, likewise."""
    image_s: float | None = None
    """Seconds for each image of the shard that it finished last."""
    draining: bool = False
    """Whether its node will be taken away, so that it gets no further tasks."""
    created: float = field(default_factory=time.monotonic)
    """When it was requested, likewise."""

    def tasks_in_time(self, left_s: float) -> int:
        """Return the number of its tasks that should end within some seconds."""
        sizes = [len(task.shard) if task.alone is None else 1 for _, task in self.queue]
        done = self.running.total() - self.running["instances"]
        return tasks_in_time(sizes, done, time.monotonic() - self.began, self.image_s, left_s)

    def fate(self, back: Sequence[Task], left_s: float) -> str:
        """Return what becomes of its tasks while its node is draining.

        Args:
            back: those that are handed back, and no longer its own.
            left_s: until the node is taken away, in seconds.
        """
        left = "" if left_s == math.inf else f", with {duration(max(left_s, 0))} left"
        finished = _shards([task for _, task in self.queue], "finished there")
        handed_back = _shards(back, "handed back")
        return f"{left}: " + ("; ".join(filter(None, [finished, handed_back])) or "its actor ends")


def to_end(slots: Sequence[Slot], now: float) -> Slot | None:
    """Return an idle actor to end, so that an image that needs a fresh process gets one in its place.

    Args:
        slots: all actors.
        now: monotonic seconds.

    Returns:
        None: an actor is fresh, or may be once it has started, or none is idle.
    """
    # What was requested long ago waits for a place, as after the loss of a node.
    coming = any(slot.fresh if slot.ready else now - slot.created < START_S for slot in slots)
    return None if coming else next((slot for slot in slots if slot.ready and not slot.queue), None)


def _shards(tasks: Sequence[Task], what: str) -> str:
    names = " and ".join(sorted(task.shard.name for task in tasks))
    return f"shard {names} is {what}" if len(tasks) == 1 else f"shards {names} are {what}" if tasks else ""

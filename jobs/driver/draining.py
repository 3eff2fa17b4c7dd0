"""Nodes that will be taken away: until when they are there, and which tasks of an actor end before.

Ray marks a node as draining on `ray drain-node`, and when `ray start --block` gets a SIGTERM, as Kubernetes sends it
before it ends a pod. From then on it places nothing on the node, but it does not notify the actors that are there.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Final

from .nodes import draining_nodes

ASK_EVERY_S: Final = 2.0
"""How often Ray is asked; it takes a millisecond."""
MARGIN_S: Final = 5.0
"""A shard is expected to end so long before its node: its files are stored then, and clocks differ."""


class Drains:
    """The nodes that are draining, and until when each is there.

    Args:
        ask: returns the seconds that are left to each, by id; infinite without a deadline.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        ask: Callable[[], Mapping[str, float]] = draining_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._asked = -math.inf
        self._until: dict[str, float] = {}

    def refresh(self) -> None:
        """Ask which nodes are draining, unless it was asked very recently."""
        now = self._clock()
        if now - self._asked < ASK_EVERY_S:
            return
        self._asked = now
        # A drain is never withdrawn: where Ray does not answer for once, what it said before holds.
        self._until |= {node_id: now + left_s for node_id, left_s in self._ask().items()}

    def left_s(self, node_id: str) -> float | None:
        """Return the seconds that are left to a node, infinite without a deadline; None: it is not draining."""
        until = self._until.get(node_id)
        return None if until is None else until - self._clock()


def tasks_in_time(
    sizes: Sequence[int], done: int, elapsed_s: float, image_s: float | None, left_s: float
) -> int:
    """Return the number of an actor's tasks, from the first on, that should end before its node is taken away.

    Args:
        sizes: number of images of each task, in the order of execution.
        done: images of them that are done.
        elapsed_s: time since the first was begun, in seconds.
        image_s: seconds for each image of the shard that the actor finished before; None: there is none.
        left_s: until the node is taken away, in seconds.

    >>> tasks_in_time([10, 10], 5, 20.0, None, 40.0), tasks_in_time([10, 10], 5, 20.0, 1.0, 40.0)
    (1, 2)
    """
    if left_s == math.inf:
        return len(sizes)
    if image_s is None:
        if not done:  # nothing is known, and nothing is lost
            return 0
        image_s = elapsed_s / done
    return sum(max(size - done, 0) * image_s + MARGIN_S <= left_s for size in accumulate(sizes))

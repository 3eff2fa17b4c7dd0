"""The shards that the map stage runs, one after the other, until a cap on its time."""

import math
import time
from collections.abc import Callable, Iterator

from maskrcnn.pipeline.plan import Shard


class Work:
    """Shards to run, and until when.

    Args:
        shards: in the order in which they are started.
        n_shards: their number.
        until: no shard is started from then on, a time of the clock.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        shards: Iterator[Shard],
        n_shards: int,
        until: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shards = shards
        self.n_shards = n_shards
        self._until = until
        self._clock = clock
        self._longest_s = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._clock() >= self._until

    @property
    def may_queue(self) -> bool:
        """Whether a worker may hold a shard behind the one that it computes.

        Not if the time may be up before it begins: the longest shard so far says how long one takes.
        """
        return self._clock() + self._longest_s < self._until

    def next_shard(self) -> Shard | None:
        """Return the next shard; None if there is none, or the time is up."""
        return None if self.is_over else next(self._shards, None)

    def took(self, seconds: float) -> None:
        """Note how long a shard took."""
        self._longest_s = max(self._longest_s, seconds)

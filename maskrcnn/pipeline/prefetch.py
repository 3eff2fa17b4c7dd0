"""Load inputs ahead of the consumer: a limit in bytes, threads that are replaced when they hang, a queue for turns."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar


class Held(Protocol):
    """A value that takes memory while it waits."""

    @property
    def held_bytes(self) -> int:
        """Its size in bytes."""
        ...


Item = TypeVar("Item", bound=Held)
PREFETCH_BYTES: Final = 2**30
"""Maximum size of the loaded inputs that wait for the consumer."""
_PATIENCE_STEP_S: Final = 1.0


@dataclass
class Stopwatch:
    """Seconds by stage. Stages that overlap in threads sum to more than the wall time."""

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed


def prefetch(
    load: Callable[[int], Item],
    positions: Iterable[int],
    watch: Stopwatch,
    pool: "Pool",
    *,
    ahead: int,
    late: Callable[[int], Item | None] = lambda _: None,
    max_bytes: int = PREFETCH_BYTES,
) -> Iterator[Item]:
    """Yield `load(position)` in order, loaded by a pool of threads, at most `ahead` of them at once.

    A value that `late` returns while a position is awaited replaces it; the thread that hangs on it is replaced.

    No further one is started while more than `max_bytes` of decoded pixels wait or are expected: one that is still
    loading counts as much as the largest so far, and until the first has been loaded only one is loaded at a time.
    """
    waiting: deque[tuple[int, Future[Item]]] = deque()
    upcoming = iter(positions)
    exhausted = False
    largest: int | None = None
    try:
        while True:
            sizes = [future.result().held_bytes if future.done() else None for _, future in waiting]
            known = [size for size in sizes if size is not None]
            largest = max([*known, largest or 0]) if known or largest is not None else None
            held = sum((largest or 0) if size is None else size for size in sizes)
            while not exhausted and len(waiting) < (ahead if largest is not None else 1):
                if waiting and held + (largest or 0) > max_bytes:
                    break
                position = next(upcoming, None)
                if position is None:
                    exhausted = True
                else:
                    waiting.append((position, pool.submit(load, position)))
                    held += largest or 0
            if not waiting:
                return
            with watch.stage("wait"):
                loaded = pool.result(*waiting.popleft(), load, late)
            largest = max(largest or 0, loaded.held_bytes)
            yield loaded
    finally:
        for _, future in waiting:  # the pool outlives a shard that fails
            future.cancel()


class Pool:
    """Threads that load, which are replaced when they hang."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._renewed = False
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="fetch")

    def submit(self, load: Callable[[int], Item], position: int) -> Future[Item]:
        """Load a position in a thread."""
        return self._executor.submit(load, position)

    def result(
        self,
        position: int,
        future: Future[Item],
        load: Callable[[int], Item],
        late: Callable[[int], Item | None],
    ) -> Item:
        """Wait for a submitted position; return what was loaded, or the value of `late` that replaces it."""
        while True:
            if (
                self._renewed and future.cancel()
            ):  # it waited behind threads that hang, and is submitted again
                future = self.submit(load, position)
            try:
                return future.result(_PATIENCE_STEP_S)
            except TimeoutError:
                if future.done():
                    return future.result()
            if (loaded := late(position)) is not None:
                self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="fetch")
                self._renewed = True
                return loaded


class Turns:
    """Lets threads proceed one after the other, in the order of their arrival."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived = 0
        self._now = 0
        self._left: set[int] = set()

    @contextmanager
    def queue(self) -> Iterator[Callable[[], None]]:
        """Take a place at entry; yield a function that waits for its turn; leave the queue at exit."""
        with self._changed:
            place = self._arrived
            self._arrived += 1

        def wait() -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._now == place)

        try:
            yield wait
        finally:
            with self._changed:
                self._left.add(place)
                while self._now in self._left:
                    self._left.remove(self._now)
                    self._now += 1
                self._changed.notify_all()

"""Inputs loaded ahead of who takes them up: threads that are replaced when they hang, bounded by bytes; turns."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar


class Held(Protocol):
    """What takes memory while it waits."""

    @property
    def held_bytes(self) -> int:
        """How much."""
        ...


Item = TypeVar("Item", bound=Held)
PREFETCH_BYTES: Final = 2**30
"""Of what may wait to be taken up."""
_PATIENCE_STEP_S: Final = 1.0


@dataclass
class Stopwatch:
    """Seconds by stage. Stages that overlap in threads add up to more than the wall time."""

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent within to a stage."""
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
    """Yield `load(position)` in order, loaded by a pool of threads, at most `ahead` of them under way.

    What `late` gives while a position is waited for stands for it; the thread that hangs on it is replaced.

    No further one is begun while decoded pixels of more than `max_bytes` wait, or are to be expected: what is still
    loading counts as much as the largest that was seen, and until one was seen there is one alone.
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
    """Threads that load, and are replaced when they hang."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._renewed = False
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="fetch")

    def submit(self, load: Callable[[int], Item], position: int) -> Future[Item]:
        """Have a position loaded."""
        return self._executor.submit(load, position)

    def result(
        self,
        position: int,
        future: Future[Item],
        load: Callable[[int], Item],
        late: Callable[[int], Item | None],
    ) -> Item:
        """Wait for a position that was submitted; return what was loaded, or what `late` says stands for it."""
        while True:
            if self._renewed and future.cancel():  # it waited behind threads that hang
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
    """Lets threads go one by one, in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._came = 0
        self._now = 0
        self._gone: set[int] = set()

    @contextmanager
    def queue(self) -> Iterator[Callable[[], None]]:
        """Take a place at entry; give a function that waits for its turn; leave at exit, turn or not."""
        with self._changed:
            place = self._came
            self._came += 1

        def wait() -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._now == place)

        try:
            yield wait
        finally:
            with self._changed:
                self._gone.add(place)
                while self._now in self._gone:
                    self._gone.remove(self._now)
                    self._now += 1
                self._changed.notify_all()

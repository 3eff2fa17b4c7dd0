"""A count of the requests that were repeated, over all threads of a process."""

import threading
from typing import Final


class _Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self) -> None:
        with self._lock:
            self._count += 1

    def take(self) -> int:
        with self._lock:
            count, self._count = self._count, 0
            return count


_retries: Final = _Counter()


def count_retry() -> None:
    """Count one repetition of a request to a store or a web server."""
    _retries.add()


def take_retries() -> int:
    """Return the number of repeated requests since the last call, in the whole process."""
    return _retries.take()

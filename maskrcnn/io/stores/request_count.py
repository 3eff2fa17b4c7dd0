"""Counts of the requests to stores and web servers, and of those that were repeated, over all threads of a process."""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final

LIST: Final = "LIST"
"""A page of a listing, which stores charge otherwise than other requests by GET."""
_RETRIES: Final = "retries"


class _Counts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        with self._lock:
            self._counts.update(counts)

    def take(self) -> dict[str, int]:
        with self._lock:
            counts, self._counts = self._counts, Counter()
            return dict(counts)


_retries: Final = _Counts()
_requests: Final = _Counts()


def count_retry() -> None:
    """Count one repetition of a request to a store or a web server."""
    _retries.add({_RETRIES: 1})


def count_request(method: str) -> None:
    """Count one request, or one repetition of it.

    Args:
        method: of HTTP, or `LIST`.
    """
    _requests.add({method: 1})


def take_retries() -> int:
    """Return the number of repeated requests since the last call, in the whole process."""
    return _retries.take().get(_RETRIES, 0)


def take_requests() -> dict[str, int]:
    """Return the number of requests by method since the last call, in the whole process."""
    return _requests.take()


def add_counts(requests: Mapping[str, int], retries: int) -> None:
    """Add what a child process has counted."""
    _requests.add(requests)
    _retries.add({_RETRIES: retries})

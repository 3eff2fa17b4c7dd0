"""No request without an end: one that does not arrive in time is sent once more, on another connection."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from .request_count import count_retry

T = TypeVar("T")

DEADLINE_S: Final = 120.0
"""How long a request and its repetitions may take, …"""
BYTES_PER_S: Final = 2**16
"""… plus the time that its body takes at this rate; then it is tried once more, on another connection."""
READ_TIMEOUT_S: Final = 60.0
"""How long to wait for the next byte of an answer."""


class TooSlowError(OSError):
    """An answer did not arrive in time."""


async def in_time(attempt: Callable[[Callable[[int], None]], Awaitable[T]], sent: int = 0) -> T:
    """Return what an attempt returns, and make another where it takes too long.

    Args:
        attempt: sends the request. It gets a function to call with the length in bytes of the answer's body, once that
            is known.
        sent: the length in bytes of the request's body.

    Raises:
        TooSlowError: the second attempt took too long as well.
    """
    try:
        return await _within(attempt, sent)
    except TooSlowError:
        count_retry()
        return await _within(attempt, sent)


async def _within(attempt: Callable[[Callable[[int], None]], Awaitable[T]], sent: int) -> T:
    try:
        async with asyncio.timeout(DEADLINE_S + sent / BYTES_PER_S) as limit:
            until = limit.when() or 0.0
            return await attempt(lambda length: limit.reschedule(until + length / BYTES_PER_S))
    except TimeoutError as error:
        if limit.expired():
            raise TooSlowError(errno.ETIMEDOUT, "the store was too slow") from error
        raise

"""Progress of long work that is logged, one line now and then."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

log = logging.getLogger("maskrcnn")

T = TypeVar("T")
REPORT_EVERY_S: Final = 5.0


def reported(
    items: Iterable[T], line: Callable[[int, int], str], size: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """Yield items, and log every few seconds the number of those that the consumer is done with.

    Args:
        items: in their order.
        line: returns what to log, given the number of the items and the sum of their sizes.
        size: returns an item's size.
    """
    shown, total = time.monotonic(), 0
    for number, item in enumerate(items, 1):
        yield item
        total += size(item)
        if (now := time.monotonic()) - shown >= REPORT_EVERY_S:
            shown = now
            log.info("%s", line(number, total))

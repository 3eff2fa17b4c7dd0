"""Stop a run whose failures are caused by the store, not by the images: a window over the latest images, and a limit.

With expired credentials, or a store that is down, every image fails. Ten million such rows would be complete, but
useless; a run that stops leaves the shards concerned undone, so that the same command processes them later.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import STORAGE_CODES, StoreFailingError

WINDOW_IMAGES: Final = 200
"""Minimum number of images in the window before the run may stop."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that were finished together."""

    images: int
    failures: Mapping[str, int] = field(default_factory=dict)
    """Number of images by storage error code; other codes are ignored."""
    example: str = ""
    """Message of one of the failures."""
    held: Any = None
    """A value to withhold as long as the batch is in the window."""


class CircuitBreaker:
    """The latest batches, of at least `WINDOW_IMAGES` images in total; not thread-safe."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._images = 0
        self._failures: Counter[str] = Counter()

    def add(self, batch: Batch) -> list[Batch]:
        """Add a batch; return the batches that leave the window, the oldest first.

        Raises:
            StoreFailingError: at least half of the images in the window failed with one storage code.
        """
        batch = Batch(
            batch.images,
            {code: n for code, n in batch.failures.items() if code in STORAGE_CODES},
            batch.example,
            batch.held,
        )
        self._batches.append(batch)
        self._images += batch.images
        self._failures.update(batch.failures)
        left = []
        while self._images - self._batches[0].images >= WINDOW_IMAGES:
            oldest = self._batches.popleft()
            self._images -= oldest.images
            self._failures.subtract(oldest.failures)
            left.append(oldest)
        self._check()
        return left

    def drain(self) -> list[Batch]:
        """Return the batches in the window, the oldest first, and empty it."""
        left = list(self._batches)
        self._batches.clear()
        self._images = 0
        self._failures.clear()
        return left

    def _check(self) -> None:
        for code, failed in self._failures.items():
            if self._images >= WINDOW_IMAGES and 2 * failed >= self._images:
                example = next(batch.example for batch in reversed(self._batches) if code in batch.failures)
                raise StoreFailingError(
                    f"{failed} of the last {self._images} images failed with {code} ({example}): "
                    "the cause is the store or the credentials, not the images. Fix it, and run the same command "
                    "again; the shards concerned are not done"
                )

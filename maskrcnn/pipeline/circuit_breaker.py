"""When failures are not the images' own: a window over the latest, and the line at which a run stops.

Expired credentials or a store that is down fail every image alike. Ten million such rows would be a complete
result of no use; a run that stops leaves the shards concerned undone, so that the same command does them later.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import STORAGE_CODES, StoreFailingError

WINDOW_IMAGES: Final = 200
"""The fewest images from which anything follows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images that were finished together."""

    images: int
    failures: Mapping[str, int] = field(default_factory=dict)
    """Images by storage code; other codes are passed over."""
    example: str = ""
    """Of a failure, in words."""
    held: Any = None
    """What is to be kept back as long as the batch is in the window."""


class CircuitBreaker:
    """The latest batches, of at least `WINDOW_IMAGES` images together; not for several threads at once."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._images = 0
        self._failures: Counter[str] = Counter()

    def add(self, batch: Batch) -> list[Batch]:
        """Take a batch in; return those that leave the window, the oldest first.

        Raises:
            StoreFailingError: half of the images in the window, or more, failed with one storage code.
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
        """Return what is in the window, the oldest first, and leave it empty."""
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
                    "the store or the credentials are at fault, not the images. Mend that, and run the same "
                    "command again; the shards concerned were not counted as done"
                )

"""What a batch costs a model: seconds for each image, and memory."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from ...errors import ItemError
from ...types import Detections, Pixels

__all__ = ["BATCH_SIZES", "Cost", "measured"]

log = logging.getLogger("maskrcnn")

BATCH_SIZES: Final = (1, 2, 4, 8)
_LONG_S: Final = 3.0
"""A batch that takes longer is measured once."""
_SAMPLE_S: Final = 0.01
"""How often the memory of the process is read."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a batch costs."""

    batch_size: int
    seconds_per_image: float
    peak_bytes: int
    """The highest memory of the process, or on CUDA that torch allocated on the GPU."""


def measured(
    compute: Callable[[Sequence[Pixels]], Sequence[Detections | ItemError]],
    images: Sequence[Pixels],
    largest: int,
    ends: float,
    *,
    cuda: bool,
) -> Iterator[Cost]:
    """Measure batches of one size, until the time is over; a short one twice, of which the faster counts.

    Args:
        compute: computes a batch.
        images: those of the size of the first are used.
        largest: the largest batch that the model takes.
        ends: monotonic seconds at which no larger batch is begun.
        cuda: whether it computes on a GPU.

    Raises:
        ItemError: an image of a batch failed, so that it is unknown what the batch costs.
    """
    equal = [image for image in images if image.shape == images[0].shape]
    for size in [size for size in BATCH_SIZES if size <= largest]:
        batch = list(itertools.islice(itertools.cycle(equal), size))
        taken = []
        with _Memory(cuda=cuda) as memory:
            for _ in range(2):
                started = time.monotonic()
                outcomes = compute(batch)
                taken.append(time.monotonic() - started)
                failed = [outcome for outcome in outcomes if isinstance(outcome, ItemError)]
                if failed:
                    raise failed[0]
                if taken[-1] > _LONG_S or time.monotonic() > ends:
                    break
        yield Cost(size, min(taken) / size, memory.peak)
        if size < min(largest, BATCH_SIZES[-1]) and time.monotonic() + 2 * min(taken) > ends:
            log.info("batches larger than %d are left out: they would take longer than --seconds", size)
            return


class _Memory:
    """The highest memory of this process, or of its part of the GPU, during a block, in bytes."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = cuda
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            if self._ended.wait(_SAMPLE_S):
                return

    def __enter__(self) -> "_Memory":
        if self._cuda:
            import torch  # noqa: PLC0415 only where a model computes on a GPU

            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            import torch  # noqa: PLC0415 only where a model computes on a GPU

            self.peak = torch.cuda.max_memory_allocated()
            return
        self._ended.set()
        self._thread.join()

"""Progress of the map stage: one line that is redrawn on a terminal, log lines elsewhere."""

import logging
import sys
import time
from typing import TextIO

from maskrcnn.errors import plural

log = logging.getLogger("maskrcnn")

LOG_EVERY_S = 15.0
REDRAW_EVERY_S = 0.2


def duration(seconds: float) -> str:
    """Return seconds in the units that people use.

    >>> duration(42.4), duration(125), duration(7325)
    ('42 s', '2 min 05 s', '2 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Counts images as shards finish.

    Args:
        total: number of images of the whole run.
        done: number of images that an earlier command finished.
        stream: where the line is written; on a terminal it is redrawn.
        unit: what is counted, in the plural.
    """

    def __init__(self, total: int, done: int, stream: TextIO = sys.stderr, unit: str = "images") -> None:
        self._total = total
        self._unit = unit
        self._before = self._done = done
        self._failed = self._instances = 0
        self._stream = stream
        self._terminal = stream.isatty()
        self._started = self._shown = time.monotonic()

    def add(self, counts: dict[str, int]) -> None:
        """Count a finished shard."""
        self._done += sum(count for name, count in counts.items() if name != "instances")
        self._failed += counts["failed"]
        self._instances += counts["instances"]
        self.show()

    def show(self, *, actors: int | None = None, force: bool = False) -> None:
        """Show the line, unless it was shown very recently."""
        now = time.monotonic()
        if not force and now - self._shown < (REDRAW_EVERY_S if self._terminal else LOG_EVERY_S):
            return
        self._shown = now
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{self.line(actors)}")
            self._stream.flush()
        else:
            log.info("%s", self.line(actors))

    def line(self, actors: int | None = None) -> str:
        """Return the line: images done, failed, images/s, time left."""
        elapsed = time.monotonic() - self._started
        processed = self._done - self._before
        rate = processed / elapsed if processed else 0.0
        left = f"{duration((self._total - self._done) / rate)} left" if rate else "starting"
        share = 100 * self._done // self._total
        since = " since the restart" if self._before else ""
        text = (
            f"{self._done:,}/{self._total:,} {self._unit} ({share} %), {self._failed:,} failed, "
            f"{plural(self._instances, 'instance')}{since}, {rate:.1f} {self._unit}/s, {left}"
        )
        return text if actors is None else f"{text}, {plural(actors, 'actor')}"

    def close(self) -> None:
        """Show the last state and end the line."""
        self.show(force=True)
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()

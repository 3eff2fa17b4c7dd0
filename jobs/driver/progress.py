"""Progress of the map stage: one line that is redrawn on a terminal, log lines elsewhere."""

import contextlib
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TextIO

from maskrcnn.errors import plural

if TYPE_CHECKING:
    from maskrcnn.pipeline.plan import Plan

    from .node_worker import Done

log = logging.getLogger("maskrcnn")

LOG_EVERY_S = 15.0
REDRAW_EVERY_S = 0.2
CLEAR: Final = "\r\x1b[2K"
"""Clears the line of a terminal."""
RATE_OVER_S: Final = 120.0
"""The rate is that of the latest two minutes, …"""
FORECAST_AFTER_S: Final = 15.0
"""… and becomes a forecast once it was observed for so long, …"""
FORECAST_AFTER: Final = 10
"""… and over so many images."""


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


def pace(rate: float, unit: str) -> str:
    """Return a number per second as text with two digits.

    >>> pace(12.34, "image"), pace(0.456, "image"), pace(0.031, "window")
    ('12.3 images/s', '0.46 images/s', '32 s/window')
    """
    if rate < 0.1:
        return f"{1 / rate:.0f} s/{unit}"
    return f"{rate:.{1 if rate >= 1 else 2}f} {unit}s/s"


def fields(event: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is passed to the log as `extra`, for the fields that a line of JSON has beside its message."""
    return {"fields": {"event": event, **values}}


def is_redrawn(stream: TextIO) -> bool:
    """Return whether a line can be redrawn on a stream: it is a terminal that obeys control sequences."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True, slots=True)
class State:
    """How far a map stage is."""

    unit: str
    """What is counted: `image` or `window`."""
    total: int
    """Of the whole run."""
    done: int
    """Of the whole run, those of earlier commands too."""
    counts: Mapping[str, int]
    """What this command did: images by status, and `instances`; in running shards too."""
    rate: float | None
    """Images per second over the latest two minutes; None while that cannot be said."""
    left_s: float | None
    """Seconds until the last image is done; None while that cannot be said."""
    ready: int | None
    """Actors that are ready; None: there are none."""
    shards_left: int
    """Shards that are not finished."""
    expected: float | None = None
    """Images per second of the forecast; None: there is none."""

    @property
    def processed(self) -> int:
        """Number of images that this command did."""
        return sum(count for name, count in self.counts.items() if name != "instances")

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, for the log."""
        return {
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "failed": self.counts.get("failed", 0),
            "instances": self.counts.get("instances", 0),
            f"{self.unit}s_per_s": None if self.rate is None else float(f"{self.rate:.4g}"),
            "eta_s": None if self.left_s is None else round(self.left_s, 1),
        } | ({} if self.ready is None else {"actors": self.ready})


class Watcher:
    """Is informed of a map stage while it runs; must return at once."""

    def begin(self, plan: "Plan") -> None:
        """Take note of the plan of which what is left is about to be run."""

    def add(self, done: "Done") -> None:
        """Take note of a finished shard."""

    def show(self, state: State) -> None:
        """Take note of how far it is, some times per second at most."""


class Progress:
    """Counts images as they are done, in shards that are finished and in those that are running.

    Args:
        total: number of images of the whole run.
        done: number of images that an earlier command finished.
        stream: where the line is written, by default stderr; on a terminal it is redrawn.
        unit: what is counted, in the singular.
        expected: images per second of the forecast; None: there is none.
        shards: number of shards that are to be finished.
        watchers: are informed of each finished shard, and whenever the line may be shown.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        total: int,
        done: int,
        stream: TextIO | None = None,
        unit: str = "image",
        expected: float | None = None,
        shards: int = 0,
        watchers: Sequence[Watcher] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._unit = unit
        self._expected = expected
        self._shards_left = shards
        self._watchers = watchers
        self._before = done
        self._finished: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._stream = sys.stderr if stream is None else stream
        self._terminal = is_redrawn(self._stream)
        self._clock = clock
        self._shown = clock()
        self._observed: deque[tuple[float, int]] = deque()
        self._actors: tuple[int, int] | None = None
        self._waiting_for: str | None = None

    def add(self, done: "Done") -> None:
        """Count a finished shard."""
        self._finished.update(done.counts)
        self._shards_left -= 1
        for watcher in self._watchers:
            watcher.add(done)

    def show(
        self,
        *,
        running: Mapping[str, int] | None = None,
        actors: tuple[int, int] | None = None,
        waiting_for: str | None = None,
        force: bool = False,
    ) -> None:
        """Show the line, unless it was shown very recently.

        Args:
            running: counts of the images that are done in unfinished shards.
            actors: number of actors that are ready, and of all; None: there are none.
            waiting_for: what no actor can start without; None: nothing.
            force: show the line in any case.
        """
        now = self._clock()
        self._running = Counter(running or {})
        self._actors = actors
        self._waiting_for = waiting_for
        self._observe(now)
        self._inform()
        if not force and now - self._shown < (REDRAW_EVERY_S if self._terminal else LOG_EVERY_S):
            return
        self._shown = now
        self._write(self.line())

    def _inform(self) -> None:
        if self._watchers:
            state = self.state()
            for watcher in self._watchers:
                watcher.show(state)

    def _write(self, line: str) -> None:
        if not self._terminal:
            log.info("%s", line, extra=fields("progress", self.state().to_json()))
        elif log.isEnabledFor(logging.INFO):
            try:
                self._stream.write(f"{CLEAR}{line[: self._columns()]}")
                self._stream.flush()
            except OSError:  # the terminal was closed, and the run goes on
                self._terminal = False

    def _columns(self) -> int | None:
        """Return how much of a line fits: of a longer one only the last row would be redrawn."""
        with contextlib.suppress(OSError, ValueError):
            return max(os.get_terminal_size(self._stream.fileno()).columns - 1, 0) or None
        return None

    def _observe(self, now: float) -> None:
        """Note how much is done now; what passes before the first worker is ready says nothing of the rate."""
        if self._actors is not None and not self._actors[0] and not self._observed:
            return
        self._observed.append((now, self._done))
        while len(self._observed) > 2 and now - self._observed[1][0] > RATE_OVER_S:
            self._observed.popleft()

    @property
    def _done(self) -> int:
        both = self._finished + self._running
        return self._before + sum(count for name, count in both.items() if name != "instances")

    def state(self) -> State:
        """Return how far the map stage is."""
        done, rate, left_s = self._done, None, None
        if done != self._before and len(self._observed) > 1:
            (since, before), (now, _) = self._observed[0], self._observed[-1]
            processed = max(done - before, 0)
            rate = processed / max(now - since, 0.001)
            if now - since >= FORECAST_AFTER_S and processed >= FORECAST_AFTER and done < self._total:
                left_s = (self._total - done) / rate
        counts = self._finished + self._running
        ready = None if self._actors is None else self._actors[0]
        return State(
            self._unit, self._total, done, counts, rate, left_s, ready, self._shards_left, self._expected
        )

    def line(self, *, ended: bool = False) -> str:
        """Return the line: images done, failed, instances, images/s, and time left once that can be said."""
        state = self.state()
        share = 100 * state.done // self._total
        since = " since the restart" if self._before else ""
        text = (
            f"{state.done:,}/{plural(self._total, self._unit)} ({share} %), {state.counts['failed']:,} failed, "
            f"{plural(state.counts['instances'], 'instance')}{since}"
        )
        if ended:
            return text
        actors = "" if state.ready is None else f", {plural(state.ready, 'actor')}"
        return f"{text}, {self._pace(state)}{actors}"

    def _pace(self, state: State) -> str:
        """Return the rate and the time left, or what the run is waiting for."""
        if self._waiting_for is not None:
            return f"waiting for {self._waiting_for}"
        if self._actors is not None and not self._actors[0] and state.done == self._before:
            return f"waiting for the first of {plural(self._actors[1], 'actor')} to load the model"
        if state.rate is None:
            return f"waiting for the first {self._unit}"
        if not state.rate:
            return f"no {self._unit} in {duration(self._observed[-1][0] - self._observed[0][0])}"
        text = pace(state.rate, self._unit)
        if state.left_s is None:
            return text
        if self._expected:
            text += f" ({100 * state.rate / self._expected:.0f} % of the forecast)"
        return f"{text}, {duration(state.left_s)} left"

    def close(self) -> None:
        """Show the last state, without what no longer runs, and end the line."""
        self._running.clear()
        self._inform()
        self._write(self.line(ended=True))
        if self._terminal:
            with contextlib.suppress(OSError):
                self._stream.write("\n")
                self._stream.flush()

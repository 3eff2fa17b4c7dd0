"""What is reported of a run that a command ends: in the last line of a log in JSON."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from maskrcnn.config import ResourceConfig
from maskrcnn.io.url import redact

from ..driver.progress import State
from .json_log import say_at_the_end


class RunEnd:
    """Gathers what a command did of a run.

    Args:
        output: the run's directory, as the user named it.
        resources: as requested, with the price.
    """

    def __init__(self, output: str, resources: ResourceConfig) -> None:
        self._output = output
        self._resources = resources
        self._began = time.monotonic()
        self._state: State | None = None
        self._counts: dict[str, int] | None = None

    def show(self, state: State) -> None:
        """Take note of how far the map stage is."""
        self._state = state

    def finished(self, success: dict[str, Any]) -> None:
        """Take note of the content of `_SUCCESS`."""
        self._counts = success["counts"]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: seconds, counts and cost so far; of a finished run, the counts are those of all of it."""
        seconds = time.monotonic() - self._began
        facts: dict[str, Any] = {"output": redact(self._output), "seconds": round(seconds, 3)}
        if (cost := self._resources.cost_of(seconds)) is not None:
            facts["cost"] = round(cost, 4)
        if self._state is not None:
            facts |= {"unit": self._state.unit, "done": self._state.done, "total": self._state.total}
        counts = self._counts if self._counts is not None else self._state and dict(self._state.counts)
        return facts | ({} if counts is None else {"counts": counts})


@contextlib.contextmanager
def reported(output: str, resources: ResourceConfig) -> Iterator[RunEnd]:
    """Report how a command ends that carries out a run in a block."""
    end = RunEnd(output, resources)
    try:
        yield end
    finally:
        say_at_the_end(**end.to_json())

"""How a command ends that carries out a run: its exit code, and whom that is reported to."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import LimitReachedError, RunError, StoreSetupError, UsageError, plural
from maskrcnn.io.url import redact

from ..driver.progress import State, Watcher
from ..interruption import INTERRUPTED, STOPPED
from .json_log import say_at_the_end
from .notification import Webhook
from .posting import wait_for
from .signals import is_interrupted
from .terminal import Ended

if TYPE_CHECKING:
    from maskrcnn.pipeline.plan import Plan

    from .openlineage import Lineage

ENOUGH: Final = 100
"""Images or windows of which a failure rate is taken while a run is processed."""


def ending_of(error: BaseException) -> tuple[str, int]:
    """Return the last line and the exit code of a command that an exception ends."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        return (error.message if isinstance(error, Ended) else f"exit code {code}"), code
    stopped = isinstance(error, RunError) and not isinstance(error, StoreSetupError)
    if isinstance(error, KeyboardInterrupt) or (is_interrupted() and not stopped):
        return INTERRUPTED, STOPPED
    if stopped:
        return f"stopped: {error}", STOPPED
    if isinstance(error, UsageError | StoreSetupError):
        return f"error: {error}", 2
    if isinstance(error, click.ClickException):
        return f"error: {error.format_message()}", error.exit_code
    return f"stopped by a bug in maskrcnn-ray: {type(error).__name__}: {error}", STOPPED


class RunEnd(Watcher):
    """Gathers what a command did of a run, and reports it.

    Args:
        output: the run's directory, as the user named it.
        resources: as requested, with the price.
        webhook: gets a message at the end, and once more than `max_failure_rate` of the images have failed; None: none
            does.
        lineage: gets events of OpenLineage; None: nobody does.
        max_failure_rate: the largest share of failed images or windows that is accepted.
    """

    def __init__(
        self,
        output: str,
        resources: ResourceConfig,
        webhook: Webhook | None,
        lineage: "Lineage | None",
        max_failure_rate: float,
    ) -> None:
        self._output = output
        self._resources = resources
        self._webhook = webhook
        self._lineage = lineage
        self._max_failure_rate = max_failure_rate
        self._warned = False
        self._began = time.monotonic()
        self._state: State | None = None
        self._success: dict[str, Any] | None = None
        self._result = "finished"

    def begin(self, plan: "Plan") -> None:
        """Report the begin of the run, or of what is left of it."""
        if self._lineage is not None:
            self._lineage.start(plan)

    def show(self, state: State) -> None:
        """Take note of how far the map stage is."""
        self._state = state
        failed, processed = state.counts.get("failed", 0), state.processed
        if self._warned or processed < ENOUGH or failed <= self._max_failure_rate * processed:
            return
        self._warned = True
        if self._webhook is not None:
            message = (
                f"{failed / processed:.1%} of the first {plural(processed, state.unit)} failed, more than "
                f"--max-failure-rate {self._max_failure_rate:.1%}; the run goes on"
            )
            self._webhook.notify("failure_rate", self._output, message, self.to_json() | {"exit_code": None})

    def finished(self, result: str, success: dict[str, Any] | None = None) -> None:
        """Take note of a run that is complete.

        Args:
            result: one line for people.
            success: the content of `_SUCCESS`; None: there was nothing to do.
        """
        self._result = result
        self._success = success

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: seconds, counts and cost so far; of a finished run, the counts are those of all of it."""
        seconds = time.monotonic() - self._began
        facts: dict[str, Any] = {"output": redact(self._output), "seconds": round(seconds, 3)}
        if (cost := self._resources.cost_of(seconds)) is not None:
            facts["cost"] = round(cost, 4)
        if self._state is not None:
            facts |= {"unit": self._state.unit, "done": self._state.done, "total": self._state.total}
        counts = (
            self._state and dict(self._state.counts) if self._success is None else self._success["counts"]
        )
        return facts | ({} if counts is None else {"counts": counts})

    def end(self, error: BaseException | None) -> None:
        """Report the end of the command, with the exception that ends it."""
        facts = self.to_json()
        say_at_the_end(**facts)
        message, code = (self._result, 0) if error is None else ending_of(error)
        complete = error is None or self._success is not None
        if self._webhook is not None:
            facts |= {"exit_code": code}
            self._webhook.notify("finished" if complete else "stopped", self._output, message, facts)
        if self._lineage is not None:
            wanted = message == INTERRUPTED or isinstance(error, LimitReachedError)
            self._lineage.end(
                "COMPLETE" if complete else "ABORT" if wanted else "FAIL", message, self._success
            )
        wait_for(self._webhook, None if self._lineage is None else self._lineage.poster)


@contextlib.contextmanager
def reported(
    output: str,
    resources: ResourceConfig,
    notify: str | None,
    openlineage: str | None,
    max_failure_rate: float,
) -> Iterator[RunEnd]:
    """Report how a command ends that carries out a run in a block.

    Args:
        output: the run's directory, as the user named it.
        resources: as requested, with the price.
        notify: the URL of a webhook; None: there is none.
        openlineage: where events of OpenLineage are posted; None: nowhere.
        max_failure_rate: as of `RunEnd`.
    """
    webhook, lineage = None if notify is None else Webhook(notify), None
    if openlineage is not None:
        from .openlineage import Lineage

        lineage = Lineage(openlineage, output)
    end = RunEnd(output, resources, webhook, lineage, max_failure_rate)
    try:
        yield end
    except BaseException as error:  # also Ctrl-C and an exit code end a run that is reported
        end.end(error)
        raise
    end.end(None)

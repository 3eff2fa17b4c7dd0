"""Two commands on one output at once: step by step in an order that is written down, or as the system has it.

Step by step: each command is a thread that stops before each of its calls to the storage, and goes on when it is its
turn. After each step that readers could see, nothing false may be proven.
"""

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Any, Final
from unittest import mock

import maskrcnn_jobs.driver.planning

import maskrcnn.pipeline.plan_retry
import maskrcnn.pipeline.reduce
from chaos.crash import SCENARIOS, Case, in_child, prepared
from chaos.faulty_storage import MUTATING, READING, Step, watched
from chaos.invariants import (
    BrokenError,
    GroundTruth,
    check_is_final,
    check_promises,
    ground_truth_of,
    invariant,
)
from chaos.local_job import Job
from maskrcnn.errors import MaskrcnnError
from maskrcnn.io.storage import Storage
from maskrcnn.results.verify import verify_run

PATIENCE_S: Final = 120.0


@dataclass(frozen=True)
class Meeting:
    """Two commands and the order of their steps, or, for `race`, the seed of their pauses in the order of the job."""

    case: Case
    """The first command, and what the output must hold in the end."""
    second: str
    """The scenario of the other."""
    moves: tuple[tuple[int, int | None], ...]
    """(command, the number of its steps; None: all); afterwards the first, then the second, run to their end."""
    abandoned: int | None = None
    """A command that takes no further step after its moves, as if it were dead."""
    reads: bool = False
    """Whether calls that only read are steps too."""

    def __str__(self) -> str:
        moves = ", ".join(f"{'AB'[who]} {'to its end' if n is None else n}" for who, n in self.moves)
        gone = "" if self.abandoned is None else f", {'AB'[self.abandoned]} is gone"
        return (
            f"A {self.case.scenario}, B {self.second}: {moves}{gone}{', reads counted' if self.reads else ''}"
        )


@dataclass(frozen=True)
class Ends:
    """How the commands ended: None is a success, else what it said."""

    said: tuple[str | None, str | None]
    steps: tuple[int, int]
    """The number of steps of each."""
    resumed: bool
    """Whether the run was not finished, so that another command was needed."""


class Command:
    """A command in a thread that stops before each of its steps."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._permit, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.step: Step | None = None
        self.steps = 0
        self.ended = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 (it is looked at by who started it)
            self.error = error
        self.ended = True
        self._arrived.release()

    def wait_for_turn(self, step: Step) -> None:
        """Stop before a step, in the command's own thread."""
        self.step = step
        self._arrived.release()
        self._permit.acquire()

    def begin(self) -> None:
        """Let it run up to its first step."""
        self.thread.start()
        self._await()

    def go(self) -> bool:
        """Let it take its step and come to the next, or to its end; return False if it has ended already."""
        if self.ended:
            return False
        self.steps += 1
        self._permit.release()
        self._await()
        return True

    def _await(self) -> None:
        if not self._arrived.acquire(timeout=PATIENCE_S):
            raise TimeoutError(f"no step after {self.step}")


class Serial:
    """An executor that does everything at once, in the thread that asks."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "Serial":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        return map(function, arguments)


def meet(meeting: Meeting) -> Ends:
    """Let two commands meet, step by step.

    Raises:
        BrokenError: an invariant does not hold.
    """
    case = meeting.case

    def looked_at(step: Step) -> None:
        if step.method in READING or step.phase not in ("plan", "reduce", "gc"):
            return
        try:
            check_promises(case.job.output, case.ground_truth, prove=step.phase == "plan")
        except BrokenError as error:
            # No order of plain writes keeps a command that was outrun from a last one; but it must be seen.
            if verify_run(case.job.output).proven:
                raise BrokenError(f"{error} [after {step}]") from None

    with prepared(case), named(meeting):
        commands = _done_in_turn(meeting, (case.job, case.job), looked_at)
        said = tuple(_said(meeting, number, command) for number, command in enumerate(commands))
        resumed = _settled(meeting, all_done=not any(said))
    return Ends((said[0], said[1]), (commands[0].steps, commands[1].steps), resumed)


def contend(meeting: Meeting, other: Job, ground_truth: GroundTruth) -> Ends:
    """Let two commands of different inputs meet in one output: nothing that mixes them may ever be proven.

    Args:
        other: the second command; its output is replaced by the first's.
        ground_truth: what the second would make of an output of its own.

    Returns:
        `resumed` says that the output is neither's in the end, and that this is seen.

    Raises:
        BrokenError: an invariant does not hold.
    """
    case, proven = meeting.case, False
    url = case.job.output

    def looked_at(_: Step) -> None:
        nonlocal proven
        proven = Storage(url).exists("_SUCCESS") and verify_run(url).proven
        if proven:
            invariant(
                "I4",
                ground_truth_of(url).tables in (case.ground_truth.tables, ground_truth.tables),
                "what is proven is neither's",
            )

    with prepared(case), named(meeting):
        commands = _done_in_turn(meeting, (case.job, other.to(url)), looked_at)
        said = tuple(_said(meeting, number, command) for number, command in enumerate(commands))
        invariant("end", any(said), "both say that the output is theirs")
    return Ends((said[0], said[1]), (commands[0].steps, commands[1].steps), not proven)


@contextlib.contextmanager
def named(meeting: Meeting) -> Iterator[None]:
    """Name the meeting in what is broken."""
    try:
        yield
    except BrokenError as error:
        raise BrokenError(f"{error} [{meeting}]") from None


class Clock:
    """Stands in for the module `datetime`: no two looks at the clock in one hour, so that equal times are no help."""

    UTC = UTC
    _looks = itertools.count()

    def __init__(self) -> None:
        self.datetime = self

    def now(self, zone: tzinfo) -> datetime:
        return datetime.now(zone) + timedelta(hours=next(self._looks))


def _done_in_turn(
    meeting: Meeting, jobs: tuple[Job, Job], looked_at: Callable[[Step], None]
) -> list[Command]:
    """Run both commands to their end, or to where they are abandoned, and look at the output after each step."""
    names = (meeting.case.scenario, meeting.second)
    commands = [Command(partial(SCENARIOS[n].run, job)) for n, job in zip(names, jobs, strict=True)]
    by_thread = {command.thread: command for command in commands}

    @contextlib.contextmanager
    def hook(_storage: Storage, step: Step, _size: int | None) -> Iterator[None]:
        if (command := by_thread.get(threading.current_thread())) is not None:
            command.wait_for_turn(step)
        yield

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(maskrcnn.pipeline.reduce, "ThreadPoolExecutor", Serial))
        for module in (
            maskrcnn_jobs.driver.planning,
            maskrcnn.pipeline.plan_retry,
            maskrcnn.pipeline.reduce,
        ):
            stack.enter_context(mock.patch.object(module, "datetime", Clock()))
        stack.enter_context(watched(hook, (*MUTATING, *READING) if meeting.reads else MUTATING, built=True))
        for command in commands:
            command.begin()
        for command in _turns(meeting, commands):
            seen = command.step
            if command.go() and seen is not None:
                looked_at(seen)
    return commands


def _turns(meeting: Meeting, commands: Sequence[Command]) -> Iterator[Command]:
    for who, count in (*meeting.moves, (0, None), (1, None)):
        if count is None and who == meeting.abandoned:
            continue
        taken = 0
        while not commands[who].ended and (count is None or taken < count):
            taken += 1
            yield commands[who]


def _said(meeting: Meeting, number: int, command: Command) -> str | None:
    """Return how a command ended: None for well, else in its words."""
    if number == meeting.abandoned and not command.ended:
        return "gone"
    if command.error is None:
        return None
    invariant("end", isinstance(command.error, MaskrcnnError), f"{'AB'[number]} ended with {command.error!r}")
    return f"{type(command.error).__name__}: {command.error}"


def _settled(meeting: Meeting, *, all_done: bool) -> bool:
    """Check how two commands left the output, and what another makes of it; return whether it was needed.

    Where both say that they are done, they are. One that stopped may have left the run unfinished, but not finished
    and wrong; one that died in mid-air may have left what `verify` finds, and `maskrcnn reduce` repairs.
    """
    url, ground_truth = meeting.case.job.output, meeting.case.ground_truth
    resumed = False
    if not all_done:
        resumed = verify_run(url).unfinished is not None
        SCENARIOS[meeting.case.scenario].resume(meeting.case.job)
        if meeting.abandoned is not None and not verify_run(url).proven:
            SCENARIOS["reduce"].run(meeting.case.job)
    check_is_final(url, ground_truth)
    return resumed


def race(meeting: Meeting) -> Ends:
    """Let two processes do it at once, each pausing for some milliseconds, by its dice, before calls that change.

    Raises:
        BrokenError: an invariant does not hold.
    """
    case = meeting.case
    names = (case.scenario, meeting.second)
    with prepared(case), named(meeting):
        codes = list(_both([partial(_paced, name, case, number) for number, name in enumerate(names)]))
        invariant("end", set(codes) <= {0, 3}, f"the commands ended with {codes}")
        resumed = _settled(meeting, all_done=not any(codes))
    said = [None if code == 0 else f"exit code {code}" for code in codes]
    return Ends((said[0], said[1]), (0, 0), resumed)


def _paced(name: str, case: Case, number: int) -> None:
    dice = random.Random(f"{case.job.order} {number}")

    @contextlib.contextmanager
    def hook(*_: object) -> Iterator[None]:
        time.sleep(dice.random() ** 3 * 0.02)
        yield

    with watched(hook, built=True):
        SCENARIOS[name].run(case.job)


def _both(runs: Sequence[Callable[[], object]]) -> Iterator[int]:
    """Run functions in forks at once; yield their exit codes."""
    children = []
    for run in runs:
        child = os.fork()
        if not child:
            os._exit(in_child(run) & 0xFF)
        children.append(child)
    for child in children:
        yield os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

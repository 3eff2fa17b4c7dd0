"""Two commands on one output at once: step by step in an order that is written down, or as the system has it.

Step by step: each command is a thread that stops before each of its calls to the storage, and goes on when it is its
turn. After each step that readers could see, nothing false may be promised.
"""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from unittest import mock

import maskrcnn.reduce
from chaos.crash import SCENARIOS, Case, in_child, prepared
from chaos.faulty_storage import MUTATING, READING, Step, watched
from chaos.invariants import BrokenError, check_is_final, check_promises, law
from maskrcnn.errors import MaskrcnnError
from maskrcnn.storage import Storage
from maskrcnn.verify import verify_run

PATIENCE_S: Final = 120.0


@dataclass(frozen=True)
class Meeting:
    """Two commands and the order of their steps."""

    case: Case
    """The first command, and what the output must hold in the end."""
    second: str
    """The scenario of the other."""
    moves: tuple[tuple[int, int | None], ...]
    """(command, how many steps it takes; None: all of them); afterwards the first, then the second, run to their end."""
    abandoned: int | None = None
    """A command that takes no further step after its moves, as if it were dead."""
    reads: bool = False
    """Whether calls that only read are steps too."""

    def __str__(self) -> str:
        moves = ", ".join(f"{'AB'[who]} {'to its end' if n is None else n}" for who, n in self.moves)
        gone = "" if self.abandoned is None else f", {'AB'[self.abandoned]} is gone"
        return f"A {self.case.scenario}, B {self.second}: {moves}{gone}{', reads counted' if self.reads else ''}"


@dataclass(frozen=True)
class Ends:
    """How the commands ended: None is a success, else what it said."""

    said: tuple[str | None, str | None]
    steps: tuple[int, int]
    """How many steps each took."""
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
    """Let two commands meet.

    Raises:
        BrokenError: a law does not hold.
    """
    case = meeting.case
    names = (case.scenario, meeting.second)
    with prepared(case), mock.patch.object(maskrcnn.reduce, "ThreadPoolExecutor", Serial):
        commands = [Command(partial(SCENARIOS[name].run, case.job)) for name in names]
        by_thread = {command.thread: command for command in commands}

        @contextlib.contextmanager
        def hook(_storage: Storage, step: Step, _size: int | None) -> Iterator[None]:
            if (command := by_thread.get(threading.current_thread())) is not None:
                command.wait_for_turn(step)
            yield

        try:
            with watched(hook, (*MUTATING, *READING) if meeting.reads else MUTATING):
                for command in commands:
                    command.begin()
                for command in _turns(meeting, commands):
                    seen = command.step
                    if command.go() and seen is not None and seen.phase in ("plan", "reduce", "gc"):
                        _check_moment(case, seen)
            return _concluded(meeting, commands)
        except BrokenError as error:
            raise BrokenError(f"{error} [{meeting}]") from None


def _turns(meeting: Meeting, commands: Sequence[Command]) -> Iterator[Command]:
    for who, count in (*meeting.moves, (0, None), (1, None)):
        if count is None and who == meeting.abandoned:
            continue
        taken = 0
        while not commands[who].ended and (count is None or taken < count):
            taken += 1
            yield commands[who]


def _check_moment(case: Case, step: Step) -> None:
    if step.method in READING:
        return
    try:
        check_promises(case.job.output, case.truth)
    except BrokenError as error:
        raise BrokenError(f"{error} [after {step}]") from None


def _concluded(meeting: Meeting, commands: Sequence[Command]) -> Ends:
    said: list[str | None] = []
    for number, command in enumerate(commands):
        if command.error is not None and not isinstance(command.error, MaskrcnnError):
            law("end", False, f"{'AB'[number]} ended with {command.error!r}")
        gone = number == meeting.abandoned and not command.ended
        said.append("gone" if gone else None if command.error is None else f"{type(command.error).__name__}: {command.error}")
    resumed = _settled(meeting, all_done=not any(said))
    return Ends((said[0], said[1]), (commands[0].steps, commands[1].steps), resumed)


def _settled(meeting: Meeting, *, all_done: bool) -> bool:
    """Check how two commands left the output, and what another makes of it; return whether it was needed.

    Where both say that they are done, they are; where one stopped, or is dead, it may have left the run unfinished.
    """
    url, truth = meeting.case.job.output, meeting.case.truth
    resumed = False
    if not all_done:
        check_promises(url, truth)
        resumed = verify_run(url).unfinished is not None
        SCENARIOS[meeting.case.scenario].resume(meeting.case.job)
    check_is_final(url, truth)
    return resumed


def race(meeting: Meeting) -> Ends:
    """Let two processes do it at once, each pausing for some milliseconds, by its dice, before calls that change.

    Raises:
        BrokenError: a law does not hold.
    """
    case = meeting.case
    with prepared(case):
        names = (case.scenario, meeting.second)
        try:
            codes = [*_both([partial(_paced, name, case, number) for number, name in enumerate(names)])]
            law("end", set(codes) <= {0, 3}, f"the commands ended with {codes}")
            resumed = _settled(meeting, all_done=not any(codes))
        except BrokenError as error:
            raise BrokenError(f"{error} [{meeting}, at once, order {case.job.order}]") from None
        said = [None if code == 0 else f"exit code {code}" for code in codes]
        return Ends((said[0], said[1]), (0, 0), resumed)


def _paced(name: str, case: Case, number: int) -> None:
    dice = random.Random(f"{case.job.order} {number}")

    @contextlib.contextmanager
    def hook(*_: object) -> Iterator[None]:
        time.sleep(dice.random() ** 3 * 0.02)
        yield

    with watched(hook):
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

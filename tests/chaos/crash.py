"""One case: a job that is struck down, looked at, struck again perhaps, and then simply run once more.

Each case has a process of its own without threads, which forks the run that is to die. So no case can hurt another,
and a case is some 0.2 s.
"""

import logging
import multiprocessing.forkserver
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

from maskrcnn_jobs.segment import collect_garbage

from chaos.defects import DEFECTS
from chaos.faulty_storage import Fault, NotApplicableError, Step, faulty, steps_of
from chaos.invariants import BrokenError, Truth, check_collected, check_is_final, check_promises, law
from chaos.local_job import Job, run_job
from maskrcnn.errors import MaskrcnnError
from maskrcnn.parts import standing_receipts
from maskrcnn.plan import read_plan
from maskrcnn.reduce import reduce_run
from maskrcnn.storage import Storage

WORKERS: Final = min(os.cpu_count() or 1, 4)
# The rest is what they import when they first need it, pandas for pyarrow's sake.
_PRELOADED: Final = ["chaos.crash", "importlib.readers", "numpy.ma", "pandas", "PIL.PpmImagePlugin", "pyarrow.dataset"]
_NOT_APPLICABLE: Final = 99


@dataclass(frozen=True)
class Scenario:
    """What is run and may be struck, and what a user runs to mend it."""

    run: Callable[[Job], object]
    resume: Callable[[Job], object]
    attempts_kept: bool = True
    """Whether what receipts list must be there at any moment."""


def _reduce(job: Job) -> object:
    return reduce_run(job.output)


def _gc(job: Job) -> object:
    return collect_garbage(job.output)


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "job": Scenario(run_job, run_job),
    "reduce again": Scenario(_reduce, run_job),
    "gc": Scenario(_gc, _gc, attempts_kept=False),
}


@dataclass(frozen=True)
class Case:
    """A job, and the fault of each run of it but the last."""

    scenario: str
    job: Job
    faults: tuple[Fault, ...]
    truth: Truth
    start: str | None = None
    """A folder to begin with a copy of."""
    defect: str | None = None
    """One of `defects.DEFECTS`, planted into the code for the time of the runs."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.scenario}, {', then '.join(map(str, self.faults))}, order {self.job.order}"


@dataclass(frozen=True)
class Outcome:
    """What became of a case whose laws all held."""

    struck: tuple[Step, ...]
    """Where each fault struck, …"""
    applicable: bool = True
    """… unless the last has no such half, or …"""
    none_left: bool = False
    """… the run had fewer calls than the fault asks for."""


def each(function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
    """Apply a function to each argument, each in a fresh process that has no threads; results in order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # Without it the server cannot import what it preloads.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        multiprocessing.forkserver.ensure_running()
    with context.Pool(WORKERS, maxtasksperchild=1) as pool:
        yield from pool.imap(function, arguments)


def run_case(case: Case) -> Outcome:
    """Run a case.

    Raises:
        BrokenError: a law does not hold.
    """
    os.environ.update(case.environment)
    logging.disable(logging.WARNING)
    scenario, url = SCENARIOS[case.scenario], case.job.output
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    tempfile.tempdir = str(scratch)
    if case.start:
        shutil.copytree(case.start, url)
    struck: list[Step] = []
    try:
        for number, fault in enumerate(case.faults):
            trace = scratch / f"trace-{number}"
            run = scenario.run if number == 0 else scenario.resume
            code = in_child(lambda: _disturbed(run, case, fault, trace))
            steps = steps_of(trace)
            if len(steps) < fault.number:
                law("end", code == 0, f"a run without a fault ended with {code}")
                check_is_final(url, case.truth)
                return Outcome(tuple(struck), none_left=True)
            if code == _NOT_APPLICABLE:
                return Outcome(tuple(struck), applicable=False)
            struck.append(steps[fault.number - 1])
            _check_code(fault, code)
            check_promises(url, case.truth, attempts_kept=scenario.attempts_kept)
            _check_refusal(case)
        _mended(case, scenario)
    except BrokenError as error:
        raise BrokenError(f"{error} [{case}; struck {'; '.join(map(str, struck))}]") from None
    finally:
        shutil.rmtree(scratch)
        if not url.startswith("s3://"):
            shutil.rmtree(url, ignore_errors=True)
    return Outcome(tuple(struck))


def _disturbed(run: Callable[[Job], object], case: Case, fault: Fault, trace: Path) -> None:
    with _planted(case), faulty(fault, trace):
        run(case.job)


def _planted(case: Case) -> Any:
    return DEFECTS[case.defect](case.job) if case.defect else nullcontext()


def _mended(case: Case, scenario: Scenario) -> None:
    """Run the plain command until its end, and check what it made; then collect the garbage."""
    with _planted(case):
        scenario.resume(case.job)
    if scenario.attempts_kept:
        check_is_final(case.job.output, case.truth)
    collect_garbage(case.job.output)
    check_collected(case.job.output, case.truth)


def _check_code(fault: Fault, code: int) -> None:
    """A killed run is dead; one whose storage failed says so, or got over it."""
    killed = (-signal.SIGKILL, -signal.SIGXFSZ)
    allowed = killed if fault.mode.startswith("kill") else (0, 3)
    law("end", code in allowed, f"the run ended with exit code {code}")


def _check_refusal(case: Case) -> None:
    """While shards are missing, `maskrcnn reduce` refuses."""
    storage = Storage(case.job.output)
    plan = read_plan(storage)
    if plan is None or storage.exists("_SUCCESS") or not list(plan.pending(standing_receipts(storage))):
        return
    with _planted(case):
        try:
            reduce_run(case.job.output)
        except MaskrcnnError:
            return
    check_promises(case.job.output, case.truth)
    raise BrokenError("I5: an unfinished run was reduced")


def in_child(function: Callable[[], object]) -> int:
    """Run a function in a fork of this process; return its exit code, negative for the signal that ended it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            function()
            code = 0
        except NotApplicableError:
            code = _NOT_APPLICABLE
        except MaskrcnnError:
            code = 3
        except BaseException:  # noqa: BLE001 (nothing may leave a fork)
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

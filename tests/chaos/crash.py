"""One case: a job that is struck down, looked at, struck again perhaps, and then simply run once more.

Each case has a process of its own without threads, which forks the run that is to die. So no case can hurt another,
and a case is some 0.3 s.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import multiprocessing.forkserver
import os
import pickle
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

from maskrcnn_jobs.commands.gc import collect_garbage

from chaos.chance import chance
from chaos.defects import planted
from chaos.faulty_storage import Fault, NotApplicableError, Step, faulty, steps_of
from chaos.invariants import (
    BrokenError,
    GroundTruth,
    check_collected,
    check_is_final,
    check_promises,
    ground_truth_of,
    invariant,
    is_temporary,
    raw_files,
)
from chaos.local_job import (
    Job,
    bring_what_is_late,
    change_collection,
    continue_retry,
    run_job,
    run_retry,
    run_update,
    without_ray,
    write_collection,
)
from maskrcnn.errors import MaskrcnnError
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url
from maskrcnn.pipeline.plan import pending_of, read_plans
from maskrcnn.pipeline.receipts import complete_receipts
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.visualization.run_report import write_report

WORKERS: Final = min(os.cpu_count() or 1, 4)
_NOT_APPLICABLE: Final = 99


@dataclass(frozen=True)
class Scenario:
    """What is run and may be struck, and what a user runs to repair it."""

    run: Callable[[Job], object]
    resume: Callable[[Job], object]
    attempts_kept: bool = True
    """Whether what receipts list must be there at any moment."""


def _reduce(job: Job) -> object:
    return reduce_run(job.output, write_report=write_report)


def _gc(job: Job) -> object:
    return collect_garbage(job.output)


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "job": Scenario(run_job, run_job),
    "reduce": Scenario(_reduce, run_job),
    "retry": Scenario(run_retry, continue_retry),
    "update": Scenario(run_update, run_update),
    "gc": Scenario(_gc, _gc, attempts_kept=False),
}
"""A job from nothing; tables written again, a retry, an update, and garbage collected, of a finished run."""


@dataclass(frozen=True)
class Case:
    """A job, and the fault of each run of it but the last."""

    scenario: str
    job: Job
    faults: tuple[Fault, ...]
    ground_truth: GroundTruth
    start: str | None = None
    """A folder to begin with a copy of."""
    defect: str | None = None
    """One of `defects.DEFECTS`, planted into the code for the time of the runs."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.scenario}, {', then '.join(map(str, self.faults))}, order {self.job.order}"


@dataclass(frozen=True)
class Outcome:
    """What became of a case whose invariants all held."""

    struck: tuple[Step, ...]
    """Where each fault struck, …"""
    applicable: bool = True
    """… unless the last has no such half, or …"""
    none_left: bool = False
    """… the run had fewer calls than the fault asks for."""


class Stage:
    """Collections, and what each scenario makes of them when nothing disturbs it.

    Args:
        folder: where everything is put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = itertools.count()
        jobs = {name: self._new_job(name) for name in ("job", "other", "before", "outdated")}
        jobs["retry"], jobs["update"] = jobs["before"].to(self.fresh()), jobs["outdated"].to(self.fresh())
        with without_ray():
            for name in ("job", "other", "before", "outdated"):
                run_job(jobs[name])
            shutil.copytree(jobs["before"].output, jobs["retry"].output)
            bring_what_is_late(jobs["before"].source)
            run_retry(jobs["retry"])
            shutil.copytree(jobs["outdated"].output, jobs["update"].output)
            change_collection(jobs["outdated"].source)
            run_update(jobs["update"])
        self.finished = jobs["job"]
        """The undisturbed run."""
        self.other = jobs["other"]
        """One of other inputs."""
        self._jobs = jobs
        self._ground_truths = {name: ground_truth_of(job.output) for name, job in jobs.items()}
        self._ground_truths["retry"] = ground_truth_of(jobs["retry"].output, self._ground_truths["before"])
        self._ground_truths["update"] = ground_truth_of(
            jobs["update"].output, self._ground_truths["outdated"]
        )
        self._starts = {
            "job": None,
            "retry": jobs["before"].output,
            "update": jobs["outdated"].output,
        }
        self._steps: dict[str, list[Step]] = {}

    def _new_job(self, name: str) -> Job:
        source = write_collection(self._folder / name, chance("collection", name).randrange(2**31))
        return Job(source, self.fresh())

    def fresh(self) -> str:
        """Return an output that nobody had before."""
        return str(self._folder / f"out-{next(self._names)}")

    def ground_truth(self, scenario: str) -> GroundTruth:
        """Return what a scenario ends with."""
        return self._ground_truths[scenario if scenario in self._ground_truths else "job"]

    def case(self, scenario: str, faults: Sequence[Fault] = (), order: int = 0, **more: Any) -> Case:
        """Return a case in an output of its own."""
        job = self._jobs[scenario if scenario in self._jobs else "job"].to(self.fresh(), order)
        start = self._starts.get(scenario, self.finished.output)
        return Case(scenario, job, tuple(faults), self.ground_truth(scenario), start, **more)

    def steps(self, scenario: str) -> list[Step]:
        """Return the mutating calls of an undisturbed run."""
        if scenario not in self._steps:
            case, trace = self.case(scenario), self._folder / "trace"
            if case.start:
                shutil.copytree(case.start, case.job.output)
            with without_ray(), faulty(None, trace):
                SCENARIOS[scenario].run(case.job)
            self._steps[scenario] = steps_of(trace)
            trace.unlink()
            shutil.rmtree(case.job.output)
        return self._steps[scenario]


def each(function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
    """Apply a function to each argument, each in a fresh process that has no threads; results in order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chaos.warm"])
    # Without it the server cannot import what it preloads.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        multiprocessing.forkserver.ensure_running()
    with context.Pool(WORKERS) as pool:
        yield from pool.imap(functools.partial(_apart, function), arguments)


def _apart(function: Callable[[Any], Any], argument: Any) -> Any:
    """Return or raise what a function does in a fork of this process, which stays as it is."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(out)
            try:
                result = (True, function(argument))
            except BaseException as error:  # noqa: BLE001 (the other process raises it)
                error.add_note(traceback.format_exc())
                result = (False, error)
            with os.fdopen(into, "wb") as file:
                pickle.dump(result, file)
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    well, result = pickle.loads(data)
    if well:
        return result
    raise result


def all_of(function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]:
    """Return what `each` gives, once all are done. Raises BrokenError with all that was broken, one per line."""
    results = list(each(functools.partial(_kept, function), arguments))
    broken = [str(result) for result in results if isinstance(result, BrokenError)]
    if broken:
        raise BrokenError(f"{len(broken)} of {len(results)}:\n" + "\n".join(broken))
    return results


def _kept(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except BrokenError as error:
        return error


@contextlib.contextmanager
def prepared(case: Case) -> Iterator[Path]:
    """Make ready what a case needs, and clean up after it; give a folder of its own for scratch."""
    os.environ.update(case.environment)
    logging.disable(logging.WARNING)
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    tempfile.tempdir = str(scratch)
    if case.start:
        shutil.copytree(case.start, case.job.output)
    try:
        with without_ray():
            yield scratch
    except BrokenError as error:
        raise BrokenError(f"{error} [{case}]") from None
    finally:
        shutil.rmtree(scratch)
        if Url.parse(case.job.output).is_local:
            shutil.rmtree(case.job.output, ignore_errors=True)


def run_case(case: Case) -> Outcome:
    """Run a case.

    Raises:
        BrokenError: an invariant does not hold.
    """
    struck: list[Step] = []
    with prepared(case) as scratch:
        for number, fault in enumerate(case.faults):
            trace = scratch / f"trace-{number}"
            code = in_child(functools.partial(_disturbed, case, number, trace))
            hit = [step for step in steps_of(trace) if step.number == fault.number]
            if not hit:
                invariant("end", code == 0, f"a run without a fault ended with exit code {code}")
                _repaired(case)
                return Outcome(tuple(struck), none_left=True)
            if code == _NOT_APPLICABLE:
                return Outcome(tuple(struck), applicable=False)
            struck += hit
            try:
                _check_code(fault, code)
                _check_crashed(case)
            except BrokenError as error:
                raise BrokenError(f"{error} [after {hit[0]}]") from None
        try:
            _repaired(case)
        except BrokenError as error:
            raise BrokenError(f"{error} [after {' and '.join(map(str, struck))}, and a resume]") from None
    return Outcome(tuple(struck))


def run_grown(case: Case) -> Outcome:
    """Run a case on a folder of its own, to which a file is added after the crash: it is no input of this run.

    Raises:
        BrokenError: an invariant does not hold.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = Path(scratch, "images")
        shutil.copytree(Path(case.job.source).parent, folder)
        job = Job(str(folder), case.job.output, case.job.order)
        undisturbed = job.to(str(Path(scratch, "undisturbed")))
        with without_ray():
            run_job(undisturbed)
        case = dataclasses.replace(case, job=job, ground_truth=ground_truth_of(undisturbed.output))
        trace = Path(scratch, "trace")
        with prepared(case):
            invariant("end", in_child(lambda: _disturbed(case, 0, trace)) < 0, "the run was not struck")
            shutil.copy(folder / "nothing.png", folder / "added.png")
            _repaired(case)
        return Outcome(tuple(step for step in steps_of(trace) if step.number == case.faults[0].number))


def _disturbed(case: Case, number: int, trace: Path) -> None:
    scenario = SCENARIOS[case.scenario]
    run = scenario.run if number == 0 else scenario.resume
    with planted(case.defect), faulty(case.faults[number], trace):
        run(case.job)


def _check_code(fault: Fault, code: int) -> None:
    """A killed run is dead; one whose storage failed says so, or got over it."""
    killed = (-signal.SIGKILL, -signal.SIGXFSZ)
    allowed = killed if fault.mode.startswith("kill") else (0, 3)
    invariant("end", code in allowed, f"the run ended with exit code {code}")


def _check_crashed(case: Case) -> None:
    """See that nothing false is promised; and that `reduce` refuses while shards are missing."""
    url = case.job.output
    check_promises(url, case.ground_truth, attempts_kept=SCENARIOS[case.scenario].attempts_kept)
    storage = Storage(url)
    if case.scenario == "gc" or not any(pending_of(read_plans(storage), complete_receipts(storage))):
        return
    with planted(case.defect):
        try:
            reduce_run(url, write_report=write_report)
        except MaskrcnnError:
            check_promises(url, case.ground_truth)
            return
    check_promises(url, case.ground_truth)
    raise BrokenError("I5: a run with missing shards was reduced")


def _repaired(case: Case) -> None:
    """Run the plain command until its end, and check what it made; then collect the garbage."""
    url, scenario = case.job.output, SCENARIOS[case.scenario]
    with planted(case.defect):
        try:
            scenario.resume(case.job)
        except Exception as error:
            raise BrokenError(f"end: the resume stopped: {type(error).__name__}: {error}") from error
    if scenario.attempts_kept:
        check_is_final(url, case.ground_truth)
    for path in raw_files(url, "") if Url.parse(url).is_local else []:
        if is_temporary(path):
            os.utime(Path(url, path), (0, 0))  # `gc` leaves alone what may still be in the making
    collect_garbage(url)
    check_collected(url, case.ground_truth)


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

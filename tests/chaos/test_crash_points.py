"""A job is struck down at every call that changes the output; the same command then ends as if nothing had happened."""

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from chaos.chance import SIZE, chance, dice
from chaos.crash import SCENARIOS, Case, Outcome, each, run_case
from chaos.faulty_storage import FINDING, MODES, MUTATING, PHASES, READING, Fault, Mode, faulty, steps_of
from chaos.invariants import Truth, check_collected, check_is_final, truth_of
from chaos.local_job import Job, elsewhere, run_job, write_collection
from conftest import S3Server
from maskrcnn.storage import Storage

PAIRS = 24
S3_POINTS = 12


class Undisturbed:
    """A collection, what a run makes of it that nothing disturbs, and how many calls that takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = Job(write_collection(folder / "images", seed=chance("collection").randrange(2**31)), "")
        self.finished = str(folder / "finished")
        run_job(elsewhere(self.job, self.finished))
        self.truth = truth_of(self.finished)

    def start_of(self, scenario: str) -> str | None:
        return None if scenario == "job" else self.finished

    def calls(self, scenario: str) -> int:
        """Return how many mutating calls a run has, once it has been checked that they are all there."""
        trace, output = self.folder / "trace", str(self.folder / "counted")
        if start := self.start_of(scenario):
            shutil.copytree(start, output)
        with faulty(None, trace):
            SCENARIOS[scenario].run(elsewhere(self.job, output))
        count = len(steps_of(trace))
        trace.unlink()
        shutil.rmtree(output)
        return count

    def case(self, scenario: str, faults: Sequence[Fault], order: int, **more: object) -> Case:
        name = "-".join([scenario, *map(str, faults), str(order)]).replace(" ", "-")
        job = elsewhere(self.job, str(self.folder / name), order)
        return Case(scenario, job, tuple(faults), self.truth, self.start_of(scenario), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("crash"))


def told(capsys: pytest.CaptureFixture[str], what: str, outcomes: Iterable[Outcome]) -> Counter[str]:
    """Print how many points were struck in which phase, and return it."""
    struck = Counter(outcome.struck[-1].phase for outcome in outcomes if outcome.struck and outcome.applicable)
    phases = ", ".join(f"{phase} {struck[phase]}" for phase in (*PHASES, "gc") if phase in struck)
    with capsys.disabled():
        print(f"\n{what}: {struck.total()} crash points: {phases}; {dice()}", end="")
    return struck


def enumerated(undisturbed: Undisturbed, scenario: str, mode: Mode) -> list[Outcome]:
    """Strike each call of a run in turn, until a run has no call left to strike."""
    calls = undisturbed.calls(scenario)
    cases = [undisturbed.case(scenario, [Fault(n, mode)], order=n) for n in range(1, calls + 2)]
    outcomes = list(each(run_case, cases))
    assert [outcome.none_left for outcome in outcomes] == [False] * calls + [True]
    return outcomes[:-1]


def test_every_method_of_the_storage_is_known_to_change_it_or_not() -> None:
    public = {name for name, value in vars(Storage).items() if callable(value) and name[0] != "_"}
    assert public <= {*MUTATING, *READING}
    assert FINDING >= {"write", "put_file", "building", "remove", "remove_tree"}


def test_the_undisturbed_run_keeps_every_law(undisturbed: Undisturbed) -> None:
    check_is_final(undisturbed.finished, undisturbed.truth)
    assert len(undisturbed.truth.shards) == 4
    status = Storage(undisturbed.finished).read("_SUCCESS")
    assert b'"failed": 2' in status


@pytest.mark.parametrize("mode", MODES)
def test_a_job_struck_at_any_call_ends_as_if_nothing_had_happened(
    undisturbed: Undisturbed, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = enumerated(undisturbed, "job", mode)
    struck = told(capsys, f"a job, {mode}", outcomes)
    assert set(struck) == set(PHASES)
    if not mode.endswith("half"):
        assert struck.total() == len(outcomes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", ["reduce again", "gc"])
def test_what_is_run_on_a_finished_output_may_be_struck_too(
    undisturbed: Undisturbed, scenario: str, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, f"{scenario}, {mode}", enumerated(undisturbed, scenario, mode)).total() > 0


def test_the_resume_may_be_struck_as_well(
    undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    dealt, calls = chance("pairs"), undisturbed.calls("job")
    first = [Fault(dealt.randint(1, calls), dealt.choice(MODES)) for _ in range(PAIRS * SIZE)]
    # After a later first fault the resume has fewer calls; one that is not reached is an undisturbed resume.
    pairs = [(fault, Fault(dealt.randint(1, calls - fault.number + 8), dealt.choice(MODES))) for fault in first]
    cases = [undisturbed.case("job", pair, order=n + 1) for n, pair in enumerate(pairs)]
    outcomes = [outcome for outcome in each(run_case, cases) if len(outcome.struck) == 2]
    told(capsys, "a job and its resume", outcomes)
    assert len(outcomes) >= PAIRS * SIZE / 4


@pytest.mark.s3
def test_a_job_on_s3_may_be_struck_too(
    undisturbed: Undisturbed, moto_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    dealt, calls = chance("s3"), undisturbed.calls("job")
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    points = sorted(dealt.sample(range(1, calls + 1), min(S3_POINTS * SIZE, calls)))
    cases = []
    for n in points:
        job = elsewhere(undisturbed.job, moto_server.prefix(), order=n)
        fault = Fault(n, dealt.choice(MODES))
        cases.append(Case("job", job, (fault,), undisturbed.truth, environment=environment))
    told(capsys, "a job on S3", each(run_case, cases))

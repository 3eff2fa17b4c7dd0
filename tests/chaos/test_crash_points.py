"""A job is struck down at every call that changes its output; the same command then ends as if nothing had happened."""

import os
from collections import Counter
from collections.abc import Iterable

import pytest
from s3_servers import S3Server

from chaos.chance import SIZE, chance, dice
from chaos.crash import Case, Outcome, Stage, all_of, run_case
from chaos.faulty_storage import MODES, MUTATING, PHASES, READING, Fault, Mode
from chaos.invariants import check_is_final
from chaos.local_job import N_SHARDS
from maskrcnn.io.storage import Storage

MOST_TELLING: tuple[Mode, ...] = MODES if SIZE > 1 else ("raise half", "kill after")
"""To be killed before a call leaves what being killed after the one before it leaves."""
PAIRS = 4
S3_POINTS = 3


def report(capsys: pytest.CaptureFixture[str], what: str, outcomes: Iterable[Outcome]) -> Counter[str]:
    """Print the number of calls struck in each phase, and return it."""
    struck = Counter(
        outcome.struck[-1].phase for outcome in outcomes if outcome.struck and outcome.applicable
    )
    phases = ", ".join(f"{phase} {struck[phase]}" for phase in (*PHASES, "gc") if phase in struck)
    with capsys.disabled():
        print(f"\n{what}: {struck.total()} crash points: {phases}; {dice()}", end="")
    return struck


def enumerated(stage: Stage, scenario: str, mode: Mode) -> list[Outcome]:
    """Strike each call of a run in turn, until a run has no call left to strike."""
    calls = len(stage.steps(scenario))
    cases = [stage.case(scenario, [Fault(n, mode)], order=n) for n in range(1, calls + 2)]
    outcomes = all_of(run_case, cases)
    assert [outcome.none_left for outcome in outcomes] == [False] * calls + [True]
    return outcomes[:-1]


def test_every_method_of_the_storage_is_known_to_change_it_or_not() -> None:
    public = {name for name, value in vars(Storage).items() if callable(value) and name[0] != "_"}
    assert public == {*MUTATING, *READING}


def test_the_undisturbed_run_keeps_every_invariant(stage: Stage) -> None:
    check_is_final(stage.finished.output, stage.ground_truth("job"))
    assert len(stage.ground_truth("job").shards) == N_SHARDS
    assert b'"failed": 4' in Storage(stage.finished.output).read("_SUCCESS")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("scenario", "mode"),
    [("job", mode) for mode in MODES]
    + [(name, mode) for name in ("retry", "update") for mode in MOST_TELLING],
)
def test_a_job_struck_at_any_call_ends_as_if_nothing_had_happened(
    stage: Stage, scenario: str, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = enumerated(stage, scenario, mode)
    struck = report(capsys, f"{scenario}, {mode}", outcomes)
    assert set(struck) == set(PHASES)
    if not mode.endswith("half"):
        assert struck.total() == len(outcomes)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", MOST_TELLING)
@pytest.mark.parametrize("scenario", ["reduce", "gc"])
def test_what_is_run_on_a_finished_output_may_be_struck_too(
    stage: Stage, scenario: str, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(capsys, f"{scenario}, {mode}", enumerated(stage, scenario, mode)).total() > 0


@pytest.mark.parametrize("scenario", ["job", "retry", "update"])
def test_the_resume_may_be_struck_as_well(
    stage: Stage, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dealt, calls = chance("pairs", scenario), len(stage.steps(scenario))
    cases = []
    for number in range(1, PAIRS * SIZE + 1):
        first = Fault(dealt.randint(1, calls), dealt.choice(MODES))
        # After a later first fault the resume has fewer calls; one that is not reached is an undisturbed resume.
        second = Fault(dealt.randint(1, calls - first.number + 8), dealt.choice(MODES))
        cases.append(stage.case(scenario, [first, second], order=number))
    outcomes = [outcome for outcome in all_of(run_case, cases) if len(outcome.struck) == 2]
    report(capsys, f"{scenario} and its resume", outcomes)
    assert len(outcomes) >= len(cases) / 4


@pytest.mark.s3
def test_a_job_on_s3_may_be_struck_too(
    stage: Stage, moto_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    dealt, calls = chance("s3"), len(stage.steps("job"))
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    cases = []
    for number in sorted(dealt.sample(range(1, calls + 1), min(S3_POINTS * SIZE, calls))):
        job = stage.finished.to(moto_server.prefix(), order=number)
        fault = Fault(number, dealt.choice(MODES))
        cases.append(Case("job", job, (fault,), stage.ground_truth("job"), environment=environment))
    report(capsys, "a job on S3", all_of(run_case, cases))

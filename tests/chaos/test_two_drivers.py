"""Two commands on one output at once: one logical result, whoever was when where."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

import pytest
from fault_proxy import FaultProxy, ignoring
from s3_servers import ACCESS_KEY, SECRET_KEY, S3Server

from chaos.chance import SIZE, chance, dice
from chaos.crash import SCENARIOS, Case, Stage, all_of
from chaos.invariants import check_collected, check_finished, check_is_final
from chaos.local_job import map_again, run_job, without_ray
from chaos.two_drivers import Ends, Meeting, contend, meet, race

PAIRS = [("job", "job"), ("retry", "retry"), ("reduce", "reduce"), ("retry", "reduce"), ("update", "update")]
FEW = 6
SAMPLED = 3
CONTENDING = 4
RACES = 2
S3_MEETINGS = 1


@pytest.fixture
def forgetful_server(moto_process: S3Server) -> Iterator[S3Server]:
    """The environment points at a store that takes no notice of `If-None-Match`."""
    proxy = FaultProxy(moto_process.endpoint, ACCESS_KEY, SECRET_KEY)
    proxy.on("PUT", ignoring("If-None-Match"), times=None)
    with S3Server(proxy.endpoint).environment() as server:
        yield server
    proxy.stop()


def report(capsys: pytest.CaptureFixture[str], what: str, ends: Iterable[Ends]) -> list[Ends]:
    """Print the number of meetings, and how the commands ended."""
    ends = list(ends)
    said = Counter(re.sub(r"\S*/out-\d+", "OUT", line or "done") for end in ends for line in end.said)
    with capsys.disabled():
        lines = "; ".join(f"{count} x {line:.90}" for line, count in said.most_common())
        print(
            f"\n{what}: {len(ends)} meetings, {sum(e.resumed for e in ends)} resumed: {lines}; {dice()}",
            end="",
        )
    return ends


def telling(stage: Stage, scenario: str) -> list[int]:
    """Return the numbers of steps after which a command is halted: all; if few, those around what all shards share."""
    steps = stage.steps(scenario)
    return [0, *(step.number for step in steps if SIZE > 1 or step.phase in ("plan", "reduce"))]


def few(halts: list[tuple[int, int]], *about: object) -> list[tuple[int, int]]:
    return halts if SIZE > 1 else chance("few", *about).sample(halts, min(FEW, len(halts)))


def some_moves(*about: object) -> tuple[tuple[int, int], ...]:
    dealt = chance(*about)
    return tuple(
        (dealt.randrange(2), dealt.choice((1, 1, 2, 3, 5, 8))) for _ in range(dealt.randrange(2, 20))
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_whole_run_at_each_step_of_another(
    stage: Stage, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    halts = few([(0, n) for n in telling(stage, first)], first, second)
    if first != second:
        halts += few([(1, n) for n in telling(stage, second)], second, first)
    meetings = [Meeting(stage.case(first), second, ((who, n), (1 - who, None))) for who, n in halts]
    report(capsys, f"{first} and {second}, a whole run at each step", all_of(meet, meetings))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_steps_of_two_runs_in_any_order(
    stage: Stage, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dealt, meetings = chance("meetings", first, second), []
    for number in range(SAMPLED * SIZE):
        moves = some_moves(first, second, number)
        abandoned = dealt.choice((None, None, 0, 1))
        meetings.append(Meeting(stage.case(first), second, moves, abandoned, reads=number % 2 == 1))
    report(capsys, f"steps of {first} and {second}", all_of(meet, meetings))


def test_of_commands_of_other_inputs_nothing_mixed_is_ever_proven(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them gets the output, or it is seen that it is neither's."""
    planning = [((0, a), (1, b), (0, None)) for a in range(6) for b in range(6)]
    moves = chance("contending").sample(planning, min(CONTENDING * SIZE, len(planning)))
    meetings = [Meeting(stage.case("job"), "job", move) for move in moves]
    function = partial(contend, other=stage.other, ground_truth=stage.ground_truth("other"))
    ends = report(capsys, "two jobs of other inputs", all_of(function, meetings))
    assert not all(end.resumed for end in ends)


@pytest.mark.parametrize(("first", "second"), [("job", "job"), ("retry", "retry")])
def test_two_processes_at_once(
    stage: Stage, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    meetings = [Meeting(stage.case(first, order=n), second, ()) for n in range(1, RACES * SIZE + 1)]
    report(capsys, f"{first} and {second} at once", all_of(race, meetings))


@pytest.mark.s3
@pytest.mark.sampled(1)
@pytest.mark.parametrize("server", ["moto_server", "forgetful_server"])
def test_two_drivers_on_s3_with_and_without_conditional_writes(
    stage: Stage, server: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    store: S3Server = request.getfixturevalue(server)
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def case(number: int) -> Case:
        job = stage.finished.to(store.prefix(), order=number)
        return Case("job", job, (), stage.ground_truth("job"), environment=environment)

    numbers = range(1, S3_MEETINGS * SIZE + 1)
    if server == "forgetful_server" or SIZE > 1:
        meetings = [Meeting(case(n), "job", some_moves(server, n), reads=True) for n in numbers]
        report(capsys, f"step by step, {server}", all_of(meet, meetings))
    report(capsys, f"at once, {server}", all_of(race, [Meeting(case(n), "job", ()) for n in numbers]))


def test_a_worker_that_comes_too_late_changes_nothing_that_users_read(stage: Stage) -> None:
    job, ground_truth = stage.finished.to(stage.fresh()), stage.ground_truth("job")
    with without_ray():
        run_job(job)
        map_again(job)
        check_is_final(job.output, ground_truth)
        SCENARIOS["reduce"].run(job)
        check_is_final(job.output, ground_truth)
        SCENARIOS["gc"].run(job)
        map_again(job)
        check_finished(job.output, ground_truth, attempts_kept=False)
        SCENARIOS["gc"].run(job)
        check_collected(job.output, ground_truth)

"""Two commands on one output at once: one logical result, whoever was when where."""

import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.chance import SIZE, chance, dice
from chaos.crash import Case, Stage, each
from chaos.faulty_storage import PHASES
from chaos.meeting import Ends, Meeting, meet, race
from conftest import BUCKET, S3Server, free_port

PAIRS = [("job", "job"), ("retry", "retry"), ("reduce", "reduce"), ("retry", "reduce")]
SAMPLED = 16
RACES = 6
S3_MEETINGS = 4


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("drivers"))


def told(capsys: pytest.CaptureFixture[str], what: str, ends: Iterable[Ends]) -> list[Ends]:
    """Print how many meetings there were, and how the commands ended."""
    ends = list(ends)
    said = Counter(line.split("out-")[-1] if line else "done" for end in ends for line in end.said)
    with capsys.disabled():
        lines = "; ".join(f"{count} x {line:.90}" for line, count in said.most_common())
        print(f"\n{what}: {len(ends)} meetings, {sum(e.resumed for e in ends)} resumed: {lines}; {dice()}", end="")
    return ends


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_whole_run_at_each_step_of_another(
    stage: Stage, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = len(stage.steps(first))
    meetings = [Meeting(stage.case(first), second, ((0, n), (1, None))) for n in range(steps + 1)]
    told(capsys, f"{second} at each step of {first}", each(meet, meetings))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_steps_of_two_runs_in_any_order(
    stage: Stage, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dealt, meetings = chance("meetings", first, second), []
    for number in range(SAMPLED * SIZE):
        moves = tuple((dealt.randrange(2), dealt.choice((1, 1, 2, 3, 5, 8))) for _ in range(dealt.randrange(2, 20)))
        abandoned = dealt.choice((None, None, 0, 1))
        meetings.append(Meeting(stage.case(first), second, moves, abandoned, reads=number % 2 == 1))
    told(capsys, f"steps of {first} and {second}", each(meet, meetings))

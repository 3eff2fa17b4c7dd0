"""The suite can fail: with each defect planted into the real code, the same search that passes without it finds it."""

from typing import Final

import pytest

from chaos.chance import dice
from chaos.crash import Case, Outcome, Stage, each, run_case, run_grown
from chaos.defects import DEFECTS
from chaos.faulty_storage import Fault, Mode
from chaos.invariants import BrokenError

# The scenario, the phase and the mode in which a defect shows, and the invariant that it breaks.
WHERE: Final[dict[str, tuple[str, str, Mode, str]]] = {
    "receipt_first": ("job", "PUT receipt", "kill after", "I3: shards/.* is missing"),
    "incomplete_reduce": ("job", "PUT part", "kill before", "I1: |I4: images/.*|I5: "),
    "forgetful_retry": ("retry", "plan", "kill before", "I4: other tables"),
    "retry_alone": ("retry", "plan", "kill before", "I1: "),
    "streamed_parts": ("job", "PUT part", "kill half", "I4: .* is a part of a file"),
    "success_first": ("job", "reduce", "kill after", "I3: |I7: "),
    "ids_as_they_come": ("job", "PUT receipt", "kill after", "I2: |I4: "),
    "plan_before_manifest": ("job", "plan", "kill after", "end: .*manifest.parquet is missing"),
}


def searched(stage: Stage, scenario: str, phase: str, mode: Mode, defect: str | None) -> list[Outcome]:
    steps = [step.number for step in stage.steps(scenario) if step.phase == phase]
    cases = [stage.case(scenario, [Fault(n, mode)], order=n, defect=defect) for n in steps]
    return list(each(run_case, cases))


@pytest.mark.parametrize("defect", sorted(WHERE))
def test_a_planted_defect_is_found(stage: Stage, defect: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenario, phase, mode, invariant = WHERE[defect]
    with pytest.raises(BrokenError, match=invariant) as found:
        searched(stage, scenario, phase, mode, defect)
    with capsys.disabled():
        print(f"\n{defect}: {found.value!s:.200}; {dice()}", end="")


def grown(stage: Stage, defect: str | None) -> list[Case]:
    """Cases of a folder that gets another file after the crash, in which the plan stood already."""
    of_list = next(step.number for step in stage.steps("job") if step.path == "plan.json")
    planned = (
        of_list + 1
    )  # a folder has files that are skipped, and these are listed before the plan is written
    points = (planned, planned + 1, planned + 5, planned + 10)
    return [stage.case("job", [Fault(n, "kill after")], order=n, defect=defect) for n in points]


def test_a_resume_keeps_to_the_inputs_that_were_planned(stage: Stage) -> None:
    assert all(outcome.struck for outcome in each(run_grown, grown(stage, None)))


def test_a_resume_that_lists_its_inputs_again_is_found(stage: Stage) -> None:
    with pytest.raises(BrokenError, match=r"I1: |I4: |end: "):
        list(each(run_grown, grown(stage, "listed_again")))


def test_each_defect_is_searched_for() -> None:
    assert {*WHERE, "listed_again"} == set(DEFECTS)

"""Disks that are full or read-only: one clear line, exit code 3, and the same command goes on once there is space."""

from collections import Counter
from pathlib import Path

import pytest

from chaos.chance import SIZE, chance, dice
from chaos.crash import Stage, all_of
from chaos.disks import (
    PAGE,
    SCRATCHES,
    Hardship,
    Report,
    Scratch,
    run_in_hardship,
    run_without_scratch,
    small_disk,
)
from chaos.faulty_storage import PHASES, Fault

POINTS = 12


@pytest.fixture(scope="module")
def mountable(tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether this process may mount a file system."""
    with small_disk(tmp_path_factory.mktemp("disks") / "probe", 2**20) as disk:
        return disk.mounted


def test_a_job_whose_disk_is_full_goes_on_when_there_is_space(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(stage.finished.output)
    pages = sum(-(-path.stat().st_size // PAGE) for path in output.rglob("*") if path.is_file())
    dealt = chance("full")
    free = sorted(dealt.sample(range(pages), min(POINTS * SIZE, pages)))
    hardships = [Hardship(stage.case("job"), n * PAGE) for n in [0, *free, pages + 64]]
    reports: list[Report] = all_of(run_in_hardship, hardships)
    assert reports[-1].step is None, "with space enough nothing is wrong"
    struck = Counter(report.step.phase for report in reports if report.step)
    with capsys.disabled():
        phases = ", ".join(f"{phase} {struck[phase]}" for phase in PHASES)
        print(f"\nfull disk ({reports[0].disk}): {struck.total()} times: {phases}; {dice()}", end="")
    if reports[0].disk == "tmpfs":
        assert {"plan", "PUT part", "reduce"} <= set(struck)


def test_a_job_whose_disk_is_read_only_goes_on_when_it_is_not(stage: Stage, mountable: bool) -> None:
    if not mountable:
        pytest.skip("needs a file system that may be mounted")
    calls = len(stage.steps("job"))
    killed = [None, *(Fault(n, "kill after") for n in (5, calls // 2, calls - 3))]
    reports = all_of(run_in_hardship, [Hardship(stage.case("job"), None, done) for done in killed])
    assert len({report.step.phase for report in reports}) > 1


@pytest.mark.parametrize("kind", SCRATCHES)
def test_files_for_a_store_are_built_in_a_place_that_is_named_when_it_fails(
    stage: Stage, kind: str, mountable: bool
) -> None:
    if not mountable and kind in SCRATCHES[2:]:
        pytest.skip("needs a file system that may be mounted")
    [report] = all_of(run_without_scratch, [Scratch(stage.case("job"), kind, remote=True, noticed=False)])
    assert "\n" not in report.line


def test_an_unusable_place_is_passed_over_and_a_local_output_needs_none(
    stage: Stage, mountable: bool
) -> None:
    """Python takes the next place where `TMPDIR` is not a folder."""
    kinds = SCRATCHES if mountable else SCRATCHES[:2]
    remote = [Scratch(stage.case("job"), kind, remote=True, noticed=True) for kind in kinds]
    local = [Scratch(stage.case("job"), kind, remote=False, noticed=False) for kind in kinds]
    all_of(run_without_scratch, remote + local)

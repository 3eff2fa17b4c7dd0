"""Images that kill, hang or exhaust the process that works on them, among others, on a real Ray with two actors."""

from pathlib import Path

import pytest

from chaos.chance import SEED, SIZE, chance, dice
from chaos.poison import KINDS, Kind, run_poisoned, table_of

pytestmark = pytest.mark.ray


def one_for_each_code() -> list[Kind]:
    dealt = chance("kinds of poison")
    codes = sorted({kind.code for kind in KINDS})
    return [dealt.choice([kind for kind in KINDS if kind.code == code]) for code in codes]


@pytest.mark.timeout(1800)
def test_poison_is_found_and_failed_and_nobody_else_is_harmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kind for each code, drawn by the seed; three of each kind among 200 by `python -m tests.chaos.poison`."""
    kinds = one_for_each_code() if SIZE == 1 else list(KINDS) * min(SIZE, 3)
    found = run_poisoned(tmp_path, kinds, 32 if SIZE == 1 else 200, SEED, timeout_s=12)
    with capsys.disabled():
        print(f"\n{dice()}\n{table_of(found)}")
    assert found.faults() == []

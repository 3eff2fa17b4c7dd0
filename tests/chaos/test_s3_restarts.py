"""A real S3 server is killed in mid-run and comes back; ten rounds by `python -m tests.chaos.s3_restarts`."""

import pytest

from chaos.chance import SEED, SIZE, dice
from chaos.s3_restarts import line_of, rounds, shore

pytestmark = [pytest.mark.ray, pytest.mark.s3]


@pytest.mark.timeout(1800)
def test_a_run_outlives_its_s3_server(capsys: pytest.CaptureFixture[str]) -> None:
    with shore(SEED) as stand:
        for outcome in rounds(stand, SEED, min(SIZE, 10)):
            with capsys.disabled():
                print(f"\n{dice()}  {line_of(outcome)}")
            assert outcome.counted, outcome
            assert outcome.good, outcome
            assert outcome.exits == [0]

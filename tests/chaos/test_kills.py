"""Workers, nodes and drivers die in every phase, on one standing cluster; `python -m tests.chaos.kills` does more."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import kills
from chaos.chance import SEED, chance, dice
from chaos.cluster import VICTIMS, Arena, Kill, arena
from chaos.kills import TRIES, line_of, record_of, schedule
from chaos.probes import CHANGED_FOR_CHAOS, CHANGED_FOR_POISON, INSIDE, PHASES, check_changed

pytestmark = pytest.mark.ray

CASES = (
    ("worker", "model"),
    ("worker", "receipt"),
    ("node", "part"),
    ("driver", "fetch"),
    ("driver", "reduce"),
)


@pytest.fixture(scope="module")
def stand() -> Iterator[Arena]:
    with arena(SEED) as stand:
        yield stand


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("victim", "phase"), CASES)
def test_whatever_is_killed_the_run_ends_as_if_nothing_had_happened(
    victim: str, phase: str, stand: Arena, capsys: pytest.CaptureFixture[str]
) -> None:
    dice_of_case = chance("kills", victim, phase)
    for attempt in range(TRIES):
        outcome = stand.run(
            f"{victim}-{phase}-{attempt}", [Kill(victim, phase, dice_of_case.uniform(0, 0.8))]
        )
        with capsys.disabled():
            print(f"\n{dice()}  {line_of(record_of(SEED, attempt, [], outcome))}")
        assert outcome.good, outcome
        assert outcome.exits == ([-9, 0] if victim == "driver" else [0])
        if outcome.counted:
            return
    pytest.fail("never was a shard in flight")


def test_a_worker_that_gets_a_sigterm_hands_its_shards_back(stand: Arena) -> None:
    """As a cloud does it that takes a machine away: SIGTERM, and some time."""
    outcome = stand.run("notice", [Kill("notice", "model", 0.3)])
    assert outcome.counted, outcome
    assert outcome.good, outcome
    [said] = [
        line for line in outcome.said.splitlines() if "handed back" in line and "an actor ended" in line
    ]
    back = set(re.findall(r"\b1-\d{8}\b", said))
    assert back
    receipts = [json.loads(path.read_text()) for path in (stand.folder / "notice" / "receipts").iterdir()]
    done_by = {receipt["shard"]: receipt["execution"]["pid"] for receipt in receipts}
    assert all(done_by[shard] != outcome.killed[0].pid for shard in back)


def test_every_process_of_an_undisturbed_run_comes_to_every_phase(stand: Arena) -> None:
    """The instruments work: the inputs are read, each once; the files of each shard are put, and its receipt."""
    shards = len(list((stand.folder / "undisturbed" / "receipts").iterdir()))
    assert stand.counts["worker", "fetch"] == len(list(stand.images.glob("*.png")))
    assert stand.counts["worker", "part"] == 2 * 2 * shards  # two files, before and after
    assert stand.counts["worker", "receipt"] == 2 * shards
    assert min(stand.counts["worker", phase] for phase in PHASES) > 0


# --- the schedule and the table, without a cluster ---


def test_a_schedule_takes_each_victim_in_each_phase_in_turn_and_is_the_same_again() -> None:
    cells = set(itertools.product(VICTIMS, PHASES))
    runs = [schedule(7, run) for run in range(100)]
    assert runs == [schedule(7, run) for run in range(100)]
    assert runs != [schedule(8, run) for run in range(100)]
    assert {(one[0].victim, one[0].phase) for one in runs[15:30]} == cells
    hits = [kill.phase for one in runs for kill in one]
    assert all(hits.count(phase) >= 18 for phase in PHASES)


def test_what_is_wrong_with_runs_is_found() -> None:
    kill = {"victim": "node", "phase": "part", "side": "after", "call": "", "receipts": 1, "in_flight": 1}
    good = {
        "run": 0, "killed": [kill], "counted": True, "missed": "", "lost": 0, "doubled": 0, "orphans": 0,
        "broken": "", "seconds": 1.0,
    }  # fmt: skip
    every = [good | {"killed": [kill | {"phase": phase}]} for phase in PHASES]
    assert kills.faults(every, 5) == []
    assert kills.faults(every, 6) == ["5 runs counted, not 6"]
    assert kills.faults(every * 2, 10) == []
    assert kills.faults(every * 3 + [good] * 15, 30) == []
    assert kills.faults(every[1:] * 8, 30) == ["fetch was hit 0 times"]
    for bad in ({"lost": 1}, {"doubled": 1}, {"orphans": 1}, {"broken": "I3"}):
        assert len(kills.faults([*every, good | bad], 5)) == 1


# --- what is put into the processes of a run ---


def test_each_change_is_of_a_module_and_a_function_that_exist(tmp_path: Path) -> None:
    """A process that loads the modules has changed all of them."""
    modules = CHANGED_FOR_CHAOS | CHANGED_FOR_POISON
    environment = {
        "PYTHONPATH": os.pathsep.join([str(INSIDE), *sys.path]),
        "MASKRCNN_CHAOS": str(tmp_path),
        "MASKRCNN_POISON": str(tmp_path),
    }
    code = "".join(f"import {module}\n" for module in sorted(modules))
    subprocess.run([sys.executable, "-c", code], env=os.environ | environment, check=True)
    check_changed(tmp_path, modules)
    with pytest.raises(RuntimeError, match=r"no\.such"):
        check_changed(tmp_path, modules | {"no.such"})

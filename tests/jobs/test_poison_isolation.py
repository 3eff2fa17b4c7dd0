"""Which image ended the worker: it is found in at most three executions, no other image is, and nothing is endless.

`Trial` plays the driver against images of known nature, without Ray: it runs the tasks of the isolation, and dies if a
poisonous image is among those that are computed.
"""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.driver.poison_isolation import (
    MAX_EXTERNAL,
    MAX_STORE_FAILURES,
    MAX_UNEXPLAINED,
    STORE_PAUSE_S,
    Failure,
    PoisonIsolation,
    Task,
)

from maskrcnn.errors import ItemError, RunError
from maskrcnn.pipeline.plan import Shard
from maskrcnn.pipeline.worker import Announcement

CRASH = Failure("worker_crash", "its process died")
NODE = Failure("worker_crash", "its node is gone", external=True)


class Simulation:
    """Runs a shard of some rows, in groups, until it ends well.

    Args:
        rows: in the shard.
        group: rows that are computed at once.
        poison: rows that end their process.
    """

    def __init__(self, rows: int, group: int, poison: set[int]) -> None:
        self.shard = Shard("1-00000000", 0, rows)
        self.groups = [range(start, min(start + group, rows)) for start in range(0, rows, group)]
        self.poison = poison
        self.executions: Counter[int] = Counter()
        self.codes: dict[int, str] = {}

    def run(self, isolation: PoisonIsolation, interruptions: random.Random | None = None) -> None:
        task = Task(self.shard)
        while True:
            if interruptions and interruptions.random() < 0.3:
                isolation.execution_failed(task, NODE)
            elif task.alone is not None:
                self.executions[task.alone] += 1
                if task.alone in self.poison:
                    failure = isolation.execution_failed(task, CRASH)
                    assert failure is not None
                    self.codes[task.alone] = failure.code
                else:
                    isolation.survived(task)
            else:
                fatal = self.process(task)
                if fatal is None:
                    return
                said = Announcement(fatal, self.before(fatal)) if task.trace else Announcement(())
                assert isolation.execution_failed(task, CRASH, said) is None
            task = isolation.next_task()

    def before(self, group: list[int]) -> list[int]:
        """Return the group that was computed before one."""
        index = next(n for n, each in enumerate(self.groups) if group[0] in each)
        return list(self.groups[index - 1]) if index else []

    def process(self, task: Task) -> list[int] | None:
        """Compute group by group; return the one that ended the process."""
        for group in self.groups:
            todo = [row for row in group if row not in task.quarantined]
            self.executions.update(todo)
            if self.poison & set(todo):
                return todo
        return None


@given(st.integers(1, 40), st.integers(1, 8), st.sets(st.integers(0, 39), max_size=6), st.booleans())
def test_exactly_the_poison_is_quarantined_whatever_happens_to_nodes(
    rows: int, group: int, poison: set[int], interrupted: bool
) -> None:
    simulation = Simulation(rows, group, {row for row in poison if row < rows})
    simulation.run(PoisonIsolation(simulation.shard, "probes"), random.Random(rows) if interrupted else None)
    assert simulation.codes == dict.fromkeys(simulation.poison, "worker_crash")


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 39))
def test_a_poison_item_is_executed_three_times(rows: int, group: int, poison: int) -> None:
    simulation = Simulation(rows, group, {poison % rows})
    simulation.run(PoisonIsolation(simulation.shard, "probes"))
    assert simulation.executions[poison % rows] == 3


@given(st.integers(1, 40), st.integers(1, 8), st.sets(st.integers(0, 39), max_size=8))
def test_no_poison_item_is_executed_more_than_three_times(rows: int, group: int, poison: set[int]) -> None:
    simulation = Simulation(rows, group, {row for row in poison if row < rows})
    simulation.run(PoisonIsolation(simulation.shard, "probes"))
    assert all(simulation.executions[row] <= 3 for row in simulation.poison)


@pytest.mark.parametrize("code", ["worker_crash", "timeout", "out_of_memory"])
def test_the_error_is_how_the_image_ended_its_process_alone(code: str) -> None:
    isolation = PoisonIsolation(Shard("1-00000000", 0, 9), "probes")
    isolation.execution_failed(Task(isolation.shard), CRASH)
    isolation.execution_failed(isolation.next_task(), CRASH, Announcement([4]))
    assert isolation.needs_fresh_process
    assert isolation.next_task().alone == 4
    failure = isolation.execution_failed(isolation.next_task(), Failure(code, "so it was"))
    assert failure is not None
    assert (failure.code, failure.message) == (code, "alone in its process: so it was")
    assert isolation.next_task().quarantined == {4: failure}


def test_deaths_that_quarantines_nobody_come_to_an_end() -> None:
    isolation = PoisonIsolation(Shard("1-00000007", 70, 80), "probes")
    for _ in range(MAX_UNEXPLAINED - 1):
        isolation.execution_failed(isolation.next_task(), CRASH)
    with pytest.raises(RunError, match=r"shard 1-00000007 \(rows 70 to 79\) ended its worker 5 times"):
        isolation.execution_failed(isolation.next_task(), CRASH)


def test_nodes_may_go_often_but_not_for_ever() -> None:
    isolation = PoisonIsolation(Shard("1-00000000", 0, 9), "probes")
    for _ in range(MAX_EXTERNAL):
        assert isolation.execution_failed(isolation.next_task(), NODE) is None
        assert isolation.next_task().trace is None  # no suspicion follows from it
    with pytest.raises(RunError):
        isolation.execution_failed(isolation.next_task(), NODE)


def test_a_failing_store_is_given_time_and_then_up() -> None:
    now = [0.0]
    isolation = PoisonIsolation(Shard("1-00000000", 0, 9), "probes", clock=lambda: now[0])
    for number in range(MAX_STORE_FAILURES - 1):
        isolation.store_failed(RunError("cannot write"))
        assert not isolation.due
        now[0] += STORE_PAUSE_S * 2**number
        assert isolation.due
        assert not isolation.next_task().careful
    with pytest.raises(RunError, match="cannot write"):
        isolation.store_failed(RunError("cannot write"))


def test_with_a_culprit_found_the_group_before_is_left_in_peace() -> None:
    isolation = PoisonIsolation(Shard("1-00000000", 0, 9), "probes")
    isolation.execution_failed(Task(isolation.shard), CRASH)
    isolation.execution_failed(isolation.next_task(), CRASH, Announcement([4], [3]))
    isolation.execution_failed(isolation.next_task(), CRASH)
    assert not isolation.needs_fresh_process
    assert isolation.next_task().quarantined.keys() == {4}


def test_what_took_effect_a_moment_later_is_found_in_the_group_before() -> None:
    isolation = PoisonIsolation(Shard("1-00000000", 0, 9), "probes")
    isolation.execution_failed(Task(isolation.shard), CRASH)
    isolation.execution_failed(isolation.next_task(), CRASH, Announcement([4], [3]))
    isolation.survived(isolation.next_task())
    assert isolation.next_task().alone == 3


def test_what_decoding_has_found_out_is_not_found_out_again() -> None:
    isolation, failure = (
        PoisonIsolation(Shard("1-00000000", 0, 9), "probes"),
        ItemError("timeout", "not decoded"),
    )
    isolation.execution_failed(Task(isolation.shard), CRASH)
    isolation.execution_failed(isolation.next_task(), CRASH, Announcement([4], [], {2: failure}))
    isolation.survived(isolation.next_task())
    assert isolation.next_task().quarantined == {2: failure}

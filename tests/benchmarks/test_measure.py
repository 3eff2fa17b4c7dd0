"""Measuring: whose turn it is, what a ratio is, whose CPU seconds count."""

import doctest
import json
import subprocess
import sys
import time

import pytest

from benchmarks import measure
from benchmarks.measure import CpuMeter, Pairs, Row, alternate, machine, rounds, row, seconds, table, to_json

pytestmark = pytest.mark.slow


def test_the_examples_hold() -> None:
    assert doctest.testmod(measure).failed == 0


def test_sides_take_turns_and_the_first_changes() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    pairs = alternate(lambda: side("ours"), lambda: side("baseline"), 3)
    assert order == ["ours", "baseline", "baseline", "ours", "ours", "baseline"]
    assert pairs == Pairs((1.0, 4.0, 5.0), (2.0, 3.0, 6.0))
    assert rounds({"one": lambda: 7}, 2) == {"one": [7, 7]}


def test_the_ratio_is_of_repeats_not_of_medians() -> None:
    pairs = Pairs((1.0, 2.0, 10.0), (2.0, 2.0, 50.0))
    faster = row("s", "w", pairs, unit="s", note="n", equal="bytes")
    assert (faster.ours, faster.baseline, faster.ratio, faster.min, faster.max) == (2.0, 2.0, 2.0, 1.0, 5.0)
    share = row("s", "w", pairs, unit="1/s", ratio="ours/baseline")
    assert (share.ratio, share.min, share.max) == (0.5, 0.2, 1.0)


def test_sides_of_different_length_are_no_pairs() -> None:
    for ours, baseline in (((), ()), ((1.0,), (1.0, 2.0))):
        with pytest.raises(ValueError, match="repeats"):
            Pairs(ours, baseline)
    with pytest.raises(ValueError, match="no ratio"):
        row("s", "w", Pairs((1.0,), (1.0,)), unit="s", ratio="ours - baseline")


def test_short_calls_are_repeated_until_they_fill_the_time() -> None:
    calls: list[int] = []
    assert seconds(lambda: calls.append(1)) >= 0
    assert len(calls) == 1
    seconds(lambda: calls.append(1), 0.01)
    assert len(calls) > 3


BURN = "import time\nwhile time.process_time() < 0.6: pass"


def test_cpu_seconds_of_children_count_also_after_their_end() -> None:
    with CpuMeter(tick_s=0.02) as meter:
        subprocess.run([sys.executable, "-c", BURN], check=True)
        between = time.time()
        time.sleep(0.1)
    assert 0.3 < meter.seconds < 5  # what it used in its last tick is not seen
    assert meter.since(between) < 0.3
    assert meter.since(0.0) == meter.seconds
    assert sum(meter.by_process().values()) >= meter.seconds


def test_what_was_before_does_not_count() -> None:
    while time.process_time() < 0.3:
        pass
    with CpuMeter() as meter:
        pass
    assert meter.seconds < 0.3


def test_the_record_of_the_machine_is_complete() -> None:
    facts = machine()
    assert {"cpu", "cores", "memory_gib", "python", "torch", "ray", "numpy", "pyarrow", "date"} <= set(facts)
    assert all(facts.values())
    assert measure._version("no-such-package-for-sure") is None


def test_the_table_has_a_line_a_row_and_notes_alone_are_lines_too() -> None:
    rows = [
        row("masks", "bytes", Pairs((0.5, 0.5), (50.0, 60.0)), unit="s", note="1 thread", equal="bytes"),
        Row("fetch", "objects", note="not measured"),
    ]
    header, first, second = table(rows).splitlines()
    assert header.split() == [
        "section",
        "what",
        "ours",
        "baseline",
        "unit",
        "ratio",
        "range",
        "equal",
        "note",
    ]
    assert first.split() == "masks bytes 0.5 55 s 110 100-120 bytes 1 thread".split()
    assert second.split() == "fetch objects not measured".split()
    assert first.index("1 thread") == second.index("not measured") == header.index("note")


def test_the_json_holds_rows_machine_and_settings() -> None:
    content = json.loads(to_json([Row("a", "b")], {"cpu": "x"}, {"repeats": 5}))
    assert content["machine"] == {"cpu": "x"}
    assert content["settings"] == {"repeats": 5}
    assert content["rows"][0]["ratio"] is None

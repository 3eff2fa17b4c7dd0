"""The progress line: images done, failed, images/s and time left; redrawn on a terminal, logged elsewhere."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.driver.node_worker import Done
from maskrcnn_jobs.driver.progress import (
    CLEAR,
    FORECAST_AFTER,
    FORECAST_AFTER_S,
    RATE_OVER_S,
    Progress,
    duration,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def counts(ok: int, failed: int = 0, instances: int = 0) -> dict[str, int]:
    return {"ok": ok, "empty": 0, "failed": failed, "instances": instances}


def done(**of_shard: int) -> Done:
    return Done(counts(**of_shard), {}, "")


def test_the_line_says_how_far_and_how_fast() -> None:
    clock = Clock()
    progress = Progress(1000, 0, io.StringIO(), clock=clock)
    progress.show(actors=(3, 4))
    clock.now += 100
    progress.add(done(ok=240, failed=10, instances=4321))
    progress.show(actors=(3, 4))
    assert progress.line() == (
        "250/1,000 images (25 %), 10 failed, 4,321 instances, 2.5 images/s, 5 min 00 s left, 3 actors"
    )


def test_what_no_actor_can_start_without_is_named() -> None:
    progress = Progress(1000, 0, io.StringIO(), clock=Clock())
    progress.show(actors=(0, 4), waiting_for="a node with 8 CPUs and 1 GPU")
    assert progress.line().endswith(", waiting for a node with 8 CPUs and 1 GPU, 0 actors")
    progress.show(actors=(0, 4))
    assert "waiting for the first of 4 actors to load the model" in progress.line()


def test_images_of_a_running_shard_count_as_they_are_done() -> None:
    """A shard of 1,000 images takes 20 minutes on a CPU."""
    clock = Clock()
    progress = Progress(1000, 0, io.StringIO(), clock=clock)
    seen = []
    for second in range(0, 1201, 5):
        clock.now = 1000.0 + second
        progress.show(running=counts(ok=second * 1000 // 1200, instances=second), actors=(1, 1))
        seen.append(int(progress.line().partition("/")[0].replace(",", "")))
    assert seen == [second * 1000 // 1200 for second in range(0, 1201, 5)]
    progress.add(done(ok=1000, instances=1200))
    progress.show(running=counts(0), actors=(1, 1))
    assert progress.line().startswith("1,000/1,000 images (100 %), 0 failed, 1,200 instances, ")


def test_what_a_dead_worker_had_done_is_not_done() -> None:
    progress = Progress(10, 0, io.StringIO())
    progress.show(running=counts(ok=4), actors=(1, 1))
    assert progress.line().startswith("4/10 images")
    progress.show(running={}, actors=(0, 1))
    assert progress.line().startswith("0/10 images")


def test_what_it_is_waiting_for_is_named() -> None:
    progress = Progress(1, 0, io.StringIO(), unit="window")
    assert progress.line() == "0/1 window (0 %), 0 failed, 0 instances, waiting for the first window"
    progress.show(actors=(0, 2))
    assert "waiting for the first of 2 actors to load the model, 0 actors" in progress.line()
    progress.show(actors=(0, 1))
    assert "waiting for the first of 1 actor to load the model, 0 actors" in progress.line()
    progress.show(actors=(1, 2))
    assert progress.line().endswith("waiting for the first window, 1 actor")


def test_the_time_before_the_first_worker_is_ready_is_not_that_of_the_images() -> None:
    clock = Clock()
    progress = Progress(1000, 0, io.StringIO(), clock=clock)
    for _ in range(60):  # a minute to start
        clock.now += 1
        progress.show(actors=(0, 2))
    for done in range(1, 31):  # then one image per second
        clock.now += 1
        progress.show(running=counts(ok=done), actors=(2, 2))
    assert "1.0 images/s, 16 min 10 s left" in progress.line()


def test_the_pace_is_compared_with_a_forecast() -> None:
    clock = Clock()
    progress = Progress(1000, 0, io.StringIO(), expected=4.0, clock=clock)
    for done in range(1, 61):
        clock.now += 0.5
        progress.show(running=counts(ok=done), actors=(2, 2))
    assert "2.0 images/s (50 % of the forecast), 7 min 50 s left" in progress.line()


@given(rate=st.floats(0.15, 500), seconds=st.floats(1, 300))
def test_time_left_is_said_once_it_means_something(rate: float, seconds: float) -> None:
    """At a steady rate it is right from the first time that it is said, but for the one image that is in progress."""
    clock, total = Clock(), 10**6
    progress = Progress(total, 0, io.StringIO(), clock=clock)
    progress.show(actors=(1, 1))
    for _ in range(40):
        clock.now += seconds / 40
        passed = clock.now - 1000
        done = int(rate * passed)
        progress.show(running=counts(ok=done), actors=(1, 1))
        line = progress.line()
        over = min(passed, RATE_OVER_S)
        if passed < FORECAST_AFTER_S or done < FORECAST_AFTER:
            assert " left" not in line
        elif rate * over > FORECAST_AFTER + 1:
            assert " left" in line
        if " left" in line:
            shown = float(re.search(r"([\d.]+) images/s", line)[1])  # type: ignore[index]
            assert abs(shown - rate) <= 1 / over + 0.051


def test_a_standstill_is_said() -> None:
    clock = Clock()
    progress = Progress(100, 0, io.StringIO(), clock=clock)
    for _ in range(300):
        clock.now += 1
        progress.show(running=counts(ok=5), actors=(1, 1))
    assert progress.line().endswith("no image in 2 min 01 s, 1 actor")


def test_after_a_restart_what_was_done_counts_for_the_images_alone() -> None:
    progress = Progress(1000, 600, io.StringIO())
    assert progress.line().endswith("0 instances since the restart, waiting for the first image")
    progress.add(done(ok=100, instances=7))
    assert progress.line().startswith("700/1,000 images (70 %), 0 failed, 7 instances since the restart, ")


def test_a_terminal_gets_one_line_that_is_redrawn() -> None:
    terminal = Terminal()
    progress = Progress(10, 0, terminal)
    with quiet(level=logging.INFO):
        for _ in range(3):
            progress.show(force=True)
        progress.close()
    written = terminal.getvalue()
    assert written.count("\r") == 4
    assert written.count("\n") == 1
    assert written.endswith(f"{CLEAR}0/10 images (0 %), 0 failed, 0 instances\n"), (
        "without what no longer runs"
    )


class quiet:
    """Sets the level of the log for a block, as the command line does."""

    def __init__(self, level: int) -> None:
        self._level = level

    def __enter__(self) -> None:
        self._before = logging.getLogger("maskrcnn").level
        logging.getLogger("maskrcnn").setLevel(self._level)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("maskrcnn").setLevel(self._before)


def test_a_line_is_as_long_as_the_terminal_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a longer one only the last row would be redrawn, and the others would pile up."""
    monkeypatch.setenv("TERM", "xterm")
    main_end, sub_end = pty.openpty()
    fcntl.ioctl(sub_end, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 30, 0, 0))
    with contextlib.suppress(OSError), os.fdopen(sub_end, "w") as terminal, quiet(level=logging.INFO):
        progress = Progress(1000, 0, terminal)
        progress.show(force=True)
        shown = os.read(main_end, 1000).decode().removeprefix(CLEAR)
        assert shown == "0/1,000 images (0 %), 0 faile"
        os.close(main_end)
        progress.show(force=True)  # the terminal was closed: the run goes on, and logs
        progress.close()
        went_on = True
    assert went_on


def test_a_terminal_that_obeys_no_control_sequences_gets_log_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with caplog.at_level(logging.INFO, logger="maskrcnn"):
        Progress(10, 0, terminal).close()
    assert terminal.getvalue() == ""
    assert "0/10 images" in caplog.text


def test_quiet_is_quiet_on_a_terminal_too() -> None:
    terminal = Terminal()
    with quiet(level=logging.WARNING):
        Progress(10, 0, terminal).show(force=True)
    assert terminal.getvalue() == ""


def test_elsewhere_the_lines_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = io.StringIO()
    with caplog.at_level(logging.INFO, logger="maskrcnn"):
        Progress(10, 0, elsewhere).close()
    assert elsewhere.getvalue() == ""
    assert "0/10 images" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7325, "2 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text

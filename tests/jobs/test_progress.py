"""The progress line: images done, failed, images/s and time left; redrawn on a terminal, logged elsewhere."""

import io
import logging
import re

import pytest
from maskrcnn_jobs.driver.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def counts(ok: int, failed: int = 0, instances: int = 0) -> dict[str, int]:
    return {"ok": ok, "empty": 0, "failed": failed, "instances": instances}


def test_the_line_says_how_far_and_how_fast() -> None:
    progress = Progress(1000, 0, io.StringIO())
    progress.add(counts(ok=240, failed=10, instances=4321))
    line = progress.line(actors=3)
    assert line.startswith("250/1,000 images (25 %), 10 failed, 4,321 instances, ")
    assert re.search(r"[\d.]+ images/s, .+ left, 3 actors$", line)


def test_after_a_restart_what_was_done_counts_for_the_images_alone() -> None:
    progress = Progress(1000, 600, io.StringIO())
    assert "starting" in progress.line()
    progress.add(counts(ok=100, instances=7))
    assert progress.line().startswith("700/1,000 images (70 %), 0 failed, 7 instances since the restart, ")


def test_a_terminal_gets_one_line_that_is_redrawn() -> None:
    terminal = Terminal()
    progress = Progress(10, 0, terminal)
    for _ in range(3):
        progress.show(force=True)
    progress.close()
    written = terminal.getvalue()
    assert written.count("\r") == 4
    assert written.count("\n") == 1


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

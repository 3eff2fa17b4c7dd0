"""Standard output that is gone or full: a command ends silently or in one line, and its run is whole."""

import errno
import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from maskrcnn_jobs.commands.terminal import CLOSED_PIPE, ClearingHandler, _Guarded
from planned_run import finished_run
from planted_images import write_planted

import maskrcnn


@contextmanager
def nobody_reads() -> Iterator[int]:
    """Yield the end of a pipe whose reader is gone, as after `| head -1`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    yield write_end
    os.close(write_end)


@contextmanager
def full_disk() -> Iterator[int]:
    """Yield a file on a disk without space."""
    end = os.open("/dev/full", os.O_WRONLY)
    yield end
    os.close(end)


@contextmanager
def closed_terminal() -> Iterator[int]:
    """Yield a terminal that was closed."""
    main_end, sub_end = pty.openpty()
    os.close(main_end)
    yield sub_end
    os.close(sub_end)


GONE = {"pipe": nobody_reads, "disk": full_disk, "terminal": closed_terminal}


def command(*arguments: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE) -> tuple[int, str]:
    """Run a command in a process of its own; return its exit code and what it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "maskrcnn_jobs", *arguments],
        stdout=stdout,
        stderr=stderr,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stderr or ""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["status"], ["diff"]])
def test_output_that_nobody_reads_ends_a_command_silently(arguments: list[str], tmp_path: Path) -> None:
    """The exit code is the one that the shell gives to a program that SIGPIPE ends."""
    if arguments[0] in ("status", "diff"):
        run = finished_run(tmp_path)
        arguments = [*arguments, run, run] if arguments[0] == "diff" else [*arguments, run]
    with nobody_reads() as stdout:
        assert command(*arguments, stdout=stdout) == (CLOSED_PIPE, "")


@pytest.mark.slow
def test_a_run_is_whole_whatever_becomes_of_its_output(tmp_path: Path) -> None:
    write_planted(tmp_path / "images", 3, seed=1)
    segment = ["-q", "segment", str(tmp_path / "images"), str(tmp_path / "out"), "--model", "planted"]
    for name, code in {"pipe": CLOSED_PIPE, "disk": 3, "terminal": 0}.items():
        with GONE[name]() as stdout:
            ended, said = command(*segment, stdout=stdout)
        assert ended == code, said
        lines = [line for line in said.splitlines() if "is not a model" not in line]
        assert len(lines) == (name == "disk")
        if name == "disk":
            assert "no space left on device; repeat the command to print it again" in lines[0]
        assert maskrcnn.verify(str(tmp_path / "out")).proven


@pytest.mark.slow
def test_messages_that_nobody_reads_change_no_exit_code(tmp_path: Path) -> None:
    for gone in GONE.values():
        with gone() as stderr:
            assert command("status", str(tmp_path / "none"), stderr=stderr)[0] == 2


# The streams


@pytest.mark.parametrize(
    ("name", "number"), [("pipe", errno.EPIPE), ("disk", errno.ENOSPC), ("terminal", errno.EIO)]
)
def test_a_stream_that_fails_says_so_once_and_then_discards(name: str, number: int) -> None:
    failures: list[int | None] = []
    with GONE[name]() as end, os.fdopen(os.dup(end), "w", encoding="utf-8") as file:
        guarded = _Guarded(file, lambda error: failures.append(error.errno))
        guarded.write("x" * 100_000)
        guarded.write("ü\n")
        guarded.flush()
        print("and more", file=guarded, flush=True)
        guarded.detach()
    assert failures == [number]


def test_a_stream_that_works_is_as_before(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w", encoding="utf-8") as file:
        guarded = _Guarded(file, lambda _: None)
        assert guarded.write("größer\n") == 7
        guarded.flush()
        assert guarded.encoding == "utf-8"
        guarded.detach()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "größer\n"


def test_a_message_clears_the_line_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    record = logging.LogRecord("maskrcnn", logging.WARNING, "", 0, "an actor ended", (), None)
    for kind, expected in ((Terminal, "\r\x1b[2Kan actor ended\n"), (io.StringIO, "an actor ended\n")):
        monkeypatch.setenv("TERM", "xterm")
        stream = kind()
        ClearingHandler(stream).emit(record)
        assert stream.getvalue() == expected

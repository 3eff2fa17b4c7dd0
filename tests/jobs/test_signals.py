"""Ctrl-C, SIGTERM and a closed terminal stop a run in order; a second Ctrl-C ends it at once."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import maskrcnn_command
from maskrcnn_jobs.commands import terminal
from maskrcnn_jobs.commands.signals import descendants
from maskrcnn_jobs.driver.progress import CLEAR
from planted_images import write_planted

import maskrcnn

pytestmark = pytest.mark.slow
SLOW = "planted:30"
"""A model that takes longer than a test waits."""


@contextmanager
def segmenting(folder: Path, model: str, *, nohup: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """Run `segment` in a process group of its own, until it computes the first image."""
    write_planted(folder / "images", 4, seed=1)
    command = ["segment", str(folder / "images"), str(folder / "out"), "--model", model, "--no-ray"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_jobs", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGHUP, before)
    try:
        while not (folder / "out" / "probes").exists() or not descendants(process.pid):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def interrupted_while_computing(folder: Path, after_s: float) -> bool:
    """Interrupt a run twice; return whether it was computing an image, and so did not stop at the first time."""
    with segmenting(folder, SLOW) as process:
        time.sleep(after_s)
        started = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = ""
        while "Ctrl-C again ends it at once" not in said:  # it waits for the image
            line = process.stderr.readline()
            said += line
            if not line:
                assert "stopped: interrupted" in said
                return False
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        assert process.poll() is None, "only Ctrl-C ends what is stopping already"
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "stopped at once; to continue `segment` or `train`, repeat the same command" in rest
    assert "Traceback" not in said + rest
    assert started
    assert not [child for child in started if is_alive(child)]
    return True


def test_a_second_ctrl_c_ends_the_run_at_once_and_what_it_started(tmp_path: Path) -> None:
    after_s = 0.5
    while not interrupted_while_computing(folder := tmp_path / str(after_s), after_s):
        after_s *= 2
    images, out = str(folder / "images"), str(folder / "out")
    again = maskrcnn_command("segment", images, out, "--model", SLOW, "--min-score", "0.5")
    assert again.returncode == 2, "the run has begun, and is not planned anew"
    assert "min-score: planned 0.05, now 0.5" in again.stderr


def test_a_closed_terminal_stops_a_run_in_order(tmp_path: Path) -> None:
    with segmenting(tmp_path, "planted:0.5") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)  # shells send it again
        _, said = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "stopped: interrupted; to continue `segment` or `train`, repeat the same command" in said
    again = maskrcnn_command(
        "segment", str(tmp_path / "images"), str(tmp_path / "out"), "--model", "planted:0.5", "--no-ray"
    )
    assert again.returncode == 0, again.stderr
    assert maskrcnn.verify(str(tmp_path / "out")).proven


def test_under_nohup_a_run_goes_on(tmp_path: Path) -> None:
    with segmenting(tmp_path, "planted:0.3", nohup=True) as process:
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert maskrcnn.verify(str(tmp_path / "out")).proven


def test_descendants_are_found_at_any_depth() -> None:
    script = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        while len(found := descendants(parent.pid)) < 1:
            time.sleep(0.01)
        assert set(found) < set(descendants(os.getpid()))
        os.kill(found[0], signal.SIGKILL)
    assert descendants(parent.pid) == []


# Before the command does anything

INTERRUPTED_AT = """
import atexit, os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

module, twice = sys.argv[1:3]
if twice == "twice":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)  # registered first, called last
sys.meta_path.insert(0, Finder())
from maskrcnn_jobs.__main__ import main
sys.argv[1:] = ["status", "nowhere"]
main()
"""
"""`maskrcnn status nowhere`, to which Ctrl-C comes when a module is imported, and again when Python ends."""


@pytest.mark.parametrize("twice", ["once", "twice"])
@pytest.mark.parametrize("module", ["click", "maskrcnn_jobs.commands.verify", "pyarrow"])
def test_ctrl_c_while_modules_are_imported_is_one_line_too(module: str, twice: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT, module, twice], capture_output=True, text=True, check=False
    )
    assert done.stderr == "stopped: interrupted; to continue `segment` or `train`, repeat the same command\n"
    assert (done.returncode, done.stdout) == (3, "")


def test_a_line_stands_on_its_own_where_a_terminal_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    main_end, sub_end = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(sub_end, "w") as stream:
        stream.write("3/7 images (42 %)")
        stream.flush()
        monkeypatch.setattr(sys, "stderr", stream)
        terminal.write_error("stopped at once")
        monkeypatch.undo()
    shown = b""
    while not shown.endswith(b"\n"):  # a terminal passes on what was written in pieces of its own
        shown += os.read(main_end, 200)
    assert shown.decode() == f"3/7 images (42 %){CLEAR}stopped at once\r\n"
    os.close(main_end)

"""`maskrcnn check-model`: the checks run in another process, and whatever ends or holds it is one line."""

import contextlib
import json
import subprocess
import sys
import time

import psutil
import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main
from own_networks import FAULTY

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)


def check(fault, *options):
    return CliRunner().invoke(
        main, ["check-model", "faulty:build", "--model-arg", f"fault={fault}", *options]
    )


def test_what_was_not_checked_is_shown_in_words_and_in_json():
    shown = check("one at a time", "--seconds", "20")
    assert shown.exit_code == 0, shown.output
    assert "independent of the batch  not checked: its batch_size is 1" in shown.stdout
    assert "sound as far as checked: faulty:build, boxes only, plank, coin, leaf" in shown.stdout
    report = json.loads(CliRunner().invoke(main, ["check-model", "planted", "--json"]).stdout)
    assert {check["status"] for check in report["checks"]} == {"ok", "not_checked"}
    assert report["sound"]


def test_a_fault_is_exit_code_1():
    failed = check("score")
    assert failed.exit_code == 1
    assert "well formed               FAILED  it returned the score" in failed.stdout
    assert "not sound: faulty:build" in failed.stdout


ENDS = {
    "canvas": "its `canvas` must return a key of images of 480 x 640 pixels",
    "categories": "its categories change from process to process",
    "hangs": "running 1 image of 480 x 640 pixels took more than 5 s (at faulty.py, line ",
    "hangs while it is built": "its factory took more than 5 s (at faulty.py, line ",
    "ends": "running 1 image of 480 x 640 pixels ended its process by signal SIGKILL",
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", ENDS)
def test_what_ends_or_holds_it_is_one_line_and_exit_code_2(fault):
    ended = check(fault, "--seconds", "5")
    assert ended.exit_code == 2
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [ended.stderr.splitlines()[-1]]
    assert errors[0].startswith(f"error: --model faulty:build: {ENDS[fault]}")
    if "took" in ENDS[fault]:
        assert errors[0].endswith("if it is not waiting for something, give more --seconds")


def test_it_ends_with_the_command_also_inside_a_call_in_c():
    model = ["check-model", "faulty:build", "--model-arg", "fault=hangs in C"]
    command = psutil.Popen([sys.executable, "-m", "maskrcnn_jobs", *model], stderr=subprocess.DEVNULL)
    checking = []
    while command.poll() is None and not checking:
        time.sleep(0.1)
        with contextlib.suppress(psutil.ZombieProcess):  # a child that is ending, of which there are others
            checking = [
                each
                for each in command.children()
                if "maskrcnn.models.checks.check_process" in each.cmdline()
            ]
    time.sleep(1)
    command.kill()
    command.wait()
    gone, _ = psutil.wait_procs(checking, timeout=30)
    assert len(gone) == 1

"""`maskrcnn demo`: what the README shows first, as a user runs it."""

from pathlib import Path

import pytest
from commandline import maskrcnn_command
from maskrcnn_jobs.commands.demo import QUERIES

pytestmark = pytest.mark.slow


def test_the_demo_shows_the_whole_chain(tmp_path: Path) -> None:
    run = maskrcnn_command("demo", str(tmp_path / "demo"), "--scenes", "8")
    assert run.returncode == 0, run.stderr
    scenes, nuclei = [
        float(line.split()[2]) for line in run.stdout.splitlines() if line.startswith("mask AP ")
    ]
    assert scenes >= 0.45
    assert nuclei >= 0.45
    assert all(question in run.stdout for question, _ in QUERIES)
    for picture, folder in (("overlay.png", "run"), ("nuclei.png", "nuclei-run")):
        assert (tmp_path / "demo" / picture).stat().st_size > 100_000
        assert "<img" in (tmp_path / "demo" / folder / "report.html").read_text()
    refused = maskrcnn_command("demo", str(tmp_path / "demo"))
    assert refused.returncode == 2
    assert "not empty" in refused.stderr

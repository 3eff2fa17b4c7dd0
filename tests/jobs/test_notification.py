"""`--notify`: a webhook gets a small JSON at the end of a run, which ends as it would without it."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.commands import posting
from maskrcnn_jobs.commands.notification import check_webhook
from planted_images import write_planted
from webserver import Site, answer

from maskrcnn.errors import UsageError

SECRET = "/services/T0/B0/hush"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    site.answers[SECRET] = lambda request: answer(request, 200, b"ok")
    yield site
    site.stop()


@pytest.fixture
def webhook(site: Site) -> str:
    site.posted.clear()
    site.asked.clear()
    return f"{site.url}{SECRET}"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_planted(tmp_path / "images", 3, seed=1)
    return tmp_path / "images"


def segment(images: Path, url: str, *options: str) -> Result:
    out = str(images.parent / "out")
    arguments = ["segment", str(images), out, "--model", "planted", "--no-ray", "--notify", url, *options]
    return CliRunner().invoke(main, arguments)


def posted(site: Site) -> list[dict[str, Any]]:
    """Return what was posted; check what every message has, and that none names the webhook."""
    messages = [json.loads(body) for body in site.posted]
    for message in messages:
        assert message["host"] == socket.gethostname()
        assert message["output"] in message["text"]
        assert message["seconds"] > 0
        assert "hush" not in json.dumps(message)
    return messages


def nothing_stored(folder: Path) -> bool:
    return not any(b"hush" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_end_of_a_run_is_posted(images: Path, webhook: str, site: Site) -> None:
    result = segment(images, webhook, "--price", "3600/h")
    assert result.exit_code == 0, result.output
    [message] = posted(site)
    success = json.loads((images.parent / "out" / "_SUCCESS").read_text())
    assert (message["event"], message["exit_code"]) == ("finished", 0)
    assert message["counts"] == success["counts"]
    assert message["message"] == result.stdout.splitlines()[0]
    assert message["cost"] == pytest.approx(message["seconds"], abs=1e-3)
    assert site.headers[-1]["Content-Type"] == "application/json"
    assert nothing_stored(images.parent / "out")
    assert "hush" not in result.output

    retried = CliRunner().invoke(main, ["retry", str(images.parent / "out"), "--notify", webhook])
    assert retried.exit_code == 0
    assert posted(site)[-1]["message"] == "nothing to retry"


def test_many_failures_are_posted_once_while_it_runs_and_again_at_the_end(
    tmp_path: Path, webhook: str, site: Site
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(130):
        (images / f"{number}.png").write_bytes(b"no image")
    result = segment(images, webhook, "--shard-images", "26", "--max-failure-rate", "0.5")
    assert result.exit_code == 1
    during, end = posted(site)
    assert (during["event"], during["exit_code"]) == ("failure_rate", None)
    assert during["counts"]["failed"] >= 100
    assert (end["event"], end["exit_code"], end["counts"]["failed"]) == ("finished", 1, 130)
    assert "more than --max-failure-rate 50.0%" in end["message"]


def test_a_run_that_stops_says_why(images: Path, webhook: str, site: Site) -> None:
    stopped = segment(images, webhook, "--max-hours", "1e-9")
    refused = segment(images.parent / "none", webhook)
    first, second = posted(site)
    assert (stopped.exit_code, first["exit_code"], first["event"]) == (3, 3, "stopped")
    assert first["message"] in stopped.stderr
    assert "--max-hours 1e-09 is reached with 3 images left" in first["message"]
    assert (refused.exit_code, second["exit_code"], second["event"]) == (2, 2, "stopped")
    assert second["message"] in refused.stderr


@pytest.mark.slow
def test_a_signal_is_posted_too(images: Path, webhook: str, site: Site) -> None:
    out = images.parent / "out"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "maskrcnn_jobs", "segment", str(images), str(out)),
            *("--model", "planted:0.5", "--no-ray", "--shard-images", "1", "--notify", webhook),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "probes").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    [message] = posted(site)
    assert (message["event"], message["exit_code"]) == ("stopped", 3)
    assert message["message"].startswith("stopped: interrupted")


def test_a_webhook_that_fails_changes_nothing_but_a_warning(
    images: Path, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It hangs, refuses, sends elsewhere, answers with an error or with no HTTP, or is not there."""
    monkeypatch.setattr(posting, "TIMEOUT_S", 0.3)
    released = threading.Event()
    site.answers["/hush/hangs"] = lambda _: released.wait(60)
    site.answers["/hush/500"] = lambda request: answer(request, 500, b"no")
    site.answers["/hush/moved"] = lambda request: answer(request, 302, Location="file:///etc/passwd")
    site.answers["/hush/elsewhere"] = lambda request: answer(request, 302, Location=f"{site.url}/other")
    site.answers["/hush/no-http"] = lambda request: request.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        reasons = {
            f"{site.url}/hush/hangs": "timed out",
            f"{site.url}/hush/500": "it answered 500",
            f"{site.url}/hush/moved": "it answered 302",
            f"{site.url}/hush/elsewhere": "it answered 302",
            f"{site.url}/hush/no-http": "BadStatusLine",
            f"http://127.0.0.1:{nobody.getsockname()[1]}/hush": "Connection refused",
        }
        for url, reason in reasons.items():
            caplog.clear()
            assert segment(images, url).exit_code == 0
            [warning] = [
                record.getMessage() for record in caplog.records if "--notify" in record.getMessage()
            ]
            assert warning.startswith("the webhook at http://127.0.0.1 of --notify got no message: ")
            assert reason in warning
            assert "hush" not in caplog.text
    released.set()
    assert "/other" not in site.asked


def test_the_end_does_not_wait_for_long(
    images: Path, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A webhook that goes on sending something, without ever answering, is never silent for long enough."""
    monkeypatch.setattr(posting, "WAIT_S", 0.3)
    released = threading.Event()
    site.answers["/slow"] = lambda _: released.wait(60)
    assert segment(images, f"{site.url}/slow").exit_code == 0
    released.set()
    assert "no answer within 0 s" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        *("", "hush", "ftp://host/hush", "file:///hush", "https://", "https:///hush", "http://host:x/hush"),
        *(
            "https://user:hush@host/",
            "http://host/hush hush",
            "http://host/hush\n",
            "http://[hush/",
            "http://hö/",
        ),
    ],
)
def test_what_is_no_webhook_is_one_line(url: str, images: Path) -> None:
    result = segment(images, url)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --notify takes the http:// or https:// URL of a webhook")
    assert result.stderr.count("\n") == 1
    assert "hush" not in result.output
    with pytest.raises(UsageError):
        check_webhook(url)


def test_ray_stores_no_webhook() -> None:
    """It would keep the command line of a job, for all to see."""
    submit = ["submit", "--address", "http://127.0.0.1:1", "--", "segment", "a", "b"]
    for words in (["--notify", "https://host/hush"], ["--notify=https://host/hush"]):
        result = CliRunner().invoke(main, [*submit, *words])
        assert result.exit_code == 2
        assert "set MASKRCNN_NOTIFY where the command runs" in result.stderr
        assert "hush" not in result.output

"""Google Cloud Storage without credentials or its package, and what its answers become: one line that says what to do.

The server is one that gives each request the same answer; the client is the real one.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gcsfs.retry
import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main

from maskrcnn.errors import ItemError, MaskrcnnError, StoreSetupError
from maskrcnn.io.inputs import list_inputs, read_input
from maskrcnn.io.storage import Storage

URL = "gs://photos/a.png"
LIMIT = 10**6
ACTS = (
    lambda: read_input(URL, LIMIT),
    lambda: list_inputs("gs://photos/"),
    lambda: Storage("gs://photos/out").exists("plan.json"),
)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials, and no machine of Google's."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))


@pytest.mark.usefixtures("nowhere")
def test_no_credentials_are_one_line_that_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for act in ACTS:
        with pytest.raises(
            StoreSetupError, match=r"no credentials; run `gcloud auth .* FSSPEC_GS_TOKEN=anon"
        ):
            act()
    for path, content, why in (
        ("missing.json", None, "does not exist"),
        ("empty.json", "{}", "is not a file of Google's credentials"),
        ("broken.json", "{", "is not a file of Google's credentials"),
    ):
        if content is not None:
            (tmp_path / path).write_text(content)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / path))
        for act in ACTS:
            with pytest.raises(
                StoreSetupError, match=rf"credentials cannot be read: .*{path} {why}; check GOOGLE_A"
            ):
                act()
    assert caplog.records == []


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("command", ["status", "verify", "plan", "segment"])
def test_a_command_ends_with_2(command: str, tmp_path: Path) -> None:
    more = [str(tmp_path / "out"), "--model", "planted"] if command in ("plan", "segment") else []
    result = CliRunner().invoke(main, ["-q", command, "gs://photos/in", *more])
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert result.output.count("gs://") == 1


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "makes another connection")
    for name in [name for name in sys.modules if name.partition(".")[0] == "gcsfs"]:
        monkeypatch.setitem(sys.modules, name, None)
    for act in ACTS:
        with pytest.raises(
            StoreSetupError, match=r"gs:// needs a package .*: pip install 'maskrcnn-ray\[gcs\]'"
        ):
            act()


class Answering:
    """A server that gives each request the same answer."""

    status, body = 200, b"{}"

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    """The environment points at a server, whose client does not wait between attempts."""

    async def no_waiting(_: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=no_waiting))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    answering = Answering()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{answering.server.server_port}")
    yield answering
    answering.server.shutdown()
    answering.server.server_close()


@pytest.mark.parametrize(
    ("status", "message", "kind", "said"),
    [
        (401, "Anonymous caller", StoreSetupError, r"does not accept the credentials; check them \(401\)"),
        (403, "no access", ItemError, r"access_denied: access denied \(403\); check the credentials' rights"),
        (404, "No such object", ItemError, "not_found: it does not exist; check its name"),
        (429, "slow down", ItemError, r"storage_error: the store receives too many requests; use fewer"),
        (
            503,
            "backend",
            ItemError,
            r"storage_error: the store fails, after several attempts; try again later",
        ),
        (400, "Bucket is a requester pays bucket", ItemError, "access_denied: .*FSSPEC_GS_REQUESTER_PAYS"),
    ],
)
def test_an_answer_has_words(
    google: Answering, status: int, message: str, kind: type[MaskrcnnError], said: str
) -> None:
    google.status = status
    google.body = json.dumps({"error": {"code": status, "message": message}}).encode()
    with pytest.raises(kind, match=said):
        read_input(URL, LIMIT)


def test_an_object_that_changed_since_planning_is_refused(google: Answering) -> None:
    google.status = 412
    with pytest.raises(ItemError, match="changed: it no longer has the etag 17"):
        read_input(URL, LIMIT, "17")


def test_a_server_that_is_gone_stops_everything(google: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    del google
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    with pytest.raises(StoreSetupError, match="cannot reach Google Cloud Storage; check "):
        read_input(URL, LIMIT)

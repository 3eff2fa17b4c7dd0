"""Azure Blob Storage: its credentials, its spellings, and what its answers become: one line that says what to do.

The server is Azurite, or one that gives each request the same answer; the client is the real one.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from azure.storage.blob.aio import ExponentialRetry
from click.testing import CliRunner
from emulators import ACCOUNT, KEY, Azurite
from maskrcnn_jobs.cli import main
from s3_servers import BUCKET

from maskrcnn.errors import ItemError, MaskrcnnError, RunError, StoreSetupError, UsageError
from maskrcnn.io.inputs import list_inputs, open_input, read_input, stat_input
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores import azure_store
from maskrcnn.io.url import Url, has_user, redact
from maskrcnn.pipeline.list_inputs import read_inputs

URL = "az://photos/a.png"
LIMIT = 10**6
ACTS = (
    lambda: read_input(URL, LIMIT),
    lambda: list_inputs("az://photos/"),
    lambda: Storage("abfs://photos/out").exists("plan.json"),
)


# Credentials


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """No credentials: no variables, and no `az login`."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("nowhere")
def test_no_credentials_are_one_line_that_says_which(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("AZURE_NOTHING", ""), ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)):
        monkeypatch.setenv(name, value)
        for act in ACTS:
            with pytest.raises(StoreSetupError, match=r"set AZURE_STORAGE_CONNECTION_STRING, .*ANON=true$"):
                act()
    assert caplog.records == []


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"CONNECTION_STRING": "hush-hush"},
            "AZURE_STORAGE_CONNECTION_STRING names no account; copy it anew",
        ),
        (
            {"CONNECTION_STRING": f"AccountName={ACCOUNT}"},
            "has neither AccountKey nor SharedAccess",
        ),
        ({"CONNECTION_STRING": f"AccountName={ACCOUNT};AccountKey=hush-hush"}, "is not base64; copy it anew"),
        ({"ACCOUNT_NAME": ACCOUNT, "ACCOUNT_KEY": "hush-hush"}, "ACCOUNT_KEY is not base64; copy it anew"),
    ],
)
def test_credentials_that_cannot_be_read_are_not_repeated(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    for act in ACTS:
        with pytest.raises(StoreSetupError, match=said) as caught:
            act()
        assert "hush" not in str(caught.value)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("command", ["status", "verify", "plan", "segment"])
def test_a_command_ends_with_2(command: str, tmp_path: Any) -> None:
    more = [str(tmp_path / "out"), "--model", "planted"] if command in ("plan", "segment") else []
    result = CliRunner().invoke(main, ["-q", command, "az://photos/in", *more])
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert result.output.count("az://") == 1


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TENANT_ID", "makes another connection")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("adlfs", "azure")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("adlfs", "azure"):
        monkeypatch.setitem(sys.modules, name, None)
    for act in ACTS:
        with pytest.raises(StoreSetupError, match=r"needs a package .*: pip install 'maskrcnn-ray\[azure\]'"):
            act()


@pytest.mark.emulator
def test_a_wrong_key_fails_the_run_and_not_an_item(
    azurite_server: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = azurite_server.connection.replace(KEY, "aHVzaC1odXNo")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", wrong)
    for act in (
        lambda: read_input(f"az://{BUCKET}/x", 9),
        lambda: list_inputs(f"az://{BUCKET}/in"),
        lambda: Storage(f"az://{BUCKET}/out").write("x", b"1"),
    ):
        with pytest.raises(StoreSetupError, match="does not accept the credentials; check them") as caught:
            act()
        assert "aHVz" not in str(caught.value)


# What concerns one object


@pytest.mark.emulator
def test_a_missing_container_is_named(azurite_server: Azurite) -> None:
    del azurite_server
    store = Storage("az://no-such-container/out")
    for act in (lambda: store.write("x", b"1"), store.list):
        with pytest.raises(RunError, match="there is no container 'no-such-container'"):
            act()
    assert not store.exists("x")
    with pytest.raises(ItemError, match="not_found: there is no container"):
        read_input("az://no-such-container/in/a.jpg", 9)
    with pytest.raises(FileNotFoundError):
        list_inputs("az://no-such-container/in")


@pytest.mark.emulator
def test_an_archived_blob_is_one_row_that_says_what_to_do(azurite_server: Azurite) -> None:
    blob = azurite_server.container().get_blob_client("cold/a.png")
    blob.upload_blob(b"x", overwrite=True)
    blob.set_standard_blob_tier("Archive")
    for act in (
        lambda: read_input(f"az://{BUCKET}/cold/a.png", LIMIT),
        lambda: open_input(f"az://{BUCKET}/cold/a.png", None).read(),
    ):
        with pytest.raises(ItemError, match="archived: archived: move it to the tier Hot"):
            act()
    with pytest.raises(RunError, match="move it to the tier Hot"):
        Storage(f"az://{BUCKET}/cold").read("a.png")
    blob.delete_blob()


@pytest.mark.emulator
def test_listings_longer_than_a_page(azurite_server: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure_store, "_PAGE", 3)
    store = Storage(azurite_server.prefix())
    paths = [f"many/{i}/x" for i in range(8)]
    for path in paths:
        store.write(path, b"")
    assert store.list() == paths
    assert store.folders("many") == [str(i) for i in range(8)]
    store.remove_tree("many")
    assert store.list() == []


@pytest.mark.emulator
def test_what_stands_for_a_folder_is_no_input(azurite_server: Azurite) -> None:
    """Accounts with hierarchical names list their folders as empty blobs."""
    store = Storage(azurite_server.prefix())
    store.write("in/a.png", b"x")
    prefix = azurite_server.behind(store.url).prefix
    azurite_server.container().upload_blob(f"{prefix}/in/b.png", b"", metadata={"hdi_isfolder": "true"})
    assert store.list() == ["in/a.png"]
    assert not store.exists("in/b.png")


@contextmanager
def answering(status: int, body: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point the environment at a server that gives each request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = _answer

        def log_message(self, *_: Any) -> None:
            pass

    async def no_waiting(*_: object) -> None:
        pass

    monkeypatch.setattr(ExponentialRetry, "sleep", no_waiting)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with Azurite(f"http://127.0.0.1:{server.server_port}").environment():
        yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "said"),
    [
        (403, "AuthenticationFailed", "Server failed", StoreSetupError, "does not accept the credentials"),
        (
            403,
            "AuthenticationFailed",
            "not valid in the specified time frame",
            StoreSetupError,
            "have expired",
        ),
        (
            403,
            "AuthenticationFailed",
            "Request date header too old",
            StoreSetupError,
            "clock of this machine",
        ),
        (403, "AccountIsDisabled", "no", StoreSetupError, "suspended the account"),
        (403, "AuthorizationPermissionMismatch", "no", ItemError, r"access_denied: access denied \(Author"),
        (409, "PublicAccessNotPermitted", "no", ItemError, "access_denied: access denied"),
        (409, "BlobBeingRehydrated", "wait", ItemError, "archived: .*read it when that is done"),
        (404, "BlobNotFound", "no", ItemError, "not_found: it does not exist; check its name"),
        (400, "InvalidResourceName", "no", ItemError, "not_found: 'photos' is not a name that a container"),
        (429, "TooMany", "no", ItemError, "storage_error: the store receives too many requests"),
        (503, "ServerBusy", "no", ItemError, "storage_error: the store receives too many requests"),
        (500, "InternalError", "no", ItemError, "storage_error: the store fails, after several attempts"),
        (418, "Teapot", "no", ItemError, "look this answer up in its documentation: Teapot: "),
    ],
)
def test_an_answer_has_words(
    status: int,
    code: str,
    message: str,
    kind: type[MaskrcnnError],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    with answering(status, body, monkeypatch), pytest.raises(kind, match=said):
        read_input(URL, LIMIT)


def test_a_gateway_that_fails_without_a_reason_has_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"<html>Bad Gateway</html>", b"<Error><Code>BadGateway</Code></Error>", b""):
        with (
            answering(502, body, monkeypatch),
            pytest.raises(ItemError, match="storage_error: the store fails, after several attempts"),
        ):
            read_input(URL, LIMIT)


def test_a_server_that_is_gone_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_waiting(*_: object) -> None:
        pass

    monkeypatch.setattr(ExponentialRetry, "sleep", no_waiting)
    with (
        Azurite("http://127.0.0.1:1").environment(),
        pytest.raises(StoreSetupError, match="cannot reach Azure Blob Storage; check "),
    ):
        read_input(URL, LIMIT)


# Spellings

HADOOP = f"abfs://{BUCKET}@{ACCOUNT}.dfs.core.windows.net"


@pytest.mark.emulator
@pytest.mark.parametrize("scheme", ["abfs", "abfss", "az"])
def test_a_container_stands_before_its_account(scheme: str, azurite_server: Azurite, tmp_path: Any) -> None:
    store = Storage(azurite_server.prefix())
    etag = azurite_server.behind(store.url).put("a.png", b"x")
    below = "/" + store.url.split("/", 3)[3]
    for root in (f"{scheme}://{BUCKET}", HADOOP.replace("abfs", scheme), HADOOP.replace(".dfs.", ".blob.")):
        url = f"{root}{below}/a.png"
        assert read_input(url, 9, etag) == b"x"
        assert stat_input(url).etag == etag
        assert list_inputs(f"{root}{below}")["uri"].to_pylist() == [url]
        (tmp_path / "list.csv").write_text(f"uri\n{url}\n")
        assert read_inputs(str(tmp_path / "list.csv"), images_root=None, limit=None).table[
            "uri"
        ].to_pylist() == [url]
        assert redact(url) == url


@pytest.mark.emulator
def test_another_account_than_the_credentials_is_refused(azurite_server: Azurite) -> None:
    del azurite_server
    with pytest.raises(StoreSetupError, match="CONNECTION_STRING is not of the account 'another'"):
        read_input(f"abfs://{BUCKET}@another.dfs.core.windows.net/a.png", 9)


@pytest.mark.parametrize(
    "url",
    [
        "abfs://user:hush-hush@account.dfs.core.windows.net/a.png",
        "abfs://photos@account.dfs.core.windows.net.example.org/a.png",
        "abfs://photos@example.org/a.png",
        "s3://photos@account.dfs.core.windows.net/a.png",
    ],
)
def test_a_host_that_is_not_azures_gets_no_credentials(url: str, tmp_path: Any) -> None:
    assert has_user(url)
    with pytest.raises(RunError, match="take no user and password"):
        Storage(url)
    (tmp_path / "list.csv").write_text(f"uri\n{url}\n")
    with pytest.raises(UsageError, match="with a user or a password") as caught:
        read_inputs(str(tmp_path / "list.csv"), images_root=None, limit=None)
    assert "hush" not in str(caught.value)


def test_a_url_of_an_account_keeps_its_parts() -> None:
    url = Url.parse(f"{HADOOP}/a/b c.png")
    assert (url.bucket, url.key) == (HADOOP.removeprefix("abfs://"), "a/b c.png")
    assert url.folder.join("b c.png").text == url.text == f"{HADOOP}/a/b c.png"

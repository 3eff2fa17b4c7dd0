"""A Ray on this machine for the time of one command: where it keeps its files, its token, its start and its end."""

import contextlib
import datetime
import json
import logging
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from maskrcnn.errors import RunError, UsageError, plural

log = logging.getLogger("maskrcnn")

PATIENCE_S: Final = (45.0, 90.0, 180.0)
"""Seconds that each attempt may take; an idle machine needs two."""
SAY_EVERY_S: Final = 10.0
STOP_S: Final = 30.0
MAX_SOCKET_PATH: Final = 107
"""Bytes that the path of a Unix socket may have."""
OBJECT_STORE_BYTES: Final = 128 * 2**20
"""Only shards and the counts of receipts pass through Ray."""

_SETTINGS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise Ray replaces 127.0.0.1 by an address that other machines reach, and listens on all.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # The driver need not wait for processes that are started in advance, one per CPU.
    "RAY_prestart_worker_first_driver": "0",
    # On a busy machine a worker takes long to import what it needs.
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    # How long one question for the raylet may wait: it is repeated, and between the questions the raylet is checked.
    "RAY_raylet_start_wait_time_s": "1",
}
_LOGS: Final = {"the control store": "gcs_server.out", "the raylet": "raylet.out"}
_TOKEN: Final = secrets.token_hex(32)
"""One for all Rays of this process, because Ray reads it once."""


@contextlib.contextmanager
def local_ray(*, public: bool = False) -> Iterator[str]:
    """Run a Ray for the time of a block; yield its address.

    It listens on 127.0.0.1 alone, requires a token, and ends with this process, however that ends.

    Args:
        public: start it by `ray.init` alone, as versions of Ray are started that `local_ray_node` was not checked with.

    Raises:
        UsageError: there is no place for its files.
        RunError: it did not start in three attempts; the message names the log.
    """
    with contextlib.ExitStack() as stack:
        folder = choose_folder()
        stack.enter_context(_token(folder))
        for attempt, patience_s in enumerate(PATIENCE_S, 1):
            session = folder / _session_name()
            ray = _Process(session, patience_s, public=public)
            try:
                address = ray.start()
            except _StartError as error:
                ray.kill()
                if attempt == len(PATIENCE_S):
                    raise RunError(
                        f"Ray did not start on this machine in {plural(attempt, 'attempt')}, the last time because "
                        f"{error}; its log is {ray.log_file}"
                    ) from error
                shutil.rmtree(session, ignore_errors=True)
                log.warning("Ray did not start, because %s; trying again", error)
            except BaseException:  # also Ctrl-C: no Ray is left behind
                ray.kill()
                raise
            else:
                stack.callback(ray.stop)
                break
        yield address


class _StartError(Exception):
    """Why an attempt failed."""


class _Process:
    """The process of `local_ray_node`, which holds Ray's others.

    Args:
        session: the folder of Ray's session, which is made.
        patience_s: of the attempt.
        public: as of `local_ray`.
    """

    def __init__(self, session: Path, patience_s: float, *, public: bool) -> None:
        (session / "logs").mkdir(parents=True)
        self._session = session
        self._patience_s = patience_s
        self._waiting_for = ""
        settings = {
            "temp_dir": str(session.parent),
            "session_dir": str(session),
            "object_store_bytes": OBJECT_STORE_BYTES,
            "ports": _free_ports(2),
            "public": public,
        }
        patience = {"RAY_gcs_server_port_wait_time_s": f"{patience_s:.0f}"}
        with (session / "logs" / "start.log").open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 (fixed arguments)
                # -P: the working directory may hold a package `maskrcnn` or `ray` of the user's own.
                [sys.executable, "-P", "-m", "maskrcnn_jobs.driver.local_ray_node", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=_SETTINGS | os.environ | patience,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the command, which then stops Ray
            )

    @property
    def log_file(self) -> Path:
        """The log of what was waited for last."""
        return self._session / "logs" / _LOGS.get(self._waiting_for, "start.log")

    def start(self) -> str:
        """Wait until Ray runs; return its address.

        Raises:
            _StartError: it does not.
        """
        started = said = time.monotonic()
        stream = self._process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while True:
                elapsed = time.monotonic() - started
                if elapsed > self._patience_s:
                    raise _StartError(
                        f"{self._waiting_for or 'Python'} took more than {self._patience_s:.0f} s"
                    )
                if time.monotonic() - said > SAY_EVERY_S:
                    said = time.monotonic()
                    log.info("waiting for Ray to start: %s, %.0f s", self._waiting_for or "Python", elapsed)
                if not selector.select(0.5):
                    continue
                line = stream.readline()
                if not line:
                    raise _StartError(f"its process ended with {self._process.wait()}")
                report = json.loads(line)
                if "address" in report:
                    return str(report["address"])
                if "failed" in report:
                    raise _StartError(report["failed"])
                self._waiting_for = report["waiting"]

    def stop(self) -> None:
        """End Ray's processes, those that do not answer too."""
        with contextlib.suppress(OSError):  # a broken pipe: it has ended
            self._process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End Ray's processes at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of its group have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def choose_folder() -> Path:
    """Return the folder for Ray's files: `ray` below `RAY_TMPDIR` or below the folder for temporary files.

    If sockets there would have too long a path, or it cannot be written to, it is another one.

    Raises:
        UsageError: there is no place.
    """
    wanted = Path(os.environ.get("RAY_TMPDIR") or _temporary_folder()).absolute() / "ray"
    others = [Path("/tmp/ray"), Path("/var/tmp/ray"), Path(f"/tmp/ray-{os.getuid()}")]  # noqa: S108
    reasons: list[str] = []
    for folder in dict.fromkeys([wanted, *others]):
        too_long = len(os.fsencode(folder / _session_name() / "sockets" / "plasma_store")) - MAX_SOCKET_PATH
        if too_long > 0:
            allowed = len(os.fsencode(folder.parent)) - too_long
            reasons.append(
                f"the path of {folder.parent} is too long for sockets, which allow {allowed} bytes"
            )
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(dir=folder).cleanup()
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
            continue
        if reasons:
            log.info("Ray keeps its files in %s: %s", folder, reasons[0])
        return folder
    raise UsageError(
        f"Ray has no place for its files ({'; '.join(reasons)}): set RAY_TMPDIR to a folder that you may write to"
    )


def _session_name() -> str:
    now = datetime.datetime.now()  # local time, as in the names that Ray gives
    return f"session_{now:%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # none of those that Python knows can be written to
        return "/tmp"  # noqa: S108 (the caller tries it)


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[None]:
    """Let this process, and Ray's processes that it starts, ask for a token, and present it.

    It is in a file of its own, for the time of the block: the default, `~/.ray/auth_token`, needs a home directory that
    can be written to. What the user has set is left as it is.
    """
    variables = {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token")}
    with contextlib.ExitStack() as stack:
        set_by_user = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
        if variables["RAY_AUTH_MODE"].lower() == "token" and not set_by_user:
            private = stack.enter_context(tempfile.TemporaryDirectory(prefix="token-", dir=folder))
            file = Path(private) / "token"
            file.write_text(_TOKEN)
            variables["RAY_AUTH_TOKEN_PATH"] = str(file)
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            with _settings_of_one_machine():
                yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def _settings_of_one_machine() -> Iterator[None]:
    """Let this process connect to 127.0.0.1, and present a token, for the time of a block.

    Ray reads the variables for both when it is imported, which may have been before. To read them again is what
    `ray.init` does where it starts a Ray, but for one of them there is no such call (Ray 2.60). That one cannot be a
    variable of this process either: with it, a `ray start` that this process starts would refuse to join a cluster.
    """
    from ray._private import ray_constants
    from ray._raylet import Config  # type: ignore[attr-defined]

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        Config.initialize("")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]

"""Which commands carry out a run: each has a record in its folder of probes while it does, and where it was killed."""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

from maskrcnn.io.storage import Storage

PROBES: Final = "probes"
"""The folder of a run's directory that holds probes and traces while the run is processed."""
RECORD: Final = "driver"
"""The file in a driver's own folder of probes."""
_SAME_START_S: Final = 5.0
"""Two readings of when a process started may differ by this, as the clock is adjusted."""


@dataclass(frozen=True, slots=True)
class Driver:
    """The process of a command that carries out a run, as it recorded itself."""

    host: str
    machine: str
    """What must be equal where the number of a process means the same process; "" in a record of another version."""
    process: int
    started: float
    """When the process started, in seconds since 1970."""
    begun: str
    """When it began with the run, in ISO 8601."""
    computing: bool
    """Whether it computes images itself, so that an image may end it: not on Ray, and not once a user stopped it."""
    folder: str = ""
    """Its folder of probes."""

    @property
    def state(self) -> Literal["working", "ended", "unknown"]:
        """Whether it still works, or was killed; unknown where it ran on another machine."""
        if self.machine != _machine():
            return "unknown"
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process)
            same = abs(process.create_time() - self.started) < _SAME_START_S
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return "working"
        return "ended"


def record_driver(storage: Storage, probes: str, *, computing: bool = False) -> None:
    """Write the record of this process into its folder of probes, or write it anew.

    Raises:
        RunError: it cannot be written.
    """
    driver = Driver(
        socket.gethostname(),
        _machine(),
        os.getpid(),
        psutil.Process().create_time(),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        computing,
    )
    storage.write(f"{probes}/{RECORD}", json.dumps(dataclasses.asdict(driver)).encode())


def read_drivers(storage: Storage) -> list[Driver]:
    """Return the drivers that carry out a run, or were killed while they did, in the order in which they began."""
    drivers = []
    for path in storage.list(PROBES):
        if not path.endswith(f"/{RECORD}"):
            continue
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            drivers.append(_parse(storage.read(path), path.removesuffix(f"/{RECORD}")))
    return sorted(drivers, key=lambda driver: driver.begun)


def _parse(record: bytes, folder: str) -> Driver:
    try:
        return Driver(**json.loads(record) | {"folder": folder})
    except (ValueError, TypeError):  # of another version
        return Driver("another machine", "", 0, 0.0, "", computing=False, folder=folder)


def remove_ended(storage: Storage, drivers: Sequence[Driver]) -> None:
    """Remove the folders of drivers, except of those that are known to work."""
    for driver in drivers:
        if driver.state != "working":
            storage.remove_tree(driver.folder)


def _machine() -> str:
    """Return the host's name, and on Linux which start of the system it is, and which container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return " ".join(parts)

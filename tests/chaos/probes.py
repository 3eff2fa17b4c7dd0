"""To know what the processes of a run are doing, and to stop one at a chosen point.

The other half is `inside/sitecustomize.py`, which the processes load. The two talk by files in one folder:
`asked` says which point is waited for, `<token>/<role>.<phase>.<number>` that a process came to a point, `<token>/held`
who waits there, `<token>/released` that it may go on, and `flight/<run>/<shard>.<pid>` that a shard was begun.
"""

import itertools
import json
import os
import runpy
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from maskrcnn.io.storage import Storage

PHASES: Final = ("fetch", "model", "part", "receipt", "reduce")
"""An input is read; the segmenter is called; a shard's file is put; its receipt is put; a user's file is put."""
INSIDE: Final = Path(__file__).parent / "inside"
_SITECUSTOMIZE: Final = runpy.run_path(str(INSIDE / "sitecustomize.py"))
CHANGED_FOR_CHAOS: Final = frozenset(_SITECUSTOMIZE["CHANGES_FOR_CHAOS"])
CHANGED_FOR_POISON: Final = frozenset(_SITECUSTOMIZE["CHANGES_FOR_POISON"])
"""The modules that must have been changed in the processes of a run, or nothing was done to it."""


@dataclass(frozen=True)
class Held:
    """A process that waits at a point."""

    pid: int
    role: str
    """worker or driver."""
    side: str
    """`before` or `after` the call."""
    call: str
    """Of a function of the package, with the last part of the path or uri that it is about."""


class Probes:
    """The points of the processes that were started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens = itertools.count()
        self._token = ""

    def environment(self, role: str = "worker") -> dict[str, str]:
        """Return what a process needs to be observed."""
        path = os.pathsep.join(filter(None, [str(INSIDE), os.environ.get("PYTHONPATH")]))
        return {"MASKRCNN_CHAOS": str(self._folder), "MASKRCNN_CHAOS_ROLE": role, "PYTHONPATH": path}

    def ask(self, output: str, phase: str = "", number: int = -1, roles: tuple[str, ...] = ()) -> None:
        """Count the points of a run from now on, and hold who comes to one of them.

        Args:
            output: of the run; processes of others go on.
            phase: one of `PHASES`; "" holds nobody.
            number: of those who come to this phase before, in their role.
            roles: who may be held.
        """
        self._token = str(next(self._tokens))
        (self._folder / self._token).mkdir(parents=True)
        asked = {
            "output": output,
            "phase": phase,
            "number": number,
            "roles": roles,
            "token": self._token,
        }
        (self._folder / "asking").write_text(json.dumps(asked))
        (self._folder / "asking").rename(self._folder / "asked")

    def held(self) -> Held | None:
        """Return who waits at the point that was asked for."""
        try:
            return Held(**json.loads((self._folder / self._token / "held").read_text()))
        except FileNotFoundError:
            return None

    def release(self) -> None:
        """Let it go on, and hold nobody any more."""
        (self._folder / self._token / "released").touch()

    def check_changed(self) -> None:
        """Raise RuntimeError where what `inside/sitecustomize.py` changes was not changed in any process."""
        check_changed(self._folder, CHANGED_FOR_CHAOS)

    def counts(self) -> Counter[tuple[str, str]]:
        """Return how often each (role, phase) was come to since it was asked."""
        names = [path.name.split(".") for path in (self._folder / self._token).iterdir()]
        return Counter((name[0], name[1]) for name in names if len(name) == 3)

    def in_flight(self, output: str, phase: str) -> int:
        """Count the shards without a receipt that a living process has begun; of the reduce, whether it goes on."""
        if phase == "reduce":
            return int(not Storage(output).exists("_SUCCESS"))
        flight = self._folder / "flight" / name_of(output)
        marks = [path.name.rpartition(".") for path in flight.iterdir()] if flight.exists() else []
        begun = {shard for shard, _, pid in marks if alive(int(pid))}
        return len(begun - {receipt.partition(".")[0] for receipt in receipts_of(output)})


def check_changed(folder: Path, modules: frozenset[str]) -> None:
    """Raise RuntimeError where no process has noted in a folder that it changed one of these modules."""
    changed = (
        {path.name for path in (folder / "changed").iterdir()} if (folder / "changed").exists() else set()
    )
    if missing := modules - changed:
        raise RuntimeError(
            f"never changed, so that nothing was done to the run: {', '.join(sorted(missing))}"
        )


def name_of(url: str) -> str:
    """Return the last part of a run's url."""
    return url.rpartition("/")[2]


def receipts_of(output: str) -> list[str]:
    """Return the names of a run's receipts."""
    return [name_of(path) for path in Storage(output).list("receipts")]


def alive(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: set[int], seconds: float) -> set[int]:
    """Wait for processes to end; return those that did not."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left

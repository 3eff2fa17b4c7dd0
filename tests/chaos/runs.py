"""Runs that are disturbed: how they are started, what became of them, and whether it is what it should be."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from planted_images import write_planted

import maskrcnn
from chaos.invariants import BrokenError, GroundTruth, check_is_final

IMAGES: Final = 44
BROKEN: Final = 4
SHARD_IMAGES: Final = 4
PLANTED: Final = ("--model", "planted:0.02", "--device", "cpu", "--shard-images", str(SHARD_IMAGES))
"""Options of a run whose shards take some 0.1 s."""
RUN_S: Final = 240
"""A run that takes longer hangs."""


@dataclass(frozen=True)
class Killed:
    """What was killed."""

    victim: str
    phase: str
    side: str
    """`before` or `after` …"""
    call: str
    """… that a process was held at meanwhile."""
    pid: int
    receipts: int
    """The number that stood."""
    in_flight: int
    """Shards begun and without a receipt; in the reduce, which is one piece of work, 1 until its `_SUCCESS`."""
    after_s: float
    """Since the run began."""


@dataclass
class Outcome:
    """What became of a run."""

    output: str
    killed: list[Killed] = field(default_factory=list)
    missed: str = ""
    """Why a kill could not be done."""
    exits: list[int] = field(default_factory=list)
    """Exit codes of the drivers; the negative number of a signal."""
    lost: int = 0
    """Images and instances of the undisturbed run that are not there."""
    doubled: int = 0
    """Those that are there more often."""
    broken: str = ""
    """The invariant that does not hold, or how the run ended if not well."""
    orphans: int = 0
    """Processes that outlived by seconds the worker that had started them."""
    seconds: float = 0.0
    said: str = ""
    """The drivers' stderr."""

    @property
    def counted(self) -> bool:
        """Whether it was disturbed as planned, and while there was something to lose."""
        return not self.missed and all(one.in_flight for one in self.killed)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with it."""
        return not (self.lost or self.doubled or self.broken or self.orphans)


def end_in_order() -> None:
    """Let SIGINT and SIGTERM end this process by an exception, so that clusters and servers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("stopped"))


@contextlib.contextmanager
def driver(
    arguments: Sequence[str], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `maskrcnn segment`; kill it at the end of the block if it still runs."""
    command = [sys.executable, "-m", "maskrcnn_jobs", "segment", *arguments, "--max-failure-rate", "1"]
    with log.open("ab") as said:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def judge(outcome: Outcome, undisturbed: str, ground_truth: GroundTruth) -> None:
    """Compare a run that should be finished with the undisturbed one, and note what is wrong."""
    if outcome.exits[-1] != 0:
        hangs = " (it hung)" if outcome.exits[-1] == -signal.SIGKILL else ""
        outcome.broken = f"the driver ended with {outcome.exits[-1]}{hangs}: {outcome.said[-800:]}"
        return
    found, should = (names_in(url) for url in (outcome.output, undisturbed))
    outcome.lost, outcome.doubled = (should - found).total(), (found - should).total()
    try:
        check_is_final(outcome.output, ground_truth)
    except BrokenError as error:
        outcome.broken = str(error)
    if "Traceback" in outcome.said:
        outcome.broken = f"a traceback: {outcome.said[-800:]}"
    outcome.broken = outcome.broken or verified(outcome.output)


def names_in(url: str) -> Counter[str | int]:
    """Return how often each image, by name, and each instance, by id, is in a run's tables."""
    run = maskrcnn.open_run(url)
    return Counter([*run.images()["name"].to_pylist(), *run.instances()["id"].to_pylist()])


def verified(output: str) -> str:
    """Ask `maskrcnn verify`; return "" if it finds nothing wrong, else what it says."""
    run = subprocess.run(
        [sys.executable, "-m", "maskrcnn_jobs", "verify", output], capture_output=True, text=True, check=False
    )
    said = run.stdout[-500:] + run.stderr[-500:]
    return "" if run.returncode == 0 else f"verify ended with {run.returncode}: {said}"


def write_collection(folder: Path, seed: int) -> Path:
    """Write planted images, and among them files that are broken, each in its way; return the folder."""
    write_planted(folder, IMAGES - BROKEN, seed)
    whole = (folder / "planted-000000.png").read_bytes()
    chance = random.Random(seed)
    broken = (b"", b"<html>not found</html>", whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:])
    for number, data in enumerate(broken):
        (folder / f"planted-{chance.randrange(IMAGES):06d}-broken-{number}.png").write_bytes(data)
    return folder

"""One standing cluster on which many runs are disturbed, one after the other: workers, nodes and drivers are killed.

The cluster has a head that hosts no actors and two nodes, each with processes of its own, as `ray start` makes them.
A killed node is replaced while the run goes on. What a run must give is what an undisturbed one gave.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import pyarrow.parquet as pq
import pytest
from local import LocalCluster, Node, local_cluster

from chaos.invariants import BrokenError, Truth, check_is_final, truth_of
from chaos.probes import Held, Probes, receipts_of, wait_until_gone
from maskrcnn.planted import write_planted

VICTIMS: Final = ("worker", "node", "driver")
IMAGES: Final = 44
BROKEN: Final = 4
SHARD_IMAGES: Final = 4
CPUS_OF_A_NODE: Final = 2
RUN_S: Final = 180
"""A run that takes longer hangs."""

# A killed node refuses connections at once; so this notices it in some 2 s, and not that a living one is slow.
NOTICING: Final = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_timeout_ms": "20000",
}


@dataclass(frozen=True)
class Kill:
    """What is to be killed, and when."""

    victim: str
    """`worker`, with SIGKILL; its `node`, at once; the `driver`; or `notice`: a worker, with SIGTERM."""
    phase: str
    share: float
    """Of all who come to this phase in an undisturbed run, in [0, 1)."""
    pause_s: float = 0.0
    """Between that the point is reached and the kill."""


@dataclass
class Killed:
    """What was killed."""

    victim: str
    phase: str
    side: str
    what: str
    pid: int
    receipts: int
    """How many stood."""
    in_flight: int
    """Shards begun and without a receipt; in the reduce, which is one piece of work, 1."""
    after_s: float


@dataclass
class Outcome:
    """What became of a run."""

    output: Path
    killed: list[Killed] = field(default_factory=list)
    missed: str = ""
    """Why a kill could not be done."""
    exits: list[int] = field(default_factory=list)
    """Exit codes of the drivers."""
    lost: int = 0
    """Images or instances of the undisturbed run that are not there."""
    doubled: int = 0
    broken: str = ""
    """The law that does not hold, or how the run ended if not well."""
    orphans: int = 0
    """Processes of a killed worker that outlived it by seconds."""
    seconds: float = 0.0
    said: str = ""
    """The drivers' stderr."""

    @property
    def counted(self) -> bool:
        """Whether it was killed as planned, while there was something to lose."""
        return not self.missed and all(one.in_flight for one in self.killed)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with it."""
        return not (self.lost or self.doubled or self.broken or self.orphans)


class Arena:
    """The cluster, a collection, and what a run makes of it that nothing disturbs.

    Args:
        cluster: a head and two nodes.
        probes: what its processes were started with.
        folder: for inputs and outputs.
        seed: of the collection.
    """

    def __init__(self, cluster: LocalCluster, probes: Probes, folder: Path, seed: int) -> None:
        self.cluster = cluster
        self.probes = probes
        self.folder = folder
        self.images = folder / "images"
        write_collection(self.images, seed)
        self._mending: list[threading.Thread] = []
        self.undisturbed = folder / "undisturbed"
        self.counts, self.truth = self._observe()

    def _observe(self) -> tuple[Counter[tuple[str, str]], Truth]:
        self.probes.ask(self.undisturbed)
        with self.driver(self.undisturbed, self.folder / "undisturbed.log") as process:
            if process.wait(RUN_S):
                raise RuntimeError((self.folder / "undisturbed.log").read_text())
        return self.probes.counts(), truth_of(str(self.undisturbed))

    @contextlib.contextmanager
    def driver(self, output: Path, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a driver; kill it at the end of the block if it still runs."""
        command = [
            *(sys.executable, "-m", "maskrcnn_jobs", "segment", str(self.images), str(output)),
            *("--model", "planted:0.02", "--device", "cpu", "--actors", "2"),
            *("--shard-images", str(SHARD_IMAGES), "--max-failure-rate", "1"),
            *("--address", self.cluster.address, *options),
        ]
        environment = os.environ | self.cluster.environment | self.probes.environment("driver")
        with log.open("ab") as said:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, name: str, kills: Sequence[Kill]) -> Outcome:
        """Run the job, kill what is to be killed, repeat the command where the driver died, and look at the result."""
        outcome = Outcome(self.folder / name)
        log = self.folder / f"{name}.log"
        waiting = list(kills)
        started = time.monotonic()
        nodes = len(self.cluster.nodes)
        while True:
            if waiting:
                self._ask(outcome.output, waiting[0])
            with self.driver(outcome.output, log) as process:
                while waiting and process.poll() is None and time.monotonic() - started < RUN_S:
                    held = self.probes.held()
                    if held is None:
                        time.sleep(0.005)
                        continue
                    self._kill(waiting.pop(0), held, process, outcome, started)
                    if waiting:
                        self._ask(outcome.output, waiting[0])
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(RUN_S - (time.monotonic() - started), 0))
                outcome.exits.append(process.returncode if process.returncode is not None else -1)
            if outcome.exits[-1] != -signal.SIGKILL or not outcome.killed:
                break
        outcome.seconds = time.monotonic() - started
        if waiting:
            outcome.missed = f"{waiting[0].phase} was not come to"
        self._judge(outcome, log)
        for thread in self._mending:
            thread.join()
        if [node for node in self.cluster.nodes[nodes:] if node.process.poll() is not None]:
            raise RuntimeError("a node that was to replace a killed one did not stay")
        return outcome

    def _ask(self, output: Path, kill: Kill) -> None:
        roles = ("worker", "driver") if (kill.victim, kill.phase) == ("driver", "reduce") else ("worker",)
        number = int(kill.share * min(self.counts[role, kill.phase] for role in roles))
        self.probes.ask(output, kill.phase, number, roles)

    def _kill(
        self, kill: Kill, held: Held, driver: subprocess.Popen[bytes], outcome: Outcome, started: float
    ) -> None:
        time.sleep(kill.pause_s)
        in_flight = 1 if kill.phase == "reduce" else len(self.probes.in_flight(outcome.output))
        receipts = len(receipts_of(outcome.output))
        if kill.victim == "driver":
            pid, family = driver.pid, set()
            driver.kill()
        else:
            node, worker = self._place_of(held.pid)
            pid, family = worker.pid, {child.pid for child in worker.children(recursive=True)}
            if kill.victim == "node":
                kill_node(node)
                self._replace(node)
            else:
                worker.send_signal(signal.SIGTERM if kill.victim == "notice" else signal.SIGKILL)
        after_s = time.monotonic() - started
        self.probes.release()
        outcome.killed.append(
            Killed(kill.victim, kill.phase, held.side, held.what, pid, receipts, in_flight, round(after_s, 2))
        )
        if kill.victim in ("worker", "node"):
            outcome.orphans += len(wait_until_gone(family, 5))

    def _place_of(self, pid: int) -> tuple[Node, psutil.Process]:
        """Return the node of a process, and the worker that it is or belongs to: the raylet's own child."""
        line = [psutil.Process(pid), *psutil.Process(pid).parents()]
        nodes = {node.process.pid: node for node in self.cluster.nodes}
        [raylet] = [number for number, process in enumerate(line) if process.name() == "raylet"]
        [node] = [nodes[process.pid] for process in line if process.pid in nodes]
        return node, line[raylet - 1]

    def _replace(self, node: Node) -> None:
        self.cluster.nodes.remove(node)
        self._mending.append(threading.Thread(target=self.cluster.add_node, args=(CPUS_OF_A_NODE,)))
        self._mending[-1].start()

    def _judge(self, outcome: Outcome, log: Path) -> None:
        outcome.said = log.read_text(errors="replace")
        if outcome.exits[-1] != 0:
            hangs = " (no end)" if outcome.exits[-1] == -signal.SIGKILL else ""
            outcome.broken = f"the driver ended with {outcome.exits[-1]}{hangs}: {outcome.said[-500:]}"
            return
        if "Traceback" in outcome.said:
            outcome.broken = f"a traceback: {outcome.said[-500:]}"
        for table, key in (("images", "name"), ("instances", "id")):
            there, should = (Counter(_column(run, table, key)) for run in (outcome.output, self.undisturbed))
            outcome.lost += (should - there).total()
            outcome.doubled += (there - should).total()
        try:
            check_is_final(str(outcome.output), self.truth)
        except BrokenError as error:
            outcome.broken = str(error)
        outcome.broken = outcome.broken or verified(outcome.output)


def _column(run: Path, table: str, key: str) -> list[Any]:
    values: list[Any] = pq.read_table(run / table, columns=[key])[key].to_pylist()
    return values


def verified(output: Path) -> str:
    """Ask `maskrcnn verify`; return "" if it finds nothing wrong, else what it says."""
    run = subprocess.run(
        [sys.executable, "-m", "maskrcnn_jobs", "verify", str(output)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "No such command" in run.stderr:
        return ""
    return "" if run.returncode == 0 else f"verify: {run.returncode}: {run.stdout[-500:]}{run.stderr[-500:]}"


def kill_node(node: Node) -> None:
    """End a node and all that it started, at once."""
    family = psutil.Process(node.process.pid).children(recursive=True)
    node.kill()
    for process in family:  # those that made themselves leaders of a group of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def write_collection(folder: Path, seed: int) -> None:
    """Write planted images, and among them files that are broken, each in its way."""
    write_planted(folder, IMAGES - BROKEN, seed)
    whole = (folder / "planted-000000.png").read_bytes()
    chance = random.Random(seed)
    broken = (b"", b"<html>not found</html>", whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:])
    for number, data in enumerate(broken):
        (folder / f"planted-{chance.randrange(IMAGES):06d}-broken-{number}.png").write_bytes(data)


@contextlib.contextmanager
def arena(seed: int, parent: Path | None = None) -> Iterator[Arena]:
    """Start the cluster and see what an undisturbed run gives; stop the cluster at the end of the block."""
    with contextlib.ExitStack() as stack:
        # Nodes inherit the environment of this process.
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if parent is None:
            parent = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        probes = Probes(parent / "probes")
        for name, value in (NOTICING | probes.environment() | {"OMP_NUM_THREADS": "1"}).items():
            patch.setenv(name, value)
        cluster = stack.enter_context(local_cluster(nodes=3, cpus=CPUS_OF_A_NODE, head_cpus=0))
        yield Arena(cluster, probes, parent, seed)

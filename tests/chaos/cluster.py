"""One standing cluster on which many runs are disturbed, one after the other: workers, nodes and drivers are killed.

The cluster has a head that hosts no actors and two nodes, each with processes of its own, as `ray start` makes them.
A killed node is replaced while the run goes on.
"""

import contextlib
import itertools
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest
from archives import FORMS, in_form
from local import LocalCluster, Node
from ray_cluster import START_TRIES, standing_cluster

from chaos.invariants import ground_truth_of
from chaos.probes import Held, Probes, receipts_of, wait_until_gone
from chaos.runs import PLANTED, RUN_S, Killed, Outcome, driver, judge, write_collection

VICTIMS: Final = ("worker", "node", "driver")
NODES: Final = 3
"""The head, which hosts no actors, and two others."""
CPUS_OF_A_NODE: Final = 2
# A killed node refuses connections at once: this notices it in some 2 s, without taking a slow one for dead.
TEMPER: Final = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_timeout_ms": "20000",
    "OMP_NUM_THREADS": "1",
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
        self.images = write_collection(folder / "images", seed)
        self.source = in_form(random.Random(f"{seed} form").choice(FORMS), self.images)
        self._repairing: list[threading.Thread] = []
        self._one_by_one = threading.Lock()
        self.undisturbed = str(folder / "undisturbed")
        self.counts = self._observe(folder / "undisturbed.log")
        self.ground_truth = ground_truth_of(self.undisturbed)

    def _observe(self, log: Path) -> Counter[tuple[str, str]]:
        """Do the run that nothing disturbs; return how often each phase was come to."""
        self.probes.ask(self.undisturbed)
        with self._driver(self.undisturbed, log) as process:
            if process.wait(RUN_S):
                raise RuntimeError(log.read_text())
        self.probes.check_changed()
        return self.probes.counts()

    def _driver(self, output: str, log: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        arguments = [str(self.source), output, *PLANTED, "--actors", "2", "--address", self.cluster.address]
        return driver(arguments, log, self.cluster.environment | self.probes.environment("driver"))

    def run(self, name: str, kills: Sequence[Kill]) -> Outcome:
        """Run the job, kill what is to be killed, repeat the command where the driver died, and look at the result."""
        outcome = Outcome(str(self.folder / name))
        log = self.folder / f"{name}.log"
        waiting = list(kills)
        started = time.monotonic()
        again = True
        while again:
            with self._driver(outcome.output, log) as process:
                again = self._strike(waiting, process, outcome, started)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(started + RUN_S - time.monotonic(), 0))
            outcome.exits.append(process.returncode)
        outcome.seconds = time.monotonic() - started
        outcome.missed = f"nobody came to {waiting[0].phase}" if waiting else ""
        outcome.said = log.read_text(errors="replace")
        judge(outcome, self.undisturbed, self.ground_truth)
        while self._repairing:
            self._repairing.pop().join()
        return outcome

    def _strike(
        self, waiting: list[Kill], process: subprocess.Popen[bytes], outcome: Outcome, started: float
    ) -> bool:
        """Do the kills that wait, until the driver ends; return whether it was killed, and must be started again."""
        while waiting:
            self._ask(outcome.output, waiting[0])
            while (held := self.probes.held()) is None:
                if process.poll() is not None or time.monotonic() > started + RUN_S:
                    return False
                time.sleep(0.005)
            # An actor of a killed driver, which Ray ends any moment, is no victim.
            with contextlib.suppress(psutil.NoSuchProcess):
                outcome.killed.append(self._kill(waiting[0], held, process, outcome, started))
                if waiting.pop(0).victim == "driver":
                    return True
        return False

    def _ask(self, output: str, kill: Kill) -> None:
        roles = ("worker", "driver") if (kill.victim, kill.phase) == ("driver", "reduce") else ("worker",)
        number = int(kill.share * min(self.counts[role, kill.phase] for role in roles))
        self.probes.ask(output, kill.phase, number, roles)

    def _kill(
        self, kill: Kill, held: Held, process: subprocess.Popen[bytes], outcome: Outcome, started: float
    ) -> Killed:
        time.sleep(kill.pause_s)
        in_flight = self.probes.in_flight(outcome.output, kill.phase)
        receipts = len(receipts_of(outcome.output))
        pid, family = process.pid, set[int]()
        if kill.victim == "driver":
            process.kill()
            process.wait()
        else:
            node, worker = self._place_of(held.pid)
            pid = worker.pid
            if kill.victim != "notice":
                family = {child.pid for child in worker.children(recursive=True)}
            if kill.victim == "node":
                kill_node(node)
                self._repairing.append(threading.Thread(target=self._add_node))
                self._repairing[-1].start()
            else:
                worker.send_signal(signal.SIGTERM if kill.victim == "notice" else signal.SIGKILL)
        after_s = round(time.monotonic() - started, 2)
        self.probes.release()
        outcome.orphans += len(wait_until_gone(family, 5))
        return Killed(kill.victim, kill.phase, held.side, held.call, pid, receipts, in_flight, after_s)

    def _place_of(self, pid: int) -> tuple[Node, psutil.Process]:
        """Return the node of a process, and the worker that it is or belongs to: the raylet's own child.

        Raises:
            psutil.NoSuchProcess: it is dead, or its raylet is.
        """
        line = [psutil.Process(pid), *psutil.Process(pid).parents()]
        nodes = {node.process.pid: node for node in self.cluster.nodes}
        for worker, raylet in itertools.pairwise(line):
            if raylet.name() == "raylet":
                [node] = [nodes[process.pid] for process in line if process.pid in nodes]
                return node, worker
        raise psutil.NoSuchProcess(pid)

    def _add_node(self) -> None:
        with self._one_by_one:
            for _ in range(START_TRIES):
                try:
                    self.cluster.add_node(CPUS_OF_A_NODE)
                except RuntimeError as error:
                    self.cluster.nodes[-1].kill()
                    print(str(error)[-300:], file=sys.stderr)
                else:
                    return

    def is_whole(self) -> bool:
        """Return whether all nodes stand: Ray does not always start the one that replaces another."""
        return sum(node.process.poll() is None for node in self.cluster.nodes) == NODES


def kill_node(node: Node) -> None:
    """End a node and all that it started, at once."""
    family = psutil.Process(node.process.pid).children(recursive=True)
    node.kill()
    for process in family:  # those that lead a group of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def standing(environment: Mapping[str, str], nodes: int, cpus: int, head_cpus: int) -> Iterator[LocalCluster]:
    """Run a cluster whose processes have this environment too, for the time of a block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (TEMPER | environment).items():
            patch.setenv(name, value)
        with standing_cluster(nodes, cpus, head_cpus) as cluster:
            yield cluster


@contextlib.contextmanager
def arena(seed: int) -> Iterator[Arena]:
    """Start the cluster and see what an undisturbed run gives; stop the cluster at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        probes = Probes(Path(name) / "probes")
        with standing(probes.environment(), NODES, CPUS_OF_A_NODE, head_cpus=0) as cluster:
            yield Arena(cluster, probes, Path(name), seed)

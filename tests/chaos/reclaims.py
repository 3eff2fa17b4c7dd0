"""Half of a cluster's nodes are taken away at once in the middle of a run, and others join.

    python -m tests.chaos.reclaims --rounds 6 --seed 5

A cluster of a head that hosts no actors and four nodes does one run after the other. In each, once a share of the
shards is done that the seed draws, two nodes that it draws too are lost: in one run without a notice, in the next
after a SIGTERM, upon which Ray drains them, and some seconds. Two others are started meanwhile. The run must end with
the tables of the undisturbed one, byte for byte; what its actors handed back is no failure of theirs. Prints a line
for each run. Exit code 1: a run did not end well, or has other tables, or an actor failed that had a notice.
"""

import argparse
import contextlib
import itertools
import json
import random
import re
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from commandline import parts
from local import LocalCluster, Node
from planted_images import write_planted
from ray_cluster import START_TRIES

from chaos.cluster import kill_node, standing
from chaos.invariants import ground_truth_of
from chaos.probes import receipts_of
from chaos.runs import RUN_S, Outcome, driver, end_in_order, judge

NODES: Final = 4
"""Besides the head."""
TAKEN: Final = NODES // 2
NOTICE_S: Final = 8
"""From a SIGTERM to the end of its node."""
IMAGES: Final = 320
SHARD_IMAGES: Final = 4
SLEEP_S: Final = 0.25
KINDS: Final = ("lost", "notice")
HANDED_BACK: Final = re.compile(r"(\S+)(?: and (\S+))? (?:is|are) handed back")
FAILED: Final = re.compile(r"an actor ended on shard (\S+?)(?: and (\S+))?:")


@dataclass(frozen=True)
class Round:
    """A run that half of the nodes were taken from."""

    kind: str
    """`lost`, without a notice, or after a `notice`."""
    done: int
    """Shards that were done by then, …"""
    shards: int
    """… and all of them."""
    seconds: float
    handed_back: int
    failed: int
    """Executions of shards that ended with their actor."""
    workers: int
    """Processes that did a shard."""
    wrong: str
    """What is not as it must be, or ""."""

    def line(self) -> str:
        """Return the round in a line for people."""
        return (
            f"{self.kind:6}  at {self.done:3} of {self.shards} shards  {self.seconds:5.1f} s  "
            f"{self.handed_back} handed back, {self.failed} ended with their actor, {self.workers} workers  "
            f"{self.wrong or 'equal'}"
        )


class Stand:
    """The cluster, a collection, and what a run makes of it that nothing disturbs."""

    def __init__(self, cluster: LocalCluster, folder: Path, seed: int) -> None:
        self._cluster = cluster
        self._folder = folder
        self._chance = random.Random(seed)
        self._nodes = cluster.nodes[1:]
        write_planted(folder / "images", IMAGES, seed)
        began = time.monotonic()
        with self._driver("undisturbed") as process:
            if process.wait(RUN_S):
                raise RuntimeError((folder / "undisturbed.log").read_text())
        self.undisturbed_s = time.monotonic() - began
        self._ground_truth = ground_truth_of(str(folder / "undisturbed"))

    def _driver(self, name: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        options = ["--model", f"planted:{SLEEP_S}", "--device", "cpu", "--shard-images", str(SHARD_IMAGES)]
        options += ["--actors", str(NODES), "--address", self._cluster.address]
        arguments = [str(self._folder / "images"), str(self._folder / name), *options]
        return driver(arguments, self._folder / f"{name}.log", self._cluster.environment)

    def round(self, number: int, kind: str) -> Round:
        """Do a run, take half of the nodes away, and bring as many."""
        name = f"round-{number}"
        output = self._folder / name
        shards = -(-IMAGES // SHARD_IMAGES)
        share = self._chance.uniform(0.05, 0.5)
        taken = self._chance.sample(self._nodes, TAKEN)
        outcome = Outcome(str(output))
        began = time.monotonic()
        with self._driver(name) as process:
            while process.poll() is None and len(receipts_of(str(output))) < share * shards:
                time.sleep(0.05)
            done = len(receipts_of(str(output)))
            bringing = threading.Thread(target=self._replace, args=(taken,))
            if kind == "notice":
                for node in taken:
                    node.process.terminate()
            bringing.start()
            time.sleep(NOTICE_S if kind == "notice" else 0)
            for node in taken:
                kill_node(node)
            outcome.exits.append(process.wait(max(began + RUN_S - time.monotonic(), 1)))
        seconds = time.monotonic() - began
        bringing.join()
        outcome.said = (self._folder / f"{name}.log").read_text(errors="replace")
        judge(outcome, str(self._folder / "undisturbed"), self._ground_truth)
        wrong = outcome.broken
        if not wrong and parts(output) != parts(self._folder / "undisturbed"):
            wrong = "the tables differ"
        failed = names_in(FAILED, outcome.said)
        if kind == "notice" and not wrong and failed:
            wrong = "an actor failed that had a notice"
        receipts = [json.loads(path.read_text()) for path in (output / "receipts").iterdir()]
        workers = {receipt["execution"]["pid"] for receipt in receipts}
        back = names_in(HANDED_BACK, outcome.said)
        return Round(kind, done, shards, seconds, len(back), len(failed), len(workers), wrong)

    def _replace(self, taken: list[Node]) -> None:
        """Start as many nodes as are taken away, one after the other."""
        self._nodes = [node for node in self._nodes if node not in taken]
        for _ in taken:
            for tries_left in reversed(range(START_TRIES)):
                try:
                    self._nodes.append(self._cluster.add_node(1))
                    break
                except RuntimeError:
                    self._cluster.nodes[-1].kill()
                    if not tries_left:
                        raise


def names_in(pattern: re.Pattern[str], said: str) -> list[str]:
    """Return the shards that lines of a log name.

    >>> names_in(HANDED_BACK, "with 8 s left: shard 1-7 is finished there; shards 1-8 and 1-9 are handed back")
    ['1-8', '1-9']
    >>> names_in(FAILED, "an actor ended on shard 1-3: its node is gone")
    ['1-3']
    """
    return [name for match in pattern.finditer(said) for name in match.groups() if name]


def main() -> None:
    """Do the rounds of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    end_in_order()
    print(f"seed {options.seed}", flush=True)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        notice = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(NOTICE_S)}
        with standing(notice, nodes=1 + NODES, cpus=1, head_cpus=0) as cluster:
            stand = Stand(cluster, Path(name), options.seed)
            print(f"undisturbed: {stand.undisturbed_s:.1f} s", flush=True)
            for number, kind in zip(range(options.rounds), itertools.cycle(KINDS), strict=False):
                rounds.append(stand.round(number, kind))
                print(rounds[-1].line(), flush=True)
    equal = sum(not one.wrong for one in rounds)
    print(f"{equal} of {len(rounds)} runs as undisturbed")
    if equal < len(rounds):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

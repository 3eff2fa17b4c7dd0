"""Kill a real S3 server in mid-run and start it again, with nobody to help the driver: it must end all the same.

    python -m tests.chaos.s3_restarts [--rounds 10] [--seed 7]

SeaweedFS holds inputs and outputs. In each round a worker is stopped in the phase that the schedule asks for, the
server is killed by SIGKILL, the worker goes on and meets an endpoint that is not there, and after some two seconds
the server comes back on the same folder and port. Each phase has its turn. Prints a line a round. Exit code 1: a run
did not end by itself, was not verified, or differs from the undisturbed one.
"""

import argparse
import contextlib
import itertools
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from archives import FORMS, in_form
from local import LocalCluster
from s3_servers import S3Server, new_weed, start_weed

from chaos.cluster import standing
from chaos.invariants import ground_truth_of
from chaos.probes import PHASES, Held, Probes, receipts_of
from chaos.runs import PLANTED, RUN_S, Killed, Outcome, driver, end_in_order, judge, write_collection
from maskrcnn.io.storage import Storage

DOWN_S: Final = (0.5, 3.0)
"""For how long the server is away, beside the second that it takes to start."""


@dataclass
class Weed:
    """SeaweedFS on a folder and a port, which it keeps."""

    folder: Path
    server: S3Server
    process: subprocess.Popen[bytes]

    @staticmethod
    def start(folder: Path) -> "Weed":
        """Start it anew."""
        process, server = new_weed(folder)
        return Weed(folder, server, process)

    def kill(self) -> None:
        """End it in mid-air."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """Start it on what it had stored."""
        self.process = start_weed(self.folder, int(self.server.endpoint.rpartition(":")[2]))


class Shore:
    """A server, a cluster of one node that reaches it, a collection, and what a run makes of it undisturbed."""

    def __init__(self, weed: Weed, cluster: LocalCluster, probes: Probes, folder: Path, seed: int) -> None:
        self.weed = weed
        self.cluster = cluster
        self.probes = probes
        self.folder = folder
        prefix = weed.server.prefix()
        self.outputs = f"{prefix}/runs"
        images = write_collection(folder / "images", seed)
        source = in_form(random.Random(f"{seed} form").choice(FORMS), images)
        self.images = f"{prefix}/{source.name}"
        for path in images.glob("*.png") if source == images else [source]:
            Storage(prefix).put_file(str(path.relative_to(folder)), path)
        self.undisturbed = f"{self.outputs}/undisturbed"
        log = folder / "undisturbed.log"
        probes.ask(self.undisturbed)
        with self._driver(self.undisturbed, log) as process:
            if process.wait(RUN_S):
                raise RuntimeError(log.read_text())
        probes.check_changed()
        self.counts = probes.counts()
        self.ground_truth = ground_truth_of(self.undisturbed)

    def _driver(self, output: str, log: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        arguments = [self.images, output, *PLANTED, "--actors", "2", "--address", self.cluster.address]
        return driver(arguments, log, self.cluster.environment | self.probes.environment("driver"))

    def run(self, name: str, phase: str, share: float, down_s: float) -> Outcome:
        """Run the job, and take the server away for a while when a worker comes to a point."""
        outcome = Outcome(f"{self.outputs}/{name}", missed=f"nobody came to {phase}")
        log = self.folder / f"{name}.log"
        self.probes.ask(outcome.output, phase, int(share * self.counts["worker", phase]), ("worker",))
        started = time.monotonic()
        with self._driver(outcome.output, log) as process:
            while process.poll() is None and time.monotonic() < started + RUN_S:
                if outcome.killed or (held := self.probes.held()) is None:
                    time.sleep(0.01)
                    continue
                outcome.killed.append(self._interrupt(phase, held, outcome.output, down_s, started))
                outcome.missed = ""
        outcome.exits.append(process.returncode)
        outcome.seconds = time.monotonic() - started
        outcome.said = log.read_text(errors="replace")
        judge(outcome, self.undisturbed, self.ground_truth)
        return outcome

    def _interrupt(self, phase: str, held: Held, output: str, down_s: float, started: float) -> Killed:
        in_flight = self.probes.in_flight(output, phase)
        receipts = len(receipts_of(output))
        pid = self.weed.process.pid
        self.weed.kill()
        after_s = round(time.monotonic() - started, 2)
        threading.Timer(0.05, self.probes.release).start()
        time.sleep(down_s)
        self.weed.start_again()
        return Killed("server", phase, held.side, held.call, pid, receipts, in_flight, after_s)


@contextlib.contextmanager
def shore(seed: int) -> Iterator[Shore]:
    """Start server and cluster, and see what an undisturbed run gives; stop both at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        weed = Weed.start(folder / "weed")
        try:
            probes = Probes(folder / "probes")
            with (
                weed.server.environment(),
                standing(probes.environment(), nodes=1, cpus=2, head_cpus=2) as cluster,
            ):
                yield Shore(weed, cluster, probes, folder, seed)
        finally:
            weed.kill()


def rounds(stand: Shore, seed: int, count: int) -> Iterator[Outcome]:
    """Do so many rounds, each phase in its turn."""
    chance = random.Random(f"{seed} rounds")
    phases = [phase for _ in range(count) for phase in chance.sample(PHASES, len(PHASES))]
    for number, phase in enumerate(itertools.islice(phases, count)):
        yield stand.run(f"round-{number}", phase, chance.uniform(0, 0.8), chance.uniform(*DOWN_S))


def line_of(outcome: Outcome) -> str:
    """Return a round in a line for people."""
    fate = "; ".join(
        f"the server in {one.phase} ({one.side} {one.call}), {one.receipts} receipts, "
        f"{one.in_flight} in flight"
        for one in outcome.killed
    )
    result = "equal" if outcome.good else f"lost {outcome.lost}, doubled {outcome.doubled}, {outcome.broken}"
    return f"{outcome.seconds:6.1f} s  {fate or outcome.missed}  {result}"


def main() -> None:
    """Do the rounds of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    end_in_order()
    print(f"seed {options.seed}", flush=True)
    outcomes = []
    with shore(options.seed) as stand:
        for outcome in rounds(stand, options.seed, options.rounds):
            print(line_of(outcome), flush=True)
            outcomes.append(outcome)
    counted = sum(outcome.counted for outcome in outcomes)
    lost, doubled = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("lost", "doubled"))
    print(f"{counted} of {len(outcomes)} rounds counted; lost {lost}, doubled {doubled}")
    if counted < len(outcomes) or not all(outcome.good for outcome in outcomes):
        raise SystemExit("not as it must be")


if __name__ == "__main__":
    main()

"""How much longer a run takes of whose eight actors one is killed every five seconds.

    python -m tests.chaos.slowdown [--pairs 3] [--seconds 70]

The actors' work is sleep (planted images, 0.2 s each), so that eight of them fit on two CPUs; what their replacement
costs, the start of a process and of what it imports, is real, and paid by the same CPUs. Disturbed and undisturbed
runs alternate on one standing Ray, and are timed from the start of the command to its end. Prints the ratio of each
pair, their median and spread; the tables of both must be equal. Exit code 1: they are not, or the median is above 1.3.
"""

import argparse
import contextlib
import random
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import psutil
from benchmarks.inputs import write_manifest
from local import LocalCluster
from planted_images import write_planted

from chaos.cluster import standing
from chaos.runs import RUN_S, driver, end_in_order, names_in

ACTORS: Final = 8
EVERY_S: Final = 5.0
SLEEP_S: Final = 0.2
SHARD_IMAGES: Final = 8
DISTINCT: Final = 400
LIMIT: Final = 1.3


class Killer:
    """Kills one of the actors every so many seconds, from when all are there."""

    def __init__(self, seed: str, process: subprocess.Popen[bytes]) -> None:
        self.killed = 0
        self._chance = random.Random(seed)
        self._process = process
        self._thread = threading.Thread(target=self._kill)
        self._thread.start()

    def _kill(self) -> None:
        while len(actors()) < ACTORS and self._process.poll() is None:
            time.sleep(0.1)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EVERY_S)
                return
            if victims := actors():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._chance.choice(victims).kill()
                    self.killed += 1

    def join(self) -> int:
        """Wait for the driver's end; return the number of killed actors."""
        self._thread.join()
        return self.killed


def actors() -> list[psutil.Process]:
    """Return the processes of actors that run."""
    named = [process for process in psutil.process_iter(["name", "cmdline"]) if process.info["cmdline"]]
    found = [process for process in named if process.info["cmdline"][0].startswith("ray::SegmentActor")]
    return sorted(found, key=lambda process: process.pid)


def timed(manifest: Path, output: Path, cluster: LocalCluster, kill: str = "") -> tuple[float, int]:
    """Do a run; return its seconds, and the number of actors killed, by the seed `kill` if it is given."""
    arguments = [
        *(str(manifest), str(output), "--model", f"planted:{SLEEP_S}", "--device", "cpu"),
        *("--actors", str(ACTORS), "--shard-images", str(SHARD_IMAGES), "--address", cluster.address),
    ]
    log = output.with_suffix(".log")
    killed = 0
    started = time.monotonic()
    with driver(arguments, log, cluster.environment) as process:
        if kill:
            killed = Killer(kill, process).join()
        if process.wait(RUN_S):
            raise RuntimeError(log.read_text())
    return time.monotonic() - started, killed


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=70, help="of work for eight actors (70)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    end_in_order()
    print(f"seed {options.seed}", flush=True)
    images = round(options.seconds * ACTORS / SLEEP_S)
    ratios = []
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_planted(folder / "images", DISTINCT, options.seed)
        files = sorted((folder / "images").glob("*.png"))
        manifest = write_manifest(folder / "inputs.csv", files, images)
        with standing({}, nodes=1, cpus=ACTORS, head_cpus=ACTORS) as cluster:
            for pair in range(options.pairs):
                quiet_s, _ = timed(manifest, folder / f"quiet-{pair}", cluster)
                disturbed_s, killed = timed(
                    manifest, folder / f"disturbed-{pair}", cluster, f"{options.seed} {pair}"
                )
                ratios.append(disturbed_s / quiet_s)
                print(
                    f"{images} images: {quiet_s:.1f} s undisturbed, {disturbed_s:.1f} s with {killed} actors killed, "
                    f"x{ratios[-1]:.2f}",
                    flush=True,
                )
                both = [names_in(str(folder / f"{kind}-{pair}")) for kind in ("quiet", "disturbed")]
                if both[0] != both[1]:
                    raise SystemExit("the tables differ")
    median = statistics.median(ratios)
    print(f"x{median:.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})")
    if median > LIMIT:
        raise SystemExit(f"above {LIMIT}")


if __name__ == "__main__":
    main()

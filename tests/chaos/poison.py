"""Images that kill, hang or exhaust the process that works on them: found, failed with a code, and nobody else harmed.

    python -m tests.chaos.poison [--each 3] [--images 200] [--seed 7]

One run on a Ray of this machine with two actors, over planted images among which some of each kind of poison lie in
random order. The images carry what they do to the decoder's or the segmenter's process (`inside/sitecustomize.py`
does it), and each execution is noted in a file. Prints, for each kind, the codes that the images were failed with and
how often each was executed. Exit code 1: a poison image has another code than it should, or was executed more than
three times, or another image is not what it is in a run where poison does nothing.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from archives import FORMS, in_form
from planted_images import random_instances

import maskrcnn
from chaos.cluster import standing
from chaos.probes import CHANGED_FOR_POISON, INSIDE, check_changed
from chaos.runs import driver, end_in_order
from maskrcnn.synthetic.planted import PlantedInstance, plant, png

MAX_EXECUTIONS: Final = 3
TIMEOUT_S: Final = 20
RUN_S: Final = 1800


@dataclass(frozen=True)
class Kind:
    """What an image does to whom, and the code that it must get."""

    stage: str
    """`decoder` or `segmenter`."""
    order: str
    """One that `inside/sitecustomize.py` knows."""
    code: str

    def __str__(self) -> str:
        return f"{self.stage} {self.order}"


KINDS: Final = (
    Kind("decoder", "segv", "worker_crash"),
    Kind("decoder", "exit", "worker_crash"),
    Kind("decoder", "endless", "timeout"),
    Kind("decoder", "stuck", "timeout"),
    Kind("decoder", "memory", "out_of_memory"),
    Kind("decoder", "kill", "out_of_memory"),
    Kind("segmenter", "segv", "worker_crash"),
    Kind("segmenter", "exit", "worker_crash"),
    Kind("segmenter", "endless", "timeout"),
    Kind("segmenter", "stuck", "timeout"),
    Kind("segmenter", "memory-error", "out_of_memory"),
)


@dataclass(frozen=True)
class Found:
    """What became of a collection with poison in it."""

    poisons: dict[str, Kind]
    """By the image's name."""
    codes: dict[str, str | None]
    """Of the poison images, by name."""
    executions: Counter[str]
    """Of the poison images, by name."""
    harmed: list[str]
    """Names of other images whose row or instances are not those of the undisturbed run."""
    exit_code: int
    seconds: float
    said: str

    def faults(self) -> list[str]:
        """Return what is not as it must be."""
        found = [f"{name} is not as undisturbed" for name in self.harmed]
        for name, kind in self.poisons.items():
            if self.codes.get(name) != kind.code:
                found.append(f"{kind} {name}: {self.codes.get(name)}, should be {kind.code}")
            if not 1 <= self.executions[name] <= MAX_EXECUTIONS:
                found.append(f"{kind} {name}: executed {self.executions[name]} times")
        if self.exit_code != 0:
            found.append(f"the driver ended with {self.exit_code}: {self.said[-2000:]}")
        return found


def write_poisoned(folder: Path, kinds: list[Kind], count: int, seed: int) -> dict[str, Kind]:
    """Write `count` planted images, one of each of `kinds` among them; return which are poison."""
    folder.mkdir(parents=True)
    chance = random.Random(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    poisons = {}
    places = dict(zip(chance.sample(range(count), len(kinds)), kinds, strict=True))
    for number in range(count):
        name, kind = f"{number:05d}.png", places.get(number)
        instances = random_instances(rng, 80, 90, chance.randrange(1, 5))
        tail = b""
        if kind is not None:
            poisons[name] = kind
            order = f"POISON:{kind.order}:{name}"
            if kind.stage == "decoder":
                tail = order.encode()
            else:
                # A shape that nobody knows is drawn as a rectangle.
                instances.append(PlantedInstance(order, 1, 0.9, 40, 40, 9, 9))  # type: ignore[arg-type]
        (folder / name).write_bytes(png(plant((80, 90), instances)) + tail)
    return poisons


def run_poisoned(
    folder: Path, kinds: list[Kind], count: int, seed: int, timeout_s: float = TIMEOUT_S
) -> Found:
    """Write a collection, run it with poison that does nothing and with poison that works, and compare."""
    poisons = write_poisoned(folder / "images", kinds, count, seed)
    source = in_form(random.Random(f"{seed} form").choice(FORMS), folder / "images")
    notes = folder / "notes"
    notes.mkdir()
    path = os.pathsep.join(filter(None, [str(INSIDE), os.environ.get("PYTHONPATH")]))
    with standing({"PYTHONPATH": path, "MASKRCNN_POISON": str(notes)}, 1, cpus=2, head_cpus=2) as cluster:
        arguments = [
            *(str(source), "--model", "planted:0.01", "--device", "cpu", "--actors", "2"),
            *("--shard-images", "16", "--timeout", str(timeout_s), "--address", cluster.address),
        ]
        undisturbed, _, said = _segment([*arguments, str(folder / "undisturbed")], cluster.environment)
        if undisturbed or (notes / "executed").exists():
            raise RuntimeError(said)
        check_changed(notes, CHANGED_FOR_POISON)
        (notes / "armed").touch()
        exit_code, seconds, said = _segment([*arguments, str(folder / "poisoned")], cluster.environment)
    executed = [json.loads(line)[0] for line in (notes / "executed").read_text().splitlines()]
    if exit_code:
        return Found(poisons, {}, Counter(executed), [], exit_code, seconds, said)
    was, now = _rows(folder / "undisturbed"), _rows(folder / "poisoned")
    codes = {name: now[name][0]["error"] if name in now else None for name in poisons}
    harmed = [name for name in sorted(was.keys() | now.keys()) if name not in poisons]
    harmed = [name for name in harmed if was.get(name) != now.get(name)]
    return Found(poisons, codes, Counter(executed), harmed, exit_code, seconds, said)


def _segment(arguments: list[str], environment: dict[str, str]) -> tuple[int, float, str]:
    """Run the command line; return its exit code, its seconds, and what it said."""
    log = Path(f"{arguments[-1]}.log")
    started = time.monotonic()
    with driver(arguments, log, environment) as process, contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(RUN_S)
    return process.returncode, time.monotonic() - started, log.read_text(errors="replace")


def _rows(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Return each image's row and after it those of its instances, by the name of the image's file."""
    run = maskrcnn.open_run(str(output))
    images = run.images().to_pylist()
    names = {row["image_id"]: row.get("file", row["name"]) for row in images}
    rows = {names[row["image_id"]]: [row] for row in images}
    for instance in run.instances().to_pylist():
        rows[names[instance["image_id"]]].append(instance)
    return rows


def table_of(found: Found) -> str:
    """Return what became of each kind of poison."""
    lines = [f"{'kind':24}{'codes':32}executions"]
    for kind in dict.fromkeys(found.poisons.values()):
        names = [name for name, one in found.poisons.items() if one == kind]
        codes = Counter(str(found.codes.get(name)) for name in names)
        words = ", ".join(f"{count} {code}" for code, count in codes.items())
        executed = ", ".join(str(found.executions[name]) for name in names)
        lines.append(f"{kind!s:24}{words:32}{executed}")
    return "\n".join(lines)


def main() -> None:
    """Do the run of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--each", type=int, default=3, help="images of each kind of poison (3)")
    parser.add_argument("--images", type=int, default=200, help="in all (200)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="of an actor, seconds (20)")
    options = parser.parse_args()
    end_in_order()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        found = run_poisoned(
            Path(name), list(KINDS) * options.each, options.images, options.seed, options.timeout
        )
    print(table_of(found))
    print(f"{options.images - len(found.poisons)} others, {len(found.harmed)} harmed; {found.seconds:.0f} s")
    if faults := found.faults():
        raise SystemExit("\n".join(["", "not as it must be:", *faults]))


if __name__ == "__main__":
    main()

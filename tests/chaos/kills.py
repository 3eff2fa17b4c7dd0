"""Kill workers, nodes and drivers in every phase of many runs, and see that nothing is lost and nothing is duplicated.

    python -m tests.chaos.kills --runs 100 --seed 7

One cluster of three nodes does one run after the other. In each run a process that is just in the phase
that the schedule asks for is stopped, and it, its node, or the driver is killed; in some runs another kill follows.
Where the driver was killed, its command is repeated. The run must end, be verified, and equal the undisturbed one. A
kill while no shard was in flight does not count, nor one that came too late; its run is replaced by another. The
schedule takes each victim in each phase in turn, in an order that the seed shuffles; the seed decides all but the
scheduling of the operating system. `--first K --runs 1` repeats run K alone.

Each run's record is appended to `--record` at once, one JSON object per line. Exit code 1: something was lost or
duplicated, a run did not end or was not verified, or a phase was hit in less than a tenth of the runs.
"""

import argparse
import dataclasses
import itertools
import json
import random
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from chaos.cluster import VICTIMS, Kill, arena
from chaos.probes import PHASES
from chaos.runs import Outcome, end_in_order

TRIES: Final = 4
"""Of a run, before its not counting is an error."""
SECOND_KILL: Final = 0.2
"""Share of the runs in which another kill follows the first."""


def schedule(seed: int, run: int, attempt: int = 0) -> list[Kill]:
    """Return what is killed in a run.

    >>> {(k.victim, k.phase) for run in range(15) for k in schedule(3, run)[:1]} == set(
    ...     itertools.product(VICTIMS, PHASES))
    True
    """
    cells = list(itertools.product(VICTIMS, PHASES))
    block, place = divmod(run, len(cells))
    random.Random(f"{seed} block {block}").shuffle(cells)
    chance = random.Random(f"{seed} run {run} attempt {attempt}")
    victim, phase = cells[place]
    kills = [Kill(victim, phase, chance.uniform(0, 0.8), chance.uniform(0, 0.02))]
    if phase != "reduce" and chance.random() < SECOND_KILL:
        # What the first left undone has fewer points of each phase; the reduce is still whole.
        phase = chance.choice(PHASES)
        share = chance.uniform(0, 0.8 if phase == "reduce" else 0.1)
        kills.append(Kill(chance.choice(VICTIMS), phase, share, chance.uniform(0, 0.02)))
    return kills


def disturbed(seed: int, runs: Iterable[int]) -> Iterator[tuple[int, list[Kill], Outcome]]:
    """Do runs of the schedule; yield each, and those that did not count before what replaces them."""
    waiting = deque(runs)
    while waiting:
        with arena(seed) as stand:
            while waiting and stand.is_whole():
                run = waiting.popleft()
                for attempt in range(TRIES):
                    kills = schedule(seed, run, attempt)
                    outcome = stand.run(f"run-{run}-{attempt}", kills)
                    yield run, kills, outcome
                    if outcome.counted or not outcome.good:
                        break


def record_of(seed: int, run: int, kills: Sequence[Kill], outcome: Outcome) -> dict[str, Any]:
    """Return what is kept of a run, as JSON values."""
    return {
        "seed": seed,
        "run": run,
        "planned": [dataclasses.asdict(kill) for kill in kills],
        "killed": [dataclasses.asdict(killed) for killed in outcome.killed],
        "counted": outcome.counted,
        "missed": outcome.missed,
        "exits": outcome.exits,
        "lost": outcome.lost,
        "doubled": outcome.doubled,
        "orphans": outcome.orphans,
        "broken": outcome.broken,
        "seconds": round(outcome.seconds, 1),
    }


def line_of(record: dict[str, Any]) -> str:
    """Return a run in a line for people."""
    kills = "; ".join(
        f"{one['victim']} in {one['phase']} ({one['side']} {one['call']}), "
        f"{one['receipts']} receipts, {one['in_flight']} in flight"
        for one in record["killed"]
    )
    fate = "counted" if record["counted"] else f"not counted: {record['missed'] or 'nothing was in flight'}"
    good = not (record["broken"] or record["lost"] or record["doubled"] or record["orphans"])
    result = "equal" if good else f"lost {record['lost']}, doubled {record['doubled']}, {record['broken']}"
    return f"run {record['run']:3}  {record['seconds']:5.1f} s  {kills}  {fate}  {result}"


def table_of(records: Sequence[dict[str, Any]]) -> str:
    """Return kills by victim and phase: of counted runs, and of runs that did not count.

    >>> kill = {"victim": "node", "phase": "part"}
    >>> record = {"killed": [kill], "counted": True, "lost": 0, "doubled": 0, "broken": "", "orphans": 0}
    >>> print(table_of([record, record | {"counted": False}]))
    victim       fetch     model      part   receipt    reduce
    worker           0         0         0         0         0
    node             0         0       1+1         0         0
    driver           0         0         0         0         0
    all              0         0       1+1         0         0
    runs counted 1, not counted 1 (the figures after +); lost 0, doubled 0, not verified or not ended 0, orphans 0
    """
    hits: Counter[tuple[str, str, bool]] = Counter()
    for record in records:
        for kill in record["killed"]:
            for victim in (kill["victim"], "all"):
                hits[victim, kill["phase"], record["counted"]] += 1
    lines = ["victim  " + "".join(f"{phase:>10}" for phase in PHASES)]
    for victim in (*VICTIMS, "all"):
        cells = [(hits[victim, phase, True], hits[victim, phase, False]) for phase in PHASES]
        words = [f"{counted}+{other}" if other else str(counted) for counted, other in cells]
        lines.append(f"{victim:8}" + "".join(f"{word:>10}" for word in words))
    counted = sum(record["counted"] for record in records)
    lost, doubled, orphans = (
        sum(record[name] for record in records) for name in ("lost", "doubled", "orphans")
    )
    lines.append(
        f"runs counted {counted}, not counted {len(records) - counted} (the figures after +); lost {lost}, "
        f"doubled {doubled}, not verified or not ended {sum(bool(r['broken']) for r in records)}, orphans {orphans}"
    )
    return "\n".join(lines)


def faults(records: Sequence[dict[str, Any]], runs: int) -> list[str]:
    """Return what is not as it must be."""
    found = [line_of(r) for r in records if r["broken"] or r["lost"] or r["doubled"] or r["orphans"]]
    counted = [record for record in records if record["counted"]]
    if len(counted) < runs:
        found.append(f"{len(counted)} runs counted, not {runs}")
    hits = Counter(kill["phase"] for record in counted for kill in record["killed"])
    found += [f"{phase} was hit {hits[phase]} times" for phase in PHASES if hits[phase] < runs // 10]
    return found


def main() -> None:
    """Do the runs of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--first", type=int, default=0, help="number of the first run (0)")
    parser.add_argument("--record", type=Path, default=Path("kills.jsonl"), help="appended to (kills.jsonl)")
    options = parser.parse_args()
    end_in_order()
    print(f"seed {options.seed}: python -m tests.chaos.kills --runs {options.runs} --seed {options.seed}")
    began = time.monotonic()
    records: list[dict[str, Any]] = []
    for run, kills, outcome in disturbed(options.seed, range(options.first, options.first + options.runs)):
        records.append(record_of(options.seed, run, kills, outcome))
        with options.record.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")
        print(line_of(records[-1]), flush=True)
        if outcome.good:
            shutil.rmtree(outcome.output)
    print(table_of(records))
    print(f"{time.monotonic() - began:.0f} s")
    if found := faults(records, options.runs):
        raise SystemExit("\n".join(["", "not as it must be:", *found]))


if __name__ == "__main__":
    main()

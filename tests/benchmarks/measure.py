"""Measuring two sides against each other: alternating repeats, CPU seconds of a process tree, the table.

Figures of a shared machine drift by the minute. So the two sides of a ratio alternate, each repeat gives a ratio of
its own, and what is reported is their median with the smallest and the largest.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil  # type: ignore[import-untyped]

VERSIONS: Final = ("torch", "torchvision", "ray", "numpy", "pyarrow", "pillow", "pycocotools", "maskrcnn-ray")
"""The packages whose versions stand in the machine's record."""

TICK_S: Final = 0.1
"""Between two looks of `CpuMeter`; what a process used between the last look and its end is not seen."""

_LOOKS_A_SEARCH: Final = 5  # new processes are searched less often than known ones are read, which is cheap

_COLUMNS: Final = ("section", "what", "ours", "baseline", "unit", "ratio", "range", "equal", "note")


@dataclass(frozen=True, slots=True)
class Pairs:
    """What the two sides measured in each repeat.

    Raises:
        ValueError: the sides have no or not equally many repeats.
    """

    ours: tuple[float, ...]
    baseline: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ours or len(self.ours) != len(self.baseline):
            raise ValueError(f"{len(self.ours)} repeats of one side, {len(self.baseline)} of the other")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; one that could not be measured has a note alone."""

    section: str
    what: str
    """What was measured, and against what."""
    unit: str = ""
    """Of `ours` and `baseline`."""
    ours: float | None = None
    """Median over the repeats."""
    baseline: float | None = None
    ratio: float | None = None
    """Median over the repeats of the ratio within a repeat."""
    min: float | None = None
    max: float | None = None
    note: str = ""
    equal: str = ""
    """Which equality of the results was checked before."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure."""

    folder: Path
    """For what is generated and written; empty."""
    repeats: int = 5
    quick: bool = False
    """Small sizes, to see that everything runs; the figures mean little."""
    images: Path | None = None
    """A folder of the user's own photos, in place of generated ones."""
    model: str | None = None
    """Name or path of a model; None: ResNet-50-FPN with random weights."""
    s3: str | None = None
    """A prefix of objects to fetch."""


def seconds(function: Callable[[], object], at_least_s: float = 0.0) -> float:
    """Return how long a call takes: the mean of one call, or of as many as fill `at_least_s`."""
    started = time.perf_counter()
    calls = 0
    while True:
        function()
        calls += 1
        elapsed = time.perf_counter() - started
        if elapsed >= at_least_s:
            return elapsed / calls


def rounds(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Return what each side gave, one result a repeat; the sides take turns, backwards every other time.

    >>> order = []
    >>> _ = rounds({name: lambda name=name: order.append(name) for name in "abc"}, 3)
    >>> "".join(order)
    'abccbaabc'
    """
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in sides if repeat % 2 == 0 else reversed(list(sides)):
            results[name].append(sides[name]())
    return results


def alternate(ours: Callable[[], float], baseline: Callable[[], float], repeats: int) -> Pairs:
    """Return what both sides measure, taking turns."""
    results = rounds({"ours": ours, "baseline": baseline}, repeats)
    return Pairs(tuple(results["ours"]), tuple(results["baseline"]))


def row(
    section: str,
    what: str,
    pairs: Pairs,
    *,
    unit: str,
    ratio: str = "baseline/ours",
    note: str = "",
    equal: str = "",
) -> Row:
    """Return the line of a measurement.

    Args:
        ratio: `baseline/ours` for times and memory, where it is the factor by which ours is better; `ours/baseline` for
            rates, and for what ours costs more.
    """
    if ratio not in ("baseline/ours", "ours/baseline"):
        raise ValueError(f"no ratio {ratio!r}")
    above, below = (pairs.baseline, pairs.ours) if ratio == "baseline/ours" else (pairs.ours, pairs.baseline)
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return Row(
        section=section,
        what=what,
        unit=unit,
        ours=statistics.median(pairs.ours),
        baseline=statistics.median(pairs.baseline),
        ratio=statistics.median(ratios),
        min=min(ratios),
        max=max(ratios),
        note=note,
        equal=equal,
    )


class CpuMeter:
    """Adds up the CPU seconds of this process and all it started, while a `with` block lasts.

    A process that ends keeps what it had at the last look. What the meter itself uses is left out.

    Args:
        tick_s: seconds between two looks.
    """

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._root = psutil.Process()
        self._known: dict[tuple[int, float], psutil.Process] = {}
        self._before: dict[tuple[int, float], float] = {}
        self._now: dict[tuple[int, float], float] = {}
        self._names: dict[tuple[int, float], str] = {}
        self._own_s = 0.0
        self._history: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cpu-meter", daemon=True)

    def __enter__(self) -> Self:
        self._search()
        self._look()
        self._before = dict(self._now)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._search()
        self._look()

    @property
    def seconds(self) -> float:
        """CPU seconds, user and system, since the block began."""
        return sum(now - self._before.get(key, 0.0) for key, now in self._now.items()) - self._own_s

    def since(self, moment: float) -> float:
        """Return the CPU seconds from a moment on, `time.time()`, to one look exactly."""
        before = [used for at, used in self._history if at <= moment]
        return self.seconds - (before[-1] if before else 0.0)

    def by_process(self) -> dict[str, float]:
        """Return the CPU seconds by the processes' names, the largest first; the meter's own are in there."""
        totals: dict[str, float] = {}
        for key, now in self._now.items():
            name = self._names.get(key, "?")
            totals[name] = totals.get(name, 0.0) + now - self._before.get(key, 0.0)
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def _watch(self) -> None:
        looks = 0
        while not self._done.wait(self._tick_s):
            looks += 1
            if looks % _LOOKS_A_SEARCH == 0:
                self._search()
            self._look()
            self._own_s = time.thread_time()
            self._history.append((time.time(), self.seconds))

    def _search(self) -> None:
        for process in [self._root, *self._root.children(recursive=True)]:
            key = (process.pid, process.create_time())
            if key not in self._known:
                self._known[key] = process
                self._names[key] = _name(process)

    def _look(self) -> None:
        for key, process in list(self._known.items()):
            try:
                used = process.cpu_times()
            except psutil.Error:
                del self._known[key]
                continue
            self._now[key] = used.user + used.system


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return "gone"


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, memory, versions, the date."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in VERSIONS},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text in columns."""
    lines = [_COLUMNS, *(_cells(row) for row in rows)]
    # The last column is the longest, and nothing stands behind it.
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS) - 1)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    spread = "" if row.min is None or row.max is None else f"{number(row.min)}-{number(row.max)}"
    figures = [number(value) for value in (row.ours, row.baseline)]
    return (row.section, row.what, *figures, row.unit, number(row.ratio), spread, row.equal, row.note)


def number(value: float | None) -> str:
    """Return a figure with three significant digits; nothing for None.

    >>> number(0.012345), number(9.876), number(1234.5), number(None)
    ('0.0123', '9.88', '1,234', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def to_json(rows: Sequence[Row], facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return rows, machine and settings as JSON text."""
    content = {
        "machine": facts,
        "settings": settings,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

"""Two reduces of one run at once, step by step in any order, one of them killed anywhere: a record that stands is true.

Each reduce runs in a thread of its own and stops before each call to the store. Which of them goes on is drawn, and so
is who is killed where; after each step the run's directory is looked at from outside.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.chance import SIZE, chance
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_images import write_planted

from maskrcnn.errors import RunError
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline import reduce
from maskrcnn.pipeline.list_inputs import read_inputs
from maskrcnn.pipeline.manifest_file import ROWS, write_manifest, write_rows
from maskrcnn.pipeline.merge_generations import group_shards
from maskrcnn.pipeline.plan import Plan, create_plan, read_plan, write_run
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.success import categories_of, finished
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.pipeline.write_parts import write_part
from maskrcnn.schema import SCHEMA_VERSION
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedSegmenter
from maskrcnn.visualization.run_report import write_report

pytestmark = pytest.mark.slow

GATED = ("write", "create", "remove", "remove_tree", "exists", "size", "list")


PAUSES = 16


class KilledError(BaseException):
    """Stands for a kill: nothing catches it."""


class Stage:
    """Lets named threads take one step at a time, when the test allows it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._names: dict[int, str] = {}
        self._waiting: set[str] = set()
        self._ended: set[str] = set()
        self._turn: str | None = None
        self._doomed: str | None = None
        self._over = False
        self.results: dict[str, dict[str, Any] | BaseException] = {}

    def gate(self) -> None:
        """Wait for this thread's turn."""
        name = self._names.get(threading.get_ident())
        if name is None:
            return
        with self._changed:
            self._waiting.add(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._over or name in (self._turn, self._doomed))
            self._waiting.remove(name)
            self._turn = None
            if self._over or self._doomed == name:
                self._doomed = None
                raise KilledError

    def begin(self, name: str, work: Callable[[], dict[str, Any]]) -> threading.Thread:
        def run() -> None:
            self._names[threading.get_ident()] = name
            try:
                self.gate()
                self.results[name] = work()
            except (KilledError, RunError) as end:
                self.results[name] = end
            finally:
                with self._changed:
                    self._ended.add(name)
                    self._changed.notify_all()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def end(self) -> None:
        """Kill those that are left."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def living(self, names: Iterable[str]) -> list[str]:
        """Wait until each thread is at a gate or at its end; return those at a gate."""
        with self._changed:
            self._changed.wait_for(lambda: set(names) <= self._waiting | self._ended)
            return sorted(self._waiting)

    def step(self, name: str, *, kill: bool) -> None:
        with self._changed:
            if kill:
                self._doomed = name
            else:
                self._turn = name
            self._changed.notify_all()
            self._changed.wait_for(lambda: name not in (self._turn, self._doomed))


class InOrder:
    """Stands in for a pool, so that there is one thread a reduce."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> "InOrder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        return map(function, arguments)


@contextlib.contextmanager
def gated(stage: Stage) -> Iterator[None]:
    building = Storage.building

    @contextlib.contextmanager
    def gated_building(self: Storage, path: str) -> Iterator[Path]:
        with building(self, path) as local:
            yield local
            stage.gate()

    with pytest.MonkeyPatch.context() as patch:
        for name in GATED:
            method = getattr(Storage, name)

            def stopping(self: Storage, *arguments: Any, method: Any = method) -> Any:
                stage.gate()
                return method(self, *arguments)

            patch.setattr(Storage, name, functools.wraps(method)(stopping))
        patch.setattr(Storage, "building", gated_building)
        patch.setattr(reduce, "ThreadPoolExecutor", InOrder)
        patch.setattr("maskrcnn.visualization.run_report.GALLERY_IMAGES", 0)
        patch.setattr(reduce, "group_shards", functools.partial(group_shards, part_bytes=1))
        try:
            yield
        finally:
            stage.end()


def look(output: Path, *, ended: bool = True) -> None:
    """A record that stands names all files of the tables, and each is what it says.

    While the tables of a later generation are written, there are its files too.
    """
    try:
        success = json.loads((output / "_SUCCESS").read_text())
    except FileNotFoundError:
        return
    listed = {entry["path"]: entry["sha256"] for table in success["parts"].values() for entry in table}
    there = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("images", "instances")
        for path in (output / table).glob("*.parquet")
    }
    assert there == listed if ended else there.items() >= listed.items()
    assert all((output / path).exists() for path in success["coco"])
    assert (output / "stats.json").exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories `first`, processed; `again`, reduced; `retry`, reduced, then retried and processed."""
    folder = tmp_path_factory.mktemp("runs")
    write_planted(folder / "images", 4, seed=11)
    sound = (folder / "images" / "planted-000001.png").read_bytes()
    (folder / "images" / "planted-000001.png").write_bytes(b"<html>")
    storage = Storage(str(folder / "first"))
    table = read_inputs(str(folder / "images"), images_root=None, limit=None).table
    plan = Plan(1, 4, 2, write_manifest(storage, table), "d" * 64, "2026-11-23T00:00:00+00:00")
    run = {
        "schema_version": SCHEMA_VERSION,
        "created": plan.created,
        "digest": plan.digest,
        "settings": {"max_pixels": 10**8, "max_bytes": 10**8},
        "model": {
            "name": "planted",
            "categories": [{"id": c.id, "name": c.name} for c in PLANTED_CATEGORIES],
        },
    }
    write_run(storage, run, plan)
    process_shards(storage, plan)
    shutil.copytree(folder / "first", folder / "again")
    again = Storage(str(folder / "again"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduce, "group_shards", functools.partial(group_shards, part_bytes=1))
        reduce_run(again.url, coco_mode="always", write_report=write_report)
    shutil.copytree(folder / "again", folder / "retry")
    (folder / "images" / "planted-000001.png").write_bytes(sound)
    retry = Storage(str(folder / "retry"))
    rows = write_rows(retry, 2, ROWS.empty_table().from_pylist([{"row": 1}], schema=ROWS))
    process_shards(retry, create_plan(retry, Plan(2, 1, 2, plan.manifest_sha256, plan.digest, "later", rows)))
    return folder


def process_shards(storage: Storage, plan: Plan) -> None:
    worker = ShardWorker(storage, PlantedSegmenter(), Limits(10**8, 10**8, 1333.0), {})
    for shard in plan:
        worker.run_shard(shard)


def play(
    runs: Path,
    output: Path,
    kind: str,
    turns: Iterable[int],
    *,
    keep: bool = False,
    kill: tuple[str, int] | None = None,
) -> dict[str, int]:
    """Reduce a copy of a run twice at once, and look at it after each step.

    Args:
        turns: the numbers of steps that a and b go on, in turns; in the end a goes to its end, then b.
        kill: who is killed, before which of its steps.

    Returns:
        The number of steps of each.
    """
    shutil.copytree(runs / kind, output)
    stage = Stage()
    steps = {"a": 0, "b": 0}
    order = itertools.chain.from_iterable(
        itertools.repeat(name, n) for name, n in zip(itertools.cycle("ab"), turns, strict=False)
    )
    work = functools.partial(
        reduce_run, str(output), coco_mode="always", keep_finished=keep, write_report=write_report
    )
    with gated(stage):
        threads = [stage.begin(name, work) for name in steps]
        while living := stage.living(steps):
            look(output, ended=False)  # and so whoever is killed next, or all, leave it
            name = next(order, "a")
            name = name if name in living else living[0]
            stage.step(name, kill=kill == (name, steps[name]))
            steps[name] += 1
        for thread in threads:
            thread.join()
    killed = {name for name, result in stage.results.items() if isinstance(result, KilledError)}
    look(output, ended=not killed)
    for name in steps.keys() - killed:
        assert isinstance(stage.results[name], dict), stage.results[name]
    storage = Storage(str(output))
    plan = read_plan(storage)
    assert plan is not None
    assert killed or finished(storage, plan) is not None
    return steps


@settings(max_examples=20)
@given(
    kind=st.sampled_from(["first", "again", "retry"]),
    keep=st.booleans(),
    turns=st.lists(st.integers(0, 40), max_size=6),
    kill=st.none() | st.tuples(st.sampled_from("ab"), st.integers(0, 40)),
)
def test_a_record_that_stands_is_true_at_every_step(
    runs: Path,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    keep: bool,
    turns: list[int],
    kill: tuple[str, int] | None,
) -> None:
    output = tmp_path_factory.mktemp("run") / "out"
    play(runs, output, kind, turns, keep=keep, kill=kill)
    reduce_run(str(output), coco_mode="always", write_report=write_report)
    look(output)
    assert (output / "_SUCCESS").exists()


@pytest.mark.sampled(1)  # of all steps, `make chaos` takes each
def test_one_that_runs_while_another_pauses_at_any_step(runs: Path, tmp_path: Path) -> None:
    steps = play(runs, tmp_path / "0", "retry", [0, 0])["b"]
    assert steps > 20
    pauses = range(1, steps)
    for pause in pauses if SIZE > 1 else chance("pauses").sample(pauses, PAUSES):
        play(runs, tmp_path / str(pause), "retry", [0, pause])


def test_reduces_that_want_different_coco_files_end_with_what_the_record_names(
    runs: Path, tmp_path: Path
) -> None:
    for first, second in (("always", "never"), ("never", "always")):
        output = tmp_path / first
        shutil.copytree(runs / "again", output)
        reduce_run(str(output), coco_mode=first, write_report=write_report)
        look(output)
        reduce_run(str(output), coco_mode=second, write_report=write_report)
        look(output)
        assert bool(Storage(str(output)).list("coco")) == (second == "always")


def test_a_part_that_goes_before_the_record_is_written_prevents_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Storage.write
    for when in ("before", "after"):
        output = tmp_path / when
        shutil.copytree(runs / "first", output)
        last = "_SUCCESS" if when == "after" else "report.html"

        def interfering(self: Storage, path: str, data: bytes, last: str = last) -> None:
            if path == last:
                self.remove("instances/part-0000000000-1.parquet")
            write(self, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", interfering)
            with pytest.raises(
                RunError, match="another command is writing these tables; run `maskrcnn reduce`"
            ):
                reduce_run(str(output), write_report=write_report)
        assert not (output / "_SUCCESS").exists()
        reduce_run(str(output), write_report=write_report)
        look(output)


def test_a_reduce_that_comes_too_late_adds_nothing(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs / "retry", output)
    late = reduce.gather(Storage(str(runs / "again")))
    success = reduce_run(str(output), write_report=write_report)
    categories = categories_of(late.run)
    with pytest.raises(
        RunError, match=r"generation 2 was planned meanwhile .* `maskrcnn retry` continues it"
    ):
        write_part(str(output), 1, categories, late.groups[0])
    look(output)
    assert finished(Storage(str(output)), late.latest) is None
    assert success["generation"] == 2

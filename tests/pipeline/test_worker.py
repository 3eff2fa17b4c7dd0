"""A shard: every row ends as exactly one row of `images`, in order, whatever its bytes are."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from planted_images import write_planted

from maskrcnn.errors import HandedBackError, ItemError, RunError, SegmenterError, StoreFailingError
from maskrcnn.imaging.decode import DecodedImage, Limits, decode_image
from maskrcnn.io.inputs import read_input
from maskrcnn.io.parquet import read_table
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.batching import Loaded, filled_groups
from maskrcnn.pipeline.list_inputs import read_inputs
from maskrcnn.pipeline.manifest_file import write_manifest
from maskrcnn.pipeline.plan import Plan
from maskrcnn.pipeline.prefetch import Pool, Stopwatch, Turns, prefetch
from maskrcnn.pipeline.receipts import Receipt, commit, complete_receipts
from maskrcnn.pipeline.worker import Announcement, ShardWorker
from maskrcnn.stats import Stats
from maskrcnn.synthetic.planted import PlantedSegmenter, plant, planted_instances, png
from maskrcnn.types import Detections, Pixels

LIMITS = Limits(10**7, 10**7, 1333.0)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    """A manifest of 12 planted images and 5 that fail, each for another reason."""
    images = tmp_path / "images"
    write_planted(images, 12, seed=3)
    whole = (images / "planted-000003.png").read_bytes()
    (images / "b-empty.png").write_bytes(b"")
    (images / "c-page.jpg").write_text("<html>404</html>")
    (images / "d-half.png").write_bytes(whole[: len(whole) // 2])
    (images / "p-long.png").write_bytes(png(plant((1, 4000), [])))
    storage = Storage(str(tmp_path / "run"))
    inputs = read_inputs(str(images), images_root=None, limit=None).table
    gone = inputs.slice(0, 1).set_column(1, "name", pa.array(["a-gone.png"]))
    gone = gone.set_column(2, inputs.schema.field("uri"), pa.array([str(images / "a-gone.png")]))
    inputs = pa.concat_tables([gone.cast(inputs.schema), inputs])
    write_manifest(
        storage, inputs.set_column(0, inputs.schema.field("image_id"), pa.array(range(len(inputs))))
    )
    return storage


def run_plan(storage: Storage, shard_images: int, segmenter: object = None) -> list[Receipt]:
    worker = ShardWorker(storage, segmenter or PlantedSegmenter(), LIMITS, {"node": "here"})  # type: ignore[arg-type]
    return [worker.run_shard(shard).receipt for shard in Plan(1, 17, shard_images, "", "", "")]


def tables(storage: Storage, receipts: list[Receipt]) -> tuple[pa.Table, pa.Table]:
    return (
        pa.concat_tables([read_table(storage, receipt.images.path) for receipt in receipts]),
        pa.concat_tables([read_table(storage, receipt.instances.path) for receipt in receipts]),
    )


def test_every_input_has_one_row_in_the_order_of_the_manifest(run: Storage) -> None:
    images, instances = tables(run, run_plan(run, 17))
    assert images["image_id"].to_pylist() == list(range(17))
    failures = {r["name"]: r["error"] for r in images.to_pylist() if r["status"] == "failed"}
    assert failures == {
        "a-gone.png": "not_found",
        "b-empty.png": "empty_file",
        "c-page.jpg": "not_an_image",
        "d-half.png": "truncated",
        "p-long.png": "aspect",
    }
    counted = {row["image_id"]: row["n_instances"] for row in images.to_pylist() if row["n_instances"]}
    assert counted == dict(zip(*_value_counts(instances["image_id"]), strict=True))


def _value_counts(column: pa.ChunkedArray) -> tuple[list[int], list[int]]:
    counts = column.value_counts()
    return counts.field(0).to_pylist(), counts.field(1).to_pylist()


@pytest.mark.parametrize("shard_images", [1, 5])
def test_how_the_work_is_cut_changes_no_row(run: Storage, shard_images: int) -> None:
    whole, cut = run_plan(run, 17), run_plan(run, shard_images)
    assert all(a.equals(b) for a, b in zip(tables(run, whole), tables(run, cut), strict=True))
    folded = sum((Stats.from_json(r.stats) for r in cut), Stats.zero(PlantedSegmenter().categories))
    assert folded == Stats.from_json(whole[0].stats)


def test_two_attempts_write_the_same_bytes_under_other_names(run: Storage) -> None:
    first, second = run_plan(run, 17)[0], run_plan(run, 17)[0]
    assert first.attempt != second.attempt
    assert (first.images.sha256, first.instances.sha256) == (second.images.sha256, second.instances.sha256)
    assert len(run.list("receipts")) == 2


def test_a_receipt_is_read_as_it_was_written(run: Storage) -> None:
    [receipt] = run_plan(run, 17)
    [path] = run.list("receipts")
    assert Receipt.from_json(run.read(path)) == receipt
    assert receipt.counts == {"ok": receipt.counts["ok"], "empty": receipt.counts["empty"], "failed": 5} | {
        "instances": receipt.instances.rows
    }
    assert receipt.counts["ok"] + receipt.counts["empty"] == 12
    assert {"fetch", "decode", "model", "write", "wall"} <= set(receipt.timings)


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_file_that_is_not_the_planned_one_any_more_is_a_failed_row(
    run: Storage, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "images" / "planted-000004.png"
    path.write_bytes(path.read_bytes() + (b"\0" if change == "content" else b""))
    os.utime(path, ns=(1, 1))
    images, _ = tables(run, run_plan(run, 17))
    [row] = [row for row in images.to_pylist() if row["name"] == path.name]
    assert (row["status"], row["error"]) == ("failed", "changed")


class Small(PlantedSegmenter):
    """Runs out of memory on any batch with a full image in it; takes three at once."""

    batch_size = property(lambda self: 3)  # type: ignore[assignment]

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        too_much = ItemError("out_of_memory", "too much to see")
        found = zip(images, self.segment(images), strict=True)
        return [too_much if len(planted_instances(image)) >= 5 else one for image, one in found]


def test_an_image_that_does_not_fit_into_memory_does_not_take_its_neighbours_along(run: Storage) -> None:
    plain, _ = tables(run, run_plan(run, 17))
    small, _ = tables(run, run_plan(run, 17, Small()))
    for before, after in zip(plain.to_pylist(), small.to_pylist(), strict=True):
        if before["n_instances"] >= 5:
            assert (after["status"], after["error"]) == ("failed", "out_of_memory")
        else:
            assert after == before
    assert "out_of_memory" in small["error"].to_pylist()


def test_a_fault_of_the_program_is_no_row(run: Storage) -> None:
    class Broken(PlantedSegmenter):
        def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
            raise ZeroDivisionError

    with pytest.raises(SegmenterError, match="worker_crash: the network raised ZeroDivisionError"):
        run_plan(run, 17, Broken())
    assert run.list("receipts") == []


class Sequential(PlantedSegmenter):
    """Remembers the number of images that came at once, and may do something before."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.before = before

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        self.before()
        self.calls.append(len(images))
        return super().outcomes(images)


def test_a_traced_shard_announces_each_row_before_it_is_computed(run: Storage) -> None:
    announced: list[Announcement] = []
    computed_after: list[int] = []
    segmenter = Sequential(lambda: computed_after.append(len(announced)))
    worker = ShardWorker(run, segmenter, LIMITS, {})
    finished = worker.run_shard(Plan(1, 17, 17, "", "", "")[0], announce=announced.append)
    assert sorted(row for said in announced for row in said.now) == list(range(17))
    assert [said.before for said in announced[1:]] == [said.now for said in announced[:-1]]
    assert computed_after == sorted(computed_after)
    assert computed_after[0] >= 1
    assert len(segmenter.calls) == finished.receipt.counts["ok"] + finished.receipt.counts["empty"]


def test_a_traced_shard_gives_the_rows_of_any_other(run: Storage) -> None:
    shard, worker = Plan(1, 17, 17, "", "", "")[0], ShardWorker(run, PlantedSegmenter(), LIMITS, {})
    plain, traced = worker.run_shard(shard), worker.run_shard(shard, announce=lambda _: None)
    assert plain.receipt.images.sha256 == traced.receipt.images.sha256
    assert plain.receipt.instances.sha256 == traced.receipt.instances.sha256


def test_a_quarantined_image_is_not_touched_and_its_neighbours_are_kept(run: Storage) -> None:
    shard, worker = Plan(1, 17, 17, "", "", "")[0], ShardWorker(run, PlantedSegmenter(), LIMITS, {})
    whole = read_table(run, worker.run_shard(shard).receipt.images.path).to_pylist()
    row = next(n for n, image in enumerate(whole) if image["status"] == "ok")
    Path(whole[row]["uri"]).unlink()  # who looked at it would find `not_found`
    failure = ItemError("worker_crash", "it did it")
    again = worker.run_shard(shard, quarantined={row: failure}).receipt
    images = read_table(run, again.images.path).to_pylist()
    assert (images[row]["status"], images[row]["error"]) == ("failed", "worker_crash")
    assert images[row]["message"] == "it did it"
    assert images[:row] + images[row + 1 :] == whole[:row] + whole[row + 1 :]


def test_what_ended_its_decoder_is_announced_so_that_it_is_not_decoded_again(run: Storage) -> None:
    def decode(data: bytes, limits: Limits) -> DecodedImage:
        if len(decoded := [*decoded_lengths, len(data)]) == 1:
            decoded_lengths.extend(decoded)
            raise ItemError("timeout", "not decoded")
        return decode_image(data, limits)

    decoded_lengths: list[int] = []
    announced: list[Announcement] = []
    worker = ShardWorker(run, PlantedSegmenter(), LIMITS, {}, decode=decode)
    worker.run_shard(Plan(1, 17, 17, "", "", "")[0], announce=announced.append)
    [failure] = announced[-1].failures.values()
    assert failure.code == "timeout"


def test_nothing_is_decoded_while_a_traced_group_is_computed(run: Storage) -> None:
    decoding: set[int] = set()

    def decode(data: bytes, limits: Limits) -> DecodedImage:
        decoding.add(threading.get_ident())
        try:
            time.sleep(0.002)
            return decode_image(data, limits)
        finally:
            decoding.remove(threading.get_ident())

    meanwhile: list[int] = []
    segmenter = Sequential(lambda: meanwhile.append(len(decoding)))
    worker = ShardWorker(run, segmenter, LIMITS, {}, threads=4, decode=decode)
    worker.run_shard(Plan(1, 17, 17, "", "", "")[0], announce=lambda _: time.sleep(0.005))
    assert set(meanwhile) == {0}


@pytest.mark.slow
def test_an_input_whose_reading_hangs_fails_and_its_neighbours_are_kept(
    run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Plan(1, 17, 17, "", "", "")[0]
    whole = read_table(
        run, ShardWorker(run, PlantedSegmenter(), LIMITS, {}).run_shard(shard).receipt.images.path
    )
    hanging = set(whole["uri"].to_pylist()[5:11])  # more than there are threads
    released = threading.Event()

    def read(uri: str, max_bytes: int, etag: str | None) -> bytes:
        if uri in hanging:
            released.wait()
        return read_input(uri, max_bytes, etag)

    monkeypatch.setattr("maskrcnn.pipeline.shard_inputs.read_input", read)
    worker = ShardWorker(run, PlantedSegmenter(), LIMITS, {}, patience_s=1.5)
    images = read_table(run, worker.run_shard(shard).receipt.images.path)
    released.set()
    late = [row["uri"] for row in images.to_pylist() if row["error"] == "timeout"]
    assert set(late) == hanging
    others = [row for row in images.to_pylist() if row["uri"] not in hanging]
    assert others == [row for row in whole.to_pylist() if row["uri"] not in hanging]


def test_an_image_tried_alone_is_alone_and_leaves_no_trace(run: Storage) -> None:
    segmenter = Sequential()
    worker = ShardWorker(run, segmenter, LIMITS, {})
    worker.try_alone(Plan(1, 17, 17, "", "", "")[0], 5)
    assert segmenter.calls == [1]
    assert run.list("shards") == run.list("receipts") == []


def test_a_worker_that_is_asked_to_stop_hands_its_shard_back(run: Storage) -> None:
    segmenter = Sequential()
    worker = ShardWorker(run, segmenter, LIMITS, {})
    segmenter.before = worker.stop
    with pytest.raises(HandedBackError):
        worker.run_shard(Plan(1, 17, 17, "", "", "")[0])
    assert run.list("receipts") == []


def test_steps_grow_as_long_as_there_is_progress(run: Storage) -> None:
    seen: list[int] = []
    worker = ShardWorker(run, Sequential(lambda: seen.append(worker.steps)), LIMITS, {})
    worker.run_shard(Plan(1, 17, 17, "", "", "")[0])
    assert seen == sorted(set(seen))


def test_images_are_counted_as_they_are_done(run: Storage) -> None:
    """What is counted while a shard runs grows to what its receipt counts, and then belongs to the receipt."""
    seen: list[dict[str, int]] = []
    worker = ShardWorker(run, Sequential(lambda: seen.append(worker.running)), LIMITS, {})
    finished = worker.run_shard(Plan(1, 17, 17, "", "", "")[0])
    done = [sum(counts[status] for status in ("ok", "empty", "failed")) for counts in seen]
    assert done == sorted(set(done))
    assert done[-1] < 17
    assert all(counts[name] <= finished.receipt.counts.get(name, 0) for counts in seen for name in counts)
    assert set(worker.running.values()) == {0}


@pytest.fixture
def forbidden(tmp_path: Path) -> Callable[[int, int], ShardWorker]:
    """A run of which the first inputs may not be read, as the store says."""

    def make(rows: int, refused: int) -> ShardWorker:
        images = tmp_path / "images"
        write_planted(images, 1, seed=3)
        whole = (images / "planted-000000.png").read_bytes()
        for row in range(rows):
            (images / f"a{row:04d}.png").write_bytes(whole)
        (images / "planted-000000.png").unlink()
        storage = Storage(str(tmp_path / "run"))
        write_manifest(storage, read_inputs(str(images), images_root=None, limit=None).table)

        def decode(data: bytes, limits: Limits) -> DecodedImage:
            nonlocal refused
            refused -= 1
            if refused >= 0:
                raise ItemError("access_denied", "403")
            return decode_image(data, limits)

        return ShardWorker(storage, PlantedSegmenter(), LIMITS, {}, decode=decode)

    return make


def test_a_shard_in_which_the_store_refused_inputs_is_withheld(
    forbidden: Callable[[int, int], ShardWorker], tmp_path: Path
) -> None:
    finished = forbidden(20, 3).run_shard(Plan(1, 20, 20, "", "", "")[0], withhold=True)
    assert not finished.committed
    assert finished.storage_failures == {"access_denied": 3}
    assert "403" in finished.example
    storage = Storage(str(tmp_path / "run"))
    assert storage.list("receipts") == []
    commit(storage, finished.receipt)
    assert len(complete_receipts(storage)) == 1


@pytest.mark.parametrize(("refused", "stops"), [(99, False), (100, True)])
def test_half_of_200_refused_inputs_stop_a_shard(
    forbidden: Callable[[int, int], ShardWorker], refused: int, stops: bool
) -> None:
    worker, shard = forbidden(200, refused), Plan(1, 200, 200, "", "", "")[0]
    if stops:
        with pytest.raises(StoreFailingError, match="100 of the last 200 images failed with access_denied"):
            worker.run_shard(shard)
    else:
        assert worker.run_shard(shard).receipt.counts["failed"] == 99


def test_nothing_counts_without_its_receipt(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_receipt(self: Storage, path: str, data: bytes) -> None:
        raise RunError(f"cannot write {path}")

    monkeypatch.setattr(Storage, "write", no_receipt)
    with pytest.raises(RunError, match="receipts/"):
        run_plan(run, 17)
    assert run.list("receipts") == []
    assert len(run.list("shards")) == 2


def test_prefetching_keeps_the_order_and_its_bound() -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def load(position: int) -> Loaded:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.001 * (position % 3))
        return Loaded(position, {}, None, ItemError("corrupt", ""))

    rows = []
    for loaded in prefetch(load, range(50), Stopwatch(), Pool(3), ahead=6):
        rows.append(loaded.row)
        with lock:
            under_way -= 1
    assert rows == list(range(50))
    assert most <= 2 * 3 + 1


def test_prefetching_stops_at_its_bound_of_bytes() -> None:
    lock, held, most = threading.Lock(), 0, 0

    def load(position: int) -> Loaded:
        nonlocal held, most
        loaded = Loaded(position, {}, None, DecodedImage(plant((100, 100), []), None))
        with lock:
            held += 1
            most = max(most, held)
        return loaded

    rows = []
    for loaded in prefetch(load, range(50), Stopwatch(), Pool(8), ahead=16, max_bytes=3 * 30_000):
        time.sleep(0.002)
        rows.append(loaded.row)
        with lock:
            held -= 1
    assert rows == list(range(50))
    assert 2 <= most <= 4  # three wait, and one is in the reader's hands


def test_turns_come_in_order_and_pass_over_who_left() -> None:
    turns, order = Turns(), []
    came = [threading.Event() for _ in range(4)]

    def run(number: int) -> None:
        with turns.queue() as my_turn:
            came[number].set()
            time.sleep(0.02 * (4 - number))
            if number == 1:
                return
            my_turn()
            order.append(number)

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(run, number)
            came[number].wait()
    assert order == [0, 2, 3]


class Batches(PlantedSegmenter):
    """Takes up to three images of one width at once, in two lanes, and remembers what it was given."""

    batch_size = property(lambda self: 3)  # type: ignore[assignment]
    lanes = property(lambda self: 2)  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[int]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def canvas(self, height: int, width: int) -> int:  # type: ignore[override]
        return width

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        with self.lock:
            self.given.append([image.shape[1] for image in images])
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(0.01)
        with self.lock:
            self.at_once -= 1
        return super().outcomes(images)


def loaded_of(widths: Sequence[int]) -> list[Loaded]:
    """Inputs of these widths, 10 pixels high; one of no width failed."""
    return [
        Loaded(
            row, {}, None,
            DecodedImage(np.zeros((10, width, 3), np.uint8), None) if width else ItemError("corrupt", ""),
        )
        for row, width in enumerate(widths)
    ]  # fmt: skip


def test_batches_are_filled_over_a_shard_by_canvas_and_in_row_order() -> None:
    groups = filled_groups(loaded_of([4, 5, 0, 4, 5, 6, 4, 4]), Batches())
    assert [[item.row for item in group] for group in groups] == [[2], [0, 3, 6], [1, 4], [5], [7]]


def test_when_too_many_pixels_wait_the_largest_group_goes_unfilled() -> None:
    groups = filled_groups(loaded_of([4, 50, 4, 7]), Batches(), max_bytes=10 * 60 * 3)
    assert [[item.row for item in group] for group in groups] == [[1], [0, 2], [3]]


def test_lanes_run_at_once_and_rows_come_in_order(run: Storage) -> None:
    plain, plain_instances = tables(run, run_plan(run, 17))
    segmenter = Batches()
    images, instances = tables(run, run_plan(run, 17, segmenter))
    assert images.equals(plain)
    assert instances.equals(plain_instances)
    assert segmenter.most_at_once == 2
    assert all(len(set(widths)) == 1 and len(widths) <= 3 for widths in segmenter.given)

"""The receipts that count: one per shard, the same whoever looks, and none of another plan."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import RunError
from maskrcnn.io.parquet import File
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline import receipts
from maskrcnn.pipeline.plan import Plan
from maskrcnn.pipeline.receipts import ChosenReceipts, Receipt, check_complete, choose, collect, commit
from maskrcnn.stats import Stats
from maskrcnn.types import Category

CATEGORIES = (Category(1, "plank"),)
PLANS = [Plan(1, 10, 4, "m", "d", "now"), Plan(2, 3, 2, "m", "d", "later", "e" * 64)]


def stats(images: int) -> Stats:
    return dataclasses.replace(Stats.zero(CATEGORIES), status=np.array([0, images, 0]))


def written(storage: Storage, shard: str, attempt: str = "a", **changed: Any) -> Receipt:
    """Store a receipt, and what stands in the place of its files."""
    plan = next(plan for plan in PLANS if plan.index_of(shard) is not None)
    planned = plan[int(shard.partition("-")[2])]
    files = [
        File(f"shards/{shard}/{attempt}/{name}.parquet", attempt, 10, len(planned) if name == "images" else 0)
        for name in ("images", "instances")
    ]
    for file in files:
        storage.write(file.path, b"")
    receipt = Receipt(
        shard,
        attempt,
        planned.start,
        planned.stop,
        *files,
        {"ok": 0, "empty": len(planned), "failed": 0, "instances": 0},
        stats(len(planned)).to_json(),
        {"wall": 2.0, "model": 1.5},
        {"node": "n", "pid": 1, "device": "cpu"},
        storage_retries=3,
    )
    receipt = dataclasses.replace(receipt, **changed)
    commit(storage, receipt)
    return receipt


EVERY = [shard.name for plan in PLANS for shard in plan]


def collected(storage: Storage, touched: list[bool]) -> ChosenReceipts:
    every = [np.array(touched), np.ones(len(PLANS[1]), np.bool_)]
    return collect(storage, PLANS, choose(storage, PLANS), every, CATEGORIES)


def test_what_is_collected_is_the_sum_of_what_was_not_done_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for shard in EVERY:
        written(storage, shard)
    chosen_receipts = collected(storage, [False, True, False])
    assert [[chosen.shard for chosen in kept] for kept in chosen_receipts.chosen] == [EVERY[:3], EVERY[3:]]
    assert chosen_receipts.stats == stats(4 + 2)
    timings = chosen_receipts.timings
    assert (timings["images"], timings["shards"], timings["actors"]) == (13, 5, 1)
    assert timings["storage_retries"] == 15
    assert (timings["shard_wall_s"], timings["stages_s"]) == (10.0, {"model": 7.5})
    assert timings["execution"] == [{"device": "cpu", "shards": 5}]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_receipts_are_folded_alike_few_or_many_at_once(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    for number, shard in enumerate(EVERY):
        written(storage, shard, execution={"node": f"n{number % 2}", "pid": number, "device": "cpu"})
    together = collected(storage, [False, True, False])
    monkeypatch.setattr(receipts, "RECEIPTS_AT_ONCE", at_once)
    assert collected(storage, [False, True, False]) == together


def test_of_several_attempts_the_first_by_name_counts_whose_files_are_there(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for shard in EVERY:
        written(storage, shard, "b")
    written(storage, EVERY[1], "a")
    written(storage, EVERY[2], "a")
    storage.remove(f"shards/{EVERY[2]}/a/instances.parquet")
    attempts = [chosen.attempt for kept in collected(storage, [False] * 3).chosen for chosen in kept]
    assert attempts == ["b", "a", "b", "b", "b"]


@pytest.mark.slow
@given(missing=st.sets(st.sampled_from(EVERY), min_size=1))
def test_a_shard_without_a_receipt_is_reported(
    tmp_path_factory: pytest.TempPathFactory, missing: set[str]
) -> None:
    storage = Storage(str(tmp_path_factory.mktemp("run")))
    for shard in set(EVERY) - missing:
        written(storage, shard)
    of_first = sum(shard.startswith("1-") for shard in missing)
    expected = (
        f"{of_first} of 3 shards left: continue it with `maskrcnn segment`"
        if of_first
        else f"{len(missing)} of 2 shards of generation 2 left: continue it with `maskrcnn retry`"
    )
    with pytest.raises(RunError, match=expected):
        check_complete(PLANS, choose(storage, PLANS))


@pytest.mark.parametrize(
    "changed", [{"start": 1}, {"stop": 11}, {"images": File("shards/1-00000001/a/images.parquet", "", 1, 3)}]
)
def test_a_receipt_of_another_plan_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for shard in EVERY:
        written(storage, shard, **(changed if shard == "1-00000001" else {}))
    with pytest.raises(RunError, match=r"receipts/1-00000001\.a\.json belongs to another plan; remove it"):
        collected(storage, [False] * 3)

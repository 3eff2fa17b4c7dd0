"""What later generations found, laid over the first: the latest that did a row counts, whatever came before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import RunError
from maskrcnn.io.parquet import File, write_table
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.merge_generations import (
    Generation,
    Group,
    GroupReader,
    RetryResult,
    RetryShard,
    group_shards,
    merge_results,
)
from maskrcnn.pipeline.receipts import ChosenReceipt
from maskrcnn.schema import INSTANCES_PER_IMAGE, METADATA, ImageResult, images_table, instances_table
from maskrcnn.stats import Stats
from maskrcnn.types import Category, Detections

CATEGORIES = (Category(1, "plank"), Category(2, "coin"))
FIRST_ID = 100
"""The image's id is its row and this; so that nobody takes one for the other."""


def detections(n: int) -> Detections:
    """Return `n` instances."""
    return Detections(
        height=8,
        width=8,
        boxes=np.full((n, 4), [0, 0, 8, 1], np.float32),
        labels=np.array([1 + k % 2 for k in range(n)], np.int32),
        scores=np.linspace(0.9, 0.8, n, dtype=np.float32),
        masks=(b"08h1",) * n,
        areas=np.full(n, 8, np.int64),
        mask_boxes=np.full((n, 4), [0, 0, 1, 8], np.int32),
        capped=n == 3,
    )


def tables(rows: Sequence[int], found: Sequence[int | None]) -> tuple[pa.Table, pa.Table]:
    """Return both tables of rows of the manifest: as many instances as `found` says, None where it failed."""
    results = [
        ImageResult(
            row,
            row + FIRST_ID,
            f"{row}.png",
            f"/{row}.png",
            None,
            None,
            None if n is None else detections(n),
            "corrupt" if n is None else None,
            width=8,
            height=8,
        )
        for row, n in zip(rows, found, strict=True)
    ]
    carried = pa.table({"site": [f"site {row % 3}" for row in rows]}).replace_schema_metadata(METADATA)
    return images_table(results, carried), instances_table(results, CATEGORIES)


OUTCOME = st.none() | st.integers(0, 3)
Generations = list[dict[int, int | None]]


@st.composite
def generations(draw: Any) -> tuple[int, int, Generations]:
    """Return where a shard starts, its length, and what each generation found in which rows."""
    start, n = draw(st.integers(0, 9)), draw(st.integers(1, 9))
    outcomes = draw(st.lists(OUTCOME, min_size=n, max_size=n))
    every: Generations = [dict(zip(range(start, start + n), outcomes, strict=True))]
    for _ in range(draw(st.integers(0, 3))):
        rows = draw(st.sets(st.integers(start, start + n - 1), min_size=1))
        every.append({row: draw(OUTCOME) for row in sorted(rows)})
    return start, n, every


def latest(every: Generations) -> dict[int, int | None]:
    merged: dict[int, int | None] = {}
    for generation in every:
        merged |= generation
    return dict(sorted(merged.items()))


@pytest.mark.slow
@given(generations())
def test_the_latest_generation_of_a_row_counts(case: tuple[int, int, Generations]) -> None:
    start, _, every = case
    images, instances = tables(list(every[0]), list(every[0].values()))
    pieces = [
        RetryResult(np.array(list(again), np.int64), *tables(list(again), list(again.values())))
        for again in every[1:]
    ]
    expected = tables(list(latest(every)), list(latest(every).values()))
    merged = merge_results(start, images, instances, pieces)
    assert [table.schema for table in merged] == [table.schema for table in expected]
    assert merged[0].equals(expected[0])
    assert merged[1].equals(expected[1])


def test_a_piece_of_other_images_is_refused() -> None:
    images, instances = tables([0, 1, 2], [None, 1, None])
    other = RetryResult(np.array([2]), *tables([1], [3]), "shards/2-00000000/a/images.parquet")
    with pytest.raises(RunError, match=r"shards/2-00000000/a/images.parquet contains other rows"):
        merge_results(0, images, instances, [other])


# From files


def stored(storage: Storage, name: str, rows: Sequence[int], found: Sequence[int | None]) -> ChosenReceipt:
    images, instances = tables(rows, found)
    return ChosenReceipt(
        name,
        "a",
        write_table(storage, f"shards/{name}/a/images.parquet", images),
        write_table(storage, f"shards/{name}/a/instances.parquet", instances),
    )


def in_shards(
    storage: Storage, generation: int, found: dict[int, int | None], size: int
) -> list[tuple[ChosenReceipt, list[int]]]:
    rows = list(found)
    cut = [rows[k : k + size] for k in range(0, len(rows), size)]
    return [
        (stored(storage, f"{generation}-{k:08d}", shard, [found[row] for row in shard]), shard)
        for k, shard in enumerate(cut)
    ]


def generations(shards: list[ChosenReceipt], *retries: list[RetryShard]) -> list[Generation]:
    """Return a first generation and retries."""
    later = [Generation(number, redone=redone) for number, redone in enumerate(retries, 2)]
    return [Generation(1, shards), *later]


@pytest.mark.slow
@pytest.mark.parametrize("part_bytes", [1, 20_000, 10**9])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_groups_give_every_row_once_with_its_latest_outcome(
    tmp_path: Path, part_bytes: int, size: int
) -> None:
    storage = Storage(str(tmp_path))
    every: Generations = [
        {row: None if row % 3 else row % 4 for row in range(40)},
        {row: None if row % 2 else 2 for row in range(40) if row % 3},
        {row: 3 for row in range(40) if row % 3 and row % 2 and row > 20},
    ]
    first, *later = [in_shards(storage, 1 + k, found, size) for k, found in enumerate(every)]
    redone = [[RetryShard(chosen, np.array(rows)) for chosen, rows in generation] for generation in later]
    groups = group_shards(generations([chosen for chosen, _ in first], *redone), part_bytes)
    assert [shard for group in groups for shard in group.shards] == [chosen for chosen, _ in first]
    assert (len(groups) == len(first)) if part_bytes == 1 else len(groups) <= len(first)

    expected = tables(list(latest(every)), list(latest(every).values()))
    images, instances = [], []
    redone_stats = Stats.zero(CATEGORIES)
    for group in groups:
        reader = GroupReader(storage, group, CATEGORIES)
        images += list(reader.images())
        instances += list(reader.instances())
        redone_stats = redone_stats + reader.stats
    assert pa.concat_tables(images).equals(expected[0])
    assert pa.concat_tables(instances).equals(expected[1])
    touched = {row // size for again in every[1:] for row in again}
    rows = [row for row in latest(every) if row // size in touched]
    assert redone_stats == Stats.of_tables(*tables(rows, [latest(every)[row] for row in rows]), CATEGORIES)


def test_a_group_reads_only_the_retries_that_did_its_rows(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    first = [chosen for chosen, _ in in_shards(storage, 1, dict.fromkeys(range(12)), 3)]
    again = [
        RetryShard(chosen, np.array(rows))
        for chosen, rows in in_shards(storage, 2, dict.fromkeys([0, 1, 2, 9, 10], 1), 2)
    ]
    groups = group_shards(generations(first, again), part_bytes=1)
    read = [[each.shard.shard for again in group.redone for each in again] for group in groups]
    assert read == [
        ["2-00000000", "2-00000001"],
        ["2-00000001"],
        ["2-00000001"],
        ["2-00000001", "2-00000002"],
    ]
    # Of rows 3 to 5 nothing was done again, though a shard of the retry has rows on both sides.
    between = GroupReader(storage, groups[1], CATEGORIES)
    assert pa.concat_tables(between.images()) == tables([3, 4, 5], [None] * 3)[0]
    assert pa.concat_tables(between.instances()).num_rows == 0
    assert between.stats == Stats.zero(CATEGORIES)


@pytest.mark.parametrize("part_bytes", [1, 250, 10**6])
def test_parts_are_whole_shards_in_order(part_bytes: int) -> None:
    shards = [
        ChosenReceipt(str(i), "a", File("", "", 10 * i % 70, 2), File("", "", 37 * i % 110, 1))
        for i in range(40)
    ]
    groups = group_shards(generations(shards), part_bytes=part_bytes)
    assert [shard for group in groups for shard in group.shards] == shards
    names = [group.part_name for group in groups]
    assert names == sorted(set(names))
    assert [group.start for group in groups] == [2 * int(group.shards[0].shard) for group in groups]
    for group in groups:
        assert len(group.shards) == 1 or sum(shard.instances.bytes for shard in group.shards) <= part_bytes


def test_what_a_retry_found_makes_the_parts_smaller() -> None:
    shards = [ChosenReceipt(str(i), "a", File("", "", 10, 100), File("", "", 10, 0)) for i in range(10)]
    large = ChosenReceipt("2-0", "a", File("", "", 0, 1000), File("", "", 10_000, 1))
    assert len(group_shards(generations(shards), part_bytes=2500)) == 1
    groups: list[Group] = group_shards(
        generations(shards, [RetryShard(large, np.arange(1000))]), part_bytes=2500
    )
    assert [len(group.shards) for group in groups] == [2] * 5


def test_ids_follow_the_rows_of_the_manifest() -> None:
    images, instances = tables([5, 6], [None, 2])
    _, merged = merge_results(5, images, instances, [RetryResult(np.array([5]), *tables([5], [1]))])
    assert merged["id"].to_pylist() == [
        5 * INSTANCES_PER_IMAGE + 1,
        *(6 * INSTANCES_PER_IMAGE + k for k in (1, 2)),
    ]


@given(
    st.lists(st.tuples(*[st.integers(1, 50)] * 4), min_size=1, max_size=30),
    st.integers(1, 120),
    st.integers(1, 120),
)
def test_a_group_of_several_shards_stays_within_both_limits(sizes, part_bytes, part_rows):
    chosen = [
        ChosenReceipt(f"1-{n:08d}", "a", File("images", "", b, rows), File("instances", "", c, found))
        for n, (b, rows, c, found) in enumerate(sizes)
    ]
    groups = group_shards(generations(chosen), part_bytes=part_bytes, part_rows=part_rows)
    assert [shard for group in groups for shard in group.shards] == chosen
    for group in groups:
        files = [[shard.images for shard in group.shards], [shard.instances for shard in group.shards]]
        fits = all(
            sum(file.bytes for file in table) <= part_bytes and sum(file.rows for file in table) <= part_rows
            for table in files
        )
        assert fits or len(group.shards) == 1

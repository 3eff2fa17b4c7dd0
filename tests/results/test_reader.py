"""A finished run is read by its files: names of folders above it, and of the user's own columns, change nothing."""

from dataclasses import replace
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import rectangles, result, write_run

import maskrcnn
from maskrcnn.errors import UsageError
from maskrcnn.results.reader import RunReader, find_images, where

FOUND = [((1, 1, 9, 9), 0.9, 1), ((2, 2, 5, 5), 0.4, 2)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A run of two images and a failed one, in folders whose names look like columns."""
    results = [
        result(0, "a.png", rectangles(10, 10, *FOUND)),
        result(1, "b.png", rectangles(10, 10)),
        result(2, "c.png", None),
    ]
    return write_run(tmp_path / "status=final" / "image_id=7" / "out", results, per_part=2)


STATUSES = ["ok", "empty", "failed"]


def test_a_run_is_printed_in_one_line(url: str) -> None:
    counts = {"images": 1200, "ok": 900, "empty": 299, "failed": 1, "instances": 1}
    run = replace(maskrcnn.open_run(url), success={"counts": counts, "created": "2026-01-02T03:04:05+00:00"})
    assert repr(run) == (
        f"<Run {url!r}: 1,200 images (900 ok, 299 empty, 1 failed), 1 instance; finished 2026-01-02T03:04:05+00:00>"
    )


def test_folders_named_as_columns_are_no_columns(url: str) -> None:
    run = maskrcnn.open_run(url)
    assert run.images()["status"].to_pylist() == STATUSES
    with RunReader(run) as reader:
        assert [image.status for image in reader.images()] == STATUSES
        assert [match.row for match in where(reader, "status = 'failed' OR score > 0.5", 9)] == [0, 2]
    assert pd.read_parquet(f"{url}/images")["status"].tolist() == STATUSES
    assert pq.read_table(f"{url}/images")["status"].to_pylist() == STATUSES
    files = f"read_parquet('{url}/images/*.parquet', hive_partitioning = false)"
    assert duckdb.sql(f"SELECT status FROM {files} ORDER BY name").fetchall() == [(s,) for s in STATUSES]
    polars = pytest.importorskip("polars")
    assert polars.read_parquet(f"{url}/images")["status"].to_list() == STATUSES


def test_conditions_can_name_every_column_whatever_the_user_called_his_own(url: str) -> None:
    """In runs of before 0.3 a further column of `images` may have the name of a column of `instances`."""
    for path in Path(url, "images").iterdir():
        table = pq.read_table(path)
        for name in ("category", "Score", "id", "image_row", "AREA"):
            table = table.append_column(name, pa.array(["x"] * len(table)))
        pq.write_table(table, path)
    with RunReader(maskrcnn.open_run(url)) as reader:

        def rows(condition: str) -> list[tuple[int, tuple[int, ...]]]:
            return [(match.row, match.instances) for match in where(reader, condition, 9)]

        assert rows("score > 0.5 AND area = 64 AND id IS NOT NULL") == [(0, (0,))]
        assert rows("category IS NULL AND input_category = 'x'") == [(1, ()), (2, ())]
        assert rows("input_AREA = 'x' AND images.status = 'ok'") == [(0, (0, 1))]


def test_an_id_is_written_as_a_number_is_printed(tmp_path: Path) -> None:
    """`007` names the file 007.png, and not the image of id 7."""
    names = [f"{number:03}.png" for number in range(9)]
    run = maskrcnn.open_run(write_run(tmp_path, [result(row, name, None) for row, name in enumerate(names)]))
    with RunReader(run) as reader:
        assert [image.name for image in find_images(reader, ["007", "7", "8"])] == [
            "007.png",
            "006.png",
            "007.png",
        ]
        with pytest.raises(UsageError, match="no image '\u0667'"):
            find_images(reader, ["\u0667"])


CONDITIONS = ("score > 0.5", "status <> 'ok'", "category_id = 2 AND name < '4'", "id IS NULL", "true")


@pytest.mark.slow
@settings(max_examples=12)
@given(
    labels=st.lists(st.lists(st.sampled_from([1, 2]), max_size=4), min_size=1, max_size=9),
    per_part=st.sampled_from([1, 4, 50]),
    block=st.sampled_from([1, 3, 50]),
    count=st.sampled_from([1, 50]),
    condition=st.sampled_from(CONDITIONS),
)
def test_what_matches_does_not_depend_on_parts_and_blocks(
    labels: list[list[int]],
    per_part: int,
    block: int,
    count: int,
    condition: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The oracle is one query over whole tables."""
    results = [
        result(
            row,
            f"{row}.png",
            rectangles(
                9, 9, *[((at, 1, at + 2, 4), 0.2 + 0.2 * at, label) for at, label in enumerate(found)]
            ),
        )
        for row, found in enumerate(labels)
    ]
    run = maskrcnn.open_run(write_run(tmp_path_factory.mktemp("run"), results, per_part=per_part))
    images, instances = run.images(), run.instances()  # noqa: F841 - DuckDB finds them by their names
    query = "SELECT images.name, instance FROM images LEFT JOIN instances USING (image_id)"
    found: dict[int, list[int]] = {}
    for name, instance in duckdb.sql(f"{query} WHERE {condition} ORDER BY 1, 2").fetchall():
        found.setdefault(int(name[0]), []).extend([] if instance is None else [instance])
    with pytest.MonkeyPatch.context() as patch, RunReader(run) as reader:
        patch.setattr("maskrcnn.results.reader.BLOCK_ROWS", block)
        matches = where(reader, condition, count)
    assert [(match.row, list(match.instances)) for match in matches] == list(found.items())[:count]

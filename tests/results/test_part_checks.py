"""Nothing is made of a run whose tables are missing, damaged, or contradict each other: one line says which and why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_runs import rectangles, result, write_run
from maskrcnn_jobs.cli import main

import maskrcnn
from maskrcnn.errors import UsageError
from maskrcnn.io.parquet import read_table
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import Plan
from maskrcnn.results.part_checks import check_tables, reading

ONE = rectangles(30, 40, ((1, 1, 9, 9), 0.9, 1), ((12, 2, 25, 15), 0.4, 2))
RESULTS = [result(0, "a.png", ONE), result(1, "b.png", ONE), result(2, "c.png", rectangles(30, 40))]


@pytest.fixture
def url(tmp_path: Path) -> str:
    run = write_run(tmp_path / "run", RESULTS, per_part=2)
    plan = Plan(1, 3, 2, "0" * 64, "0" * 64, "2026-01-01T00:00:00+00:00")
    Path(run, "plan.json").write_text(plan.to_json())
    return run


def refused(*arguments: str) -> str:
    ran = CliRunner().invoke(main, ["-q", *arguments], catch_exceptions=False)
    assert ran.exit_code == 2, ran.output
    [line] = ran.output.splitlines()
    return line


def edit(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.ParquetFile(path).read()
    pq.write_table(change(table), path)


def setting(column: str, change: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        at = table.column_names.index(column)
        values = change(table[column])
        return table.set_column(at, table.field(at), values.cast(table.field(at).type))

    return changed


def cut_in_the_middle(path: Path) -> None:
    """Change a page, so that the footer is sound and the values are not."""
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 3] = bytes(len(data) // 3 - 4)
    path.write_bytes(data)


IMAGES, INSTANCES = "images/part-1-00000.parquet", "instances/part-1-00000.parquet"
LAST = "images/part-1-00001.parquet"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file is gone": (lambda run: (run / INSTANCES).unlink(), f"{INSTANCES} is missing"),
    "another is gone": (lambda run: (run / LAST).unlink(), f"{LAST} is missing"),
    "no Parquet": (lambda run: (run / IMAGES).write_bytes(b"x" * 100), f"{IMAGES} is damaged"),
    "a page is damaged": (lambda run: cut_in_the_middle(run / INSTANCES), f"{INSTANCES} is damaged"),
    "an instance is gone": (
        lambda run: edit(run / INSTANCES, lambda table: table.slice(1)),
        f"{INSTANCES} has 3 rows, and _SUCCESS records 4",
    ),
    "an image is gone": (
        lambda run: edit(run / IMAGES, lambda table: table.slice(1)),
        f"{IMAGES} has 1 row, and _SUCCESS records 2",
    ),
    "instances of another image": (
        lambda run: edit(run / INSTANCES, setting("image_id", lambda ids: pc.add(ids, 1))),
        f"the instances in {INSTANCES} are not those that {IMAGES} counts",
    ),
    "another count": (
        lambda run: edit(run / IMAGES, setting("n_instances", lambda counts: pa.array([1, 3]))),
        f"the instances in {INSTANCES} are not those that {IMAGES} counts",
    ),
    "a category that the run lacks": (
        lambda run: edit(run / INSTANCES, setting("category_id", lambda ids: pa.array([1, 4711, 1, 2]))),
        "an instance has the category 4711, which the run lacks",
    ),
    "a column is gone": (
        lambda run: edit(run / INSTANCES, lambda table: table.drop_columns("box")),
        f"{INSTANCES} lacks the column 'box'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["coco", "csv", "png-masks"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_whose_tables_disagree_is_not_exported(fault: str, form: str, url: str, tmp_path: Path) -> None:
    """What would be exported is wrong, and nobody would know."""
    damage, why = FAULTS[fault]
    damage(Path(url))
    line = refused("export", url, str(tmp_path / "out"), "--format", form)
    assert line == (
        f"error: the tables of {url} disagree: {why}; `maskrcnn verify` lists all, `maskrcnn reduce` writes them again"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_nor_is_it_evaluated(fault: str, url: str, tmp_path: Path) -> None:
    damage, why = FAULTS[fault]
    damage(Path(url))
    ground_truth = tmp_path / "ground_truth.json"
    image = {"id": 1, "file_name": "a.png", "height": 30, "width": 40}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
    categories = [{"id": 1, "name": "ellipse"}]
    ground_truth.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    with pytest.raises(UsageError, match="disagree") as caught:
        maskrcnn.evaluate(url, str(ground_truth))
    assert why in str(caught.value)


def test_a_sound_run_is_exported(url: str, tmp_path: Path) -> None:
    for form in ("coco", "csv", "png-masks"):
        ran = CliRunner().invoke(main, ["-q", "export", url, str(tmp_path / form), "--format", form])
        assert ran.exit_code == 0, ran.output
    Path(url, "plan.json").unlink()
    assert "holds no run (no plan.json)" in refused("export", url, str(tmp_path / "again"))


def test_a_damaged_mask_is_seen_when_it_is_read(url: str, tmp_path: Path) -> None:
    """The checks read only the columns that they compare."""
    path = Path(url, INSTANCES)
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    [mask] = [
        column
        for at in range(metadata.num_columns)
        if (column := metadata.column(at)).path_in_schema == "segmentation.counts"
    ]
    data = bytearray(path.read_bytes())
    data[mask.data_page_offset : mask.data_page_offset + mask.total_compressed_size] = bytes(
        mask.total_compressed_size
    )
    path.write_bytes(data)
    assert f"{INSTANCES} is damaged" in refused("export", url, str(tmp_path / "out"))
    assert f"{INSTANCES} is damaged" in refused("diff", url, write_run(tmp_path / "b", RESULTS))


def test_polygons_are_checked_too(url: str, tmp_path: Path) -> None:
    success = Path(url, "_SUCCESS")
    listed = json.loads(success.read_text())
    listed["parts"]["geo"] = [listed["parts"]["instances"][0] | {"path": "geo/part-1-00000.parquet"}]
    success.write_text(json.dumps(listed))
    assert "geo/part-1-00000.parquet is missing" in refused(
        "export", url, str(tmp_path / "out"), "--format", "geojson"
    )
    Path(url, "geo").mkdir()
    pq.write_table(pa.table({"image_id": [1]}), Path(url, "geo/part-1-00000.parquet"))
    with pytest.raises(UsageError, match=r"geo/part-1-00000.parquet has 1 row, and _SUCCESS records 4"):
        check_tables(url, maskrcnn.open_run(url).info, listed)


def test_tables_read_in_python_name_the_part_that_is_missing(url: str) -> None:
    run = maskrcnn.open_run(url)
    assert len(run.instances()) == 4
    Path(url, INSTANCES).unlink()
    with pytest.raises(UsageError, match=f"{INSTANCES} is missing"):
        run.instances()
    assert len(run.images()) == 3


def test_another_fault_than_the_files_is_not_blamed_on_them(url: str) -> None:
    storage = Storage(url)
    with pytest.raises(PermissionError), reading(storage, IMAGES, INSTANCES):
        raise PermissionError("elsewhere")
    with reading(storage, IMAGES):
        assert len(read_table(storage, IMAGES)) == 2

"""`verify` finds each change in the windows, pieces or polygons of a finished run."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from windowed import mosaic, run_windows, write_geotiff

from maskrcnn.results.verify import verify_run

pytestmark = pytest.mark.slow

pytest.importorskip("rasterio")

Edit = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("invariants")
    write_geotiff(folder / "in" / "a.tif", mosaic(300, 400, 20, 1))
    degrees = (1e-5, 0.0, 32.5, 0.0, -1e-5, 0.3)
    write_geotiff(folder / "in" / "b.tif", mosaic(200, 150, 8, 2), crs="EPSG:4326", transform=degrees)
    write_geotiff(folder / "in" / "c.tif", mosaic(50, 50, 1, 3), crs=None)
    run_windows(folder / "in", folder / "out")
    return folder / "out"


def set_value(column: str, row: int, change: Callable[[Any], Any]) -> Edit:
    def edit(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = change(values[row])
        field = table.schema.field(column)
        return table.set_column(table.column_names.index(column), field, pa.array(values, field.type))

    return edit


def without(row: int) -> Edit:
    return lambda table: pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def twice(row: int) -> Edit:
    return lambda table: pa.concat_tables([table.slice(0, row + 1), table.slice(row)])


def tamper(output: Path, table: str, edit: Edit) -> None:
    """Change a part, and update its entry in `_SUCCESS`."""
    success = json.loads((output / "_SUCCESS").read_text())
    entry = success["parts"][table][0]
    path = output / entry["path"]
    changed = edit(pq.ParquetFile(path).read())  # pq.read_table adds a column for the folder crs=…
    pq.write_table(changed, path)
    data = path.read_bytes()
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "rows": len(changed)}
    (output / "_SUCCESS").write_text(json.dumps(success))


def test_a_file_of_polygons_belongs_to_the_folder_of_its_images(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    success = json.loads((output / "_SUCCESS").read_text())
    first, second = (output / entry["path"] for entry in success["parts"]["geo"])
    assert {first.parent.name, second.parent.name} == {"crs=EPSG_32636", "crs=EPSG_4326"}
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    a, b = success["parts"]["geo"]
    for key in ("sha256", "bytes", "rows"):
        a[key], b[key] = b[key], a[key]
    (output / "_SUCCESS").write_text(json.dumps(success))
    findings = verify_run(str(output)).findings
    assert {finding.where for finding in findings if "folder" in finding.line} == {a["path"], b["path"]}


def test_an_intact_run_is_proven(whole: Path) -> None:
    assert verify_run(str(whole)).proven


@pytest.mark.parametrize(
    ("table", "edit"),
    [
        ("windows", without(0)),
        ("windows", without(7)),
        ("windows", twice(3)),
        ("windows", set_value("col_off", 2, lambda v: v + 1)),
        ("windows", set_value("status", 1, lambda _: "failed")),
        ("windows", set_value("status", 1, lambda _: "lost")),
        ("windows", set_value("n_pieces", 1, lambda v: v + 1)),
        ("windows", set_value("capped", 0, lambda v: not v)),
        ("pieces", without(0)),
        ("pieces", twice(4)),
        ("pieces", set_value("instance", 0, lambda v: v + 1000)),
        ("pieces", set_value("category_id", 0, lambda v: 1 if v != 1 else 2)),
        ("pieces", set_value("area", 3, lambda v: v + 1)),
        ("pieces", set_value("mask_box", 3, lambda v: v | {"xmin": v["xmin"] + 1})),
        ("pieces", set_value("segmentation", 3, lambda v: v | {"counts": "0"})),
        ("geo", without(0)),
        ("geo", twice(0)),
        ("geo", set_value("instance", 0, lambda v: v + 1000)),
        ("geo", set_value("area_m2", 0, lambda v: v * 1.001)),
        ("geo", set_value("category", 0, lambda v: f"{v}s")),
        ("geo", set_value("bbox", 0, lambda v: v | {"xmin": v["xmin"] + 1})),
    ],
)
def test_each_change_is_found(whole: Path, tmp_path: Path, table: str, edit: Edit) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    tamper(output, table, edit)
    report = verify_run(str(output))
    assert not report.proven
    assert {finding.check for finding in report.findings} == {"windows"}

"""Parquet files of results: every reader accepts them, and equal rows give equal bytes."""

import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn.io import parquet
from maskrcnn.io.parquet import write_table, write_tables
from maskrcnn.io.storage import Storage
from maskrcnn.schema import INSTANCES, MANIFEST, ImageResult, images_table


def instances(n, seed=0):
    """Return rows with any values that the columns may hold, including a frame."""
    rng = np.random.default_rng(seed)
    low, high = -(2**31), 2**31
    box = [
        dict(zip(("xmin", "ymin", "xmax", "ymax"), row, strict=True)) for row in rng.normal(0, 1e3, (n, 4))
    ]
    mask_box = [
        dict(zip(("xmin", "ymin", "xmax", "ymax"), row, strict=True))
        for row in rng.integers(low, high, (n, 4)).tolist()
    ]
    texts = ["".join(map(chr, rng.integers(48, 112, rng.integers(0, 60)))) for _ in range(n)]
    frame = {"col_off": -1, "row_off": 2, "width": 3, "height": 4}
    columns = {
        "id": np.sort(rng.integers(0, 2**53, n)),
        "image_id": np.sort(rng.integers(0, 2**33, n)),
        "instance": rng.integers(0, 9, n).astype(np.int32),
        "category_id": rng.integers(low, high, n).astype(np.int32),
        "category": pa.array([f"naïve {k}" for k in rng.integers(0, 3, n)]).dictionary_encode(),
        "score": rng.random(n).astype(np.float32),
        "box": box,
        "area": rng.integers(0, 2**62, n),
        "mask_box": mask_box,
        "segmentation": [{"size": [k, 7], "counts": text} for k, text in enumerate(texts)],
        "frame": [frame if k % 3 == 0 else None for k in range(n)],
        "touches_border": rng.random(n) < 0.5,
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in INSTANCES]
    return pa.table(arrays, schema=INSTANCES)


def images(n):
    """Return rows of `images`, every other of which failed, with a column of the user's own."""
    manifest = pa.table({field.name: pa.nulls(n, field.type) for field in MANIFEST})
    manifest = manifest.append_column("depth_m", pa.array(np.linspace(0, 1, n)))
    manifest = manifest.append_column("score", pa.array([f"{k}?" for k in range(n)], pa.string()))
    results = [
        ImageResult(k, k, f"核 {k}", "u", None, None, None, "corrupt" if k % 2 else None, None)
        for k in range(n)
    ]
    return images_table(results, manifest)


@pytest.mark.parametrize(
    "table",
    [instances(0), instances(1000), images(0), images(300)],
    ids=lambda t: f"{len(t)} of {t.num_columns}",
)
def test_every_reader_accepts_a_file_and_finds_the_rows(tmp_path, table):
    write_table(Storage(str(tmp_path)), "t.parquet", table)
    path = tmp_path / "t.parquet"
    again = pq.read_table(path)
    assert again.schema.equals(table.schema, check_metadata=True)
    assert again.equals(table)
    assert parquet.read_table(Storage(str(tmp_path)), "t.parquet").equals(table)

    by_duckdb = duckdb.sql(f"SELECT * FROM '{path}'").fetchall()
    assert by_duckdb == [tuple(row.values()) for row in table.to_pylist()]

    by_pandas = pd.read_parquet(path)
    for name in ("image_id", "category", "score", "area", "name", "error", "depth_m"):
        if name in table.column_names:
            values = [None if pd.isna(value) else value for value in by_pandas[name]]
            assert values == table[name].to_pylist()


def test_equal_rows_give_equal_bytes_however_they_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 100)
    storage, table = Storage(str(tmp_path)), instances(1234)
    cuts = [[table], [table.slice(k, 7) for k in range(0, len(table), 7)], [table.slice(0, 0), table]]
    files = [write_tables(storage, f"{k}.parquet", table.schema, pieces) for k, pieces in enumerate(cuts)]
    assert len({file.sha256 for file in files}) == 1
    assert {file.rows for file in files} == {1234}
    footer = pq.read_metadata(tmp_path / "0.parquet")
    assert [footer.row_group(k).num_rows for k in range(footer.num_row_groups)] == [100] * 12 + [34]


def test_a_reader_can_skip_row_groups_without_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 100)
    table = instances(400)
    write_table(Storage(str(tmp_path)), "t.parquet", table)
    footer = pq.read_metadata(tmp_path / "t.parquet")
    position = table.column_names.index("image_id")
    extents = [footer.row_group(k).column(position).statistics for k in range(footer.num_row_groups)]
    ids = table["image_id"].to_pylist()
    assert [(s.min, s.max) for s in extents] == [(ids[k], ids[k + 99]) for k in range(0, 400, 100)]


THREADS = """
import os, sys
from maskrcnn.io.parquet import read_table
from maskrcnn.io.storage import Storage

def threads():
    return set(os.listdir("/proc/self/task"))

storage, before = Storage(sys.argv[1]), threads()
read_table(storage, "t.parquet")
read_table(storage, "t.parquet", ["id"])
print(len(threads() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are listed by /proc")
def test_reading_a_table_leaves_no_threads_that_could_abort_a_process_at_its_end(tmp_path):
    write_table(Storage(str(tmp_path)), "t.parquet", instances(50))
    command = [sys.executable, "-c", THREADS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"

"""README says what is so: the error codes, the columns, the files it names, the commands it shows."""

import re
import shlex
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from maskrcnn_jobs.cli import main

from maskrcnn.errors import ERROR_CODES
from maskrcnn.schema import IMAGES, INSTANCES, ImageResult, images_table, instances_table
from maskrcnn.types import Category, Detections

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_error_codes_is_the_codes() -> None:
    section = README.partition("### Error codes")[2].partition("###")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", section, re.MULTILINE))
    assert rows == dict(ERROR_CODES)


@pytest.mark.parametrize(("table", "schema"), [("images", IMAGES), ("instances", INSTANCES)])
def test_every_column_is_named(table: str, schema: object) -> None:
    section = README.partition(f"| `{table}` | type |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| ([\w, ]+?) \|", section, re.MULTILINE)
    assert [name for cell in named for name in cell.split(", ")] == schema.names  # type: ignore[attr-defined]


def test_the_files_it_points_to_exist() -> None:
    files = re.findall(r"\]\(([\w/.-]+)\)", README) + re.findall(
        r"`((?:notebooks|maskrcnn|cluster)/[\w./]*)`", README
    )
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_commands_it_shows_parse() -> None:
    shown = re.findall(r"^ {4}(?:\.venv/bin/)?maskrcnn (.+)$", README, re.MULTILINE)
    assert len(shown) > 4
    for line in shown:
        name, *arguments = shlex.split(line.partition("  #")[0])
        main.commands[name].make_context(name, arguments)


def test_make_targets_it_names_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([a-z]+)`|^ {4}make ([a-z]+)", README, re.MULTILINE)) - {("", "")}
    for pair in re.findall(r"`make ([a-z]+)|^ {4}make ([a-z]+)", README, re.MULTILINE):
        assert (pair[0] or pair[1]) in targets


def test_the_queries_it_shows_mean_what_they_say(tmp_path: Path) -> None:
    """Three images: a person and a boat, a boat alone, one that failed."""
    people = [Category(1, "person"), Category(2, "boat")]

    def found(*labels: int) -> Detections:
        n = len(labels)
        return Detections(
            height=4, width=4, boxes=np.zeros((n, 4), np.float32), labels=np.array(labels, np.int32),
            scores=np.full(n, 0.9, np.float32), masks=(b"01f0",) * n, areas=np.ones(n, np.int64),
            mask_boxes=np.zeros((n, 4), np.int32), capped=False,
        )  # fmt: skip

    results = [
        ImageResult(0, 1, "both.jpg", "both.jpg", None, None, found(1, 2, 2)),
        ImageResult(1, 2, "boat.jpg", "boat.jpg", None, None, found(2)),
        ImageResult(
            2, 3, "gone.jpg", "gone.jpg", None, None, None, error="not_found", message="it does not exist"
        ),
    ]
    manifest = pa.table({"image_id": [1, 2, 3]})
    for name, table in (
        ("images", images_table(results, manifest)),
        ("instances", instances_table(results, people)),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "part-1-00000.parquet")
    [block] = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    per_category, both, failed = [
        duckdb.sql(query).fetchall()
        for query in block.replace("'out/", f"'{tmp_path}/").split(";")
        if query.strip()
    ]
    assert [row[:2] for row in per_category] == [("boat", 3), ("person", 1)]
    assert both == [("both.jpg",)]
    assert failed == [("not_found", 1, "it does not exist")]

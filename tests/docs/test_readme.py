"""README: short, and its commands, files and queries are what they say."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docs.pages import PAGES, README, ROOT, blocks

from maskrcnn.schema import ImageResult, images_table, instances_table
from maskrcnn.types import Category, Detections

LINES = 150


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= LINES


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (page.name, target)
        for page in PAGES
        for target in re.findall(r"(?:`|^ *)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"demo", "test", "docs"} <= {target for _, target in named}
    assert {(page, target) for page, target in named if target not in targets} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", text)
    missing = []
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            missing.append(path)
        elif anchor and target.suffix == ".md" and "mkdocs-click" not in target.read_text():
            slugs = {_slug(title) for title in re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)}
            missing += [] if anchor in slugs else [f"{path}#{anchor}"]
    assert missing == []


def _slug(title: str) -> str:
    """Return the anchor of a heading, as MkDocs and GitHub make it of plain words."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    named = set(
        re.findall(
            r"(?<![\w/.-])((?:tests|notebooks|maskrcnn|jobs|cluster|docs)/[\w./-]*\w)", page.read_text()
        )
    )
    named = {path for path in named if not path.startswith("tests/<")}
    named |= {
        module.replace(".", "/")
        for module in re.findall(r"python -m ((?:tests|maskrcnn)\.[\w.]+)", page.read_text())
    }
    exists = {
        path
        for path in named
        if (ROOT / path).exists() or (ROOT / f"{path}.py").exists() or (ROOT / f"{path}.safetensors").exists()
    }
    assert named - exists == set()


def test_the_queries_mean_what_they_say(tmp_path: Path) -> None:
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
    out = tmp_path / "status=final" / "category=none" / "out"  # names that DuckDB may take for columns
    for name, table in (
        ("images", images_table(results, manifest)),
        ("instances", instances_table(results, people)),
    ):
        (out / name).mkdir(parents=True)
        pq.write_table(table, out / name / "part-1-00000.parquet")
    [block] = blocks(README, "sql")
    per_category, both, failed = [
        duckdb.sql(query).fetchall()
        for query in block.text.replace("'out/", f"'{out}/").split(";")
        if query.strip()
    ]
    assert [row[:2] for row in per_category] == [("boat", 3), ("person", 1)]
    assert both == [("both.jpg",)]
    assert failed == [("not_found", 1, "it does not exist")]

"""The site: built with warnings as errors, generated from the code, and asking nothing of other hosts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs.pages import DOCS, ROOT, generator
from maskrcnn_jobs.cli import main

import maskrcnn
from maskrcnn.errors import ERROR_CODES

GENERATE = generator()


def generated(page: str) -> str:
    return str(GENERATE.on_page_markdown((DOCS / page).read_text(encoding="utf-8")))


def test_the_page_of_error_codes_has_each_code_with_its_meaning() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", generated("reference/error-codes.md"), re.MULTILINE))
    assert rows == dict(ERROR_CODES)


@pytest.mark.parametrize("table", GENERATE.SCHEMAS)
def test_each_column_is_described(table: str) -> None:
    page = (DOCS / "reference" / "tables.md").read_text(encoding="utf-8")
    assert f"<!-- generate: columns {table} -->" in page
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", GENERATE.columns(table), re.MULTILINE)
    schema = GENERATE.schema_of(table)
    assert [name for name, _, _ in rows] == schema.names
    assert [type_.endswith("?") for _, type_, _ in rows] == [field.nullable for field in schema]


def test_types_are_spelled_for_readers() -> None:
    text = GENERATE.columns("instances")
    assert "| `category` | string |" in text
    assert "| `box` | struct(xmin float32, ymin float32, xmax float32, ymax float32) |" in text
    assert "size list of int32, counts string" in text


def test_a_column_without_description_stops_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (DOCS / "columns.toml").read_text(encoding="utf-8")
    (tmp_path / "columns.toml").write_text(re.sub(r"^status = .*\n", "", text, count=1, flags=re.MULTILINE))
    monkeypatch.setattr(GENERATE, "DOCS", tmp_path)
    with pytest.raises(KeyError, match="describe the column 'status'"):
        GENERATE.columns("images")
    (tmp_path / "columns.toml").write_text(text.replace("[instances]\n", '[instances]\nghost = "gone"\n'))
    with pytest.raises(KeyError, match="no such column: ghost"):
        GENERATE.columns("instances")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """And has each command and public name, and loads nothing from other hosts."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "reference" / "command-line" / "index.html").read_text(encoding="utf-8")
    for name, command in main.commands.items():
        assert f'id="maskrcnn-{name}"' in commands
        options = [
            option for parameter in command.params for option in parameter.opts if option.startswith("--")
        ]
        assert [option for option in options if option not in commands] == []
    assert "Sentinel" not in commands
    assert "N/A" not in commands
    api = (tmp_path / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    names = [name for name in maskrcnn.__all__ if not name.isupper()]
    assert [name for name in names if f'id="maskrcnn.{name}"' not in api] == []
    codes = (tmp_path / "reference" / "error-codes" / "index.html").read_text(encoding="utf-8")
    assert [code for code in ERROR_CODES if f"<code>{code}</code>" not in codes] == []
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"(https?:[^\"]*)", page.read_text()
        )
        assert [url for url in loaded if "canonical" not in url] == [], page

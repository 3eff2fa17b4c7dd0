"""README says what is so: the error codes, the columns, the files it names, the commands it shows."""

import re
import shlex
from pathlib import Path

import pytest
from maskrcnn_jobs.cli import main

from maskrcnn.errors import ERROR_CODES
from maskrcnn.schema import IMAGES, INSTANCES

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

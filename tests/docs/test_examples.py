"""What README and the guides show is run: commands, Python and SQL."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import duckdb
import duckdb_extension_spatial
import pytest
from chaos.local_job import without_ray
from click.testing import CliRunner
from docs.pages import DOCS, GUIDES, blocks, commands
from docs.workspace import write_workspace
from maskrcnn_jobs.cli import main

QUICK = {"status", "verify", "show", "evaluate", "export", "diff", "reduce", "retry", "gc"}
"""Commands that are run where the workspace has what they read."""
CHANGES = {"reduce", "retry", "gc"}
"""Those that change a run: they are given a copy."""
MAY_BE_EMPTY = re.compile(r"'person'|'boat'|'leaf', 0\.4|WHERE capped")
"""Queries of which the workspace may have no rows."""
OPTIONS_OF_OUTPUT = ("--output", "--each")
each_guide = pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)


@pytest.fixture(scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_workspace(root)
    return root


@pytest.fixture
def workspace(_workspace: Path) -> Iterator[Path]:
    """Give the folder of the guides as the working directory."""
    before = Path.cwd()
    os.chdir(_workspace)
    yield _workspace
    os.chdir(before)


def parse(arguments: list[str]) -> click.Context:
    """Read a command as the command line does, without running it."""
    _, (name, *rest), _ = main.make_parser(click.Context(main)).parse_args(list(arguments))
    if name not in main.commands:
        raise click.UsageError(f"no such command: {name}")
    context = main.commands[name].make_context(name, rest)
    if name == "submit":
        parse(list(context.params["command"]))
    return context


# Commands


def test_the_guides_show_each_command() -> None:
    shown = {command.split()[0] for page in GUIDES for _, command in commands(page)}
    assert set(main.commands) - shown == set()


@each_guide
def test_every_command_exists_with_its_options(page: Path) -> None:
    for place, command in commands(page):
        try:
            parse(shlex.split(command))
        except click.UsageError as error:
            raise AssertionError(f"{place}: maskrcnn {command}: {error.message}") from error


def test_a_command_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(click.UsageError, match="no such command"):
        parse(["segmnt", "a", "b"])
    with pytest.raises(click.NoSuchOption):
        parse(["--log-formats", "json", "status", "a"])
    with pytest.raises(click.NoSuchOption):
        parse(["submit", "--address", "http://h", "--", "segment", "a", "b", "--gpus", "8"])


@pytest.mark.slow
@each_guide
def test_quick_commands_succeed(page: Path, workspace: Path) -> None:
    for place, command in commands(page):
        arguments = shlex.split(command)
        if arguments[0] not in QUICK or any(text.startswith("s3://") for text in arguments):
            continue
        if "--worst" in arguments and not Path("out/evaluation").exists():
            _succeeds(place, ["evaluate", "out/", "--truth", "val.json"])
        if arguments[0] in CHANGES:
            shutil.rmtree("copy", ignore_errors=True)
            shutil.copytree(arguments[1], "copy")
            arguments[1] = "copy"
        for written in _outputs(arguments):
            shutil.rmtree(written, ignore_errors=True)
        with without_ray():
            _succeeds(place, arguments)


def _outputs(arguments: list[str]) -> list[str]:
    named = [arguments[at + 1] for at, text in enumerate(arguments) if text in OPTIONS_OF_OUTPUT]
    return named + ([arguments[2]] if arguments[0] == "export" else [])


def _succeeds(place: str, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    allowed = (0, 1) if arguments[0] == "retry" else (0,)  # what is no image stays none
    assert result.exit_code in allowed, f"{place}: maskrcnn {shlex.join(arguments)}: {result.output}"


# Python


@pytest.mark.slow
@each_guide
def test_python_runs(page: Path, workspace: Path) -> None:
    """All blocks of a page, one after the other, in one namespace."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, namespace)  # the project's own pages


def test_what_cannot_run_here_is_for_other_tools_only() -> None:
    """Blocks of the language `py` are not run: FiftyOne is not installed."""
    assert [page.stem for page in sorted(DOCS.rglob("*.md")) if blocks(page, "py")] == ["annotation-tools"]


# SQL


@pytest.mark.slow
@pytest.mark.parametrize("page", [*GUIDES, DOCS / "reference" / "error-codes.md"], ids=lambda page: page.stem)
def test_sql_gives_rows(page: Path, workspace: Path) -> None:
    statements = [
        (block.place, statement.strip())
        for block in blocks(page, "sql")
        for statement in block.text.split(";")
        if re.sub(r"--.*", "", statement).strip()
    ]
    if "out/evaluation/" in " ".join(statement for _, statement in statements):
        _succeeds(page.stem, ["evaluate", "out/", "--truth", "val.json"])
    with duckdb.connect(config={"allow_unsigned_extensions": "true"}) as connection:
        for place, statement in statements:
            if statement == "LOAD spatial":
                [binary] = Path(duckdb_extension_spatial.__path__[0]).rglob("spatial.duckdb_extension")
                connection.load_extension(str(binary))
                continue
            if statement.startswith("SET VARIABLE"):
                connection.execute(statement)
                continue
            rows = connection.sql(statement).fetchall()
            assert rows or MAY_BE_EMPTY.search(statement), f"{place}: no rows: {statement}"

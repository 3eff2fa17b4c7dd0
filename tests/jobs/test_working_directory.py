"""A working directory that was removed is one line for every command."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main


@pytest.fixture
def removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    return tmp_path


@pytest.mark.parametrize("command", sorted(main.commands))
def test_a_removed_working_directory_is_one_line(command: str, removed: Path) -> None:
    del removed
    required = {"submit": ["--address", "http://host:1"], "evaluate": ["--truth", "labels.json"]}
    arguments = [*required.get(command, []), "a", "b"]
    result = CliRunner().invoke(main, [command, *arguments])
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert result.output.startswith(
        "error: the working directory cannot be used (no such file or directory): change"
    )

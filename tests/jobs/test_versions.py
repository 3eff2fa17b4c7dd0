"""A run of another schema version: each command that reads one refuses it in one line, and changes nothing."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from maskrcnn_jobs.cli import main
from planned_run import finished_run

import maskrcnn
from maskrcnn.errors import UsageError
from maskrcnn.schema import SCHEMA_VERSION


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that says of itself that it was written by schema version 1."""
    output = Path(finished_run(tmp_path_factory.mktemp("older"), images=3))
    run = json.loads((output / "run.json").read_text())
    assert run["schema_version"] == SCHEMA_VERSION
    run["schema_version"] = 1
    run["versions"]["maskrcnn-ray"] = "0.1.0"
    (output / "run.json").write_text(json.dumps(run))
    return output


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


COMMANDS = {
    "segment": ["segment", "IMAGES", "RUN", "--model", "planted", "--shard-images", "2"],
    "plan": ["plan", "IMAGES", "RUN", "--model", "planted", "--shard-images", "2"],
    "status": ["status", "RUN"],
    "verify": ["verify", "RUN"],
    "retry": ["retry", "RUN"],
    "reduce": ["reduce", "RUN"],
    "export": ["export", "RUN", "TO"],
    "gc": ["gc", "RUN"],
    "evaluate": ["evaluate", "RUN", "--truth", "TO/ground_truth.json"],
    "show": ["show", "RUN", "--output", "TO/shown.png"],
    "diff": ["diff", "RUN", "RUN"],
}


READS_FINISHED_RUNS = ("export", "evaluate", "show", "diff")
CASES = [(command, True) for command in COMMANDS]
CASES += [(command, False) for command in COMMANDS if command not in READS_FINISHED_RUNS]


@pytest.mark.parametrize(("command", "finished"), CASES)
def test_a_command_refuses_a_run_of_another_version(
    command: str, finished: bool, older: Path, tmp_path: Path
) -> None:
    success = older / "_SUCCESS"
    if not finished:
        success.rename(tmp_path / "kept")
    places = {"IMAGES": str(older.parent / "images"), "RUN": str(older), "TO": str(tmp_path / "to")}
    arguments = [
        next((argument.replace(name, place) for name, place in places.items() if name in argument), argument)
        for argument in COMMANDS[command]
    ]
    before = files(older)
    result = CliRunner().invoke(main, arguments)
    if not finished:
        (tmp_path / "kept").rename(success)
        before |= {success: success.read_bytes()}
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert "was written by schema version 1, this is version" in line
    assert "maskrcnn-ray 0.1.0" in line
    assert result.stdout == ""
    assert files(older) == before
    assert not (tmp_path / "to").exists()


def test_python_refuses_it_too(older: Path) -> None:
    with pytest.raises(UsageError, match="was written by schema version 1"):
        maskrcnn.open_run(str(older))

"""The command line: one clear line and exit code 2 for what the user can repair; no Ray is started for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from maskrcnn_jobs.cli import main
from planted_images import write_planted

from maskrcnn.io.storage import Storage


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_planted(tmp_path / "images", 5, seed=1)
    return tmp_path / "images"


def refused(result: Result, *words: str) -> None:
    """One line that holds the words, exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.output
    assert "Traceback" not in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("error:")]) <= 1


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    out = str(tmp_path / "out")
    refused(run("plan", str(tmp_path / "none"), out, "--model", "planted"), "none")
    refused(run("plan", str(tmp_path / "empty"), out, "--model", "planted"), "empty")
    refused(run("plan", str(tmp_path / "texts"), out, "--model", "planted"), ".txt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("url\na.png\n", ["uri", "url"]),
        ("uri\n", []),
        ("uri\na.png\na.png\n", ["a.png"]),
        ("uri,image_id\na.png,1\nb.png,1\n", ["1"]),
    ],
)
def test_manifests_that_cannot_be_right(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "list.csv").write_text(text)
    refused(run("plan", str(tmp_path / "list.csv"), str(tmp_path / "out"), "--model", "planted"), *words)


def test_an_unknown_model_names_the_nearest(images: Path, tmp_path: Path) -> None:
    refused(run("plan", str(images), str(tmp_path / "out"), "--model", "scene"), "scene", "'scenes'")
    refused(
        run("plan", str(images), str(tmp_path / "out"), "--model", "no/such.safetensors"),
        "no/such.safetensors",
    )


def test_an_unknown_category_names_the_nearest(images: Path, tmp_path: Path) -> None:
    result = run("plan", str(images), str(tmp_path / "out"), "--model", "planted", "--categories", "coins")
    refused(result, "'coins'", "'coin'")


def test_weights_are_recorded_by_their_whole_path(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import maskrcnn

    embedded = Path(maskrcnn.__file__).parent / "models" / "scenes.safetensors"
    (tmp_path / "mine.safetensors").write_bytes(embedded.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run("plan", str(images), str(tmp_path / "out"), "--model", "mine.safetensors").exit_code == 0
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())
    assert recorded["settings"]["model"] == str(tmp_path / "mine.safetensors")
    monkeypatch.chdir("/")
    again = run("plan", str(images), str(tmp_path / "out"), "--model", str(tmp_path / "mine.safetensors"))
    assert again.exit_code == 0


def test_unknown_options_and_commands_name_the_nearest(images: Path) -> None:
    refused(run("segment", str(images), "out", "--min-scores", "0.1"), "--min-score")
    refused(run("segmnt", str(images), "out"), "segment")


def test_an_output_that_holds_something_else(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("do not lose me")
    refused(run("plan", str(images), str(tmp_path / "out"), "--model", "planted"), "thesis.docx")
    assert (tmp_path / "out" / "thesis.docx").read_text() == "do not lose me"


def test_an_output_that_holds_another_run(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert run("plan", str(images), out, "--model", "planted").exit_code == 0
    refused(run("plan", str(images), out, "--model", "planted", "--max-detections", "5"), "max-detections")
    (images / "planted-000000.png").rename(images / "renamed.png")
    again = run("plan", str(images), out, "--model", "planted", "--json")
    assert again.exit_code == 0
    assert "planned 5" not in again.output
    assert Storage(out).list() == ["manifest.parquet", "plan.json", "run.json"]


def test_a_manifest_file_that_changed_is_refused(images: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text("images/planted-000000.png\n")
    out = str(tmp_path / "out")
    assert run("plan", str(manifest), out, "--model", "planted").exit_code == 0
    assert run("plan", str(manifest), out, "--model", "planted").exit_code == 0
    manifest.write_text("images/planted-000001.png\n")
    refused(run("plan", str(manifest), out, "--model", "planted"), "manifest file (sha256)")


def test_an_output_that_cannot_be_written(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("plan", str(images), str(tmp_path / "file" / "out"), "--model", "planted")
    assert result.exit_code in (2, 3)
    assert "Traceback" not in result.output
    assert str(tmp_path / "file") in result.output


def test_the_device_of_an_existing_cluster_must_be_said(images: Path, tmp_path: Path) -> None:
    arguments = [
        "segment",
        str(images),
        str(tmp_path / "out"),
        "--model",
        "planted",
        "--address",
        "10.0.0.1:6379",
    ]
    refused(run(*arguments), "--device")
    assert not (tmp_path / "out").exists()  # before anything is listed or planned


@pytest.mark.parametrize("command", ["status", "reduce", "export", "gc", "retry"])
def test_commands_on_a_directory_without_a_run(command: str, tmp_path: Path) -> None:
    destination = [str(tmp_path / "to")] if command == "export" else []
    result = run(command, str(tmp_path / "none"), *destination)
    assert result.exit_code in (2, 3)
    assert "none" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("option", [["--device", "cuda"], ["--threads", "999"]])
@pytest.mark.ray
def test_what_this_machine_does_not_have_is_refused(images: Path, tmp_path: Path, option: list[str]) -> None:
    refused(run("segment", str(images), str(tmp_path / "out"), "--model", "planted", *option), "this machine")


def test_options_that_say_nothing(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    refused(run("plan", str(images), out, "--model", "planted", "--shard-images", "0"), "--shard-images")
    refused(run("plan", str(images), out, "--model", "planted", "--categories", ","), "--categories")
    refused(run("plan", str(images), "", "--model", "planted"), "output")
    refused(run("plan", str(images), str(images / "planted-000000.png"), "--model", "planted"), "is a file")


def test_another_planting_of_the_same_categories_is_the_same_run(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert run("plan", str(images), out, "--model", "planted", "--categories", "coin,leaf").exit_code == 0
    assert run("plan", str(images), out, "--model", "planted", "--categories", "leaf, coin").exit_code == 0


def test_a_fault_of_the_program_is_no_complete_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_output: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("maskrcnn_jobs.commands.status.run_status", broken)
    assert run("status", str(tmp_path)).exit_code == 3


def test_status_of_a_plan(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run("plan", str(images), out, "--model", "planted", "--shard-images", "2")
    result = run("status", out, "--json")
    assert result.exit_code == 3
    facts = json.loads(result.stdout)
    assert (facts["state"], facts["images"], facts["shards"], facts["shards_done"]) == ("unfinished", 5, 3, 0)


def test_a_retry_of_what_is_not_finished_and_of_no_code(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run("plan", str(images), out, "--model", "planted")
    refused(run("retry", out), "not finished", "maskrcnn segment")
    refused(run("retry", out, "--only", "not_found,no_such_code"), "no_such_code", "not_an_image")
    refused(run("retry", out, "--only", ","), "--only")
    refused(run("retry", out, "--max-failure-rate", "2"), "--max-failure-rate")
    refused(run("retry", out, "--address", "10.0.0.1:6379"), "--device")
    assert Storage(out).list() == ["manifest.parquet", "plan.json", "run.json"]


def test_limit_takes_the_first_by_name(images: Path, tmp_path: Path) -> None:
    result = run("plan", str(images), str(tmp_path / "out"), "--model", "planted", "--limit", "2", "--json")
    assert json.loads(result.stdout)["images"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [[], ["segment"], ["retry"], ["status"], ["demo"], ["submit"], ["export"]]
)
def test_help_needs_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys\nfrom maskrcnn_jobs.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'ray', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)

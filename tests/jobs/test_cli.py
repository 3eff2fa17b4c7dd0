"""The command line: one clear line and exit code 2 for what the user can repair; no Ray is started for it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from picture_tables import parquet, table_of
from planted_images import write_planted

from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.remote_store import _connected


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="maskrcnn")


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "error: no such option '--nonsense'. See `maskrcnn --help`"),
        (["segmnt"], "error: no such command 'segmnt'. Did you mean 'segment'? See `maskrcnn --help`"),
        (["segment"], "error: missing argument 'INPUT'. See `maskrcnn segment --help`"),
        (["status", "a", "b"], "error: got unexpected extra argument (b) See `maskrcnn status --help`"),
        (["plan", "a", "b", "--limit", "x"], "is not a valid integer. See `maskrcnn plan --help`"),
        (["export", "a", "b", "--format", "x"], "See `maskrcnn export --help`"),
    ],
)
def test_a_wrong_use_is_one_line_that_names_where_the_right_one_is_listed(
    arguments: list[str], said: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.endswith(f"{said}\n")
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1


NONSENSE = st.sampled_from(["", "-1", "nan", "-inf", "1e400", "9" * 30, "x", "\0", "\udc80", ",", "é"])


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    option=st.sampled_from(
        [
            option
            for option in main.commands["plan"].params
            if isinstance(option, click.Option) and not option.is_flag
        ]
    ),
    value=NONSENSE,
)
def test_nonsense_is_one_line(
    option: click.Option, value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where it is accepted, the next error is that there is no such input."""
    folder = tmp_path_factory.mktemp("nonsense")
    model = [] if option.name == "model" else ["--model", "planted"]
    window = (
        ["--window", "64"] if option.name in ("overlap", "bands", "scale", "alpha", "max_windows") else []
    )
    nowhere = str(folder / "nowhere")
    result = run("-q", "plan", nowhere, str(folder / "out"), *model, *window, f"{option.opts[0]}={value}")
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("output", ["", "s3://", "file://", "caf\udce9"])
@pytest.mark.parametrize(
    "command",
    [["status"], ["verify"], ["retry"], ["reduce"], ["gc"], ["show"], ["diff", "a"], ["export", "a"]],
    ids=lambda command: command[0],
)
def test_an_output_without_a_name_is_one_line(command: list[str], output: str) -> None:
    result = run(*command, output)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_a_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: maskrcnn {command} ")


def test_an_output_that_holds_something_else(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("do not lose me")
    refused(run("plan", str(images), str(tmp_path / "out"), "--model", "planted"), "thesis.docx")
    assert (tmp_path / "out" / "thesis.docx").read_text() == "do not lose me"


def begin(output: str) -> None:
    """Leave what a command leaves that is killed while it works on its first shard."""
    Storage(output).write("probes/0123/driver", b"")


def test_an_output_that_holds_another_run(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert run("plan", str(images), out, "--model", "planted").exit_code == 0
    begin(out)
    refused(run("plan", str(images), out, "--model", "planted", "--max-detections", "5"), "max-detections")
    (images / "planted-000000.png").rename(images / "renamed.png")
    again = run("plan", str(images), out, "--model", "planted", "--json")
    assert again.exit_code == 0
    assert "planned 5" not in again.output
    written = ["manifest.parquet", "plan.json", "probes/0123/driver", "run.json", "skipped.parquet"]
    assert Storage(out).list() == written


def test_a_manifest_file_that_changed_is_refused(images: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text("images/planted-000000.png\n")
    out = str(tmp_path / "out")
    assert run("plan", str(manifest), out, "--model", "planted").exit_code == 0
    begin(out)
    assert run("plan", str(manifest), out, "--model", "planted").exit_code == 0
    manifest.write_text("images/planted-000001.png\n")
    refused(run("plan", str(manifest), out, "--model", "planted"), "manifest file (sha256)")


def test_a_wrong_option_is_said_whatever_the_output_holds(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert run("plan", str(images), out, "--model", "planted").exit_code == 0
    begin(out)
    window = ("--window", "256", "--overlap", "64")
    for wrong, words in (
        (["--categories", "coins"], ["'coins'", "'coin'"]),
        ([*window, "--scale", "9"], ["--scale"]),
        ([*window, "--assume-crs", "EPSG:0"], ["--assume-crs"]),
        (["--min-score", "2"], ["min"]),
    ):
        result = run("plan", str(images), out, "--model", "planted", *wrong)
        refused(result, *words)
        assert "another run" not in result.output


def cannot_be_written(tmp_path: Path) -> dict[str, str]:
    """Return outputs that nobody can write, by what is wrong with them."""
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere" / "at" / "all")
    return {
        str(tmp_path / "file" / "out"): "a part of the path is a file",
        str(tmp_path / "file" / "a" / "b"): "a part of the path is a file",
        "/proc/out": "no folder can be made there",
        str(tmp_path / ("x" * 300)): "the name is too long",
        str(tmp_path / "broken"): "a file exists where a folder is needed",
        "wasbs://photos@host/out": "wasbs:// (Azure Blob Storage's former driver) is not a supported store",
        "https://host/out?sig=hunter2": "https:// is not a supported store",
    }


def test_an_output_that_cannot_be_written(images: Path, tmp_path: Path) -> None:
    for output, why in cannot_be_written(tmp_path).items():
        result = run("plan", str(images), output, "--model", "planted")
        refused(result, why)
        assert "/probes/" not in result.output, "the name of a file that the user does not know"
        assert "hunter2" not in result.output


def test_an_output_without_credentials(images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for arguments in (
        ["plan", str(images), "s3://bucket/out"],
        ["plan", "s3://bucket/in/", str(tmp_path / "o")],
    ):
        refused(run(*arguments, "--model", "planted"), "no credentials; set AWS_ACCESS_KEY_ID")
    for command in ("status", "verify", "gc"):
        refused(run(command, "s3://bucket/out"), "no credentials; set AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_store_whose_package_is_missing(
    side: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    _connected.cache_clear()
    names = (
        ("gs://bucket/in/", str(tmp_path / "out")) if side == "input" else (str(images), "gs://bucket/out")
    )
    refused(run("plan", *names, "--model", "planted"), "gs://", "pip install 'maskrcnn-ray[gcs]'")


def test_inputs_are_looked_for_before_weights_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(
        "maskrcnn.models.weights.published_weights._download", None
    )  # it would be called, and fail
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    for source in ("none", "none/*.png", "none.csv", "texts", "memory://none/", "memory://none/list.csv"):
        name = source if "://" in source else str(tmp_path / source)
        refused(
            run("plan", name, str(tmp_path / "out"), "--model", "coco"), source.rpartition("/")[0] or source
        )
    refused(
        run("plan", str(tmp_path / "none"), str(tmp_path / "out"), "--model", "cocoa"), "'cocoa'", "'coco'"
    )


def test_strict_refuses_what_would_be_skipped(images: Path, tmp_path: Path) -> None:
    for command in ("plan", "segment"):
        result = run(command, str(images), str(tmp_path / "out"), "--model", "planted", "--strict")
        refused(result, "1 file would be (1 .json): 'instances.json'; move them, or leave out --strict")
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    (images / "instances.json").unlink()
    assert run("plan", str(images), str(tmp_path / "out"), "--model", "planted", "--strict").exit_code == 0


def test_the_outputs_of_runs_are_no_inputs(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither one's own, which lies among the inputs, nor another's."""
    ((own := images / "out") / "pictures").mkdir(parents=True)
    inside = run("plan", str(images), str(own), "--model", "planted")
    assert inside.exit_code == 0, inside.output
    shutil.copy(images / "planted-000000.png", own / "pictures" / "drawn.png")
    shutil.copy(images / "planted-000000.png", images / "out-of-doors.png")
    other = run("plan", str(images), str(tmp_path / "other"), "--model", "planted", "--json")
    assert json.loads(other.stdout)["images"] == 6
    assert "5 in out/, the output of a run" in caplog.text
    named = run("plan", str(own), str(tmp_path / "third"), "--model", "planted", "--json")
    assert json.loads(named.stdout)["images"] == 1, "its user named it"


def test_a_token_stands_nowhere(tmp_path: Path, images: Path) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text("a.png\n")
    out = tmp_path / "out"
    for query in ("?sig=hunter2", "#hunter2", "/folder?X-Amz-Signature=hunter2&x=1"):
        root = f"https://host{query}"
        options = ("--allow-http", "--model", "planted", "--images-root", root)
        result = run("plan", str(manifest), str(out), *options)
        refused(result, "--images-root", "https://host")
        assert "hunter2" not in result.output
        assert not out.exists() or Storage(str(out)).list() == []
        submitted = run(
            "submit", "--address", "http://127.0.0.1:9", "--", "plan", str(manifest), str(out), *options
        )
        refused(submitted, "https://host")
        assert "hunter2" not in submitted.output
    plain = run(
        "plan",
        str(manifest),
        str(out),
        "--allow-http",
        "--model",
        "planted",
        "--images-root",
        "https://host/f",
    )
    assert plain.exit_code == 0
    for arguments in (
        ("evaluate", str(out), "--truth", "https://host/annotations.json?sig=hunter2"),
        ("plan", str(images), str(tmp_path / "o"), "--model", "https://host/w.pth?sig=hunter2"),
        ("train", "https://host/annotations.json?sig=hunter2", str(tmp_path / "o"), "--model", "coco"),
        ("status", "https://host/run?sig=hunter2"),
        ("show", "https://host/a.png?sig=hunter2"),
        ("submit", "--address", "https://user:hunter2@host", "--", "status", "x"),
        ("submit", "--address", "https://host/?t=hunter2", "--", "status", "x"),
    ):
        result = run(*arguments)
        refused(result)
        assert "hunter2" not in result.output
    # As a version before this one recorded it.
    recorded = json.loads((out / "run.json").read_text())
    recorded["inputs"]["images_root"] = "https://host/f?sig=hunter2"
    (out / "run.json").write_text(json.dumps(recorded))
    begin(str(out))
    again = run(
        "plan", str(manifest), str(out), "--allow-http", "--model", "planted", "--images-root", "https://h/g"
    )
    refused(again, "images-root: planned https://host/f, now https://h/g")
    assert "hunter2" not in again.output


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


ON_A_RUN = {
    **{name: [] for name in ("status", "verify", "reduce", "retry", "gc", "show")},
    "export": ["to"],
    "evaluate": ["--truth", "ground_truth.json"],
    "diff": ["RUN"],
}


def on_a_run(command: str, folder: Path) -> Result:
    return run(command, *(str(folder) if word == "RUN" else word for word in ["RUN", *ON_A_RUN[command]]))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("command", ON_A_RUN)
def test_every_command_says_in_the_same_words_that_there_is_no_run(
    command: str, exists: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "none"
    if exists:
        folder.mkdir()
    advice = "name the directory of a run, or start one with `maskrcnn segment`"
    if command == "show" and not exists:  # which takes an image too
        advice = "does not exist; name an image, or the directory of a finished run"
    refused(on_a_run(command, folder), str(folder), advice)


def test_a_picture_in_a_table_is_named_by_its_uri_and_its_column_by_an_option(
    images: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in images.glob("*.png")}
    table, out = tmp_path / "t.parquet", str(tmp_path / "out")
    table.write_bytes(parquet(table_of(files, mask=list(files.values()))))
    refused(
        run("plan", str(table), out, "--model", "planted"), "'image', 'mask': name one with --image-column"
    )
    planned = run("plan", str(table), out, "--model", "planted", "--image-column", "mask", "--json")
    assert json.loads(planned.stdout)["images"] == 5
    refused(
        run("show", f"{table}!/image/5"),
        f"{table}!/image/5: the table has no row of this number",
        "(not_found)",
    )


@pytest.mark.parametrize("command", ON_A_RUN)
def test_every_command_says_in_the_same_words_that_a_run_is_not_finished(
    command: str, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert run("plan", str(images), str(folder), "--model", "planted").exit_code == 0
    result = on_a_run(command, folder)
    if command == "status":
        assert result.exit_code == 3
        assert "repeat its `maskrcnn segment` to continue" in result.output
        return
    assert result.exit_code == (3 if command in ("verify", "reduce", "gc") else 2)
    assert "continue it with `maskrcnn segment`" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("option", [["--device", "cuda"], ["--threads", "999"]])
@pytest.mark.parametrize("way", ["--no-ray", pytest.param("--ray", marks=pytest.mark.ray)])
def test_what_this_machine_does_not_have_is_refused(
    images: Path, tmp_path: Path, option: list[str], way: str
) -> None:
    command = ["segment", str(images), str(tmp_path / "out"), "--model", "planted", way, *option]
    refused(run(*command), "this machine")


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
    assert Storage(out).list() == ["manifest.parquet", "plan.json", "run.json", "skipped.parquet"]


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


@pytest.mark.slow
def test_a_command_without_standard_error_works(images: Path, tmp_path: Path) -> None:
    """As cron and daemons start one."""
    command = f"{sys.executable} -m maskrcnn_jobs segment {images} {tmp_path}/out --model planted --json 2>&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["images"] == 5

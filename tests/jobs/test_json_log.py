"""`--log-format json`: what a command writes to stderr is one JSON object per line; the last one has its exit code."""

import datetime
import io
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.commands.json_log import JsonFormatter, JsonStream
from maskrcnn_jobs.interruption import INTERRUPTED, logs_json
from planted_images import write_planted

JSON = ["--log-format", "json"]


def lines_of(text: str) -> list[dict[str, Any]]:
    """Parse each line; check what every line has."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert datetime.datetime.fromisoformat(line["time"]).utcoffset() == datetime.timedelta(0)
        assert line["level"] in ("INFO", "WARNING", "ERROR")
        assert isinstance(line["message"], str)
    return lines


def segment(folder: Path, model: str, *options: str) -> "subprocess.Popen[str]":
    command = ["segment", str(folder / "images"), str(folder / "out"), "--model", model, "--no-ray", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_jobs", *JSON, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_every_line_of_a_run_is_an_object_with_its_numbers_as_fields(tmp_path: Path) -> None:
    write_planted(tmp_path / "images", 4, seed=1)
    (tmp_path / "images" / "broken\x1b[31m.png").write_bytes(b"no image")
    process = segment(tmp_path, "planted", "--price", "3600/h")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 1, "one of five images failed"
    assert out.startswith("5 images: "), "the result stays as it is"
    lines = lines_of(said)
    [progress] = [line for line in lines if line.get("event") == "progress"]
    assert [progress[name] for name in ("done", "total", "failed")] == [5, 5, 1]
    assert progress["instances"] > 0
    assert {"images_per_s", "eta_s"} <= set(progress), "null where they cannot be said yet"
    end = lines[-1]
    assert (end["event"], end["exit_code"], end["output"]) == ("end", 1, str(tmp_path / "out"))
    success = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert end["counts"] == success["counts"]
    assert end["cost"] == pytest.approx(end["seconds"], abs=1e-3), "a unit of money per second"
    assert "more than --max-failure-rate" in lines[-2]["message"]
    assert lines[-2]["level"] == "ERROR"


@pytest.mark.slow
def test_every_line_of_an_interrupted_run_is_an_object(tmp_path: Path) -> None:
    write_planted(tmp_path / "images", 6, seed=1)
    process = segment(tmp_path, "planted:0.5", "--shard-images", "1")
    assert process.stderr is not None
    said = ""
    while "loading the model" not in said:
        said += (line := process.stderr.readline())
        assert line
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    lines = lines_of(said + rest)
    assert process.returncode == 3
    assert lines[-2]["message"] == INTERRUPTED
    assert (lines[-1]["event"], lines[-1]["exit_code"]) == ("end", 3)


WITHOUT_MODULES = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from maskrcnn_jobs.__main__ import main
sys.argv[1:] = ["--log-format=json", "status", "nowhere"]
main()
"""


@pytest.mark.slow
def test_a_command_that_ends_before_it_began_says_so_in_the_same_form() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MODULES], capture_output=True, text=True, check=False
    )
    said, end = lines_of(done.stderr)
    assert said["message"] == end["message"] == INTERRUPTED
    assert (end["event"], end["exit_code"], done.returncode) == ("end", 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*JSON, "status", "nowhere"], "nowhere"),
        (["--log-format=json", "-q", "status", "nowhere"], "nowhere"),
        ([*JSON, "segmnt"], "Did you mean 'segment'?"),
        ([*JSON, "--nonsense"], "no such option"),
        ([*JSON, "segment"], "missing argument 'INPUT'"),
        ([*JSON, "segment", "a", "b", "--max-hours", "0"], "--max-hours must be more than 0"),
    ],
)
def test_a_refusal_is_an_object_and_so_is_the_end(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    said, end = lines_of(result.stderr)
    assert (said["level"], result.exit_code) == ("ERROR", 2)
    assert message in said["message"]
    assert (end["event"], end["exit_code"]) == ("end", 2)


def test_neither_a_secret_nor_a_control_character_is_repeated() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    url = "https://user:hush@host/a.jpg?signature=hush"
    error = ValueError(f"cannot read {url} \x1b[31m\nbut")
    exception = (ValueError, error, None)
    message = "%s \x1b]0;title\x07\u202e"
    handler.emit(logging.LogRecord("maskrcnn", logging.WARNING, "", 0, message, (url,), exception))
    [line] = lines_of(stream.getvalue())
    assert line["message"] == r"https://…@host/a.jpg \x1b]0;title\x07\u202e"
    assert r"ValueError: cannot read https://…@host/a.jpg \x1b[31m" in line["exception"].splitlines()
    assert "hush" not in stream.getvalue()


@given(st.lists(st.text()), st.text())
def test_any_text_becomes_lines_of_ascii(pieces: list[str], last: str) -> None:
    """However it is cut into pieces; what has no line end yet is written at the end."""
    written = io.StringIO()
    stream = JsonStream(written)
    for piece in [*pieces, last]:
        assert stream.write(piece) == len(piece)
    stream.finish()
    assert written.getvalue().isascii()
    expected = [line for line in "".join([*pieces, last]).split("\n") if line.strip()]
    assert len(lines_of(written.getvalue())) == len(expected)


def test_the_format_is_known_from_the_options_before_the_command() -> None:
    assert logs_json(["-q", *JSON, "status"])
    assert logs_json(["--log-format", "text", "--log-format=json"]), "the last one counts, as for click"
    for others in ([], ["--log-format"], ["status", *JSON], ["--log-format", "text", "status"]):
        assert not logs_json(others)


def test_text_is_as_before() -> None:
    result = CliRunner().invoke(main, ["--log-format", "text", "status", "nowhere"])
    assert result.stderr == CliRunner().invoke(main, ["status", "nowhere"]).stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1

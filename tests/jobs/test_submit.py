"""`maskrcnn submit`: what it submits is a command line that `maskrcnn` would take; only then the cluster is asked."""

import itertools

import pytest
from click.testing import CliRunner, Result
from maskrcnn_jobs.cli import main

QUIET = ([], ["-q"], ["--quiet"])
FORMATS = ([], ["--log-format", "json"], ["--log-format=text"])
OPTIONS = [[*one, *other] for one, other in itertools.product(QUIET, FORMATS)]


def submit(*words: str) -> Result:
    """Submit to a port where nobody listens."""
    return CliRunner().invoke(main, ["submit", "--address", "http://127.0.0.1:9", *words])


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_options_of_the_program_stand_before_the_command(options: list[str]) -> None:
    for separator in ([], ["--"]):
        result = submit(*separator, *options, "segment", "photos", "out")
        assert result.exit_code == 3, result.output
        assert "cannot submit to http://127.0.0.1:9" in result.output, "it got as far as that"


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_command_that_does_not_exist_is_named_whatever_stands_before_it(options: list[str]) -> None:
    result = submit("--", *options, "segmnt", "photos", "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: maskrcnn has no command 'segmnt'; it has check-model, ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--log-format", "xml", "segment"], "invalid value for '--log-format': 'xml' is not one of"),
        (["--quite", "segment"], "no such option '--quite'"),
        (["-q"], "name a command after -q: check-model, "),
        (["-q", "--log-format"], "option '--log-format' requires an argument"),
        (["--log-format", "https://user:hush@host", "status"], "invalid value for '--log-format'"),
    ],
)
def test_what_maskrcnn_would_refuse_is_not_submitted(words: list[str], message: str) -> None:
    result = submit("--", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert "hush" not in result.output
    assert "main" not in result.stderr, "the program is called maskrcnn"

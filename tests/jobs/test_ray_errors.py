"""Ray's errors in one line: with the texts that Ray itself makes, and for any traceback."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.driver.ray_errors import advise, condense
from ray._private.utils import check_version_info
from ray.exceptions import ActorDiedError, RayTaskError

WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)
FRAMES = st.lists(
    st.tuples(WORDS, st.integers(1, 999), WORDS).map(
        lambda f: f'  File "{f[0]}.py", line {f[1]}, in {f[2]}\n    {f[2]}()\n    ^^^^'
    ),
    min_size=1,
    max_size=4,
)


@given(frames=FRAMES, before=WORDS, message=st.lists(WORDS, min_size=1, max_size=5))
def test_what_was_raised_last_in_a_traceback_is_kept_whole_and_alone(
    frames: list[str], before: str, message: list[str]
) -> None:
    remote = "\n".join(frames)
    text = (
        f"{before} died \x1b[36mray::F.__init__()\x1b[39m (pid=7)\n{remote}\nmodule.OddError: "
        + "\n  ".join(message)
    )
    assert condense(text) == f"OddError: {' '.join(message)}"


@given(st.text())
def test_any_text_becomes_one_line_that_loses_no_word_if_it_holds_no_traceback(text: str) -> None:
    line = condense(text)
    assert len(line.splitlines()) <= 1
    if "\x1b" not in text and "File" not in text and "Traceback" not in text and "Error" not in text:
        assert line.split() == text.split()


def test_other_versions_of_ray_and_python_are_named_whole_with_what_to_do() -> None:
    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.31.0", "python_version": "3.9.1"}, "this process")
    line = advise(condense(caught.value))
    assert "Ray: 2.31.0 Python: 3.9.1" in line
    assert line.count("Python: ") == 2
    assert line.endswith("What to do: install the cluster's versions of Ray and Python here")


def test_the_cause_of_a_failed_connection_takes_its_place() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at HOST:PORT")
    error.__cause__ = RuntimeError("RPC error: InvalidAuthToken: the token is missing.")
    line = advise(condense(error))
    assert line.startswith(
        "RPC error: InvalidAuthToken: the token is missing. What to do: set RAY_AUTH_MODE=token"
    )


def test_an_actor_that_could_not_be_imported_says_what_is_missing() -> None:
    cause = RayTaskError(
        "SegmentActor.__init__",
        "Traceback (most recent call last):\n"
        '  File "function_manager.py", line 640, in _load\n'
        "    actor_class = pickle.loads(pickled_class)\n"
        "ModuleNotFoundError: No module named 'maskrcnn_jobs'\n",
        ModuleNotFoundError("No module named 'maskrcnn_jobs'"),
    )
    assert condense(ActorDiedError(cause)) == "No module named 'maskrcnn_jobs'"

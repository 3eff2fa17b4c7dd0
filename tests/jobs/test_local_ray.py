"""A Ray for one command: where its files are, what it listens on, that it fails at once, and that nothing is left."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commandline import environment_without
from hypothesis import given
from hypothesis import strategies as st
from maskrcnn_jobs.driver import local_ray
from maskrcnn_jobs.driver.local_ray import MAX_SOCKET_PATH, choose_folder
from planted_images import write_planted

from maskrcnn.errors import UsageError

BIN = Path(sys.executable).parent
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def in_a_process(code: str, **environment: str) -> subprocess.Popen[str]:
    """Run Python with the module `local_ray`, in a process that has no settings of Ray but these."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from maskrcnn_jobs.driver import local_ray\n{code}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_without("RAY_") | environment,
    )


# Its files


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """A folder with a path so short that sockets of Ray may lie below."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        yield Path(folder)


@given(length=st.integers(1, 200))
def test_sockets_have_paths_that_are_allowed_wherever_temporary_files_are(
    length: int, short_folder: Path
) -> None:
    def longest(folder: Path) -> int:
        return len(os.fsencode(folder / local_ray._session_name() / "sockets" / "plasma_store"))

    with pytest.MonkeyPatch.context() as patch:
        wanted = short_folder / ("d" * length) / "ray"
        patch.setenv("RAY_TMPDIR", str(wanted.parent))
        folder = choose_folder()
        assert longest(folder) <= MAX_SOCKET_PATH
        assert (folder == wanted) == (longest(wanted) <= MAX_SOCKET_PATH)


def test_a_folder_that_cannot_be_written_to_is_replaced_and_named(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = short_folder / "file"
    file.touch()
    monkeypatch.setenv("RAY_TMPDIR", str(file))
    caplog.set_level("INFO", "maskrcnn")
    folder = choose_folder()
    assert file not in folder.parents
    assert f"Ray keeps its files in {folder}: {file}/ray: Not a directory" in caplog.text


def test_no_place_at_all_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "MAX_SOCKET_PATH", 40)
    with pytest.raises(UsageError, match=r"^Ray has no place for its files \(.*\): set RAY_TMPDIR to"):
        choose_folder()


# Its processes

LISTENING = """
import json, os, psutil, ray
with local_ray.local_ray(public={public}) as address:
    mode = os.environ["RAY_AUTH_MODE"]
    ray.init(address, log_to_driver=False)
    [node] = psutil.Process().children()
    processes = [node, *node.children(recursive=True)]
    names = [process.name() for process in processes]
    places = [
        place.laddr.ip
        for process in processes
        for place in process.net_connections("tcp")
        if place.status == psutil.CONN_LISTEN
    ]
    ray.shutdown()
left = [process.pid for process in processes if process.is_running()]
print(json.dumps([mode, names, places, left, os.environ.get("RAY_AUTH_MODE")]))
"""


@pytest.mark.ray
@pytest.mark.parametrize("public", [False, True])
def test_it_listens_on_loopback_alone_requires_a_token_and_leaves_no_process(
    public: bool, tmp_path: Path
) -> None:
    script = in_a_process(LISTENING.format(public=public), HOME=str(tmp_path))
    said, errors = script.communicate(timeout=200)
    assert script.returncode == 0, errors
    mode, names, places, left, afterwards = json.loads(said.splitlines()[-1])
    assert (mode, left, afterwards) == ("token", [], None)
    assert {"gcs_server", "raylet"} <= set(names)
    assert places
    assert {place for place in places if place not in LOOPBACK} == set()
    assert list(tmp_path.iterdir()) == []  # no token in the home directory


@pytest.mark.ray
@pytest.mark.parametrize(
    ("setting", "process", "log"),
    [
        ({"RAY_gcs_storage": "a storage that Ray does not know"}, "gcs_server", "gcs_server.out"),
        ({"RAY_memory_usage_threshold": "7"}, "raylet", "raylet.out"),
    ],
)
def test_a_process_that_ends_is_noticed_and_after_the_last_attempt_its_log_is_named(
    setting: dict[str, str], process: str, log: str, short_folder: Path
) -> None:
    """The time limits are an hour: only the end of the process can end the attempts."""
    code = (
        "import psutil\n"
        "from maskrcnn.errors import RunError\n"
        "local_ray.PATIENCE_S = (3600.0, 3600.0)\n"
        "try:\n    with local_ray.local_ray(): pass\n"
        "except RunError as error: print(error)\n"
        "print(len(psutil.Process().children(recursive=True)))"
    )
    script = in_a_process(code, RAY_TMPDIR=str(short_folder), **setting)
    said, errors = script.communicate(timeout=200)
    message, left = said.splitlines()
    assert message.startswith(
        f"Ray did not start on this machine in 2 attempts, the last time because its process {process} ended; "
    ), errors
    named = Path(message.rpartition(" ")[2])
    assert named.name == log
    assert named.is_file()
    assert left == "0"


@pytest.mark.ray
@pytest.mark.parametrize("moment", ["starting", "started"])
def test_it_ends_with_a_command_that_is_killed(moment: str) -> None:
    code = "with local_ray.local_ray() as address: print(address, flush=True); import time; time.sleep(600)"
    with in_a_process(code) as script:
        if moment == "started":
            script.stdout.readline()
        else:
            while not psutil.Process(script.pid).children(recursive=True):
                time.sleep(0.05)
        processes = psutil.Process(script.pid).children(recursive=True)
        script.send_signal(signal.SIGKILL)
    assert processes
    assert psutil.wait_procs(processes, timeout=60)[1] == []


@pytest.mark.ray
def test_what_the_working_directory_and_the_home_directory_hold_does_not_matter(tmp_path: Path) -> None:
    """Packages of the user's own with the names of those that actors import; no home; a long TMPDIR."""
    write_planted(tmp_path / "images", 4, seed=3)
    for name in ("maskrcnn", "maskrcnn_jobs", "jobs", "ray", "torch", "numpy"):
        package = tmp_path / "work" / name / "__init__.py"
        package.parent.mkdir(parents=True)
        package.write_text("raise SystemExit('imported from the working directory')")
    temporary = tmp_path / ("t" * 120)
    temporary.mkdir()
    done = subprocess.run(
        [BIN / "maskrcnn", "segment", "../images", "../run", "--model", "planted", "--ray", "--actors", "1"],
        cwd=tmp_path / "work",
        env=environment_without("RAY_") | {"HOME": "/nonexistent", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Ray keeps its files in" in done.stderr
    assert (tmp_path / "run" / "_SUCCESS").exists()

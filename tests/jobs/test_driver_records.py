"""A driver works as long as its process lives; of another machine's it is not known."""

import json
import subprocess
import sys
import time
from pathlib import Path

from driver_processes import ended_process, write_driver
from maskrcnn_jobs.driver.driver_records import read_drivers, record_driver, remove_ended

from maskrcnn.io.storage import Storage


def states(storage: Storage) -> dict[str, str]:
    return {driver.folder.removeprefix("probes/"): driver.state for driver in read_drivers(storage)}


def test_a_driver_works_as_long_as_its_process_lives(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    record_driver(storage, "probes/here", computing=True)
    before = json.loads(storage.read("probes/here/driver"))
    write_driver(storage, "killed", process=ended_process())
    # The system gives the number of a process that has ended to another one.
    write_driver(storage, "replaced", started=before["started"] - 60)
    write_driver(storage, "elsewhere", machine="another")
    storage.write("probes/older/driver", b"")  # as of a version that recorded nothing
    storage.write("probes/here/0123", b"no record")
    expected = {
        "here": "working",
        "killed": "ended",
        "replaced": "ended",
        "elsewhere": "unknown",
        "older": "unknown",
    }
    assert states(storage) == expected
    assert {driver.folder for driver in read_drivers(storage) if driver.computing} == {"probes/here"}
    remove_ended(storage, read_drivers(storage))
    assert states(storage) == {"here": "working"}
    assert storage.list("probes") == ["probes/here/0123", "probes/here/driver"]


def test_a_process_that_was_killed_and_not_waited_for_does_not_work(tmp_path: Path) -> None:
    script = (
        "import sys; from maskrcnn.io.storage import Storage; "
        "from maskrcnn_jobs.driver.driver_records import record_driver; "
        "record_driver(Storage(sys.argv[1]), 'probes/it'); sys.stdin.read()"
    )
    storage = Storage(tmp_path)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE) as process:
        while not storage.exists("probes/it/driver"):
            time.sleep(0.01)
        assert states(storage) == {"it": "working"}
        process.kill()
        while states(storage) == {"it": "working"}:
            time.sleep(0.01)
        assert process.returncode is None, "its parent has not asked for its end"

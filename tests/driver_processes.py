"""Records of drivers that were killed, or that work elsewhere."""

import json
import subprocess
import sys
from typing import Any

from maskrcnn_jobs.driver.driver_records import record_driver

from maskrcnn.io.storage import Storage


def ended_process() -> int:
    """Return the number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        return process.pid


def write_driver(storage: Storage, name: str, *, computing: bool = False, **changed: Any) -> None:
    """Write the record of this process with other values, as another process would have written it."""
    record_driver(storage, f"probes/{name}", computing=computing)
    record = json.loads(storage.read(f"probes/{name}/driver"))
    storage.write(f"probes/{name}/driver", json.dumps(record | changed).encode())

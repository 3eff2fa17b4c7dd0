"""What tests of crashes share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from chaos.crash import Stage

MEMORY: Final = Path("/dev/shm")


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """Collections, and undisturbed runs over them; in memory, where the system has a place for files there.

    What is killed are processes and not the machine: nothing here needs to reach a disk.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Stage(Path(folder))

"""The command line in a process of its own, and what it wrote."""

import os
import subprocess
import sys
from pathlib import Path

from local import LocalCluster


def maskrcnn_command(
    *arguments: str, cwd: Path | None = None, cluster: LocalCluster | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own.

    Args:
        arguments: the command and its arguments.
        cwd: working directory.
        cluster: the Ray that the command connects to, on its CPUs; None: one that it starts, if it needs any.
        environment: variables added to this process's own.
    """
    if cluster is not None:
        arguments += ("--address", cluster.address)
        # Where Ray is not started by the command itself, the device must be given.
        arguments += ("--device", "cpu") if arguments[0] in ("segment", "retry", "train") else ()
        environment |= cluster.environment
    return subprocess.run(
        [sys.executable, "-m", "maskrcnn_jobs", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        timeout=300,
        check=False,
    )


def environment_without(prefix: str) -> dict[str, str]:
    """Return this process's environment without the variables whose names start so."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefix)}


def parts(output: Path) -> dict[str, bytes]:
    """Return the bytes of the users' tables, by path."""
    files = [path for name in ("images", "instances") for path in sorted((output / name).iterdir())]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}

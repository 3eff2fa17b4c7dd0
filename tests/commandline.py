"""The command line in a process of its own, and what it wrote."""

import os
import subprocess
import sys
from pathlib import Path


def maskrcnn_command(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "maskrcnn_jobs", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        timeout=300,
        check=False,
    )


def parts(output: Path) -> dict[str, bytes]:
    """Return the bytes of the users' tables, by path."""
    files = [path for name in ("images", "instances") for path in sorted((output / name).iterdir())]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}
